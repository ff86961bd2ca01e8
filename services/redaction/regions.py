"""What an ultrasound object says of where its image lies (PS3.3 C.8.5.5), and what is left of a frame around that."""

from __future__ import annotations

import itertools
from typing import Final

from services.redaction import values
from shared.dicom_encoding import Elements, Encoded

Rectangle = tuple[int, int, int, int]
"""Left, top, width, height in pixels."""

_SEQUENCE: Final = 0x00186011
_CORNERS: Final = (0x00186018, 0x0018601A, 0x0018601C, 0x0018601E)  # min x, min y, max x, max y


def declared(original: Encoded) -> list[Rectangle]:
    """The regions of Sequence of Ultrasound Regions that lie in the frame; those that make no sense are left out."""
    rows = values.number(original.data_set, 0x00280010, little=original.little)
    columns = values.number(original.data_set, 0x00280011, little=original.little)
    found = []
    for element in original.data_set:
        for item in element.items or [] if element.tag == _SEQUENCE else []:
            left, top, right, bottom = (_corner(item, tag, little=original.little) for tag in _CORNERS)
            right, bottom = min(right, columns - 1), min(bottom, rows - 1)
            if 0 <= left < right and 0 <= top < bottom:
                found.append((left, top, right - left + 1, bottom - top + 1))
    return found


def _corner(item: Elements, tag: int, *, little: bool) -> int:
    number = values.number(item, tag, -1, little=little)
    return number if number < 1 << 31 else -1


def outside(inside: list[Rectangle], rows: int, columns: int) -> list[Rectangle]:
    """Rectangles that cover all of the frame but the given ones."""
    edges_y = sorted({0, rows, *(y for _, top, _, height in inside for y in (top, top + height))})
    found: list[Rectangle] = []
    for top, bottom in itertools.pairwise(edges_y):
        spans = sorted((left, left + width) for left, y, width, height in inside if y <= top and bottom <= y + height)
        at = 0
        for left, right in (*spans, (columns, columns)):
            if left > at:
                found.append((at, top, left - at, bottom - top))
            at = max(at, right)
    return found
