"""Text of attributes that no table lists: an allow-list too, since a name may be typed into any field of a console.

Prose (LT, ST, UT, UC) and labels (LO, SH) keep the words that name nobody and the short technical tokens; an identifier
that leads from one place of an object to another keeps its form, or becomes a pseudonym that leads there still; makes
and versions (`tables/kept_text.csv`) stay.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from pydicom.datadict import dictionary_keyword, tag_for_keyword

from services.redaction import words
from services.redaction.codes import SCHEME, VALUE, VERSION
from services.redaction.facts import rows
from shared.dicom_encoding import dictionary_vr

CODES: Final = frozenset({VALUE, SCHEME, VERSION, 0x00080119, 0x00080120})
"""Code Value, Coding Scheme Designator and Version, Long Code Value, URN Code Value: judged by their scheme."""
_SEVERAL: Final = frozenset({"LO", "SH", "UC"})
_TEXT: Final = frozenset({"LO", "LT", "SH", "ST", "UC", "UR", "UT"})
_REFERS: Final = ("ID", "Identifier", "AccessoryCode")


def is_code(tag: int, text: str, *, public: bool) -> bool:
    """Whether a part of a code may stay: of a public scheme, or nothing but short numbers, letters and known words."""
    if tag == VERSION and public:
        return words.is_code("".join(c for c in text if not c.isdigit()))
    return public or words.is_code(text)


@lru_cache(maxsize=1)
def _stays() -> frozenset[int]:
    found = (tag_for_keyword(row["keyword"]) for row in rows("kept_text.csv"))
    return frozenset(tag for tag in found if tag is not None)


@lru_cache(maxsize=4096)
def refers(tag: int) -> bool:
    """Whether other attributes may repeat the value to lead there."""
    return dictionary_keyword(tag).endswith(_REFERS)


def is_judged(tag: int) -> bool:
    """Whether of such an attribute only what names nobody stays."""
    return dictionary_vr(tag) in _TEXT and tag not in _stays()


@lru_cache(maxsize=16384)
def checked(tag: int, vr: str, text: str) -> str | None:
    """What is left of the text; None where something has to stand for the whole of it.

    Raises KeyError where the data dictionary does not have the attribute.
    """
    if not text or tag in _stays():
        return text
    if vr == "UR":
        return None
    parts = text.split("\\") if vr in _SEVERAL else [text]
    left = [part if tag_for_keyword(part) else words.technical(part) for part in parts]
    if refers(tag):
        return text if left == parts else None
    return "\\".join(left) if any(left) else None
