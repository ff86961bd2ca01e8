"""Side markers of radiographs (L, R, AP, PA) that may stay: told by their shape where they stand alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.letter_shapes import normal
from shared.text_detector import Found

ALLOWED: Final = ("L", "R", "AP", "PA")
"""What a marker may say."""
MODALITIES: Final = frozenset({"CR", "DX", "MG", "IO", "PX", "RG"})
"""Where such markers are laid on the detector."""

_TABLE: Final = Path(__file__).resolve().parent / "tables" / "letters.npz"  # made by distillation.text.letters
_SIDE: Final = 24
_LEAST: Final = 0.80  # likeness of a letter to a shape of it
_AHEAD: Final = 0.05  # of the likeness to any other letter's
_HEIGHTS: Final = (10, 240)  # of a letter, pixels
_ALONE: Final = 3.0  # heights without other text around
_LEVELS: Final = 16  # at which ink is parted from ground
_AGREED: Final = 3  # of them, and of four that say anything, say the same
_ROOM: Final = 0.5  # of the height, around what was found, at first
_SLACK: Final = 1.6  # heights by which the box may be wider than its letters: less than another letter with its margins
_BESIDE: Final = 0.15  # of the letters' ink, at most, is other ink in the box


def kept(frame: NDArray[Any], found: list[Found]) -> list[Found]:
    """Those of the found texts of a frame [rows, columns] that are markers. In doubt one is none."""
    groups = _groups(found)
    return [
        one for group in groups if _alone(group, groups) and _reads(frame, _around(group)) in ALLOWED for one in group
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
    across = max(other.left - one.left - one.width, one.left - other.left - other.width)
    down = max(other.top - one.top - one.height, one.top - other.top - other.height)
    return max(across, down)


def _around(group: list[Found]) -> Found:
    left, top = min(one.left for one in group), min(one.top for one in group)
    right, bottom = max(one.left + one.width for one in group), max(one.top + one.height for one in group)
    return Found(left, top, right - left, bottom - top)


def _alone(group: list[Found], groups: list[list[Found]]) -> bool:
    whole = _around(group)
    room = _ALONE * min(one.height for one in group)
    return whole.width <= 4 * whole.height and not any(
        _apart(whole, other) < room for one in groups if one is not group for other in one
    )


def _reads(frame: NDArray[Any], one: Found) -> str:
    """What stands in the box, if at several levels of grey one or two letters, and no other ink, are there; else
    nothing."""
    side = max(one.height, one.width)
    for room in (4 + round(_ROOM * one.height), side, 2 * side):  # the box may cut what it found
        top, left = max(0, one.top - room), max(0, one.left - room)
        part = np.asarray(frame[top : one.top + one.height + room, left : one.left + one.width + room], np.float32)
        if part.ndim != 2 or part.size == 0:
            return ""
        said = Counter(text for ink in _inks(part) if (text := _text(ink, (one.width, one.height))))
        if said:
            text, times = said.most_common(1)[0]
            return text if times >= max(_AGREED, _AGREED * (said.total() - times)) else ""
    return ""


def _inks(part: NDArray[np.float32]) -> Iterator[NDArray[np.uint8]]:
    """Ink by level, light and dark."""
    low, high = (float(value) for value in np.percentile(part, (1, 99)))
    for level in np.linspace(low, high, _LEVELS + 2)[1:-1] if high > low else ():
        light = (part > level).astype(np.uint8)
        yield light
        yield np.asarray(1 - light, np.uint8)


def _text(ink: NDArray[np.uint8], inside: tuple[int, int]) -> str:
    """The letters of a piece of ink that is theirs alone, as high as what was found; `?` for a shape that may be one
    and is none for sure; empty where there is none."""
    glyphs = _glyphs(ink, inside)
    if not 0 < len(glyphs) <= 2:
        return ""
    return "".join(_letter(glyph) or "?" for glyph in glyphs)


def _glyphs(ink: NDArray[np.uint8], inside: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """The pieces of ink in the box from left to right; none where they are not letters of one line that fill it."""
    broad, tall = inside
    count, labels, stats, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    pieces, other = [], 0
    for label in range(1, count):
        left, top, width, height, area = (int(value) for value in stats[label])
        if left == 0 or top == 0 or left + width == ink.shape[1] or top + height == ink.shape[0]:
            continue  # of what lies around, or the ground
        if not _HEIGHTS[0] <= height <= _HEIGHTS[1] or height < 0.4 * tall or not 0.25 <= width / height <= 1.3:
            other += area
            continue
        pieces.append((left, top, width, height, label, area))
    pieces.sort()
    if not 0 < len(pieces) <= 2 or other > _BESIDE * sum(piece[5] for piece in pieces):
        return []
    first, last = pieces[0], pieces[-1]
    high = max(piece[3] for piece in pieces)
    spread = max(piece[1] for piece in pieces) - min(piece[1] for piece in pieces)
    if min(piece[3] for piece in pieces) < 0.85 * high or spread > 0.15 * high or last[0] - first[0] - first[2] > high:
        return []
    if broad - (last[0] + last[2] - first[0]) > _SLACK * high:  # room for another letter at an end
        return []
    return [
        (labels[top : top + height, left : left + width] == label).astype(np.uint8)
        for left, top, width, height, label, _ in pieces
    ]


def _letter(glyph: NDArray[np.uint8]) -> str:
    """The letter that the glyph is like, if it is like no other."""
    letters, shapes = _templates()
    likeness = shapes @ normal(glyph).ravel() / _SIDE**2
    best: dict[str, float] = {}
    for letter, like in zip(letters, likeness, strict=True):
        best[letter] = max(best.get(letter, -1.0), float(like))
    ranked = sorted(best, key=lambda letter: -best[letter])
    sure = best[ranked[0]] >= _LEAST and best[ranked[0]] - best[ranked[1]] >= _AHEAD
    return ranked[0] if sure else ""


@lru_cache(maxsize=1)
def _templates() -> tuple[tuple[str, ...], NDArray[np.float32]]:
    with np.load(_TABLE, allow_pickle=False) as table:
        shapes = table["shapes"].astype(np.float32).reshape(len(table["letters"]), -1)
        shapes -= shapes.mean(1, keepdims=True)
        return tuple(map(str, table["letters"])), np.asarray(shapes / (shapes.std(1, keepdims=True) + 1e-6), np.float32)
