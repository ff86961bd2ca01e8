"""The workshop's command: teachers, distil, compress, evaluate, release, approve, in that order."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""From masked chest radiographs to a released student. In this order:

1. `teachers`: three U-Nets over ImageNet encoders learn from people's masks.
2. `distil`: the student learns from people and from the teachers' ensemble, on every image, labelled or not
   (`--alone`: from people only; `gain` compares both with the same steps, seed by seed; `left-out` says what a source
   gets that training never saw).
3. `compress`: ONNX, 8-bit integers, parity, calibration, and a table of smaller forms.
4. `evaluate`: masks, faults, calibration, foreign pictures, speed: JSON and one HTML page.
5. `release`: refuses unless every gate of gates.toml holds; signed by who trained.
6. `approve`: looks again; signed by somebody else. Only then is the model served.

`keys` makes a signing key. Training is stopped and taken up again at will; run.json in the run's folder says what was
done (seeds, digests, commit, minutes), loss.svg how it went. On 2 quiet CPU cores a converged teacher takes
hours and a student one.""",
)
Data = Annotated[Path, typer.Option(help="Folder of the radiographs: index.csv, images/, masks/.")]
Work = Annotated[Path, typer.Option(help="Folder for checkpoints and caches; keep it out of the repository.")]
Minutes = Annotated[
    float | None, typer.Option(help="End the learning-rate schedule after this long, however many steps.")
]
DATA, WORK = Path("../shared/data/cxr"), Path("var/train")
TEACHERS = {"teacher1": ("lite0", 11), "teacher2": ("lite1", 12), "teacher3": ("lite0", 13)}
VERSION = "0.5.0"
console = Console()


@app.command()
def teachers(
    data: Data = DATA, work: Work = WORK, only: str = "", steps: int = 2500, minutes: Minutes = None, threads: int = 2
) -> None:
    """Train the teachers on human masks (two encoders with ImageNet weights, three seeds), or ONLY one of them; once
    all are there, write ensemble.onnx for `evaluate --beside`."""
    import torch

    from distillation.batches import LABELLED_MIX, Mixture
    from distillation.compress import export
    from distillation.ensemble import Ensemble
    from distillation.models import Teacher
    from distillation.train import Plan, fit, teacher_loss

    pool = _pool(data, work, ("train", "unlabelled"))
    for name, (encoder, seed) in TEACHERS.items():
        if only in ("", name):
            torch.manual_seed(seed)
            plan = Plan(name, steps, seed, rate=1.5e-3, minutes=minutes, threads=threads, gentle=0.3)
            mixture = Mixture(pool, LABELLED_MIX, seed, labelled_turns=False, gentle=plan.gentle)
            mixture.leave_out(pool.against_the_convention())
            fit(Teacher(encoder), teacher_loss, mixture, plan, work / name)
    trained, _ = _trained(work)
    if len(trained) == len(TEACHERS):
        export(Ensemble(trained), work / "ensemble.onnx")


