"""Temperatures, thresholds and feature statistics, fitted on validation images alone."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from distillation.augment import view
from distillation.data import FLAGS, Pool
from distillation.measures import dice, soft_dice_confidence
from distillation.runtime import Answer, answer, sigmoid

STRUCTURES = {"lung_fields": (0, 1), "heart": (2,), "lungs_full": (3,)}
FALSE_ALARMS = 0.005  # of upright chests, source by source
SILENT_FAILURES = 0.01  # wished for: Dice under 0.90 and not abstained
COVERAGE = 0.95  # of clean validation images, kept whatever the wish
POOR_DICE = 0.90
COMPONENTS = 16

Corrupted = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]


def calibrate(model: ort.InferenceSession, val: Pool, train: Pool, seed: int) -> dict[str, Any]:
    """The content of calibration.json; `val` must hold validation images only."""
    clean = answer(model, val.grids)
    temperature = _temperature(clean.logits, val)
    return {
        "schema": 1,
        "fitted_on": "validation images, every source counting the same",
        "mask_temperature": temperature,
        "mask_threshold": 0.5,
        "flags": _flag_thresholds(clean, val),
        "soft_dice_confidence": _confidence_thresholds(model, val, temperature, seed),
        "features": _feature_statistics(answer(model, _balanced(train, 600, seed)).features, clean.features),
    }


def _balanced(pool: Pool, count: int, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    sources = sorted({item.source for item in pool.radiographs})
    rows = np.concatenate([rng.choice(pool.rows_of(source), count // len(sources)) for source in sources])
    return np.asarray(pool.grids[rows])


def _temperature(logits: NDArray[np.float32], val: Pool) -> float:
    """One temperature for all masks, by likelihood in a band of 4 cells about the human outlines, channel by channel
    and source by source alike (whole images would only tell how easy the background is)."""
    groups: dict[tuple[str, int], list[NDArray[np.float32]]] = {}
    for i, item in enumerate(val.radiographs):
        for channel in np.flatnonzero(val.complete[i]):
            truth = val.targets[i, :, :, channel].astype(np.float32) / 255
            hard = (truth > 0.5).astype(np.uint8)
            kernel = np.ones((9, 9), np.uint8)
            band = (cv2.dilate(hard, kernel) != cv2.erode(hard, kernel)) & (val.weights[i, :, :, channel] == 255)
            groups.setdefault((item.source, int(channel)), []).append(np.stack((logits[i, channel][band], truth[band])))
    joined = [np.concatenate(parts, axis=1) for parts in groups.values()]
    candidates = np.exp(np.linspace(np.log(0.4), np.log(3.0), 41))
    losses = [np.mean([_entropy(z / t, y) for z, y in joined]) for t in candidates]
    return round(float(candidates[int(np.argmin(losses))]), 3)


def _entropy(z: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    return float(np.mean(np.logaddexp(0, z) - z * y))


def _flag_thresholds(clean: Answer, val: Pool) -> dict[str, dict[str, float]]:
    """On probabilities: the least that keeps false alarms on upright chests rare in every source, and at least 0.5."""
    p = sigmoid(clean.flags)
    sources = sorted({item.source for item in val.radiographs})
    worst = np.max([np.quantile(p[val.rows_of(source)], 1 - FALSE_ALARMS, axis=0) for source in sources], axis=0)
    return {
        flag: {"threshold": round(float(min(max(0.5, value), 0.999)), 4)}
        for flag, value in zip(FLAGS, worst, strict=True)
    }


def corrupted(pool: Pool, row: int, rng: np.random.Generator) -> Corrupted:
    """A harsh look at one image, upright: grid, target, weight."""
    seen = view(pool.grids[row], pool.boxes[row], [pool.targets[row], pool.weights[row]], rng, labelled_turns=False)
    return seen.grid, seen.maps[0], seen.maps[1]


def _confidence_thresholds(
    model: ort.InferenceSession, val: Pool, temperature: float, seed: int
) -> dict[str, dict[str, float]]:
    """A threshold a structure, below which its mask is not to be relied on: from clean and harshly degraded images."""
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.choice(val.rows_of(s), 150) for s in sorted({i.source for i in val.radiographs})])
    looks = [(val.grids[row], val.targets[row], val.weights[row]) for row in rows]
    looks += [corrupted(val, int(row), rng) for row in rows]
    origin = np.concatenate((rows, rows))
    logits = answer(model, np.stack([look[0] for look in looks])).logits
    found: dict[str, dict[str, float]] = {}
    for name, channels in STRUCTURES.items():
        pairs = [
            (confidence(logits[i], channels, temperature), _dice_of(logits[i], looks[i], channels))
            for i in range(len(looks))
            if val.complete[origin[i], channels[0]]
        ]
        scores, quality = np.array(pairs).T
        found[name] = _threshold(scores, quality, len(pairs) // 2)
    return found


def _threshold(scores: NDArray[np.float64], quality: NDArray[np.float64], clean: int) -> dict[str, float]:
    """The least threshold that leaves few silent failures, but none that turns away over `1 - COVERAGE` of the clean
    images (the first `clean` ones): some of what looks like a failure is another annotator's habit."""
    candidates = np.sort(scores)
    silent = np.array([np.mean((scores >= t) & (quality < POOR_DICE)) for t in candidates])
    safe = candidates[silent <= SILENT_FAILURES]
    most = float(np.quantile(scores[:clean], 1 - COVERAGE))
    threshold = min(float(safe[0]), most) if len(safe) else most
    kept = scores >= threshold
    return {
        "threshold": round(threshold, 4),
        "silent_failures": round(float(np.mean(kept & (quality < POOR_DICE))), 4),
        "coverage": round(float(kept.mean()), 4),
        "coverage_of_clean_images": round(float(kept[:clean].mean()), 4),
    }


