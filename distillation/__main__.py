"""The workshop's command: teachers, distil, compress, evaluate, release, in that order."""

from __future__ import annotations

import hashlib
import json
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
    help="From masked chest radiographs to a released student: `teachers` learn from people, `distil` teaches the "
    "student what people and teachers know, `compress` exports it to ONNX and 8-bit integers and calibrates it, "
    "`evaluate` measures it, `release` writes models/<name>/<version>. Every step can be stopped and taken up again.",
)
Data = Annotated[Path, typer.Option(help="Folder of the radiographs: index.csv, images/, masks/.")]
Work = Annotated[Path, typer.Option(help="Folder for checkpoints and caches; keep it out of the repository.")]
Minutes = Annotated[
    float | None, typer.Option(help="End the learning-rate schedule after this long, however many steps.")
]
DATA, WORK = Path("../shared/data/cxr"), Path("var/train")
TEACHERS = {"teacher1": ("lite0", 11), "teacher2": ("lite1", 12)}
VERSION = "0.1.0"
console = Console()


@app.command()
def teachers(
    data: Data = DATA, work: Work = WORK, only: str = "", steps: int = 2500, minutes: Minutes = None, threads: int = 2
) -> None:
    """Train the teachers on human masks (two encoders with ImageNet weights), or ONLY one of them."""
    import torch

    from distillation.batches import LABELLED_MIX, Mixture
    from distillation.models import Teacher
    from distillation.train import Plan, fit, teacher_loss

    pool = _pool(data, work, ("train", "unlabelled"))
    for name, (encoder, seed) in TEACHERS.items():
        if only in ("", name):
            torch.manual_seed(seed)
            plan = Plan(name, steps, seed, rate=1.5e-3, minutes=minutes, threads=threads)
            fit(
                Teacher(encoder),
                teacher_loss,
                Mixture(pool, LABELLED_MIX, seed, labelled_turns=False),
                plan,
                work / name,
            )


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
    alone: Annotated[bool, typer.Option(help="Without teachers: from human masks only.")] = False,
    start: Annotated[
        Path | None, typer.Option(help="Weights (average.pt) of an earlier run: begin there, and teach with it.")
    ] = None,
) -> None:
    """Train the student on human masks and on the teachers' soft labels for every image, labelled or not."""
    import torch

    from distillation.batches import STUDENT_MIX, Mixture
    from distillation.models import Student
    from distillation.train import Plan, fit, student_loss

    pool = _pool(data, work, ("train", "unlabelled"))
    taught = {} if alone else _teach(work, pool, most, start)
    torch.manual_seed(seed)
    student = Student()
    if start is not None:
        student.load_state_dict(torch.load(start, weights_only=True))
    plan = Plan(run, steps, seed, rate=rate, minutes=minutes, threads=threads)
    fit(student, student_loss, Mixture(pool, STUDENT_MIX, seed), plan, work / run)
    lineage = {"teachers": taught, "began_from": _digest(start) if start else None}
    _merge(work / run / "run.json", lineage)


