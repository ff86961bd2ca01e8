"""The report: a released file against people's masks, turned and foreign pictures, and the clock."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from distillation import not_a_chest
from distillation.calibrate import STRUCTURES, confidence, distance
from distillation.data import (
    CHANNELS,
    CONVENTION_CHANNELS,
    FLAGS,
    Radiograph,
    on_grid,
    read_image,
    read_index,
    read_truth,
)
from distillation.measures import Mask, cardiothoracic_ratio, dice, hausdorff95, interval
from distillation.runtime import Answer, answer, session, upsampled
from distillation.runtime import sigmoid as probability
from services.inference.preprocessing import GRID, preprocess

TURNS = {"rotated_90": -1, "rotated_180": 2, "rotated_270": 1}  # np.rot90 turns against the clock


def report(folder: Path, data: Path, splits: tuple[str, ...], objects: Path | None) -> dict[str, Any]:
    """The served file measured in full, the fp32 file's masks beside it."""
    calibration = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
    served, reference = folder / "student.int8.onnx", folder / "student.fp32.onnx"
    whole = evaluate(session(reference), calibration, data, splits, None)
    return {
        "served": {
            "sha256": hashlib.sha256(served.read_bytes()).hexdigest(),
            **evaluate(session(served), calibration, data, splits, objects),
            "speed": speed(served),
        },
        "reference": {
            "sha256": hashlib.sha256(reference.read_bytes()).hexdigest(),
            "masks": whole["masks"],
            "speed": speed(reference),
        },
    }


def evaluate(
    model: ort.InferenceSession, calibration: dict[str, Any], data: Path, splits: tuple[str, ...], objects: Path | None
) -> dict[str, Any]:
    """Everything that is measured on the images of `splits`, each with its number of images and interval."""
    items = [item for item in read_index(data) if item.split in splits]
    prepared = [preprocess(read_image(data, item)) for item in items]
    grids = np.stack([one.grid for one in prepared])
    answers = answer(model, grids)
    rows: list[dict[str, Any]] = []
    for i, (item, one) in enumerate(zip(items, prepared, strict=True)):
        masks = upsampled(answers.logits[i]) > 0
        values = _against_people(data, item, one, masks)
        for name, channels in STRUCTURES.items():
            if name in values:
                values[f"confidence_{name}"] = confidence(answers.logits[i], channels, calibration["mask_temperature"])
        rows.append({"group": f"{item.source}/{item.split}", **values})
    return {
        "splits": list(splits),
        "masks": _tabulate(rows),
        "selective": _selective(rows, calibration),
        "flags": _flags(model, calibration, items, grids, answers),
        "not_a_chest": _foreign(model, calibration, answers, objects),
    }


def _against_people(data: Path, item: Radiograph, one: Any, masks: NDArray[np.bool_]) -> dict[str, float]:
    channels = CONVENTION_CHANNELS[item.convention]
    if not channels:
        return {}
    truth, known = read_truth(data, item)
    box = one.geometry
    inside = on_grid(known, box, GRID) > 0.999
    people = {c: (on_grid(t, box, GRID) > 0.5) & inside for c, t in zip(channels, truth, strict=True)}
    ours = {c: masks[c] & inside for c in channels}
    values = {CHANNELS[c]: dice(ours[c], people[c]) for c in channels}
    values |= {f"hd95_{CHANNELS[c]}": hausdorff95(ours[c], people[c]) for c in channels}
    if item.convention == "field":
        values["lung_fields"] = dice(ours[0] | ours[1], people[0] | people[1])
        if item.row["ctr"]:
            values["ctr_error"] = abs(cardiothoracic_ratio(ours[0], ours[1], ours[2]) - float(item.row["ctr"]))
            human = cardiothoracic_ratio(people[0], people[1], people[2])
            values["ctr_error_of_human_masks"] = abs(human - float(item.row["ctr"]))
    return values


