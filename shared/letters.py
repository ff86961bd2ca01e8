"""Letters by their shape: what stands in a box, if it is one letter or two, and what a glyph is like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
"""What a shape may be taken for."""

_TABLE: Final = Path(__file__).with_name("letters.npz")  # made by distillation.text.letters
_SIDE: Final = 24
_LEAST: Final = 0.80  # likeness of a letter to a shape of it
_AHEAD: Final = 0.05  # of the likeness to any other letter's
_HEIGHTS: Final = (10, 240)  # of a letter, pixels
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


class Place(Protocol):
    """A rectangle, in pixels from the upper left corner."""

    @property
    def left(self) -> int: ...
    @property
    def top(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


class Box(NamedTuple):
    """A `Place`."""

    left: int
    top: int
    width: int
    height: int


def normal(glyph: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Ink [h, w] as [24, 24]: of one size, blurred a little, of mean 0 and deviation 1."""
    even = cv2.resize(glyph.astype(np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    even = cv2.GaussianBlur(even, (0, 0), 1.0)
    return np.asarray((even - even.mean()) / (even.std() + 1e-6), np.float32)


def reads(frame: NDArray[Any], one: Place) -> str:
    """What stands in a box on a frame [rows, columns], if at several levels of grey one or two letters, no other ink in
    the box and no letter beside it are there; else nothing."""
    side = max(one.height, one.width)
    across, down = round(_ROOM[0] * side), round(_ROOM[1] * side)
    top, left = max(0, one.top - down), max(0, one.left - across)
    part = np.asarray(frame[top : one.top + one.height + down, left : one.left + one.width + across], np.float32)
    if part.ndim != 2 or part.size == 0:
        return ""
    box = Box(one.left - left, one.top - top, one.width, one.height)
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


def _inks(part: NDArray[np.float32], box: Place) -> Iterator[NDArray[np.uint8]]:
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


def _text(ink: NDArray[np.uint8], box: Place) -> tuple[str, bool]:
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
    beside = any(letter(piece.glyph) for piece in near)
    return "".join(letter(piece.glyph) or "?" for piece in letters), beside


def _pieces(ink: NDArray[np.uint8], box: Place) -> tuple[list[_Piece], list[_Piece]]:
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


def _line(inside: list[_Piece], box: Place) -> list[_Piece]:
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


def letter(glyph: NDArray[np.uint8]) -> str:
    """The letter that ink [h, w] is like, if it is like no other; else nothing."""
    letters, starts, shapes = _templates()
    likeness = np.maximum.reduceat(shapes @ normal(glyph).ravel(), starts) / _SIDE**2
    second, first = (int(place) for place in np.argpartition(likeness, -2)[-2:])
    sure = likeness[first] >= _LEAST and likeness[first] - likeness[second] >= _AHEAD
    return letters[first] if sure else ""


@lru_cache(maxsize=1)
def _templates() -> tuple[tuple[str, ...], NDArray[np.int64], NDArray[np.float32]]:
    """Letters, where the shapes of each begin, and the shapes."""
    with np.load(_TABLE, allow_pickle=False) as table:
        letters = np.unique(table["letters"])
        order = np.argsort(table["letters"], kind="stable")
        starts = np.searchsorted(table["letters"][order], letters)
        shapes = table["shapes"].astype(np.float32).reshape(len(order), -1)[order]
    shapes -= shapes.mean(1, keepdims=True)
    return tuple(map(str, letters)), starts, np.asarray(shapes / (shapes.std(1, keepdims=True) + 1e-6), np.float32)
