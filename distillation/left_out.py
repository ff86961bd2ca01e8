"""What a source of images gets that training never saw: the same student with and without it, same steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from distillation.calibrate import fit_platt
from distillation.data import Radiograph, read_image, read_index
from distillation.evaluate import PAIRED, People, against_people, people_of
from distillation.gain import about_outlines
from distillation.measures import interval, reliability
from distillation.runtime import answer, sigmoid, upsampled
from services.inference.preprocessing import preprocess

STANDS_IN = {"covid": "kermany", "kermany": "covid"}
"""Sources that can be left out, and which takes their share of the batches: the other one with the lungs in full. The
masks of fields and heart are of one source alone; its images by other vendors are a split of their own."""

Pairs = dict[int, list[NDArray[np.float64]]]
"""By channel, an array [2, n] for each image: logit, and share of the cell inside people's outline, about outlines."""


@dataclass
class Unseen:
    """One student on the images of the source."""

    by_image: dict[str, list[float]] = field(default_factory=dict)
    ece_before: float = 0.0
    ece_after: float = 0.0
    """Calibration error about the outline, before and after a calibration on the other sources."""


def measure(model: ort.InferenceSession, data: Path, source: str, splits: Sequence[str]) -> Unseen:
    """Dice and HD95 of every image of the source in these splits, and how honest the probabilities are."""
    every = [item for item in read_index(data) if item.convention]
    own = [item for item in every if item.source == source and item.split in splits]
    found, pairs = Unseen(), Pairs()
    for item in own:
        logits, truth = _look(model, data, item)
        values = against_people(item, truth, upsampled(logits) > 0)
        for name in sorted(PAIRED & set(values)):
            found.by_image.setdefault(name, []).append(values[name])
        _gather(pairs, logits, truth)
    known = [
        _pairs_of(model, data, _to_calibrate_with(every, other)) for other in STANDS_IN.values() if other != source
    ]
    before, after = [], []
    for channel, parts in pairs.items():
        slope, bias = fit_platt([np.concatenate(one[channel], axis=1) for one in known if channel in one])
        logit, inside = np.concatenate(parts, axis=1)
        before.append(np.stack((sigmoid(logit), inside)))
        after.append(np.stack((sigmoid(slope * logit + bias), inside)))
    found.ece_before, found.ece_after = (_ece(before), _ece(after))
    return found


def _ece(parts: list[NDArray[Any]]) -> float:
    said, true = np.concatenate(parts, axis=1)
    return float(reliability(said, true)["ece"])


def row(source: str, unseen: Unseen, seen: Unseen) -> dict[str, Any]:
    """Both students side by side: means, paired differences with their bootstrap intervals, calibration errors."""
    measures = {}
    for name, values in unseen.by_image.items():
        without, with_it = np.array(values), np.array(seen.by_image[name])
        difference = interval(without - with_it)
        measures[name] = {
            "unseen": round(float(without.mean()), 4),
            "seen": round(float(with_it.mean()), 4),
            "difference": [difference[key] for key in ("mean", "low", "high")],
        }
    return {
        "source": source,
        "n": len(next(iter(unseen.by_image.values()))),
        "measures": measures,
        "band_ece_before": {"unseen": round(unseen.ece_before, 4), "seen": round(seen.ece_before, 4)},
        "band_ece_after": {"unseen": round(unseen.ece_after, 4), "seen": round(seen.ece_after, 4)},
    }


def _to_calibrate_with(every: Sequence[Radiograph], source: str) -> list[Radiograph]:
    """Its validation images; of a source without any, those that it was trained on."""
    of_source = [item for item in every if item.source == source]
    return [item for item in of_source if item.split == "val"] or [item for item in of_source if item.split == "train"]


def _pairs_of(model: ort.InferenceSession, data: Path, items: Sequence[Radiograph]) -> Pairs:
    pairs = Pairs()
    for item in items:
        _gather(pairs, *_look(model, data, item))
    return pairs


def _look(model: ort.InferenceSession, data: Path, item: Radiograph) -> tuple[NDArray[np.float32], People]:
    one = preprocess(read_image(data, item))
    return answer(model, one.grid[None]).logits[0], people_of(data, item, one.geometry)


def _gather(pairs: Pairs, logits: NDArray[np.float32], truth: People) -> None:
    for channel, found in about_outlines(logits, truth).items():
        pairs.setdefault(channel, []).append(found)
