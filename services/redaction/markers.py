"""Side markers of radiographs (L, R, AP, PA) that may stay: told by their shape where they stand alone."""

from __future__ import annotations

from typing import Any, Final

from numpy.typing import NDArray

from shared.letters import reads
from shared.text_detector import Found

ALLOWED: Final = ("L", "R", "AP", "PA")
"""What a marker may say."""
MODALITIES: Final = frozenset({"CR", "DX", "MG", "IO", "PX", "RG"})
"""Where such markers are laid on the detector."""

_ALONE: Final = (2.0, 0.75)  # heights of the box without other text beside it, and above and below


def kept(frame: NDArray[Any], found: list[Found]) -> list[Found]:
    """Those of the found texts of a frame [rows, columns] that are markers. In doubt one is none."""
    groups = _groups(found)
    return [
        one for group in groups if _alone(group, groups) and reads(frame, _around(group)) in ALLOWED for one in group
    ]


def _groups(found: list[Found]) -> list[list[Found]]:
    """Boxes that overlap belong to one text: the detector looks at two scales."""
    groups: list[list[Found]] = []
    for one in found:
        touching = [group for group in groups if any(_apart(one, other) <= 0 for other in group)]
        groups = [group for group in groups if group not in touching]
        groups.append([one, *(other for group in touching for other in group)])
    return groups


def _apart(one: Found, other: Found) -> int:
    """Pixels between two boxes, across or down; 0 or less where they overlap."""
    return max(_across(one, other), _down(one, other))


def _across(one: Found, other: Found) -> int:
    return max(other.left - one.left - one.width, one.left - other.left - other.width)


def _down(one: Found, other: Found) -> int:
    return max(other.top - one.top - one.height, one.top - other.top - other.height)


def _around(group: list[Found]) -> Found:
    left, top = min(one.left for one in group), min(one.top for one in group)
    right, bottom = max(one.left + one.width for one in group), max(one.top + one.height for one in group)
    return Found(left, top, right - left, bottom - top)


def _alone(group: list[Found], groups: list[list[Found]]) -> bool:
    whole = _around(group)
    across, down = (part * min(one.height for one in group) for part in _ALONE)
    return whole.width <= 4 * whole.height and not any(
        _across(whole, other) < across and _down(whole, other) < down
        for one in groups
        if one is not group
        for other in one
    )
