"""Gates can fail: each of them refuses a release, as do a stranger's signature and a badly quantised model."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distillation import gates, release
from services.inference import registry
from shared.errors import StepwedgeError
from shared.model_signatures import SIGNATURES, public
from shared.paths import MODEL
from tests.shared_material import SHARED, needs_shared

RUN = {"plan": {"seed": 1}, "steps_done": 10, "seconds": 60.0}
TRAINER, APPROVER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


def _set(content: dict, path: tuple[str, ...], value: float | None) -> None:
    for key in path[:-1]:
        content = content.setdefault(key, {})
    content[path[-1]] = value


def _worse(gate: gates.Gate) -> float:
    return gate.bar - 0.001 if gate.least else gate.bar + 0.001


def _row(mean: float) -> dict:
    return {"n": 3, "mean": mean, "low": mean, "high": mean, "median": mean, "p5": mean}


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """The shipped files with an evaluation that reaches every bar exactly."""
    folder = tmp_path / "built"
    folder.mkdir()
    for name in (release.SERVED, release.SERVED_WITHOUT_VNNI, "calibration.json"):
        shutil.copyfile(MODEL / name, folder / name)
    speed = dict.fromkeys(("best_ms", "p50_ms", "p99_ms", "cpu_seconds_an_image", "joules_an_image_modelled"), 1.0)
    served: dict = {
        "sha256": release.digest(folder / release.SERVED),
        "splits": ["test"],
        "masks": {},
        "labels_of_the_convention": {},
        "calibration": {},
        "faults": {"dead lines": [{"severity": s, "dice_lost": 0.0} for s in (1, 2, 3, 4, 5)]},
        "subgroups": {},
        "flags": {},
        "edges": {},
        "not_a_chest": {"distance_false_alarms": 0.0},
        "selective": {},
        "speed": speed | {"vnni": True, "load": 1.0, "cores": 2},
    }
    evaluation: dict = {"most_of_a_group": None, "calibration_sha256": release.digest(folder / "calibration.json")}
    evaluation |= {"served": served, "summary": {}, "beside": {"differences": {}}}
    for gate in gates.read():
        place = gate.path[:-1] if gate.path[-1] == "mean" else gate.path
        _set(evaluation, place, _row(gate.bar) if gate.path[-1] == "mean" else gate.bar)
    served["bytes"] = (folder / release.SERVED).stat().st_size
    reference = {key: copy.deepcopy(served[key]) for key in ("masks", "labels_of_the_convention")}
    evaluation["reference"] = reference | {"sha256": release.digest(folder / release.SERVED_WITHOUT_VNNI)}
    _write(folder, evaluation)
    return folder


def _write(folder: Path, evaluation: dict) -> None:
    (folder / "evaluation.json").write_text(json.dumps(evaluation))


def _evaluation(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def test_a_model_that_reaches_every_bar_is_released_approved_and_served(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "9.9.9"
    manifest = release.release(built, folder, "9.9.9", RUN, TRAINER)
    trusted = {"trained_by": [public(TRAINER)], "approved_by": [public(APPROVER)]}
    with pytest.raises(StepwedgeError, match="both roles"):  # nobody has approved it
        registry.load(folder, signers=trusted)
    release.approve(folder, APPROVER)
    assert registry.load(folder, signers=trusted).version == "9.9.9"
    assert len(manifest["gates"]["outcomes"]) == len(gates.read())
    assert manifest["gates"]["sha256"] == hashlib.sha256(gates.GATES.read_bytes()).hexdigest()
    card = (folder / "MODEL_CARD.md").read_text()
    for gate in gates.read():
        assert gate.name in card
    assert "Targets missed" in card
    (millions,) = re.findall(r"([0-9.]+) M parameters", card)
    assert 4e6 * float(millions) == pytest.approx((folder / release.SERVED_WITHOUT_VNNI).stat().st_size, rel=0.03)


def _with_seven_bits(built: Path, lost: float) -> None:
    """A third form beside the two; a copy of the second stands for it."""
    shutil.copyfile(MODEL / release.SERVED_WITHOUT_VNNI, built / release.NARROW)
    narrow = {"sha256": release.digest(built / release.NARROW), "dice_lost": lost}
    _write(built, _evaluation(built) | {"narrow": narrow})


def test_a_form_of_seven_bits_is_released_beside_the_others(built: Path, tmp_path: Path) -> None:
    _with_seven_bits(built, 0.0005)
    folder = tmp_path / "9.9.9"
    manifest = release.release(built, folder, "9.9.9", RUN, TRAINER)
    release.approve(folder, APPROVER)
    assert (manifest["served_without_vnni"], manifest["whole"]) == (release.NARROW, release.SERVED_WITHOUT_VNNI)
    trusted = {"trained_by": [public(TRAINER)], "approved_by": [public(APPROVER)]}
    for whole in (False, True):
        assert registry.load(folder, signers=trusted, whole=whole).self_test in ("exact", "decisions")


def test_a_form_of_seven_bits_that_loses_too_much_or_was_not_measured_is_refused(built: Path) -> None:
    _with_seven_bits(built, 0.01)
    with pytest.raises(release.Refused, match=r"student\.int7\.onnx loses more"):
        release.admitted(built)
    evaluation = _evaluation(built)
    del evaluation["narrow"]
    _write(built, evaluation)
    with pytest.raises(release.Refused, match="other files"):
        release.admitted(built)


@pytest.mark.parametrize("gate", gates.read(), ids=lambda gate: gate.name)
def test_a_model_that_misses_one_bar_is_refused_and_nothing_is_written(built: Path, tmp_path: Path, gate: gates.Gate):
    evaluation = _evaluation(built)
    _set(evaluation, gate.path, _worse(gate))
    _write(built, evaluation)
    with pytest.raises(release.Refused) as refused:
        release.release(built, tmp_path / "out", "9.9.9", RUN, TRAINER)
    if gate.path[-1] != "bytes":  # a size that is not the file's is found out before any gate
        assert [one.name for one in refused.value.outcomes if not one.held] == [gate.name]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [None, math.nan, "0.99", True, {}])
def test_what_was_not_measured_does_not_hold(built: Path, value: object) -> None:
    gate = gates.read()[0]
    evaluation = _evaluation(built)
    _set(evaluation, gate.path, value)  # type: ignore[arg-type]
    assert not gates.hold([gate], evaluation)[0].held


@pytest.mark.parametrize("name", [release.SERVED, release.SERVED_WITHOUT_VNNI, "calibration.json"])
def test_a_file_changed_after_the_evaluation_is_refused(built: Path, tmp_path: Path, name: str) -> None:
    data = bytearray((built / name).read_bytes())
    data[len(data) // 2] ^= 1
    (built / name).write_bytes(data)
    with pytest.raises(release.Refused, match="other files"):
        release.release(built, tmp_path / "out", "9.9.9", RUN, TRAINER)


def test_a_quick_look_at_a_few_images_releases_nothing(built: Path) -> None:
    _write(built, _evaluation(built) | {"most_of_a_group": 6})
    with pytest.raises(release.Refused, match="quick look"):
        release.admitted(built)


def test_no_evaluation_no_release(built: Path) -> None:
    (built / "evaluation.json").unlink()
    with pytest.raises(release.Refused, match="not evaluated"):
        release.admitted(built)


def test_who_trained_cannot_approve(built: Path, tmp_path: Path) -> None:
    release.release(built, tmp_path / "out", "9.9.9", RUN, TRAINER)
    with pytest.raises(release.Refused, match="one key"):
        release.approve(tmp_path / "out", TRAINER)


def test_what_was_changed_after_the_release_is_not_approved(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    release.release(built, folder, "9.9.9", RUN, TRAINER)
    card = (folder / "MODEL_CARD.md").read_text()
    (folder / "MODEL_CARD.md").write_text(card.replace("missed", "reached"))
    with pytest.raises(release.Refused, match=r"MODEL_CARD\.md"):
        release.approve(folder, APPROVER)
    assert len(json.loads((folder / SIGNATURES).read_text())["signatures"]) == 1


def test_the_approver_holds_the_gates_by_their_own_copy(built: Path, tmp_path: Path) -> None:
    lenient = tmp_path / "gates.toml"
    lenient.write_text('[[gate]]\nname = "anything"\nvalue = ["served", "bytes"]\nat_least = 1\n')
    gate = gates.read()[0]
    evaluation = _evaluation(built)
    _set(evaluation, gate.path, _worse(gate))
    _write(built, evaluation)
    release.release(built, tmp_path / "out", "9.9.9", RUN, TRAINER, lenient)
    with pytest.raises(release.Refused, match="do not hold"):
        release.approve(tmp_path / "out", APPROVER)


@pytest.mark.parametrize(
    "row",
    [
        'value = ["a"]',
        "value = []\nat_least = 1",
        'value = ["a"]\nat_least = nan',
        'value = ["a"]\nat_least = 1\nat_most = 2',
    ],
)
def test_a_gate_that_cannot_fail_does_not_read(tmp_path: Path, row: str) -> None:
    (tmp_path / "gates.toml").write_text(f'[[gate]]\nname = "x"\n{row}\n')
    with pytest.raises((ValueError, KeyError)):
        gates.read(tmp_path / "gates.toml")


def test_no_bar_is_beyond_its_target(built: Path) -> None:
    for gate in gates.read():
        assert gate.bar <= gate.target if gate.least else gate.bar >= gate.target, gate.name


@needs_shared
@pytest.mark.timeout(240)
def test_a_model_quantised_a_tensor_on_four_noise_images_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs onnx: pip install -e '.[train]'")
    from distillation import evaluate, page
    from distillation.compress import quantise

    assert SHARED is not None
    for name in (release.SERVED_WITHOUT_VNNI, "calibration.json"):
        shutil.copyfile(MODEL / name, tmp_path / name)
    noise = np.random.default_rng(1).integers(0, 256, (4, 256, 256)).astype(np.uint8)
    quantise(tmp_path / release.SERVED_WITHOUT_VNNI, tmp_path / release.SERVED, noise, per_channel=False)
    lost = {}
    for folder in (MODEL, tmp_path):
        report = evaluate.report(folder, SHARED / "data" / "cxr", ("val",), None, most=12)
        lost[folder] = report["summary"]["dice_lost_by_8_bits"]
        _write(tmp_path, report | {"most_of_a_group": None})
    shown = page.render(report, gates.hold(gates.read(), report), [("a <caption>", b"png")])
    assert "not held" in shown
    assert "a &lt;caption&gt;" in shown
    assert not re.search(r'(src|href)="(?!data:)', shown), "the page stands alone"
    (gate,) = (one for one in gates.read() if one.path == ("summary", "dice_lost_by_8_bits"))
    assert lost[MODEL] <= gate.bar < lost[tmp_path]
    with pytest.raises(release.Refused, match=gate.name):
        release.release(tmp_path, tmp_path / "out", "9.9.9", RUN, TRAINER)


@needs_shared
@pytest.mark.training
@pytest.mark.timeout(240)
def test_a_model_trained_without_augmentation_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch: pip install -e '.[train]'")
    from distillation import evaluate
    from distillation.batches import Mixture
    from distillation.compress import calibration_grids, export, quantise
    from distillation.models import Student
    from distillation.train import Plan, fit, student_loss
    from tests.unit.distillation.test_training import drawn_pool

    assert SHARED is not None
    pool, _ = drawn_pool(24, 1)
    torch.manual_seed(5)
    plain = Mixture(pool, {"drawn": 4}, 5, labelled_turns=False, gentle=1.0)
    model = fit(Student(), student_loss, plain, Plan("plain", 60, seed=5, rate=3e-3, gentle=1.0), tmp_path / "run")
    export(model, tmp_path / release.SERVED_WITHOUT_VNNI)
    quantise(tmp_path / release.SERVED_WITHOUT_VNNI, tmp_path / release.SERVED, calibration_grids(pool, 24, 1))
    shutil.copyfile(MODEL / "calibration.json", tmp_path / "calibration.json")
    report = evaluate.report(tmp_path, SHARED / "data" / "cxr", ("val",), None, most=6)
    _write(tmp_path, report | {"most_of_a_group": None})
    with pytest.raises(release.Refused) as refused:
        release.release(tmp_path, tmp_path / "out", "9.9.9", RUN, TRAINER)
    failed = {one.name for one in refused.value.outcomes if not one.held and one.value is not None}
    assert "turned or inverted images found, worst" in failed
