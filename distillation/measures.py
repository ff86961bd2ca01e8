"""What the report counts: overlap, boundary distance, cardiothoracic ratio, confidence, intervals."""

from __future__ import annotations

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


def soft_dice_confidence(p: NDArray[np.float32]) -> float:
    """2 sum(p y) / (sum p + sum y) with y = p > 0.5: the Dice that the probabilities themselves expect
    (arXiv 2402.10665); 0 where nothing is found."""
    found = p > 0.5
    total = float(p.sum()) + float(found.sum())
    return 2 * float(p[found].sum()) / total if found.any() else 0.0


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
