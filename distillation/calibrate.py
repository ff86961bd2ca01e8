"""Temperatures, thresholds and feature statistics, fitted on validation images alone."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from distillation import not_a_chest
from distillation.augment import view
from distillation.data import CHANNELS, FLAGS, Pool
from distillation.measures import dice
from distillation.runtime import Answer, answer, sigmoid
from services.inference.masks import GROUPS, confidence

FALSE_ALARMS = 0.005  # of upright chests, source by source
SILENT_FAILURES = 0.01  # wished for: Dice under 0.90 and not abstained
COVERAGE = 0.95  # of clean validation images, kept whatever the wish
POOR_DICE = 0.90
COMPONENTS = 16

Corrupted = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]


def calibrate(model: ort.InferenceSession, val: Pool, train: Pool, seed: int) -> dict[str, Any]:
    """The content of calibration.json; `val` must hold validation images only."""
    clean = answer(model, val.grids)
    temperature, bias = _platt(clean.logits, val)
    return {
        "schema": 1,
        "fitted_on": "validation images, every source counting the same",
        "mask_temperature": np.round(temperature, 3).tolist(),
        "mask_bias": np.round(bias, 3).tolist(),
        "flags": _flag_thresholds(clean, val),
        "soft_dice_confidence": _confidence_thresholds(model, val, temperature, bias, seed),
        "features": _feature_statistics(
            answer(model, balanced(train, 600, seed)).features,
            clean.features,
            answer(model, _no_chests(val, 400, seed)).features,
        ),
    }


def balanced(pool: Pool, count: int, seed: int) -> NDArray[np.uint8]:
    """Grids of the pool, as many of each source."""
    rng = np.random.default_rng(seed)
    sources = sorted({item.source for item in pool.radiographs})
    rows = np.concatenate([rng.choice(pool.rows_of(source), count // len(sources)) for source in sources])
    return np.asarray(pool.grids[rows])


def _no_chests(val: Pool, count: int, seed: int) -> NDArray[np.uint8]:
    """Pictures of the families that training is shown as no chests."""
    rng = np.random.default_rng(seed)
    return np.stack([not_a_chest.trained(val.grids[int(rng.integers(len(val.grids)))], rng) for _ in range(count)])


def _platt(logits: NDArray[np.float32], val: Pool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A temperature and a bias for each channel, by likelihood in a band of 4 cells about the human outlines, every
    source counting the same (whole images would only tell how easy the background is).

    The bias takes back what the Dice in the loss does: a cell in doubt is worth more inside the mask than outside, so
    the masks (logit over 0) are those of the best Dice and not those of an even chance.
    """
    groups: dict[int, dict[str, list[NDArray[np.float64]]]] = {c: {} for c in range(len(CHANNELS))}
    for i, item in enumerate(val.radiographs):
        for channel in np.flatnonzero(val.complete[i]):
            truth = val.targets[i, :, :, channel].astype(np.float64) / 255
            hard = (truth > 0.5).astype(np.uint8)
            kernel = np.ones((9, 9), np.uint8)
            band = (cv2.dilate(hard, kernel) != cv2.erode(hard, kernel)) & (val.weights[i, :, :, channel] == 255)
            found = np.stack((logits[i, channel][band], truth[band]))
            groups[int(channel)].setdefault(item.source, []).append(found)
    fitted = [fit_platt([np.concatenate(parts, axis=1) for parts in own.values()]) for own in groups.values()]
    return 1 / np.array([slope for slope, _ in fitted]), np.array([bias for _, bias in fitted])


def fit_platt(sources: list[NDArray[np.float64]]) -> tuple[float, float]:
    """Slope and bias of the logistic regression of truth on logits ([2, n] a source), by Newton's method."""
    x = np.concatenate([z for z, _ in sources])
    y = np.concatenate([truth for _, truth in sources])
    weight = np.concatenate([np.full(len(z), 1 / len(z)) for z, _ in sources])
    design, found = np.stack((x, np.ones_like(x)), 1), np.array([0.5, 0.0])
    for _ in range(25):
        p = sigmoid(design @ found)
        slope = design.T @ (weight * (y - p))
        found = found + np.linalg.solve((design * (weight * p * (1 - p))[:, None]).T @ design, slope)
    return float(found[0]), float(found[1])


def _flag_thresholds(clean: Answer, val: Pool) -> dict[str, dict[str, float]]:
    """On probabilities: the least that keeps false alarms on upright chests rare in every source, and at least 0.5."""
    p = sigmoid(clean.flags[:, : len(FLAGS)])
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
    model: ort.InferenceSession, val: Pool, temperature: NDArray[np.float64], bias: NDArray[np.float64], seed: int
) -> dict[str, dict[str, float]]:
    """A threshold a structure, below which its mask is not to be relied on: from clean and harshly degraded images."""
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.choice(val.rows_of(s), 150) for s in sorted({i.source for i in val.radiographs})])
    looks = [(val.grids[row], val.targets[row], val.weights[row]) for row in rows]
    looks += [corrupted(val, int(row), rng) for row in rows]
    origin = np.concatenate((rows, rows))
    logits = answer(model, np.stack([look[0] for look in looks])).logits
    confidences = [confidence(one, temperature, bias) for one in logits]
    found: dict[str, dict[str, float]] = {}
    for name, channels in GROUPS.items():
        pairs = [
            (confidences[i][name], _dice_of(logits[i], looks[i], channels))
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


def _dice_of(logits: NDArray[np.float32], look: Corrupted, channels: tuple[int, ...]) -> float:
    _, target, weight = look
    chosen = list(channels)
    known = weight[..., chosen] > 127
    ours, people = np.moveaxis(logits[chosen] > 0, 0, -1), target[..., chosen] > 127
    return dice(ours & known, people & known)


def _feature_statistics(
    reference: NDArray[np.float32], val: NDArray[np.float32], foreign: NDArray[np.float32]
) -> dict[str, Any]:
    """Principal components of the features of training images; the distance is Mahalanobis' in them plus what they do
    not explain, over its variance. The threshold stands half way (as a ratio) between validation images and pictures
    that are no chests, but turns away at most 1 % of the former."""
    mean = reference.mean(0)
    _, spread, axes = np.linalg.svd(reference - mean, full_matrices=False)
    variances = spread**2 / (len(reference) - 1)
    statistics = {
        "mean": np.round(mean, 4).tolist(),
        "components": np.round(axes[:COMPONENTS], 4).tolist(),
        "variances": [float(f"{v:.5g}") for v in variances[:COMPONENTS]],
        "residual_variance": float(f"{variances[COMPONENTS:].sum():.5g}"),
    }
    near, far = distance(val, statistics), distance(foreign, statistics)
    between = float(np.sqrt(np.quantile(near, 0.995) * np.quantile(far, 0.01)))
    statistics["threshold"] = round(max(between, float(np.quantile(near, 0.99))), 3)
    return statistics


def distance(features: NDArray[np.float32], statistics: dict[str, Any]) -> NDArray[np.float64]:
    """How far features [N, 160] lie from the training images' (dimensionless)."""
    centred = features.astype(np.float64) - np.array(statistics["mean"])
    axes = np.array(statistics["components"])
    along = centred @ axes.T
    rest = ((centred - along @ axes) ** 2).sum(1) / statistics["residual_variance"]
    return np.asarray(np.sqrt((along**2 / np.array(statistics["variances"])).sum(1) + rest))
