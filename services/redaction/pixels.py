"""Pixel data as far as its tags alone go: what lies outside the image. Text in the image itself is not judged here."""

from __future__ import annotations

from typing import Final

import numpy as np

from services.redaction import values
from services.redaction.codestream import blanked
from services.redaction.receipt import Counts
from shared.dicom_encoding import PIXEL_TAGS, Element, Elements, Encoded

_FLOAT_BITS: Final = {0x7FE00008: 32, 0x7FE00009: 64}
_ROWS, _COLUMNS, _SAMPLES, _FRAMES = 0x00280010, 0x00280011, 0x00280002, 0x00280008
_PHOTOMETRIC: Final = 0x00280004
_ALLOCATED, _STORED, _HIGH, _SIGNED = 0x00280100, 0x00280101, 0x00280102, 0x00280103
_SUBSAMPLED: Final = {"YBR_FULL_422": (2, 3), "YBR_PARTIAL_422": (2, 3), "YBR_PARTIAL_420": (1, 2)}
"""Of native pixel data (PS3.3 C.7.6.3.1.2): how much of three samples a pixel is there."""
_TYPES: Final = {8: "u1", 16: "u2", 32: "u4"}


def cleaned(elements: Elements, original: Encoded, counts: Counts) -> Elements:
    """The data set with nothing in its pixel data but the image: no bits beside the stored ones (where overlays were
    kept before 60xx,3000), no bytes after the last frame, no comments in compressed frames."""
    return [_cleaned(e, elements, original, counts) if e.tag in PIXEL_TAGS else e for e in elements]


def _cleaned(element: Element, header: Elements, original: Encoded, counts: Counts) -> Element:
    if element.fragments is not None:
        frames = max(1, values.number(header, _FRAMES, 1))
        fragments, found = list(element.fragments[:1]), 0
        whole = len(element.fragments) - 1 == frames
        for fragment in element.fragments[1:]:
            clean, pieces = blanked(fragment, whole=whole)
            fragments.append(clean)
            found += pieces
        counts.add("PIXELS", found)
        return Element(element.tag, "OB", b"", None, fragments)  # PS3.5 A.4, whatever the original claimed
    value = element.value
    length = _expected_length(element, header, little=original.little)
    if length and len(value) > length + (length & 1):
        counts.add("PIXELS", int(any(value[length:])))
        value = value[: length + (length & 1)]
    masked = None if element.tag in _FLOAT_BITS else _masked(value, header, little=original.little)
    if masked is not None:
        counts.add("OVERLAY")
        value = masked
    return Element(element.tag, element.vr, value)


def _expected_length(element: Element, header: Elements, *, little: bool) -> int:
    """Bytes that the frames take; 0 where the header does not say."""

    def number(tag: int, default: int) -> int:
        return values.number(header, tag, default, little=little)

    allocated = _FLOAT_BITS.get(element.tag) or number(_ALLOCATED, 0)
    bits = number(_ROWS, 0) * number(_COLUMNS, 0) * number(_SAMPLES, 1) * allocated * max(1, number(_FRAMES, 1))
    whole = (bits + 7) // 8
    taken, of = _SUBSAMPLED.get(values.first(header, _PHOTOMETRIC), (1, 1))
    # Some writers say subsampled and are not; their length, padding aside, tells them.
    return whole if len(element.value) in (whole, whole + 1) else whole * taken // of


def _masked(value: bytes | memoryview, header: Elements, *, little: bool) -> bytes | None:
    """The pixel cells with the bits outside the stored ones cleared, or extended where signed; None if so already."""
    allocated = values.number(header, _ALLOCATED, little=little)
    stored = values.number(header, _STORED, allocated, little=little)
    high = values.number(header, _HIGH, stored - 1, little=little)
    kind = _TYPES.get(allocated)
    if kind is None or not 0 < stored <= allocated or not stored - 1 <= high < allocated or stored == allocated:
        return None
    if len(value) % (allocated // 8):
        return None
    cells = np.frombuffer(value, np.dtype(kind).newbyteorder("<" if little else ">"))
    mask = ((1 << stored) - 1) << (high + 1 - stored)
    clean = cells & cells.dtype.type(mask)
    if values.number(header, _SIGNED, little=little) == 1:
        above = ((1 << allocated) - 1) & ~((1 << (high + 1)) - 1)
        negative = (cells >> cells.dtype.type(high)) & cells.dtype.type(1)
        clean |= negative * cells.dtype.type(above)
    if np.array_equal(clean, cells):
        return None
    return bytes(clean.astype(cells.dtype).tobytes())


def beside_bits(original: Encoded) -> int:
    """The mask of the stored bits of compressed pixel data beside whose image an overlay lies (retired, PS3.5 8.1.2);
    0 where none is said to."""
    elements = original.data_set
    if not any(e.tag in PIXEL_TAGS and e.fragments is not None for e in elements):
        return 0
    stored, high = values.number(elements, _STORED), values.number(elements, _HIGH)
    embedded = any(
        0x6000 <= e.tag >> 16 <= 0x601E and e.tag & 0xFFFF == 0x0102 and any(bytes(e.value)) for e in elements
    )
    if not embedded or not 0 < stored <= high + 1 <= 64:
        return 0
    return ((1 << stored) - 1) << (high + 1 - stored)
