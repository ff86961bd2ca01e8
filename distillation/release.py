"""Writes what is served, once every gate holds: files, digests, cards, signatures; and checks them again."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from distillation import cards, gates, not_a_chest, procedural
from distillation.data import CHANNELS, FLAGS
from distillation.runtime import answer, session
from services.inference.preprocessing import GRID, PREPROCESSING_VERSION
from services.inference.registry import EDGE_FLAGS, instructions
from shared.model_signatures import SIGNATURES, lacking, sign, signature

NAME = "chest-student"
SERVED = "student.int8.onnx"
SERVED_WITHOUT_VNNI = "student.fp32.onnx"
"""The form in fp32: for devices, for the second rung of the ladder, and for processors without VNNI where there is no
`NARROW`."""
NARROW = "student.int7.onnx"
"""Weights of 7 bits, whose sums do not saturate on processors without VNNI; a release need not have it."""
FILES = (
    SERVED,
    SERVED_WITHOUT_VNNI,
    "calibration.json",
    "golden.npz",
    "golden.fp32.npz",
    "evaluation.json",
    "MODEL_CARD.md",
    "DATA_CARD.md",
)
WITH_NARROW = (*FILES, NARROW, "golden.int7.npz")
GOLDEN_SEED = 20


def golden_grids() -> NDArray[np.uint8]:
    """Inputs that show no person: four chests drawn by formula and two pictures that are no chests."""
    rng = np.random.default_rng(GOLDEN_SEED)
    chests = [procedural.chest(rng)[0] for _ in range(4)]
    return np.stack([*chests, *(not_a_chest.TRAINED[name](rng) for name in ("clouds", "shapes"))])


def write_golden(model: Path, path: Path) -> None:
    """grids uint8 [6, 256, 256] and what the model answers to each alone: logits, flags, features."""
    grids = golden_grids()
    found = answer(session(model), grids, batch=1)
    np.savez_compressed(path, grids=grids, logits=found.logits, flags=found.flags, features=found.features)


class Refused(Exception):  # noqa: N818 - what happened to the release
    """A model that does not pass; `outcomes` of all gates, where they were held at all."""

    def __init__(self, words: str, outcomes: Sequence[gates.Outcome] = ()) -> None:
        super().__init__(words)
        self.outcomes = outcomes


def admitted(built: Path, rules: Path = gates.GATES) -> list[gates.Outcome]:
    """The outcomes of all gates for the model in `built`; raises Refused where one does not hold, or where the
    evaluation is not of these very files and of the splits kept for the final report."""
    try:
        evaluation = json.loads((built / "evaluation.json").read_text(encoding="utf-8"))
        if evaluation["most_of_a_group"] is not None:
            raise Refused("the evaluation is a quick look at a few images")
        said = (
            evaluation["served"]["sha256"],
            evaluation["reference"]["sha256"],
            evaluation["calibration_sha256"],
            evaluation["served"]["bytes"],
        )
        found = (
            *(digest(built / name) for name in (SERVED, SERVED_WITHOUT_VNNI, "calibration.json")),
            (built / SERVED).stat().st_size,
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise Refused("the model is not evaluated: files or evaluation.json are absent or do not read") from None
    if said != found:
        raise Refused("evaluation.json is of other files: evaluate again")
    _admit_narrow(built, evaluation, gates.read(rules))
    outcomes = gates.hold(gates.read(rules), evaluation)
    failed = [one.name for one in outcomes if not one.held]
    if failed:
        raise Refused(f"gates that do not hold: {'; '.join(failed)}", outcomes)
    return outcomes


def _admit_narrow(built: Path, evaluation: dict[str, Any], rules: Sequence[gates.Gate]) -> None:
    """Hold the 7-bit form, where there is one, to the bar of the 8-bit form; leave it out by removing its file."""
    if not (built / NARROW).exists():
        return
    found = evaluation.get("narrow", {})
    if found.get("sha256") != digest(built / NARROW):
        raise Refused("evaluation.json is of other files: evaluate again")
    bars = [gate.bar for gate in rules if gate.path == ("summary", "dice_lost_by_8_bits")]
    if bars and not float(found.get("dice_lost", np.inf)) <= min(bars):
        raise Refused(f"{NARROW} loses more than 8 bits may: release without it")


def release(
    built: Path, folder: Path, version: str, run: dict[str, Any], trainer: Ed25519PrivateKey, rules: Path = gates.GATES
) -> dict[str, Any]:
    """Copies the built files into `folder`, makes the golden tensors, writes the manifest, signs it as the one who
    trained, and returns it. It is served only once somebody else has approved it.

    `built` holds both ONNX files, calibration.json and evaluation.json; the cards are written from the last two.
    Raises Refused, and writes nothing, where a gate does not hold.
    """
    outcomes = admitted(built, rules)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SIGNATURES).unlink(missing_ok=True)
    files = WITH_NARROW if (built / NARROW).exists() else FILES
    for name in files:
        if (built / name).exists() and built.resolve() != folder.resolve():
            shutil.copyfile(built / name, folder / name)
    evaluation, calibration = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("evaluation", "calibration")
    )
    weights = sum(math.prod(one.dims) for one in onnx.load(folder / SERVED_WITHOUT_VNNI).graph.initializer)
    card = cards.model_card(version, evaluation, calibration, run | {"weights": weights}, outcomes)
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    (folder / "DATA_CARD.md").write_text(cards.data_card(), encoding="utf-8")
    write_golden(folder / SERVED, folder / "golden.npz")
    write_golden(folder / SERVED_WITHOUT_VNNI, folder / "golden.fp32.npz")
    forms: dict[str, Any] = {"served_without_vnni": SERVED_WITHOUT_VNNI}
    golden = {"file": "golden.npz", "file_without_vnni": "golden.fp32.npz"}
    if files is WITH_NARROW:
        write_golden(folder / NARROW, folder / "golden.int7.npz")
        forms = {"served_without_vnni": NARROW, "whole": SERVED_WITHOUT_VNNI}
        golden |= {"file_without_vnni": "golden.int7.npz", "file_whole": "golden.fp32.npz"}
    flags = [*FLAGS, *EDGE_FLAGS][: session(folder / SERVED).get_outputs()[1].shape[1]]
    manifest = {
        "schema": 1,
        "name": NAME,
        "version": version,
        "license": "Apache-2.0",
        "served": SERVED,
        **forms,
        "input": {"name": "image", "type": "float32", "shape": ["batch", 1, GRID, GRID], "range": [0, 1]},
        "outputs": {
            "logits": {"type": "float32", "shape": ["batch", len(CHANNELS), 128, 128], "channels": list(CHANNELS)},
            "flags": {"type": "float32", "shape": ["batch", len(flags)], "channels": flags},
            "features": {"type": "float32", "shape": ["batch", 160]},
        },
        "preprocessing_version": PREPROCESSING_VERSION,
        "onnxruntime_version": ort.__version__,
        "quantisation": "static QDQ, activations uint8, weights int8 per channel, MinMax",
        "golden": {
            **golden,
            "batch": 1,
            "provider": "CPUExecutionProvider",
            "threads": 1,
            "instructions": instructions(),
        },
        "training": run,
        "gates": {"sha256": digest(rules), "outcomes": gates.as_rows(outcomes)},
        "files": {name: {"sha256": digest(folder / name), "bytes": (folder / name).stat().st_size} for name in files},
    }
    written = (json.dumps(manifest, indent=1) + "\n").encode()
    (folder / "manifest.json").write_bytes(written)
    (folder / SIGNATURES).write_bytes(sign(written, {"trained_by": trainer}))
    return manifest


def approve(folder: Path, approver: Ed25519PrivateKey, rules: Path = gates.GATES) -> None:
    """Adds the second signature, after looking again: every file is what the manifest says, and every gate holds by
    the approver's own copy of the rules. Raises Refused otherwise, and where the approver is who trained."""
    admitted(folder, rules)
    if differences(folder):
        raise Refused(f"not what the manifest says: {', '.join(differences(folder))}")
    manifest = (folder / "manifest.json").read_bytes()
    first = json.loads((folder / SIGNATURES).read_text(encoding="utf-8"))["signatures"][:1]
    second = signature(manifest, "approved_by", approver)
    both = (json.dumps({"schema": 1, "signatures": [*first, second]}, indent=1) + "\n").encode()
    reason = lacking(manifest, both, {row["role"]: [row["key"]] for row in (*first, second)})
    if reason:
        raise Refused(reason)
    (folder / SIGNATURES).write_bytes(both)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(folder: Path) -> list[str]:
    """Names of files that are missing or not what the manifest says."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return [
        name
        for name, said in manifest["files"].items()
        if not (folder / name).is_file() or digest(folder / name) != said["sha256"]
    ]
