"""Side markers in the picture of a radiograph, and AP or PA, read by their shape where they stand alone; and what they
say against the header (`python -m benchmarks.detection`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from services.inference.chest import Look
from services.inference.findings import FAIL, finding
from services.inference.header import Stated
from services.inference.in_the_way import Plane, working_picture
from services.inference.preprocessing import Preprocessed
from shared.letters import Box, letter, reads
from stepwedge.common.v1 import common_pb2
from stepwedge.common.v1.common_pb2 import Finding, Reason

LONGEST: Final = 768
"""Longer side of the picture in which is read, pixels."""
_STROKE: Final = 21
"""Pixels that a stroke is wide at most."""
_LEVELS: Final = (80, 32)
"""Steps of the working picture by which ink outshines what lies around it."""
_HEIGHTS: Final = (10, 110)
"""Of a letter, pixels."""
_WIDTHS: Final = (0.3, 1.2)
"""Of a letter, over its height."""
_INKED: Final = (0.15, 0.85)
"""Share of its box that the ink of a letter takes."""
_ROOM: Final = 0.15
"""Of a letter's height, what is added around it to read it."""
_ALIKE: Final = 0.15
"""Of the height, by which two letters of one word differ in place and height at most."""
_GAP: Final = 0.5
"""Of the height, between two letters of one word."""
_MOST: Final = 64
"""Pieces that are read at most at a level; a picture with more is full of writing."""

SIDES: Final = frozenset({"L", "R"})
VIEWS: Final = frozenset({"AP", "PA"})
MIDDLE: Final = 0.06
"""Share of the picture's width on either side of the middle of the chest in which a marker is on no side."""


class Marker(NamedTuple):
    """What is written, of `SIDES` and `VIEWS`, and where, in pixels of the picture; backwards: as in a mirror."""

    text: str
    box: Box
    backwards: bool


def find(
    pixels: NDArray[Any], prepared: Preprocessed, *, inverted: bool, aspect: float = 1.0, turned: int = 0
) -> list[Marker]:
    """The markers on an image [rows, columns], where they are once it is upright. prepared: of it, or of its field.
    inverted, aspect: of `preprocessing.preprocess`. turned: quarters by which it is turned anticlockwise to stand
    upright."""
    if not prepared.high > prepared.low:
        return []
    low, high = prepared.low, prepared.high
    picture = working_picture(pixels, inverted=inverted, low=low, high=high, aspect=aspect, longest=LONGEST)
    picture = np.ascontiguousarray(np.rot90(picture, turned))
    rows, columns = pixels.shape if turned % 2 == 0 else pixels.shape[::-1]
    scale = (rows / picture.shape[0], columns / picture.shape[1])
    mirror = np.ascontiguousarray(picture[:, ::-1])
    outshines = cv2.morphologyEx(picture, cv2.MORPH_TOPHAT, np.ones((_STROKE, _STROKE), np.uint8))
    found: list[Marker] = []
    for level in _LEVELS:
        for text, box, backwards in islice(_candidates((outshines > level).astype(np.uint8)), _MOST):
            if any(_touch(box, other.box) for other in found):
                continue
            shown = box._replace(left=picture.shape[1] - box.left - box.width) if backwards else box
            if reads(mirror if backwards else picture, _wider(shown)) == text:
                found.append(Marker(text, box, backwards))
    return [one._replace(box=_enlarged(one.box, *scale)) for one in found]


def exchanged(markers: Sequence[Marker], seen: Look, shape: tuple[int, ...]) -> dict[bool, list[common_pb2.Box]]:
    """Where on an image [rows, columns] of a frontal chest the side markers are that say that the patient's right is on
    the image's right (True), and those that say that it is on its left, as is the custom (False). One written backwards
    on the side where it belongs lay face down and says nothing, as do those near the middle of the chest.
    """
    said: dict[bool, list[common_pb2.Box]] = {True: [], False: []}
    width = shape[seen.turned % 2 == 0]
    middle = _middle_of_the_chest(seen, width)
    for one in markers:
        if one.text not in SIDES or abs(one.box.left + one.box.width / 2 - middle) < MIDDLE * width:
            continue
        fits = (one.text == "L") == (one.box.left + one.box.width / 2 > middle)
        if not (one.backwards and fits):
            said[not fits].append(_place(_turned_back(one.box, seen.turned, shape), seen.frame))
    return said


