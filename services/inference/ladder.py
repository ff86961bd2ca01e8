"""What becomes of an image that the model is unsure of: another form of the release looks too, and then a person.

The first rung is the form that is served. The second is the release in fp32, which looks at the image and at its mirror
image and averages the two; what it finds is used only if it is sure and agrees with the first. Else the first look's
LOW_CONFIDENCE stands, which the policy shows to a person: the last rung.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.inference import chest
from services.inference.backends import Backend, Outputs
from services.inference.chest import Look
from services.inference.findings import PASS
from services.inference.registry import Model

LEAST_AGREEMENT: Final = 0.95
"""Dice of the lungs' masks of both looks, under which a person is asked."""
_MIRRORED: Final = [1, 0, 2, 3]
"""Channel of the mirror image that shows what a channel shows."""
_FURTHEST: Final = 1e-6


@dataclass(frozen=True)
class Rung:
    """One look. form: "served" or "whole". confidence: in the lungs. used: whether the findings are of this look."""

    form: str
    model_sha256: str
    output_sha256: str
    confidence: float
    used: bool


class LookingTwice:
    """A backend that looks at each image and at its mirror image; masks are the mean of both, the rest is of the
    image as it is."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.provider, self.platform = inner.provider, inner.platform
        self.description = f"{inner.description};mirrored=1"

    def run(self, images: NDArray[np.float32]) -> Outputs:
        """See `Backend.run`."""
        found = self._inner.run(images)
        mirrored = self._inner.run(np.ascontiguousarray(images[..., ::-1])).logits[:, _MIRRORED, :, ::-1]
        mean = 0.5 * (_probability(found.logits) + _probability(mirrored))
        mean = np.clip(mean, _FURTHEST, 1 - _FURTHEST)
        return found._replace(logits=np.log(mean / (1 - mean)).astype(np.float32))

    def close(self) -> None:
        """Close what looks."""
        self._inner.close()


def climb(
    first: Look, model: Model, second: Model | None, look: Callable[[Model], Look]
) -> tuple[list[Look], list[Rung]]:
    """The looks that were taken beyond `first`, and every rung; none where the first look is sure.

    Parameters
    ----------
    first
        The look of the model that is served.
    model, second
        That model, and the form above it; None for no ladder.
    look
        Has a model look at the same image.

    Returns
    -------
    The looks beyond the first, and the rungs in their order; the last rung is used where one beyond the first is.
    """
    if second is None or first.is_foreign() or chest.low_confidence(first).outcome == PASS:
        return [], []
    again = look(second)
    use = chest.low_confidence(again).outcome == PASS and _agreement(first, again) >= LEAST_AGREEMENT
    return [again], [_rung("served", model, first, not use), _rung("whole", second, again, use)]


def agreement(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Dice of two masks; 0 where both are empty, or of different fields, for then they agree on nothing."""
    if one.shape != other.shape:
        return 0.0
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 0.0


def _agreement(one: Look, other: Look) -> float:
    return agreement(one.nested["lungs_full"].middle, other.nested["lungs_full"].middle)


def _rung(form: str, model: Model, look: Look, used: bool) -> Rung:
    return Rung(form, model.sha256, look.answer.sha256(), look.confidence, used)


def _probability(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))
    return found
