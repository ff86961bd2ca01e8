"""What a value may be: small questions about single values, answered from the data dictionary and our tables."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from pydicom._dicom_dict import DicomDictionary
from pydicom._uid_dict import UID_dictionary
from pydicom.charset import python_encoding

from services.redaction.facts import rows
from services.redaction.text import has_controls
from services.redaction.words import is_term, vocabulary
from shared.dicom_encoding import TEXT_VRS, WIDTHS, Bytes, Elements

_DECIMAL: Final = re.compile(rb"[0-9+\-.eE \\]*")
_INTEGER: Final = re.compile(rb"[0-9+\- \\]*")
_BULK: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW"})
# Arcs of the standard's root under which it registers context groups and coding schemes (PS3.6 Annex A, PS3.16).
_REGISTERED: Final = re.compile(r"1\.2\.840\.10008\.(?:6\.1|2\.16|8\.1)\.[0-9]{1,4}")
_CHARACTER_SET: Final = 0x00080005
_CODING_SCHEME: Final = 0x00080102
_CODE_VALUE: Final = 0x00080100
_LONG_CODE_VALUE: Final = 0x00080119
# The form of codes, so that nobody writes a name under the flag of a public scheme.
_SNOMED_RT: Final = re.compile(r"[A-Z0-9]{1,2}-[A-Z0-9]{2,8}")
_CODES: Final = {
    "DCM": re.compile(r"[0-9]{6}"),
    "MDC": re.compile(r"[0-9]{1,3}:[0-9]{1,6}"),
    "IBSI": re.compile(r"[A-Z0-9]{4}"),
    "RADLEX": re.compile(r"RP?ID[0-9]{1,6}"),
    "SCT": re.compile(r"[0-9]{5,18}"),
    "SRT": _SNOMED_RT,
    "SNM3": _SNOMED_RT,
    "99SDM": _SNOMED_RT,
    "LN": re.compile(r"(?:LA|LP)?[0-9]{1,7}-[0-9]"),
}
_OTHER_CODE: Final = re.compile(r"[A-Za-z]{0,3}[-.]?[0-9][0-9A-Za-z.\-]{0,30}")
_UNIT_WORD: Final = re.compile(r"[A-Za-z]+")
_UNIT_LETTERS: Final = 5


def first(elements: Elements, tag: int) -> str:
    """The first value of an attribute of ASCII text (a UID, a code), without padding; empty where there is none."""
    for element in elements:
        if element.tag == tag and element.items is None:
            return bytes(element.value).split(b"\\")[0].strip(b"\0 ").decode("ascii", "replace")
    return ""


def terms(elements: Elements, tag: int) -> list[str]:
    """Every value of a Code String in capitals, without padding."""
    for element in elements:
        if element.tag == tag and element.items is None:
            text = bytes(element.value).decode("ascii", "replace").upper()
            return [term.strip("\0 ") for term in text.split("\\")]
    return []


def number(elements: Elements, tag: int, default: int = 0, *, little: bool = True) -> int:
    """An attribute of VR US or IS as a number; `default` where it is absent or none."""
    for element in elements:
        if element.tag == tag and element.items is None:
            raw = bytes(element.value)
            if element.vr in ("US", "UL", "SS", "SL") or (element.vr == "UN" and len(raw) == 2):
                return int.from_bytes(raw, "little" if little else "big") if raw else default
            try:
                return int(raw.split(b"\\")[0])
            except ValueError:
                return default
    return default


@lru_cache(maxsize=1)
def _public_uids() -> frozenset[str]:
    return frozenset(UID_dictionary) | frozenset(row["uid"] for row in rows("coding_schemes.csv") if row["uid"])


def is_public_uid(uid: str) -> bool:
    """Whether the UID names something of a standard (a SOP class, a coding scheme), not an instance."""
    return uid in _public_uids() or _REGISTERED.fullmatch(uid) is not None


@lru_cache(maxsize=1)
def _public_schemes() -> frozenset[str]:
    return frozenset(row["scheme"] for row in rows("coding_schemes.csv"))


def is_public_code(item: Elements) -> bool:
    """Whether an item is a code of a public coding scheme, and has the form that the scheme's codes have."""
    scheme = first(item, _CODING_SCHEME)
    value = first(item, _CODE_VALUE) or first(item, _LONG_CODE_VALUE)
    return scheme in _public_schemes() and _is_code(scheme, value)


@lru_cache(maxsize=8192)
def _is_code(scheme: str, value: str) -> bool:
    if scheme == "UCUM":
        found = _UNIT_WORD.findall(value)
        return all(len(word) <= _UNIT_LETTERS or word.lower() in vocabulary() for word in found)
    return _CODES.get(scheme, _OTHER_CODE).fullmatch(value) is not None or (value != "" and is_term(value))


@lru_cache(maxsize=8192)
def _most_values(tag: int) -> int:
    """Greatest value multiplicity by the data dictionary; 0 for no limit."""
    entry = DicomDictionary.get(tag)
    vm = entry[1] if entry else "1-n"
    upper = vm.rsplit("-", 1)[-1]
    return int(upper) if upper.isdigit() and "or" not in vm else 0


def plausible(tag: int, vr: str, expected: str, value: Bytes) -> bool:
    """Whether a value that is kept is what its attribute holds by the data dictionary.

    A number that is none, text with control characters, a table in the place of one number: such a value is a length
    that swallowed its neighbours, or something smuggled, and is not kept.
    """
    if (vr in TEXT_VRS) != (expected in TEXT_VRS):
        return False
    if not value:
        return True
    kind = {vr, expected}
    if "DS" in kind or "IS" in kind:
        pattern = _INTEGER if expected == "IS" else _DECIMAL
        return pattern.fullmatch(bytes(value).rstrip(b"\0 ")) is not None
    if tag == _CHARACTER_SET:
        known = bytes(value).decode("ascii", "replace").split("\\")
        return all(term.strip("\0 ") in python_encoding for term in known)
    if vr in TEXT_VRS:
        return not has_controls(value)
    width = WIDTHS.get(vr)
    if width is None or vr in _BULK:
        return vr in _BULK or vr == "UN"
    count, rest = divmod(len(value), width)
    if vr == "AT":
        count, rest = divmod(len(value), 4)
    most = _most_values(tag)
    return not rest and (most == 0 or count <= most)
