"""Masks of one bit a pixel: made at the image's own size from a plane of the grid, and written as PNG.

A radiograph has millions of pixels and its masks a few thousand that lie near an outline, so that nothing but those is
ever held as numbers.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from services.inference.preprocessing import Letterbox

_UP: Final = 2
"""Filter of a row of a PNG: its bytes less those above (ISO/IEC 15948 9.2). Most rows become zeros."""


def enlarged(fine: NDArray[np.float32], where: Letterbox) -> NDArray[np.uint8]:
    """Where a plane is above 0 once it is brought to the image's own size, bilinear.

    Parameters
    ----------
    fine
        Float32 [256, 256] over the whole grid.
    where
        The image's letterbox.

    Returns
    -------
    uint8 [rows, ceil(columns / 8)]: a bit for a pixel, the leftmost in the highest; those beyond the last column are 0.
    The same bits as `preprocessing.to_image` gives, but where a value is 0 up to rounding.
    """
    inside = np.ascontiguousarray(fine[where.top : where.top + where.height, where.left : where.left + where.width])
    across = cv2.resize(inside, (where.columns, where.height), interpolation=cv2.INTER_LINEAR)
    above, below, weights = _between(where)
    positive = across > 0
    packed = np.packbits(positive, axis=1)
    bits: NDArray[np.uint8] = packed[above] & packed[below]
    # Between two rows of one sign all is of that sign; where the signs differ, each pixel between them is worked out.
    crossing, columns = np.divmod(np.flatnonzero(positive[:-1] ^ positive[1:]), where.columns)
    first = np.searchsorted(above, np.arange(where.height + 1))
    counts = first[crossing + 1] - first[crossing]
    which = np.repeat(np.arange(len(crossing)), counts)
    rows = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts) + first[crossing][which]
    share = weights[rows]
    upper, lower = across[crossing, columns], across[crossing + 1, columns]
    there = upper[which] * (1 - share) + lower[which] * share > 0
    rows, columns = rows[there], columns[which[there]]
    np.bitwise_or.at(bits, (rows, columns >> 3), (0x80 >> (columns & 7)).astype(np.uint8))
    return bits


def surrounded(bits: NDArray[np.uint8], columns: int, by: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Bits of so many columns with so many rows and columns of 0 added at top, bottom, left and right."""
    top, bottom, left, right = by
    inner = np.unpackbits(bits, axis=1, count=columns)
    return np.packbits(np.pad(inner, ((top, bottom), (left, right))), axis=1)


def _between(where: Letterbox) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For every row of the image the rows of the letterbox above and below it, and its share of the lower one; centres
    of cells lie at halves, and beyond the outermost centres nothing changes."""
    place = np.clip((np.arange(where.rows) + 0.5) * (where.height / where.rows) - 0.5, 0, where.height - 1)
    above = place.astype(np.intp)
    return above, np.minimum(above + 1, where.height - 1), (place - above).astype(np.float32)


def unpacked(bits: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """uint8 [rows, columns], 0 outside and 255 inside."""
    return np.unpackbits(bits, axis=1, count=columns) * np.uint8(255)


def png(bits: NDArray[np.uint8], columns: int) -> bytes:
    """A grey PNG of one bit a pixel (ISO/IEC 15948 11.2.2): 0 is black, 1 is white."""
    rows = np.empty((bits.shape[0], 1 + bits.shape[1]), np.uint8)
    rows[:, 0] = _UP
    rows[0, 1:] = bits[0]
    np.subtract(bits[1:], bits[:-1], out=rows[1:, 1:])
    # Run lengths alone: what is left is zeros, and these come out at 0.6 of what matches at this level take.
    compressor = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", columns, len(bits), 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", compressor.compress(rows.data) + compressor.flush()), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
