"""The report: a released file against people's masks, faults, turned and foreign pictures, itself, and the clock."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from distillation import not_a_chest
from distillation.calibrate import distance
from distillation.corruptions import FAMILIES, OCCLUSION, SEVERITIES, corrupted
from distillation.data import (
    CHANNELS,
    CONVENTION_CHANNELS,
    FLAGS,
    MAP,
    Radiograph,
    draws_the_heart_border,
    margins_of,
    on_grid,
    read_image,
    read_index,
    read_truth,
)
from distillation.energy import Energy
from distillation.measures import (
    Mask,
    auroc,
    cardiothoracic_ratio,
    dice,
    hausdorff95,
    interval,
    iou,
    outline_band,
    reliability,
    risk_coverage,
    surface_dice,
)
from distillation.runtime import Answer, answer, session, upsampled
from distillation.runtime import sigmoid as probability
from services.inference import edges
from services.inference.chest import margin_beside
from services.inference.masks import GROUPS, calibrated, chances, confidence, nested
from services.inference.preprocessing import GRID, Letterbox, Preprocessed, preprocess
from services.inference.registry import EDGES, by_channel

POOR = 0.90
"""Dice under which a mask that was not abstained from is a silent failure."""
WATTS_PER_CORE = 5.0
"""For joules, which are modelled: CPU-seconds times this."""
_FOREIGN = FLAGS.index("not_a_chest")
BAND = 4  # cells of the map of 128
FAULTY_OF_A_GROUP = 40  # images of a source and split that the faults are tried on
TURNS = {"rotated_90": -1, "rotated_180": 2, "rotated_270": 1}  # np.rot90 turns against the clock


def report(
    folder: Path,
    data: Path,
    splits: tuple[str, ...],
    objects: Path | None,
    beside: Path | None = None,
    most: int | None = None,
) -> dict[str, Any]:
    """The served file measured in full, the fp32 file's masks beside it, and another model's image by image.

    most: images of one source and split, for a quick look that no release accepts.
    """
    calibration = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
    served, reference = folder / "student.int8.onnx", folder / "student.fp32.onnx"
    items = _chosen(data, splits, most)
    whole = evaluate(session(reference), calibration, data, items, None, faults=False)
    found = evaluate(session(served), calibration, data, items, objects)
    quick = speed(served)
    other = {}
    if beside is not None:
        theirs = beside / served.name if beside.is_dir() else beside
        slower = speed(theirs)["p50_ms"] / quick["p50_ms"]
        other["beside"] = {**compare(served, theirs, data, splits), "times_as_fast": round(slower, 1)}
    return {
        **other,
        "most_of_a_group": most,
        "schema": 2,
        "calibration_sha256": hashlib.sha256((folder / "calibration.json").read_bytes()).hexdigest(),
        "summary": summary(found, whole),
        **_narrow(folder, whole, calibration, data, items),
        "served": {
            "sha256": hashlib.sha256(served.read_bytes()).hexdigest(),
            **found,
            "bytes": served.stat().st_size,
            "speed": quick,
        },
        "reference": {
            "sha256": hashlib.sha256(reference.read_bytes()).hexdigest(),
            "masks": whole["masks"],
            "labels_of_the_convention": whole["labels_of_the_convention"],
            "speed": speed(reference),
        },
    }


def _chosen(data: Path, splits: tuple[str, ...], most: int | None) -> list[Radiograph]:
    items = [item for item in read_index(data) if item.split in splits]
    if most is None:
        return items
    groups: dict[str, list[Radiograph]] = {}
    for item in items:
        groups.setdefault(_group(item), []).append(item)
    return [item for group in groups.values() for item in group[:most]]


def compare(ours: Path, theirs: Path, data: Path, splits: tuple[str, ...]) -> dict[str, Any]:
    """Ours less theirs on the same images, with the bootstrap interval of the paired differences: Dice and HD95 of the
    lungs and the heart, error of the cardiothoracic ratio; and the least of the differences of Dice."""
    found: dict[str, dict[str, list[float]]] = {}
    models = [session(path) for path in (ours, theirs)]
    for item in read_index(data):
        if item.split not in splits or not item.convention:
            continue
        one = preprocess(read_image(data, item))
        truth = people_of(data, item, one.geometry)
        first, second = (
            against_people(item, truth, upsampled(answer(model, one.grid[None]).logits[0]) > 0) for model in models
        )
        for name in PAIRED & set(first):
            found.setdefault(_group(item), {}).setdefault(name, []).append(first[name] - second[name])
    differences = {
        f"{group}, {name}": interval(np.array(values))
        for group, names in found.items()
        for name, values in sorted(names.items())
    }
    dice_means = [row["mean"] for name, row in differences.items() if row["n"] and name.split(", ")[1] in WHOLE]
    return {
        "sha256": hashlib.sha256(theirs.read_bytes()).hexdigest(),
        "differences": differences,
        "dice_difference_least": min(dice_means),
    }


WHOLE = ("lung_fields", "heart", "lungs_full")
PAIRED = {*WHOLE, "hd95_heart", "hd95_lungs_full", "hd95_left_lung_field", "ctr_error"}


def dice_lost(served: dict[str, Any], reference: dict[str, Any]) -> float:
    """The most that a form loses of the Dice of another, of all structures and groups."""
    drops = [
        reference["masks"][group][name]["mean"] - row["mean"]
        for group, table in served["masks"].items()
        for name, row in table.items()
        if name in WHOLE and row["n"]
    ]
    return round(float(max(drops)), 5)


def _narrow(
    folder: Path, whole: dict[str, Any], calibration: dict[str, Any], data: Path, items: list[Radiograph]
) -> dict[str, Any]:
    """The form with weights of 7 bits beside fp32, where there is one."""
    path = folder / "student.int7.onnx"
    if not path.exists():
        return {}
    found = evaluate(session(path), calibration, data, items, None, faults=False)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    lost = dice_lost(found, whole)
    return {"narrow": {"sha256": sha256, "bytes": path.stat().st_size, "masks": found["masks"], "dice_lost": lost}}


def summary(served: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """The worst of each kind, for gates: one number each."""
    mild = [[row["dice_lost"] for row in rows if row["severity"] <= 3] for rows in served["faults"].values()]
    faulty = [row for rows in served["faults"].values() for row in rows]
    flags = [v for flag in FLAGS[:-1] if flag != "mirrored" for v in served["flags"][flag].values()]
    foreign = [v["by_either"] for v in served["not_a_chest"].values() if isinstance(v, dict)]
    return {
        "dice_lost_by_8_bits": dice_lost(served, reference),
        "dice_lost_to_faults_1_to_3": round(float(np.mean(mild)), 4),
        "dice_lost_to_faults_1_to_3_worst_family": round(max(float(np.mean(values)) for values in mild), 4),
        **{
            f"{name}_with_faults": round(float(np.mean([row[name] for row in faulty])), 4)
            for name in ("silent_failures", "silent_failures_by_the_convention", "coverage")
        },
        "band_ece_worst": max(row["band"]["ece"] for row in served["calibration"].values()),
        "turned_or_inverted_found_least": min(row["sensitivity"] for row in flags),
        "turned_or_inverted_false_alarms_most": max(row["false_alarms"] for row in flags),
        "cut_off_auroc_least": min(row["auroc"] for row in served["edges"].values()),
        "foreign_found_least": min(foreign),
        "foreign_false_alarms": served["not_a_chest"]["distance_false_alarms"],
    }


def evaluate(
    model: ort.InferenceSession,
    calibration: dict[str, Any],
    data: Path,
    items: list[Radiograph],
    objects: Path | None,
    faults: bool = True,
) -> dict[str, Any]:
    """Everything that is measured on these images, each with its number of images and interval."""
    prepared = [preprocess(read_image(data, item)) for item in items]
    grids = np.stack([one.grid for one in prepared])
    answers = answer(model, grids)
    people = [people_of(data, item, one.geometry) for item, one in zip(items, prepared, strict=True)]
    rows: list[dict[str, Any]] = []
    for i, item in enumerate(items):
        values = against_people(item, people[i], upsampled(answers.logits[i]) > 0)
        rows.append({"item": item, **values, **_confidences(answers.logits[i], values, calibration)})
    report = {
        "splits": sorted({item.split for item in items}),
        "masks": _tabulate(rows, _group),
        "subgroups": _subgroups(rows),
        "labels_of_the_convention": _tabulate(
            [row for row, truth in zip(rows, people, strict=True) if _keeps_the_convention(truth)], _group
        ),
        "calibration": _calibration(answers, items, people, calibration),
        "selective": _selective(rows, calibration),
        "cardiothoracic_ratio": _ratios(rows),
    }
    if faults:
        report |= {
            "flags": _flags(model, calibration, items, grids, answers),
            "edges": _edges(model, items, prepared, answers, data),
            "not_a_chest": _foreign(model, calibration, answers, objects),
            "faults": _faults(model, calibration, [(i, p, t) for i, p, t in zip(items, prepared, people, strict=True)]),
        }
    return report


@dataclass
class People:
    """Human masks bool [256, 256] by channel, and where they speak at all."""

    masks: dict[int, Mask]
    inside: Mask


def people_of(data: Path, item: Radiograph, box: Letterbox) -> People:
    channels = CONVENTION_CHANNELS[item.convention]
    if not channels:
        return People({}, np.zeros((GRID, GRID), bool))
    truth, known = read_truth(data, item)
    inside = on_grid(known, box, GRID) > 0.999
    return People({c: (on_grid(t, box, GRID) > 0.5) & inside for c, t in zip(channels, truth, strict=True)}, inside)


def _group(item: Radiograph) -> str:
    return f"{item.source}/{item.split}"


def _keeps_the_convention(truth: People) -> bool:
    return 1 not in truth.masks or draws_the_heart_border(truth.masks[1], truth.masks[2])


def _confidences(
    logits: NDArray[np.float32], values: dict[str, float], calibration: dict[str, Any]
) -> dict[str, float]:
    found = confidence(logits, *_platt(calibration))
    return {f"confidence_{name}": score for name, score in found.items() if name in values}


def _platt(calibration: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return by_channel(calibration["mask_temperature"]), by_channel(calibration.get("mask_bias", 0.0))


def against_people(item: Radiograph, truth: People, masks: NDArray[np.bool_]) -> dict[str, float]:
    people, inside = truth.masks, truth.inside
    ours = {c: masks[c] & inside for c in people}
    values: dict[str, float] = {}
    for c in people:
        values |= {
            CHANNELS[c]: dice(ours[c], people[c]),
            f"iou_{CHANNELS[c]}": iou(ours[c], people[c]),
            f"surface_dice_{CHANNELS[c]}": surface_dice(ours[c], people[c]),
            f"hd95_{CHANNELS[c]}": hausdorff95(ours[c], people[c]),
        }
    if item.convention == "field":
        values["lung_fields"] = dice(ours[0] | ours[1], people[0] | people[1])
        if item.row["ctr"]:
            values["ctr_difference"] = cardiothoracic_ratio(ours[0], ours[1], ours[2]) - float(item.row["ctr"])
            values["ctr_error"] = abs(values["ctr_difference"])
            human = cardiothoracic_ratio(people[0], people[1], people[2])
            values["ctr_error_of_human_masks"] = abs(human - float(item.row["ctr"]))
    return values


def _tabulate(rows: list[dict[str, Any]], group_of: Callable[[Radiograph], str]) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    for group in sorted({group_of(row["item"]) for row in rows}):
        mine = [row for row in rows if group_of(row["item"]) == group]
        names = sorted({name for row in mine for name in row if name != "item" and not name.startswith("confidence")})
        table[group] = {n: interval(np.array([row[n] for row in mine if n in row], float)) for n in names}
    return table


SUBGROUPS: dict[str, Callable[[Radiograph], str]] = {
    "sex": lambda item: item.row["sex"],
    "view": lambda item: item.row["view"],
    "finding": lambda item: item.row["finding"],
    "vendor": lambda item: item.row["site"],
    "age": lambda item: _age_band(item.row["age_years"]),
}


def _age_band(years: str) -> str:
    try:
        age = float(years)
    except ValueError:
        return ""
    return next(name for top, name in ((18, "under 18"), (50, "18-49"), (65, "50-64"), (1e9, "65+")) if age < top)


def _subgroups(rows: list[dict[str, Any]], least: int = 8) -> dict[str, Any]:
    """Dice of every structure in every subgroup of a source with at least `least` images."""
    report: dict[str, Any] = {}
    for kind, name_of in SUBGROUPS.items():
        for (source, name), mine in _grouped(rows, name_of).items():
            for structure in GROUPS:
                values = np.array([row[structure] for row in mine if structure in row], float)
                if len(values) >= least:
                    report.setdefault(kind, {}).setdefault(f"{source}: {name}", {})[structure] = interval(values)
    return report


def _grouped(rows: list[dict[str, Any]], name_of: Callable[[Radiograph], str]) -> dict[tuple[str, str], list[Any]]:
    groups: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        if name := name_of(row["item"]):
            groups.setdefault((row["item"].source, name), []).append(row)
    return groups


def _calibration(
    answers: Answer, items: list[Radiograph], people: list[People], calibration: dict[str, Any]
) -> dict[str, Any]:
    """Expected calibration error by source: of whole images (which the easy background flatters) and of the band of
    `BAND` cells about the human outlines, before and after calibration; reliability curve of the band, after.
    A cell's truth is the share of it that lies inside the outline (0.5 counted as outside would shift the curve)."""
    report: dict[str, Any] = {}
    for group in sorted({_group(item) for item in items}):
        pairs: dict[str, list[NDArray[Any]]] = {"z": [], "p": [], "y": [], "band": []}
        for i, (item, truth) in enumerate(zip(items, people, strict=True)):
            if _group(item) == group:
                said = calibrated(answers.logits[i], *_platt(calibration))
                for c, mask in truth.masks.items():
                    small = cv2.resize(mask.astype(np.float32), (MAP, MAP), interpolation=cv2.INTER_AREA)
                    known = cv2.resize(truth.inside.astype(np.uint8), (MAP, MAP), interpolation=cv2.INTER_NEAREST) > 0
                    pairs["z"].append(answers.logits[i, c][known])
                    pairs["p"].append(said[c][known])
                    pairs["y"].append(small[known])
                    pairs["band"].append(outline_band(small > 0.5, BAND)[known])
        if pairs["z"]:
            z, p, y, band = (np.concatenate(pairs[name]) for name in ("z", "p", "y", "band"))
            report[group] = {
                "ece_whole": reliability(p, y)["ece"],
                "ece_band_before": reliability(probability(z[band]), y[band])["ece"],
                "band": reliability(p[band], y[band]),
            }
    return report