@app.command()
def distil(
    data: Data = DATA,
    work: Work = WORK,
    run: Annotated[str, typer.Option(help="Name of the run's folder under WORK.")] = "student",
    seed: int = 1,
    steps: int = 12000,
    minutes: Minutes = None,
    rate: float = 2e-3,
    threads: int = 2,
    most: Annotated[int, typer.Option(help="Images of one source, at most, that get soft labels.")] = 1200,
    gentle: Annotated[float, typer.Option(help="Share of looks that are hardly changed.")] = 0.3,
    average: Annotated[float, typer.Option(help="Decay of the running average of the weights.")] = 0.99,
    alone: Annotated[bool, typer.Option(help="Without teachers: from human masks only.")] = False,
    start: Annotated[Path | None, typer.Option(help="Weights (average.pt) of an earlier run: begin there.")] = None,
    earlier: Annotated[Path | None, typer.Option(help="Weights of an earlier student that teaches too.")] = None,
    edges_alone: Annotated[
        bool, typer.Option(help="With --start and --alone: only where the lungs end is learnt.")
    ] = False,
) -> None:
    """Train the student on human masks and on the teachers' soft labels for every image, labelled or not."""
    import torch

    from distillation.batches import ONLY_PARTS, STUDENT_MIX, STUDENT_PARTS, Mixture
    from distillation.models import Student, earlier_student
    from distillation.train import Plan, fit, student_loss

    pool = _pool(data, work, ("train", "unlabelled"))
    taught = {} if alone else _teach(work, pool, most, earlier)
    torch.manual_seed(seed)
    student = Student() if start is None else earlier_student(start)
    plan = Plan(run, steps, seed, rate=rate, minutes=minutes, threads=threads, average=average, gentle=gentle)
    mix, parts = STUDENT_MIX, STUDENT_PARTS
    if edges_alone:
        mix, parts = {}, ONLY_PARTS
        student.train_edges_alone()
    mixture = Mixture(pool, mix, seed, gentle=gentle, parts=parts)
    mixture.leave_out(odd := pool.against_the_convention())
    fit(student, student_loss, mixture, plan, work / run)
    lineage = {
        "teachers": taught,
        "began_from": _digest(start) if start else None,
        "index": _digest(data / "index.csv"),
        "left_out": [pool.radiographs[row].id for row in odd],
        "images_a_step": sum(mix.values()) + sum(parts.values()),
        **_before(start, edges_alone),
    }
    _merge(work / run / "run.json", lineage)


@app.command()
def gain(
    data: Data = DATA,
    work: Work = WORK,
    steps: int = 1000,
    seeds: int = 3,
    threads: int = 2,
    most: Annotated[int, typer.Option(help="Images of one source, at most, that get soft labels.")] = 1200,
    teacher: Annotated[
        Path | None, typer.Option(help="Weights (average.pt) of an earlier student that teaches too.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the JSON.")] = None,
) -> None:
    """What distillation gains: students with and without soft labels, same batches, same steps, several seeds, on the
    validation images. Runs are taken up again where they were stopped."""
    import torch

    from distillation import gain as comparison
    from distillation.batches import STUDENT_MIX, Mixture
    from distillation.compress import export
    from distillation.models import Student
    from distillation.runtime import session
    from distillation.train import Plan, fit, student_loss

    pool = _pool(data, work, ("train", "unlabelled"))
    teachers = _teach(work, pool, most, teacher)
    rows = pool.taught
    found: dict[bool, list[comparison.Measured]] = {True: [], False: []}
    for seed in range(1, seeds + 1):
        for taught, measured in found.items():
            pool.taught = rows if taught else None
            mixture = Mixture(pool, STUDENT_MIX, seed, gentle=0.3)
            mixture.leave_out(pool.against_the_convention())
            torch.manual_seed(seed)
            folder = work / "gain" / f"{'taught' if taught else 'alone'}{seed}-{steps}"
            student = fit(Student(), student_loss, mixture, Plan(folder.name, steps, seed, threads=threads), folder)
            export(student, folder / "student.fp32.onnx")
            measured.append(comparison.measure(session(folder / "student.fp32.onnx"), data))
    table = comparison.table(found[True], found[False])
    report: dict[str, Any] = {"steps": steps, "seeds": seeds, "teachers": teachers, "rows": table}
    shown = Table("measure", "taught", "alone", "difference", "95 % over images", "by seed")
    for row in table:
        spread = f"{row['low']:+.4f} to {row['high']:+.4f}" if "low" in row else ""
        by_seed = " ".join(f"{value:+.4f}" for value in row["by_seed"])
        means = [f"{row[name]:.4f}" for name in ("taught", "alone")]
        shown.add_row(f"{row['source']} {row['measure']}", *means, f"{row['difference']:+.4f}", spread, by_seed)
    console.print(shown)
    if out is not None:
        _write(out, report)


