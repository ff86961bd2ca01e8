"""What distillation gains: the same student with and without soft labels, same batches, same steps, several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from distillation.data import MAP, read_image, read_index
from distillation.evaluate import BAND, PAIRED, People, against_people, people_of
from distillation.measures import interval, outline_band, reliability
from distillation.runtime import answer, sigmoid, upsampled
from services.inference.preprocessing import preprocess

Values = dict[tuple[str, str], list[float]]
"""By (source, measure): a value for each image, NaN where there is none."""


@dataclass
class Measured:
    """One student on the images of a split."""

    by_image: Values = field(default_factory=dict)
    band_ece: dict[str, float] = field(default_factory=dict)
    """By source: of probabilities as the network says them, in the band about the outlines."""


def measure(model: ort.InferenceSession, data: Path, split: str = "val") -> Measured:
    """Dice, HD95 and error of the cardiothoracic ratio of every image with human masks; calibration error by source."""
    found, cells = Measured(), dict[str, list[NDArray[Any]]]()
    for item in read_index(data):
        if item.split != split or not item.convention:
            continue
        one = preprocess(read_image(data, item))
        truth, logits = people_of(data, item, one.geometry), answer(model, one.grid[None]).logits[0]
        values = against_people(item, truth, upsampled(logits) > 0)
        for name in PAIRED:
            found.by_image.setdefault((item.source, name), []).append(values.get(name, float("nan")))
        cells.setdefault(item.source, []).extend(about_outlines(logits, truth).values())
    for source, parts in cells.items():
        logit, inside = np.concatenate(parts, axis=1)
        found.band_ece[source] = reliability(sigmoid(logit), inside)["ece"]
    return found


def about_outlines(logits: NDArray[np.float32], truth: People) -> dict[int, NDArray[np.float64]]:
    """By channel with a mask [2, n]: logit, and share of the cell inside the outline, in the band about the outline."""
    known = cv2.resize(truth.inside.astype(np.uint8), (MAP, MAP), interpolation=cv2.INTER_NEAREST) > 0
    found = {}
    for channel, mask in truth.masks.items():
        share = cv2.resize(mask.astype(np.float32), (MAP, MAP), interpolation=cv2.INTER_AREA)
        near = outline_band(share > 0.5, BAND) & known
        found[channel] = np.stack((logits[channel][near], share[near])).astype(np.float64)
    return found


def table(taught: Sequence[Measured], alone: Sequence[Measured]) -> list[dict[str, Any]]:
    """A row for each source and measure: mean with and without teachers, the difference with its bootstrap interval
    over images (each image's mean over the seeds), and the difference of each seed."""
    rows: list[dict[str, Any]] = []
    for key in sorted(taught[0].by_image):
        ours, theirs = (np.array([one.by_image[key] for one in runs]) for runs in (taught, alone))
        difference = ours - theirs
        if np.isfinite(difference).any(1).all():
            seeds = np.nanmean(difference, 1)
            paired = interval(difference[:, np.isfinite(difference).all(0)].mean(0))
            means = {"taught": float(np.nanmean(ours)), "alone": float(np.nanmean(theirs))}
            rows.append(_row(*key, means, seeds) | {"low": paired["low"], "high": paired["high"], "n": paired["n"]})
    for source in sorted(taught[0].band_ece):
        ours, theirs = (np.array([one.band_ece[source] for one in runs]) for runs in (taught, alone))
        rows.append(
            _row(source, "band_ece", {"taught": float(ours.mean()), "alone": float(theirs.mean())}, ours - theirs)
        )
    return rows


def _row(source: str, name: str, means: dict[str, float], seeds: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "source": source,
        "measure": name,
        **{key: round(value, 4) for key, value in means.items()},
        "difference": round(float(seeds.mean()), 4),
        "by_seed": np.round(seeds, 4).tolist(),
    }