def confidence(logits: NDArray[np.float32], channels: tuple[int, ...], temperature: float) -> float:
    """Soft Dice Confidence of the channels of a structure taken as one map; logits [4, h, w]."""
    return soft_dice_confidence(sigmoid(logits[list(channels)] / temperature))


def _dice_of(logits: NDArray[np.float32], look: Corrupted, channels: tuple[int, ...]) -> float:
    _, target, weight = look
    chosen = list(channels)
    known = weight[..., chosen] > 127
    ours, people = np.moveaxis(logits[chosen] > 0, 0, -1), target[..., chosen] > 127
    return dice(ours & known, people & known)


def _feature_statistics(reference: NDArray[np.float32], val: NDArray[np.float32]) -> dict[str, Any]:
    """Principal components of the features of training images; the distance is Mahalanobis' in them plus what they do
    not explain, over its variance."""
    mean = reference.mean(0)
    _, spread, axes = np.linalg.svd(reference - mean, full_matrices=False)
    variances = spread**2 / (len(reference) - 1)
    statistics = {
        "mean": np.round(mean, 4).tolist(),
        "components": np.round(axes[:COMPONENTS], 4).tolist(),
        "variances": [float(f"{v:.5g}") for v in variances[:COMPONENTS]],
        "residual_variance": float(f"{variances[COMPONENTS:].sum():.5g}"),
    }
    statistics["threshold"] = round(float(np.quantile(distance(val, statistics), 0.99)), 3)
    return statistics


def distance(features: NDArray[np.float32], statistics: dict[str, Any]) -> NDArray[np.float64]:
    """How far features [N, 160] lie from the training images' (dimensionless)."""
    centred = features.astype(np.float64) - np.array(statistics["mean"])
    axes = np.array(statistics["components"])
    along = centred @ axes.T
    rest = ((centred - along @ axes) ** 2).sum(1) / statistics["residual_variance"]
    return np.asarray(np.sqrt((along**2 / np.array(statistics["variances"])).sum(1) + rest))