def _tabulate(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    for group in sorted({row["group"] for row in rows}):
        mine = [row for row in rows if row["group"] == group]
        names = sorted({name for row in mine for name in row if name != "group" and not name.startswith("confidence")})
        table[group] = {n: interval(np.array([row[n] for row in mine if n in row], float)) for n in names}
    return table


def _selective(rows: list[dict[str, Any]], calibration: dict[str, Any]) -> dict[str, Any]:
    """How often a mask with Dice under 0.90 passes its confidence threshold, and how many masks pass."""
    report: dict[str, Any] = {}
    for name in STRUCTURES:
        pairs = np.array([(row[f"confidence_{name}"], row[name]) for row in rows if name in row])
        if len(pairs):
            passed = pairs[:, 0] >= calibration["soft_dice_confidence"][name]["threshold"]
            silent = passed & (pairs[:, 1] < 0.90)
            report[name] = {"n": len(pairs), "coverage": _share(passed), "silent_failures": _share(silent)}
    return report


def _share(values: NDArray[np.bool_]) -> float:
    return round(float(values.mean()), 4)


def _raised(answers: Answer, calibration: dict[str, Any]) -> dict[str, Mask]:
    p = probability(answers.flags)
    return {flag: p[:, i] >= calibration["flags"][flag]["threshold"] for i, flag in enumerate(FLAGS)}


def _flags(
    model: ort.InferenceSession,
    calibration: dict[str, Any],
    items: list[Radiograph],
    grids: NDArray[np.uint8],
    upright: Answer,
) -> dict[str, Any]:
    """Sensitivity on every image turned, mirrored or inverted; false alarms on the same images as they are."""
    alarms = _raised(upright, calibration)
    groups = np.array([item.source for item in items])
    report: dict[str, Any] = {}
    for flag in FLAGS[:-1]:
        found = _raised(answer(model, _changed(grids, flag)), calibration)[flag]
        report[flag] = {
            source: {
                "n": int((groups == source).sum()),
                "sensitivity": _share(found[groups == source]),
                "false_alarms": _share(alarms[flag][groups == source]),
            }
            for source in sorted(set(groups))
        }
    report["not_a_chest"] = {
        source: {"false_alarms": _share(alarms["not_a_chest"][groups == source])} for source in sorted(set(groups))
    }
    return report


def _changed(grids: NDArray[np.uint8], flag: str) -> NDArray[np.uint8]:
    if flag == "inverted":  # outside the letterbox stays black
        empty = (grids == 0).all(1, keepdims=True) | (grids == 0).all(2, keepdims=True)
        return np.where(empty, np.uint8(0), 255 - grids)
    if flag == "mirrored":
        return np.ascontiguousarray(grids[:, :, ::-1])
    return np.ascontiguousarray(np.rot90(grids, TURNS[flag], axes=(1, 2)))


def _foreign(
    model: ort.InferenceSession, calibration: dict[str, Any], upright: Answer, objects: Path | None
) -> dict[str, Any]:
    """Pictures of families never trained on, and of other modalities: by the flag, by the features, by either."""
    rng = np.random.default_rng(7)
    families = {name: [draw(rng) for _ in range(60)] for name, draw in not_a_chest.NEVER_TRAINED.items()}
    if objects is not None:
        families |= {f"DICOM {modality}": found for modality, found in not_a_chest.read_objects(objects).items()}
    statistics = calibration["features"]
    limit = statistics["threshold"]
    report: dict[str, Any] = {"distance_false_alarms": _share(distance(upright.features, statistics) > limit)}
    for name, found in families.items():
        answers = answer(model, np.stack(found))
        flag, far = _raised(answers, calibration)["not_a_chest"], distance(answers.features, statistics) > limit
        report[name] = {
            "n": len(found),
            "by_flag": _share(flag),
            "by_distance": _share(far),
            "by_either": _share(flag | far),
        }
    return report


def speed(path: Path, seconds: float = 4.0) -> dict[str, Any]:
    """Latency of single images on one thread, in milliseconds; `load` says how quiet the machine was."""
    model, image = session(path), np.random.default_rng(1).random((1, 1, GRID, GRID), np.float32)
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times) < 20:
        start = time.perf_counter()
        model.run(None, {"image": image})
        times.append((time.perf_counter() - start) * 1000)
    p50, p99 = np.percentile(times[5:], (50, 99))
    rates = {"best_ms": min(times), "p50_ms": p50, "p99_ms": p99, "images_per_second": 1000 / np.mean(times)}
    machine = {"load": round(os.getloadavg()[0], 1), "cores": os.cpu_count(), "vnni": _has_vnni(), "threads": 1}
    return {**{k: round(float(v), 3) for k, v in rates.items()}, **machine}


def _has_vnni() -> bool:
    facts = Path("/proc/cpuinfo")
    return facts.exists() and "vnni" in facts.read_text(encoding="utf-8")