def _selective(rows: list[dict[str, Any]], calibration: dict[str, Any]) -> dict[str, Any]:
    """How often a mask with Dice under 0.90 passes its confidence threshold, how many masks pass, and how well the
    confidence orders the masks."""
    report: dict[str, Any] = {}
    for name in GROUPS:
        pairs = np.array([(row[f"confidence_{name}"], row[name]) for row in rows if name in row])
        if len(pairs):
            passed, poor = pairs[:, 0] >= calibration["soft_dice_confidence"][name]["threshold"], pairs[:, 1] < POOR
            report[name] = {
                "n": len(pairs),
                "coverage": _share(passed),
                "silent_failures": _share(passed & poor),
                "auroc_of_poor": auroc(-pairs[poor, 0], -pairs[~poor, 0]),
                **risk_coverage(pairs[:, 0], 1 - pairs[:, 1]),
            }
    return report


def _ratios(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The cardiothoracic ratio against the references of these splits: error, bias and limits of agreement."""
    found = np.array([row["ctr_difference"] for row in rows if "ctr_difference" in row], float)
    found = found[np.isfinite(found)]
    if not len(found):
        return {"n": 0}
    spread = 1.96 * found.std()
    limits = [round(float(found.mean() + sign * spread), 4) for sign in (-1, 1)]
    return {"absolute_error": interval(np.abs(found)), "bias": round(float(found.mean()), 4), "limits": limits}


def _faults(
    model: ort.InferenceSession, calibration: dict[str, Any], images: list[tuple[Radiograph, Any, People]]
) -> dict[str, Any]:
    """Mean Dice lost, and silent failures, by family of faults and severity, over the same images without the fault;
    at most `FAULTY_OF_A_GROUP` of a source and split."""
    counts: dict[str, int] = {}
    chosen = []
    for image in images:
        group = _group(image[0])
        counts[group] = counts.get(group, 0) + 1
        if image[2].masks and counts[group] <= FAULTY_OF_A_GROUP:
            chosen.append(image)
    clean = _dice_and_confidence(model, calibration, chosen, np.stack([one.grid for _, one, _ in chosen]))
    conventional = np.array([_keeps_the_convention(truth) for _, _, truth in chosen])
    report: dict[str, Any] = {}
    for family in (*FAMILIES, *OCCLUSION):
        for severity in SEVERITIES:
            rng = np.random.default_rng((7, severity))
            grids = [corrupted(one.grid, one.geometry, family, severity, rng) for _, one, _ in chosen]
            faulty = _dice_and_confidence(model, calibration, chosen, np.stack(grids))
            lost = np.array([a - b for (a, _), (b, _) in zip(clean, faulty, strict=True)])
            poor = np.array([value < POOR for value, _ in faulty])
            kept = np.array([passed for _, passed in faulty])
            report.setdefault(family, []).append(
                {
                    "severity": severity,
                    "n": len(chosen),
                    "dice_lost": round(float(lost.mean()), 4),
                    "coverage": _share(kept),
                    "silent_failures": _share(kept & poor),
                    "silent_failures_by_the_convention": _share((kept & poor)[conventional]),
                }
            )
    return report


def _dice_and_confidence(
    model: ort.InferenceSession,
    calibration: dict[str, Any],
    images: list[tuple[Radiograph, Any, People]],
    grids: NDArray[np.uint8],
) -> list[tuple[float, bool]]:
    """Dice of the lungs, in the convention of the image, and whether their mask passes its confidence threshold."""
    found, answers = [], answer(model, grids)
    for (_, _, truth), logits in zip(images, answers.logits, strict=True):
        name = "lungs_full" if 3 in truth.masks else "lung_fields"
        channels = list(GROUPS[name])
        ours = (upsampled(logits[channels]) > 0).any(0) & truth.inside
        people = np.any([truth.masks[c] for c in channels], axis=0)
        score = confidence(logits, *_platt(calibration))[name]
        found.append((dice(ours, people), score >= calibration["soft_dice_confidence"][name]["threshold"]))
    return found


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


LOST = 10 / 430
"""Of the height or width: 10 mm of lung on a field of 43 cm."""


def _edges(
    model: ort.InferenceSession, items: list[Radiograph], prepared: list[Preprocessed], answers: Answer, data: Path
) -> dict[str, Any]:
    """How well the margin that is served tells images of which `LOST` of lung was taken away at an edge from the same
    images whole; of images whose lungs a person saw end inside."""
    whole: dict[str, list[float]] = {edge: [] for edge in EDGES}
    cut: dict[str, list[float]] = {edge: [] for edge in EDGES}
    for i, (item, one) in enumerate(zip(items, prepared, strict=True)):
        if not item.convention:
            continue
        image, (masks, _) = read_image(data, item), read_truth(data, item)
        margins = _margins(answers.logits[i], answers.flags[i], one.geometry)
        for place, (edge, share) in enumerate(zip(EDGES, margins_of(item.convention, masks), strict=True)):
            if not share > 0:  # cut off as it is, or nobody says
                continue
            less = preprocess(_without(image, place, round((share + LOST) * image.shape[place // 2])))
            found = answer(model, less.grid[None])
            whole[edge].append(-margins[edge])
            cut[edge].append(-_margins(found.logits[0], found.flags[0], less.geometry)[edge])
    return {edge: {"n": len(cut[edge]), "auroc": auroc(np.array(cut[edge]), np.array(whole[edge]))} for edge in EDGES}


def _margins(logits: NDArray[np.float32], flags: NDArray[np.float32], box: Letterbox) -> dict[str, float]:
    lungs = nested(logits, box)["lungs_full"]
    likely, ends = chances(logits, box, "lungs_full", lungs), edges.beside(flags)
    return {edge: margin_beside(edge, lungs, likely, ends).value for edge in EDGES}


def _without(image: NDArray[np.uint8], edge: int, pixels: int) -> NDArray[np.uint8]:
    along = slice(pixels, None) if edge % 2 == 0 else slice(None, -pixels)
    return np.ascontiguousarray(image[along] if edge < 2 else image[:, along])


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
        away = distance(answers.features, statistics)
        flag, far = _raised(answers, calibration)["not_a_chest"], away > limit
        report[name] = {
            "n": len(found),
            "by_flag": _share(flag),
            "by_distance": _share(far),
            "by_either": _share(flag | far),
            "auroc_flag": auroc(answers.flags[:, _FOREIGN], upright.flags[:, _FOREIGN]),
            "auroc_distance": auroc(away, distance(upright.features, statistics)),
        }
    return report


def speed(path: Path, seconds: float = 4.0) -> dict[str, Any]:
    """Latency of single images on one thread, in milliseconds; `load` says how quiet the machine was."""
    model, image = session(path), np.random.default_rng(1).random((1, 1, GRID, GRID), np.float32)
    times: list[float] = []
    began = time.process_time()
    stop = time.perf_counter() + seconds
    with Energy() as energy:
        while time.perf_counter() < stop or len(times) < 20:
            start = time.perf_counter()
            model.run(None, {"image": image})
            times.append((time.perf_counter() - start) * 1000)
    cpu = (time.process_time() - began) / len(times)
    p50, p99 = np.percentile(times[5:], (50, 99))
    rates = {"best_ms": min(times), "p50_ms": p50, "p99_ms": p99, "images_per_second": 1000 / np.mean(times)}
    machine = {"load": round(os.getloadavg()[0], 1), "cores": os.cpu_count(), "vnni": _has_vnni(), "threads": 1}
    spent = {
        "cpu_seconds_an_image": round(cpu, 6),
        "joules_an_image_modelled": round(cpu * WATTS_PER_CORE, 5),
        "watts_a_core_assumed": WATTS_PER_CORE,
        # Of all processors of the machine, idle ones too; absent where they count nothing, or only root may read it.
        "joules_an_image_measured": None if energy.joules is None else round(energy.joules / len(times), 5),
        "peak_memory_of_this_process_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    return {**{k: round(float(v), 3) for k, v in rates.items()}, **spent, **machine}


def _has_vnni() -> bool:
    facts = Path("/proc/cpuinfo")
    return facts.exists() and "vnni" in facts.read_text(encoding="utf-8")
