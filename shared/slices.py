"""What is wrong with where slices lie: some missing, two in one place, or uneven distances (PS3.3 C.7.6.2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final

LEAST_SLICES: Final = 4
"""Three distances are needed before one of them can be unusual."""

_SAME_PLACE_MM: Final = 0.01
_EVEN: Final = 0.03
"""Share of the usual distance by which one may differ: positions are rounded, and couches do not move quite evenly."""
_WHOLE: Final = 0.1
"""How near to a whole multiple of the usual distance a gap is where slices were left out."""
_SYSTEMATIC: Final = 0.2
"""Share of the gaps from which on a wider distance is how the series was planned (wide above, narrow below)."""


@dataclass(frozen=True, slots=True)
class Places:
    """What was found.

    missing: slices by which gaps are too wide. doubled: slices that lie where another one of the stack lies. uneven:
    distances that differ in another way. usual_mm: median distance of neighbours.
    """

    missing: int = 0
    doubled: int = 0
    uneven: int = 0
    usual_mm: float = 0.0


def normal(orientation: Sequence[float]) -> tuple[float, float, float]:
    """Normal of the plane of Image Orientation (Patient), six numbers."""
    (a, b, c), (d, e, f) = orientation[:3], orientation[3:6]
    return b * f - c * e, c * d - a * f, a * e - b * d


def depth(position: Sequence[float], orientation: Sequence[float]) -> float:
    """Where a slice lies along the normal of its plane, mm."""
    return sum(one * other for one, other in zip(position, normal(orientation), strict=True))


def judge(depths: Sequence[float]) -> Places:
    """Judge the slices of one orientation by where they lie along its normal, mm, in any order.

    Several stacks may lie on each other (phases, echoes): what counts is that each place holds as many slices as most
    places do. Fewer than `LEAST_SLICES` places are not judged.
    """
    held: list[tuple[float, int]] = []
    for one in sorted(depths):
        if held and one - held[-1][0] <= _SAME_PLACE_MM:
            held[-1] = (held[-1][0], held[-1][1] + 1)
        else:
            held.append((one, 1))
    if len(held) < LEAST_SLICES:
        return Places()
    usual_count = Counter(count for _, count in held).most_common(1)[0][0]
    doubled = sum(max(0, count - usual_count) for _, count in held)
    fewer = sum(max(0, usual_count - count) for _, count in held)
    gaps = [after - before for (before, _), (after, _) in pairwise(held)]
    usual = median(gaps)
    wide = [gap for gap in gaps if _is_multiple(gap / usual)]
    if len(wide) > _SYSTEMATIC * len(gaps):
        return Places(fewer, doubled, len(wide), usual)
    missing = sum(round(gap / usual) - 1 for gap in wide)
    uneven = sum(abs(gap / usual - 1) > _EVEN for gap in gaps) - len(wide)
    return Places(missing * usual_count + fewer, doubled, uneven, usual)


def _is_multiple(ratio: float) -> bool:
    return ratio > 1.5 and abs(ratio - round(ratio)) <= _WHOLE * round(ratio)