@app.command()
def left_out(
    data: Data = DATA,
    work: Work = WORK,
    steps: int = 1000,
    seed: int = 1,
    splits: Annotated[str, typer.Option(help="Images of the left-out source to measure on.")] = "test",
    threads: int = 2,
    out: Annotated[Path | None, typer.Option(help="Where to write the JSON.")] = None,
) -> None:
    """What a source gets that training never saw: a student without it beside one with it, same steps, no teachers."""
    import torch

    from distillation import left_out as comparison
    from distillation.batches import STUDENT_MIX, Mixture
    from distillation.compress import export
    from distillation.models import Student
    from distillation.runtime import session
    from distillation.train import Plan, fit, student_loss

    pool = _pool(data, work, ("train", "unlabelled"))
    odd = pool.against_the_convention()

    def trained(without: str) -> Any:
        mix = dict(STUDENT_MIX)
        if without:
            mix[comparison.STANDS_IN[without]] += mix.pop(without)
        mixture = Mixture(pool, mix, seed, gentle=0.3)
        mixture.leave_out([*odd, *(pool.rows_of(without).tolist() if without else ())])
        torch.manual_seed(seed)
        folder = work / "left-out" / f"{without or 'none'}{seed}-{steps}"
        student = fit(Student(), student_loss, mixture, Plan(folder.name, steps, seed, threads=threads), folder)
        export(student, folder / "student.fp32.onnx")
        return session(folder / "student.fp32.onnx")

    whole, rows = trained(""), []
    for source in comparison.STANDS_IN:
        models = trained(source), whole
        rows.append(
            comparison.row(source, *(comparison.measure(one, data, source, splits.split(",")) for one in models))
        )
        console.print_json(data=rows[-1])
    if out is not None:
        _write(out, {"steps": steps, "seed": seed, "splits": splits, "rows": rows})