@app.command()
def compress(data: Data = DATA, work: Work = WORK, run: str = "student", images: int = 200, seed: int = 1) -> None:
    """Export to ONNX, quantise, check parity, fit calibration.json on validation images."""
    import torch

    from distillation import calibrate
    from distillation.compress import calibration_grids, export, parity, quantise
    from distillation.models import Student
    from distillation.runtime import session

    train, val = _pool(data, work, ("train", "unlabelled")), _pool(data, work, ("val",))
    built = work / run / "built"
    built.mkdir(exist_ok=True)
    student = Student()
    student.load_state_dict(torch.load(work / run / "average.pt", weights_only=True))
    whole, small = built / "student.fp32.onnx", built / "student.int8.onnx"
    export(student, whole)
    quantise(whole, small, calibration_grids(train, images, seed))
    fitted = calibrate.calibrate(session(small), val, train, seed)
    _write(built / "calibration.json", fitted, indent=None)
    found = parity(whole, small, val.grids)
    _merge(work / run / "run.json", {"parity_int8_to_fp32": found, "calibration_images": images})
    console.print(found, {name: value for name, value in fitted.items() if name != "features"})


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option(help="A release, or a folder with the ONNX files and calibration.json.")],
    data: Data = DATA,
    splits: Annotated[str, typer.Option(help="Comma-separated; the test splits are for final reports only.")] = "val",
    objects: Annotated[Path | None, typer.Option(help="DICOM objects of other body parts, for not_a_chest.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the JSON report.")] = None,
) -> None:
    """Measure the served file: masks against people (beside fp32), turned and foreign pictures, confidence, speed."""
    from distillation import evaluate as measure

    with console.status(f"measuring on {splits}"):
        report = measure.report(model, data, tuple(splits.split(",")), objects)
    table = Table("images", "structure", "n", "mean", "95 % interval", "5th percentile", "fp32")
    for group, rows in report["served"]["masks"].items():
        for name, v in rows.items():
            fp32 = f"{report['reference']['masks'][group][name]['mean']:.4f}"
            mean, spread = f"{v['mean']:.4f}", f"{v['low']:.4f} to {v['high']:.4f}"
            table.add_row(group, name, str(v["n"]), mean, spread, f"{v['p5']:.4f}", fp32)
    console.print(table)
    shown = ("selective", "flags", "not_a_chest", "speed")
    console.print_json(data={name: report["served"][name] for name in shown})
    if out is not None:
        _write(out, report)


@app.command()
def release(
    work: Work = WORK,
    run: str = "student",
    version: str = VERSION,
    folder: Annotated[Path, typer.Option(help="Where the releases lie.")] = Path("models/chest-student"),
) -> None:
    """Write models/chest-student/VERSION from a compressed, evaluated run: files, golden tensors, cards, manifest."""
    from distillation import release as shipping

    record = json.loads((work / run / "run.json").read_text(encoding="utf-8"))
    record.pop("loss_per_100_steps", None)
    record["run"] = f"{run}-{_digest(work / run / 'average.pt')[:16]}"
    manifest = shipping.release(work / run / "built", folder / version, version, record)
    console.print_json(data=manifest["files"])


def _pool(data: Path, work: Path, splits: tuple[str, ...]) -> Any:
    from distillation.data import load_pool

    with console.status(f"reading {', '.join(splits)}") as status:
        return load_pool(data, work / "cache", splits, partial(_show, status, "reading"))


def _teach(work: Path, pool: Any, most: int, student: Path | None) -> dict[str, str]:
    """Gives the pool the soft labels of all teachers trained under `work` and of an earlier student, if there is one;
    returns their digests."""
    import torch

    from distillation.ensemble import soft_labels, worth_teaching
    from distillation.models import Student, Teacher, channels_last

    names = [name for name in TEACHERS if (work / name / "average.pt").exists()]
    if not names:
        raise typer.BadParameter("no teacher is trained here: run `teachers` first, or say --alone")
    ensemble: list[torch.nn.Module] = []
    for name in names:
        teacher = Teacher(TEACHERS[name][0], pretrained=False)
        teacher.load_state_dict(torch.load(work / name / "average.pt", weights_only=True))
        ensemble.append(channels_last(teacher).eval())
    digests = {name: _digest(work / name / "average.pt") for name in names}
    if student is not None:
        earlier = Student()
        earlier.load_state_dict(torch.load(student, weights_only=True))
        ensemble.append(channels_last(earlier).eval())
        digests["an earlier student"] = _digest(student)
    rows = worth_teaching([item.source for item in pool.radiographs], most)
    key = hashlib.sha256(json.dumps([digests, rows.tolist()]).encode()).hexdigest()[:16]
    with console.status("soft labels") as status:
        show = partial(_show, status, "soft labels")
        pool.soft = soft_labels(ensemble, pool.grids, rows, work / f"soft-{key}.npy", show)
    pool.taught = np.isin(np.arange(len(pool.grids)), rows)
    return digests


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
