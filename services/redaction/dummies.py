"""Values that mean nothing and are valid for their VR (PS3.5 6.2)."""

from __future__ import annotations

from typing import Final

from shared.dicom_encoding import WIDTHS, Element

WORD: Final = b"ANONYMIZED"

_BY_VR: Final[dict[str, bytes]] = {
    "AE": WORD,
    "AS": b"000D",
    "CS": WORD,
    "DA": b"19000101",
    "DS": b"0",
    "DT": b"19000101000000",
    "IS": b"0",
    "LO": WORD,
    "LT": WORD,
    "PN": WORD,
    "SH": WORD,
    "ST": WORD,
    "TM": b"000000",
    "UC": WORD,
    "UR": b"urn:anonymized",
    "UT": WORD,
    "OB": b"\0\0",
    "UN": b"\0\0",
}


def dummy(element: Element, vr: str) -> Element:
    """The element with a dummy value of the given VR; numbers become zeros, as many as there were (at most 64 KiB)."""
    value = _BY_VR.get(vr)
    if value is None:
        width = WIDTHS.get(vr, 2)
        count = max(1, min(len(element.value), 65536) // width)
        value = bytes(width * count)
    return Element(element.tag, vr, value)