@app.command()
def compress(
    data: Data = DATA,
    work: Work = WORK,
    run: str = "student",
    images: int = 200,
    seed: int = 1,
    narrower: Annotated[str, typer.Option(help="Shares of the channels to prune, for the table.")] = "0.25,0.5",
    steps: Annotated[int, typer.Option(help="Training steps of each pruned student.")] = 300,
    threads: int = 2,
) -> None:
    """Export to ONNX, quantise, check parity, fit calibration.json on validation images, compare smaller forms."""
    import torch

    from distillation import calibrate
    from distillation.batches import STUDENT_MIX, Mixture
    from distillation.compress import calibration_grids, choose_exclusions, compare_forms, export, parity, quantise
    from distillation.models import Student
    from distillation.prune import pruned, settle
    from distillation.runtime import session
    from distillation.train import Plan, fit, student_loss

    train, val = _pool(data, work, ("train", "unlabelled")), _pool(data, work, ("val",))
    built = work / run / "built"
    built.mkdir(exist_ok=True)
    student = Student()
    student.load_state_dict(torch.load(work / run / "average.pt", weights_only=True))
    whole, small = built / "student.fp32.onnx", built / "student.int8.onnx"
    export(student, whole)
    grids = calibration_grids(train, images, seed)
    judged = val.grids[np.sort(np.random.default_rng(seed).choice(len(val.grids), 150, replace=False))]
    left_out, trials = choose_exclusions(whole, built, grids, judged)
    quantise(whole, small, grids, left_out)
    quantise(whole, built / "student.int7.onnx", grids, left_out, narrow=True)
    slim: dict[str, torch.nn.Module] = {}
    for share in map(float, filter(None, narrower.split(","))):
        few = settle(pruned(student, share), calibrate.balanced(train, 600, seed))
        slim[f"{share:.1%} of the channels pruned"] = copy.deepcopy(few)
        if steps:
            mixture = Mixture(train, STUDENT_MIX, seed, gentle=0.3)
            mixture.leave_out(train.against_the_convention())
            plan = Plan(f"pruned-{share}", steps, seed, rate=1e-3, threads=threads)
            slim[f"{share:.1%} pruned, {steps} steps on"] = fit(
                few, student_loss, mixture, plan, work / run / plan.name
            )
    forms = compare_forms(whole, built, grids, val, slim)
    fitted = calibrate.calibrate(session(small), val, train, seed)
    _write(built / "calibration.json", fitted, indent=None)
    found = parity(whole, small, val.grids)
    more = {"parity_int8_to_fp32": found, "calibration_images": images, "in_fp32": left_out, "trials": trials}
    _merge(work / run / "run.json", {**more, "smaller_forms": forms})
    for row in forms:
        console.print(row)
    console.print(found, {name: value for name, value in fitted.items() if name != "features"})


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option(help="A release, or a folder with the ONNX files and calibration.json.")],
    data: Data = DATA,
    splits: Annotated[str, typer.Option(help="Comma-separated; the test splits are for final reports only.")] = "val",
    objects: Annotated[Path | None, typer.Option(help="DICOM objects of other body parts, for not_a_chest.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the JSON report.")] = None,
    page: Annotated[
        Path | None, typer.Option(help="Where to write the HTML page; it shows images of DATA, so keep it private.")
    ] = None,
    beside: Annotated[
        Path | None, typer.Option(help="Another model's folder, or ensemble.onnx: what lies between.")
    ] = None,
) -> None:
    """Measure the served file: masks against people (beside fp32), turned and foreign pictures, confidence, speed."""
    from distillation import evaluate as measure
    from distillation import gates
    from distillation.page import pictures, render

    chosen = tuple(splits.split(","))
    with console.status(f"measuring on {splits}"):
        report = measure.report(model, data, chosen, objects, beside)
    table = Table("images", "structure", "n", "mean", "95 % interval", "5th percentile", "fp32")
    for group, rows in report["served"]["masks"].items():
        for name, v in rows.items():
            fp32 = f"{report['reference']['masks'][group][name]['mean']:.4f}"
            mean, spread = f"{v['mean']:.4f}", f"{v['low']:.4f} to {v['high']:.4f}"
            table.add_row(group, name, str(v["n"]), mean, spread, f"{v['p5']:.4f}", fp32)
    console.print(table)
    shown = ("selective", "flags", "not_a_chest", "speed")
    console.print_json(data={name: report["served"][name] for name in shown})
    if beside is not None:
        console.print_json(data=report["beside"])
    if out is not None:
        _write(out, report)
    if page is not None:
        outcomes = gates.hold(gates.read(), report)
        page.write_text(render(report, outcomes, pictures(model, data, chosen)), encoding="utf-8")


Key = Annotated[Path, typer.Option(help="Ed25519 private key, PEM (see `keys`).")]


@app.command()
def release(
    work: Work = WORK,
    run: str = "student",
    trained_by: Key = Path("var/trained_by.pem"),
    version: str = VERSION,
    folder: Annotated[Path, typer.Option(help="Where the releases lie.")] = Path("models/chest-student"),
) -> None:
    """Write models/chest-student/VERSION from a compressed run that was evaluated on the test splits (its `built`
    folder holds evaluation.json), if every gate holds; exit status 3 and nothing written if one does not."""
    from distillation import release as shipping

    record = json.loads((work / run / "run.json").read_text(encoding="utf-8"))
    record.pop("loss_per_100_steps", None)
    record["run"] = f"{run}-{_digest(work / run / 'average.pt')[:16]}"
    try:
        manifest = shipping.release(work / run / "built", folder / version, version, record, _key(trained_by))
    except shipping.Refused as refused:
        raise _refusal(refused) from None
    _show_gates(manifest["gates"]["outcomes"])
    console.print_json(data=manifest["files"])


@app.command()
def approve(
    release: Annotated[Path, typer.Argument(help="Folder of the release.")],
    approved_by: Key = Path("var/approved_by.pem"),
) -> None:
    """Look again at files and gates, and sign as the second person; the registry serves the release from then on."""
    from distillation import release as shipping

    try:
        shipping.approve(release, _key(approved_by))
    except shipping.Refused as refused:
        raise _refusal(refused) from None


