"""Side markers of radiographs (L, R, AP, PA) that may stay: told by their shape where they stand alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
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
_ALONE: Final = (2.0, 0.75)  # heights of the box without other text beside it, and above and below
_LEVELS: Final = 24  # at which ink is parted from ground
_AGREED: Final = 3  # of them, and of four that say anything, say the same
_ROOM: Final = (1.5, 0.75)  # heights or widths around what was found, across and down
_WITHIN: Final = 0.25  # of a piece of ink, at least, lies in the box of which it is
_MARGIN: Final = (0.6, 8)  # heights and pixels that the box may have at an end of its letters, at most
_UNEVEN: Final = (0.4, 4)  # and by which its ends may differ: where the box is longer at one, more may stand there
_GAP: Final = 0.3  # heights between two letters, at most
_NEXT: Final = 1.2  # heights from a letter to the next, at most
_MORE: Final = "..."  # reads what has a letter of one stroke, which no marker has
_NOISE: Final = 1  # levels at which something may look like a letter beside them
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


def _reads(frame: NDArray[Any], one: Found) -> str:
    """What stands in the box, if at several levels of grey one or two letters, no other ink in the box and no letter
    beside it are there; else nothing."""
    side = max(one.height, one.width)
    across, down = round(_ROOM[0] * side), round(_ROOM[1] * side)
    top, left = max(0, one.top - down), max(0, one.left - across)
    part = np.asarray(frame[top : one.top + one.height + down, left : one.left + one.width + across], np.float32)
    if part.ndim != 2 or part.size == 0:
        return ""
    box = Found(one.left - left, one.top - top, one.width, one.height)
    said: Counter[str] = Counter()
    others = 0
    for ink in _inks(part, box):
        text, beside = _text(ink, box)
        said[text] += 1
        others += beside
    del said[""]
    sure = {text: times for text, times in said.items() if text != _MORE and "?" not in text}
    if not sure or others > _NOISE:
        return ""
    text = max(sure, key=lambda one: sure[one])
    doubtful = sum(times for other, times in said.items() if other not in sure and _may_be(other, text))
    against = said.total() - sure[text] - doubtful
    return text if sure[text] >= max(_AGREED, _AGREED * against, doubtful / 2) else ""


def _may_be(doubtful: str, text: str) -> bool:
    """Whether a reading with letters that are none for sure may be this one."""
    return len(doubtful) == len(text) and all(a in ("?", b) for a, b in zip(doubtful, text, strict=True))


def _inks(part: NDArray[np.float32], box: Found) -> Iterator[NDArray[np.uint8]]:
    """Ink by level, light and dark; the levels are those of the box."""
    inside = part[box.top : box.top + box.height, box.left : box.left + box.width]
    low, high = (float(value) for value in np.percentile(inside, (1, 99)))
    for level in np.linspace(low, high, _LEVELS + 2)[1:-1] if high > low else ():
        light = (part > level).astype(np.uint8)
        yield light
        yield np.asarray(1 - light, np.uint8)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A connected piece of ink: its place, its area, and itself."""

    left: int
    top: int
    width: int
    height: int
    area: int
    glyph: NDArray[np.uint8]


def _text(ink: NDArray[np.uint8], box: Found) -> tuple[str, bool]:
    """The letters in the box, where they are one or two of a line with no other ink; `?` for a shape that may be one
    and is none for sure; `...` where there may be an I; empty where there is none. And whether a letter stands beside
    them, or may."""
    inside, outside = _pieces(ink, box)
    letters = _line(inside, box)
    if any(_strokes(piece, box.height) for piece in inside):
        return _MORE, False
    near = [piece for piece in outside if _beside(piece, letters or inside)]
    if letters and near:
        return "", True
    beside = any(_letter(piece.glyph) for piece in near)
    return "".join(_letter(piece.glyph) or "?" for piece in letters), beside


def _pieces(ink: NDArray[np.uint8], box: Found) -> tuple[list[_Piece], list[_Piece]]:
    """Pieces of ink that lie in the box (it may cut what it found), from left to right, and the others; none that the
    frame cuts."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    inside: list[_Piece] = []
    outside: list[_Piece] = []
    for label in range(1, count):
        left, top, width, height, area = (int(value) for value in stats[label])
        if left == 0 or top == 0 or left + width == ink.shape[1] or top + height == ink.shape[0]:
            continue  # of what lies around, or the ground
        across = min(left + width, box.left + box.width) - max(left, box.left)
        down = min(top + height, box.top + box.height) - max(top, box.top)
        within = min(across, down) > 0 and across * down >= _WITHIN * width * height
        glyph = (labels[top : top + height, left : left + width] == label).astype(np.uint8)
        (inside if within else outside).append(_Piece(left, top, width, height, area, glyph))
    return sorted(inside, key=lambda piece: piece.left), outside


def _line(inside: list[_Piece], box: Found) -> list[_Piece]:
    """The letters; none where what is in the box are not one or two letters of one line that fill it."""
    letters = [piece for piece in inside if _of_letters(piece, box.height)]
    other = sum(piece.area for piece in inside) - sum(piece.area for piece in letters)
    if not 0 < len(letters) <= 2 or other > _BESIDE * sum(piece.area for piece in letters):
        return []
    first, last = letters[0], letters[-1]
    high = max(piece.height for piece in letters)
    spread = max(piece.top for piece in letters) - min(piece.top for piece in letters)
    gap = last.left - first.left - first.width
    if min(piece.height for piece in letters) < 0.85 * high or spread > 0.15 * high or gap > _GAP * high:
        return []
    before, after = first.left - box.left, box.left + box.width - last.left - last.width
    most, uneven = (part * high + cells for part, cells in (_MARGIN, _UNEVEN))
    return letters if max(before, after) <= most and abs(before - after) <= uneven else []


def _of_letters(piece: _Piece, tall: int) -> bool:
    """Whether a piece of ink in a box has the measure of a letter that fills it."""
    high = _HEIGHTS[0] <= piece.height <= _HEIGHTS[1] and piece.height >= 0.4 * tall
    return high and 0.25 <= piece.width / piece.height <= 1.3


def _strokes(piece: _Piece, tall: int) -> bool:
    """Whether a piece of ink in a box may be an I, or another letter of one stroke."""
    return piece.height >= max(_HEIGHTS[0], 0.4 * tall) and piece.width < 0.25 * piece.height


def _beside(piece: _Piece, line: list[_Piece]) -> bool:
    """Whether a piece of ink may be one more letter of the line."""
    if not line:
        return False
    top, bottom = min(one.top for one in line), max(one.top + one.height for one in line)
    high = bottom - top
    if not 0.5 * high <= piece.height <= 1.5 * high or not 0.1 <= piece.width / piece.height <= 1.5:
        return False
    level = min(bottom, piece.top + piece.height) - max(top, piece.top)
    left, right = min(one.left for one in line), max(one.left + one.width for one in line)
    away = max(piece.left - right, left - piece.left - piece.width)
    return level >= 0.5 * min(high, piece.height) and away < _NEXT * high


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