def _middle_of_the_chest(seen: Look, width: int) -> float:
    """Column of the middle of the lungs, pixels; of the image, where they are not known or lie turned."""
    if seen.turned or not seen.outlines_hold:
        return width / 2
    lungs = seen.nested["lungs_full"].middle
    cells = np.flatnonzero(lungs.any(0))
    return float(seen.behind[2] + (cells[0] + cells[-1] + 1) / 2 / lungs.shape[1] * seen.where.columns)


def _turned_back(box: Box, turns: int, shape: tuple[int, ...]) -> Box:
    """A place in an image that was turned by quarters, anticlockwise, in the image [rows, columns] as it came."""
    for turn in range(turns, 0, -1):
        width = shape[turn % 2]  # before this quarter
        box = Box(width - box.top - box.height, box.left, box.height, box.width)
    return box


def _place(box: Box, frame: int) -> common_pb2.Box:
    return common_pb2.Box(frame=frame, left=box.left, top=box.top, width=box.width, height=box.height)


def contradictions(markers: Sequence[Marker], stated: Stated, frame: int) -> Iterator[Finding]:
    """LATERALITY and VIEW, where header and picture name opposite sides or views. Of a part of the body that is one
    side's; one marker that agrees is enough for there to be no contradiction."""
    readable = [one for one in markers if not one.backwards]
    for header, words, code, what in (
        (stated.side, SIDES, Reason.REASON_LATERALITY, "side"),
        (stated.view, VIEWS, Reason.REASON_VIEW, "view"),
    ):
        said = [one for one in readable if one.text in words]
        if header in words and said and all(one.text != header for one in said):
            detail = f"a marker in the picture names the other {what}: {said[0].text}, in the header {header}"
            yield finding(code, FAIL, detail, boxes=[_place(one.box, frame) for one in said])


def _candidates(ink: Plane) -> Iterator[tuple[str, Box, bool]]:
    """What may be a marker: pieces of ink that are like a letter, and pairs of them."""
    letters = list(_letters(ink))
    yield from (one for one in letters if one[0] in SIDES)
    yield from _pairs(letters)


def _letters(ink: Plane) -> Iterator[tuple[str, Box, bool]]:
    """Pieces of ink that are like one of the letters of markers, as they stand or in a mirror."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    left, top, width, height, area = stats.T
    good = (height >= _HEIGHTS[0]) & (height <= _HEIGHTS[1])
    good &= (width >= _WIDTHS[0] * height) & (width <= _WIDTHS[1] * height)
    good &= (area >= _INKED[0] * width * height) & (area <= _INKED[1] * width * height)
    good &= (left > 0) & (top > 0) & (left + width < ink.shape[1]) & (top + height < ink.shape[0])
    for label in np.flatnonzero(good):
        box = Box(*(int(one) for one in stats[label, :4]))
        window = (slice(box.top, box.top + box.height), slice(box.left, box.left + box.width))
        glyph = (labels[window] == label).astype(np.uint8)
        for backwards in (False, True):
            read = letter(np.ascontiguousarray(glyph[:, ::-1]) if backwards else glyph)
            if read and read in "LRAP":
                yield read, box, backwards


def _pairs(letters: list[tuple[str, Box, bool]]) -> Iterator[tuple[str, Box, bool]]:
    for first, one, backwards in letters:
        for second, other, also in letters:
            gap, high = other.left - one.left - one.width, one.height
            level = max(abs(one.top - other.top), abs(high - other.height)) <= _ALIKE * high
            if backwards == also and level and 0 <= gap <= _GAP * high and first + second in VIEWS:
                top, bottom = min(one.top, other.top), max(one.top + one.height, other.top + other.height)
                box = Box(one.left, top, other.left + other.width - one.left, bottom - top)
                yield second + first if backwards else first + second, box, backwards


def _touch(one: Box, other: Box) -> bool:
    across = min(one.left + one.width, other.left + other.width) - max(one.left, other.left)
    down = min(one.top + one.height, other.top + other.height) - max(one.top, other.top)
    return across > 0 and down > 0


def _wider(box: Box) -> Box:
    room = max(2, round(_ROOM * box.height))
    left, top = max(0, box.left - room), max(0, box.top - room)
    return Box(left, top, box.left + box.width + room - left, box.top + box.height + room - top)


def _enlarged(box: Box, down: float, across: float) -> Box:
    left, top = round(box.left * across), round(box.top * down)
    return Box(left, top, round((box.left + box.width) * across) - left, round((box.top + box.height) * down) - top)