@app.command()
def keys(path: Annotated[Path, typer.Argument(help="Where to write the private key; it must not exist.")]) -> None:
    """Make an Ed25519 key for one of the two roles, and print its public half for `inference.model_signers`."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from shared.model_signatures import public

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    console.print(public(key))


def _key(path: Path) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        raise typer.BadParameter("no private key there that reads: make one with `keys`") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise typer.BadParameter("the key is not Ed25519")
    return key


def _refusal(refused: Any) -> typer.Exit:
    from distillation.gates import as_rows

    _show_gates(as_rows(refused.outcomes))
    console.print(f"refused: {refused}", style="red", soft_wrap=True)
    return typer.Exit(3)


def _show_gates(rows: list[dict[str, Any]]) -> None:
    table = Table("gate", "reached", "bar", "holds", "target")
    for one in rows:
        value = "not measured" if one["value"] is None else f"{one['value']:g}"
        bar = f"{'at least' if one['least'] else 'at most'} {one['bar']:g}"
        target = f"{one['target']:g}" + ("" if one["on_target"] else " missed")
        table.add_row(one["name"], value, bar, "yes" if one["held"] else "NO", target)
    if rows:
        console.print(table)


def _pool(data: Path, work: Path, splits: tuple[str, ...]) -> Any:
    from distillation.data import load_pool

    with console.status(f"reading {', '.join(splits)}") as status:
        return load_pool(data, work / "cache", splits, partial(_show, status, "reading"))


def _trained(work: Path) -> tuple[list[Any], dict[str, str]]:
    """The teachers that are trained under `work`, and their digests."""
    import torch

    from distillation.models import Teacher, channels_last

    found, digests = [], {}
    for name, (encoder, _) in TEACHERS.items():
        weights = work / name / "average.pt"
        if weights.exists():
            teacher = Teacher(encoder, pretrained=False)
            teacher.load_state_dict(torch.load(weights, weights_only=True))
            found.append(channels_last(teacher).eval())
            digests[name] = _digest(weights)
    return found, digests


def _teach(work: Path, pool: Any, most: int, student: Path | None) -> dict[str, str]:
    """Gives the pool the soft labels of all teachers trained under `work` and of an earlier student, if there is one;
    returns their digests."""
    from distillation.ensemble import soft_labels, worth_teaching
    from distillation.models import channels_last, earlier_student

    ensemble, digests = _trained(work)
    if not ensemble and student is None:
        raise typer.BadParameter("no teacher is trained here: run `teachers` first, or say --alone")
    if student is not None:
        ensemble.append(channels_last(earlier_student(student)).eval())
        digests["an earlier student"] = _digest(student)
    rows = worth_teaching([item.source for item in pool.radiographs], most)
    key = hashlib.sha256(json.dumps([digests, rows.tolist()]).encode()).hexdigest()[:16]
    with console.status("soft labels") as status:
        show = partial(_show, status, "soft labels")
        pool.soft = soft_labels(ensemble, pool.grids, rows, work / f"soft-{key}.npy", show)
    pool.taught = np.isin(np.arange(len(pool.grids)), rows)
    return digests


def _before(start: Path | None, edges_alone: bool) -> dict[str, Any]:
    """What the run that a student began from was, where it says so."""
    if start is None or not (start.parent / "run.json").exists():
        return {}
    run = json.loads((start.parent / "run.json").read_text(encoding="utf-8"))
    kept = ("plan", "steps_done", "seconds", "images_a_step", "teachers", "before", "edges_alone")
    return {"before": {key: run[key] for key in kept if key in run}, "edges_alone": edges_alone}


def _show(status: Any, what: str, done: int, of: int) -> None:
    status.update(f"{what} {done} of {of}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(path: Path, content: Any, indent: int | None = 1) -> None:
    path.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def _merge(path: Path, more: dict[str, Any]) -> None:
    _write(path, {**json.loads(path.read_text(encoding="utf-8")), **more})


if __name__ == "__main__":
    app()
