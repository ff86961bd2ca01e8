"""What the report counts: overlap, boundary distance, cardiothoracic ratio, confidence, intervals."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def dice(a: Mask, b: Mask) -> float:
    """2 |A and B| / (|A| + |B|); one where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def hausdorff95(a: Mask, b: Mask) -> float:
    """The 95th percentile of the distances between the outlines, both ways, in cells; the grid's diagonal where one
    mask is empty."""
    if not a.any() or not b.any():
        return 0.0 if not a.any() and not b.any() else float(np.hypot(*a.shape))
    edges = [_edge(mask) for mask in (a, b)]
    far = [cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, 5) for edge in edges]
    return float(np.percentile(np.concatenate((far[1][edges[0]], far[0][edges[1]])), 95))


def _edge(mask: Mask) -> Mask:
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(mask & (inner == 0))


def largest(mask: Mask) -> Mask:
    """The largest connected piece."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return mask if count < 2 else np.asarray(labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])))


def cardiothoracic_ratio(right: Mask, left: Mask, heart: Mask) -> float:
    """Widest extent of the heart over the widest extent of both lung fields; NaN where one is missing."""
    lungs = np.flatnonzero((largest(right) | largest(left)).any(0))
    inner = np.flatnonzero(largest(heart).any(0))
    if len(lungs) == 0 or len(inner) == 0:
        return float("nan")
    return float((inner[-1] - inner[0] + 1) / (lungs[-1] - lungs[0] + 1))


def interval(values: NDArray[np.float64], seed: int = 1, draws: int = 2000) -> dict[str, float | int]:
    """Mean with a 95 % bootstrap interval over images, median, 5th percentile, n."""
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return {"n": 0}
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    named = {
        "mean": values.mean(),
        "low": low,
        "high": high,
        "median": np.median(values),
        "p5": np.percentile(values, 5),
    }
    return {"n": len(values), **{name: round(float(value), 4) for name, value in named.items()}}


def iou(a: Mask, b: Mask) -> float:
    """|A and B| / |A or B|; one where both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def surface_dice(a: Mask, b: Mask, tolerance: float = 2.0) -> float:
    """The share of both outlines that lies within `tolerance` cells of the other (Nikolov et al., arXiv 1809.04430)."""
    edges = [_edge(mask) for mask in (a, b)]
    total = int(edges[0].sum()) + int(edges[1].sum())
    if not edges[0].any() or not edges[1].any():
        return 1.0 if total == 0 else 0.0
    far = [cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, 5) for edge in edges]
    near = int((far[1][edges[0]] <= tolerance).sum()) + int((far[0][edges[1]] <= tolerance).sum())
    return near / total


def outline_band(truth: Mask, radius: int) -> Mask:
    """Cells within `radius` (chessboard) of the outline: where masks are uncertain at all."""
    kernel = np.ones((2 * radius + 1,) * 2, np.uint8)
    hard = truth.astype(np.uint8)
    return np.asarray(cv2.dilate(hard, kernel) != cv2.erode(hard, kernel))


def reliability(p: NDArray[np.floating[Any]], truth: NDArray[np.floating[Any]], bins: int = 15) -> dict[str, Any]:
    """Expected calibration error over equally wide bins, and the curve: mean probability, share true, count a bin."""
    place = np.minimum((p * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    said, true = (np.bincount(place, weights=w, minlength=bins) / np.maximum(count, 1) for w in (p, truth))
    error = float((np.abs(said - true) * count).sum() / max(count.sum(), 1))
    curve = [[round(float(s), 4), round(float(t), 4), int(n)] for s, t, n in zip(said, true, count, strict=True)]
    return {"ece": round(error, 4), "curve": curve}


def auroc(positive: NDArray[np.floating[Any]], negative: NDArray[np.floating[Any]]) -> float:
    """The chance that a positive scores above a negative, ties counting half; NaN where a side is empty."""
    if not len(positive) or not len(negative):
        return float("nan")
    order = np.sort(negative)
    below, upto = (np.searchsorted(order, positive, side) for side in ("left", "right"))
    return round(float((below + upto).mean() / 2 / len(order)), 4)


def risk_coverage(confidence: NDArray[np.floating[Any]], risk: NDArray[np.floating[Any]]) -> dict[str, Any]:
    """Mean risk of what is kept as the least confident are turned away one by one; its area (AURC); the ideal area."""
    kept = np.arange(1, len(risk) + 1)
    curve = np.cumsum(risk[np.argsort(-confidence, kind="stable")]) / kept
    ideal = np.cumsum(np.sort(risk)) / kept
    points = [max(0, int(np.ceil(share * len(risk))) - 1) for share in np.linspace(0.05, 1, 20)]
    return {
        "aurc": round(float(curve.mean()), 5),
        "aurc_ideal": round(float(ideal.mean()), 5),
        "curve": [[round((i + 1) / len(risk), 3), round(float(curve[i]), 5)] for i in points],
    }
