"""Side markers of radiographs (L, R, AP, PA) that may stay: told by their shape where they stand alone."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.text_detector import Found

ALLOWED: Final = ("L", "R", "AP", "PA")
"""What a marker may say."""
MODALITIES: Final = frozenset({"CR", "DX", "MG", "IO", "PX", "RG"})
"""Where such markers are laid on the detector."""

_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_FACES: Final = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX)
_SIDE: Final = 28
_LEAST: Final = 0.78  # likeness of a letter to its template
_AHEAD: Final = 0.08  # of the likeness to any other letter's
_HEIGHTS: Final = (10, 240)  # of a letter, pixels
_ALONE: Final = 3.0  # heights without other text around


def kept(frame: NDArray[Any], found: list[Found]) -> list[Found]:
    """Those of the found texts of a frame [rows, columns] that are markers. In doubt one is none."""
    return [one for one in found if _alone(one, found) and _reads(frame, one) in ALLOWED]


def _alone(one: Found, found: list[Found]) -> bool:
    room = _ALONE * one.height
    return one.width <= 4 * one.height and not any(
        other is not one
        and other.left - room < one.left + one.width
        and one.left < other.left + other.width + room
        and other.top - room < one.top + one.height
        and one.top < other.top + other.height + room
        for other in found
    )


def _reads(frame: NDArray[Any], one: Found) -> str:
    """What stands in the box, if every stroke of it belongs to one of at most two sure letters; else nothing."""
    side = max(one.height, one.width)
    for room in (4 + one.height // 4, side, 2 * side):  # the box may cut what it found
        rows = slice(max(0, one.top - room), one.top + one.height + room)
        part = np.asarray(frame[rows, max(0, one.left - room) : one.left + one.width + room], np.float32)
        low, high = (float(part.min()), float(part.max())) if part.size else (0.0, 0.0)
        if not high > low or part.ndim != 2:
            continue
        grey = ((part - low) * (255 / (high - low))).astype(np.uint8)
        _, light = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        for ink in (light, 255 - light):
            letters = [_letter(glyph) for glyph in _glyphs(np.asarray(ink, np.uint8))]
            if 0 < len(letters) <= 2 and all(letters):
                return "".join(letters)
    return ""


def _glyphs(ink: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The pieces of ink from left to right; none where a piece touches the border or is no letter in size."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    pieces = []
    for label in range(1, count):
        left, top, width, height, area = (int(value) for value in stats[label])
        if area < 4:
            continue
        touches = left == 0 or top == 0 or left + width == ink.shape[1] or top + height == ink.shape[0]
        if touches or not _HEIGHTS[0] <= height <= _HEIGHTS[1] or not 0.3 <= width / height <= 1.2:
            return []
        pieces.append((left, (labels[top : top + height, left : left + width] == label).astype(np.uint8)))
    return [glyph for _, glyph in sorted(pieces, key=lambda piece: piece[0])]


def _letter(glyph: NDArray[np.uint8]) -> str:
    """The letter that the glyph is like, if it is like no other."""
    shape = _normal(glyph)
    likeness: dict[str, float] = {}
    for letter, template in _templates():
        likeness[letter] = max(likeness.get(letter, 0.0), float((shape * template).mean()))
    ranked = sorted(likeness, key=lambda letter: -likeness[letter])
    sure = likeness[ranked[0]] >= _LEAST and likeness[ranked[0]] - likeness[ranked[1]] >= _AHEAD
    return ranked[0] if sure else ""


@lru_cache(maxsize=1)
def _templates() -> tuple[tuple[str, NDArray[np.float32]], ...]:
    found = []
    for letter, face, thick in product(_LETTERS, _FACES, (2, 5, 8)):
        canvas = np.zeros((96, 96), np.uint8)
        cv2.putText(canvas, letter, (16, 76), face, 2.2, 255, thick, cv2.LINE_AA)
        rows, columns = np.nonzero(canvas.max(1) > 127)[0], np.nonzero(canvas.max(0) > 127)[0]
        inked = canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] > 127
        found.append((letter, _normal(inked.astype(np.uint8))))
    return tuple(found)


def _normal(glyph: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Of one size, blurred a little, of mean 0 and deviation 1."""
    even = cv2.resize(glyph.astype(np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    even = cv2.GaussianBlur(even, (0, 0), 1.2)
    return np.asarray((even - even.mean()) / (even.std() + 1e-6), np.float32)
