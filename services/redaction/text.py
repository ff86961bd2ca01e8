"""Text values as people wrote them: decoded by their character set (PS3.5 6.1), and folded for comparison."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from pydicom.charset import convert_encodings, decode_bytes, python_encoding

from shared.dicom_encoding import Bytes, Elements

DEFAULT: Final[tuple[str, ...]] = ("iso8859",)
_CHARACTER_SET: Final = 0x00080005
_PN_DELIMITERS: Final = {0x5E, 0x3D}
_ASCII_FOLD: Final = {i: chr(i).lower() if chr(i).isalnum() else " " for i in range(128)}
# Letters that Unicode does not decompose, as they are written where they are missing.
_STROKES: Final = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i"})
_NOT_WORD: Final = re.compile(r"[\W_]+")
# PS3.5 6.1.3: of the controls only these occur in text; others come from a length that swallowed its neighbours, or
# from whatever lay behind a terminator.
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")


def encodings(elements: Elements, inherited: Sequence[str]) -> Sequence[str]:
    """Python encodings of the text in one data set or item (PS3.5 6.1.2.3); an item inherits."""
    for element in elements:
        if element.tag == _CHARACTER_SET:
            return character_sets(bytes(element.value))
        if element.tag > _CHARACTER_SET:
            break
    return inherited


@lru_cache(maxsize=256)
def character_sets(value: bytes) -> Sequence[str]:
    """Python encodings for a value of Specific Character Set; the default repertoire where a term is none."""
    terms = [term.strip("\0 ") for term in value.decode("ascii", "replace").split("\\")]
    if any(term not in python_encoding for term in terms):
        return DEFAULT
    try:
        return tuple(convert_encodings(terms))
    except (LookupError, ValueError):
        return DEFAULT


def decode(value: Bytes, encoding: Sequence[str], *, person: bool = False) -> str:
    """The text without its padding; never fails: what the character set does not give is read as UTF-8 or Latin-1."""
    raw = bytes(value).rstrip(b"\0 ")
    if raw.isascii() and b"\x1b" not in raw:
        return raw.decode("ascii").strip()
    if tuple(encoding) == DEFAULT:
        try:
            return raw.decode("utf-8").strip()
        except UnicodeDecodeError:
            return raw.decode("latin-1").strip()
    try:
        return decode_bytes(raw, encoding, _PN_DELIMITERS if person else {0x5C}).strip()
    except (UnicodeError, LookupError, ValueError):
        return raw.decode("latin-1").strip()


def has_controls(value: Bytes) -> bool:
    """Whether the text holds a control character that no text may hold, padding aside."""
    return _CONTROL.search(bytes(value).rstrip(b"\0 ")) is not None


def fold(text: str) -> str:
    """Words in lower case without accents, one space between them: "García^José" becomes "garcia jose"."""
    if text.isascii():
        return " ".join(text.translate(_ASCII_FOLD).split())
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return _NOT_WORD.sub(" ", plain.casefold().translate(_STROKES)).strip()
