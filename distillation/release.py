"""Writes what is served: files, their digests, the cards; and checks a release against its own manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from distillation import cards, not_a_chest, procedural
from distillation.data import CHANNELS, FLAGS
from distillation.runtime import answer, session
from services.inference.preprocessing import GRID, PREPROCESSING_VERSION
from services.inference.registry import instructions

NAME = "chest-student"
SERVED = "student.int8.onnx"
SERVED_WITHOUT_VNNI = "student.fp32.onnx"
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


def release(built: Path, folder: Path, version: str, run: dict[str, Any]) -> dict[str, Any]:
    """Copies the built files into `folder`, makes the golden tensors, writes and returns the manifest.

    `built` holds both ONNX files, calibration.json and evaluation.json; the cards are written from the last two.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (built / name).exists() and built.resolve() != folder.resolve():
            shutil.copyfile(built / name, folder / name)
    evaluation, calibration = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("evaluation", "calibration")
    )
    if evaluation["served"]["sha256"] != digest(folder / SERVED):
        raise ValueError("evaluation.json is of another file: evaluate again")
    card = cards.model_card(version, evaluation, calibration, run)
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    (folder / "DATA_CARD.md").write_text(cards.data_card(), encoding="utf-8")
    write_golden(folder / SERVED, folder / "golden.npz")
    write_golden(folder / SERVED_WITHOUT_VNNI, folder / "golden.fp32.npz")
    manifest = {
        "schema": 1,
        "name": NAME,
        "version": version,
        "license": "Apache-2.0",
        "served": SERVED,
        "served_without_vnni": SERVED_WITHOUT_VNNI,
        "input": {"name": "image", "type": "float32", "shape": ["batch", 1, GRID, GRID], "range": [0, 1]},
        "outputs": {
            "logits": {"type": "float32", "shape": ["batch", len(CHANNELS), 128, 128], "channels": list(CHANNELS)},
            "flags": {"type": "float32", "shape": ["batch", len(FLAGS)], "channels": list(FLAGS)},
            "features": {"type": "float32", "shape": ["batch", 160]},
        },
        "preprocessing_version": PREPROCESSING_VERSION,
        "onnxruntime_version": ort.__version__,
        "quantisation": "static QDQ, activations uint8, weights int8 per channel, MinMax",
        "golden": {
            "file": "golden.npz",
            "file_without_vnni": "golden.fp32.npz",
            "batch": 1,
            "provider": "CPUExecutionProvider",
            "threads": 1,
            "instructions": instructions(),
        },
        "training": run,
        "files": {name: {"sha256": digest(folder / name), "bytes": (folder / name).stat().st_size} for name in FILES},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


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
