"""Where the lungs end beside an edge of the image, or beyond it, by the model's chances and by the outlines."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.inference.registry import EDGES, FLAGS, SHARES
from services.inference.thresholds import MARGIN

FURTHEST: Final = -0.07
"""Share of the image's height or width that lies beyond an edge at most: no more was ever taken away in training."""
TAIL: Final = 0.3
"""Chance that is left out at either end of an interval. On validation images as many lungs that end inside are then
told to be near an edge as by the outlines alone, and of those cut off by 10 mm two in three are sure to be, where it
was one in three."""


class Margin(NamedTuple):
    """Between the lungs and an edge, as shares of the image's height or width, below zero where lung lies beyond it."""

    low: float
    value: float
    high: float


def beside(flags: NDArray[np.float32]) -> dict[str, NDArray[np.float64]] | None:
    """Edge -> chance that the margin lies below each of `SHARES`, float64 [7], never falling; None where the release
    does not say. flags: the output of the model, logits [6] or [34]."""
    logits = flags[len(FLAGS) :].astype(np.float64)
    if not len(logits):
        return None
    chances = 0.5 * (1 + np.tanh(0.5 * logits.reshape(len(EDGES), len(SHARES))))
    return dict(zip(EDGES, np.maximum.accumulate(chances, axis=1), strict=True))


def margin(below: NDArray[np.float64], outlined: Margin) -> Margin:
    """The margin that is to be expected and the interval in which it lies, by chances as `beside` gives them. Where the
    lungs end further inside than the last share, the outlines say where: `outlined`. Outlines that surely end further
    inside, beside chances that say otherwise, are a contradiction, and the interval spans both: of 2,925 sides of
    validation images that were cut, none had such outlines. So are outlines that surely reach the edge, beside chances
    that say that the lungs end further inside."""
    ends, chances = np.array((FURTHEST, *SHARES)), np.concatenate(([0.0], below))
    further = Margin(*(max(SHARES[-1], one) for one in outlined))
    mean = float((np.diff(chances) * (ends[1:] + ends[:-1]) / 2).sum() + (1 - chances[-1]) * further.value)
    low, high = (
        float(np.interp(share, chances, ends)) if share < chances[-1] else inside
        for share, inside in ((TAIL, further.low), (1 - TAIL, further.high))
    )
    if outlined.low > SHARES[-1]:
        high = further.high
    if outlined.high <= MARGIN.fail:
        low = min(low, outlined.low)
    return Margin(min(low, mean), mean, max(high, mean))
