"""Whether attributes match what a search asks for (PS3.4 C.2.2.2), on the JSON model."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from shared import dicom
from shared.dicom_encoding import dictionary_vr
from shared.errors import ErrorCode, StepwedgeError

_RANGES: Final = frozenset({"DA", "TM", "DT"})
_NO_WILDCARDS: Final = frozenset({"UI", "DA", "TM", "DT", "AS", "IS", "DS", "US", "UL", "SS", "SL", "FL", "FD", "AT"})
_NUMBERS: Final = frozenset({"IS", "DS", "US", "UL", "SS", "SL", "FL", "FD"})
_LONGEST: Final = 1024
_MOST: Final = 1000
_FORMS: Final[Mapping[str, re.Pattern[str]]] = {
    "DA": re.compile(r"[0-9]{8}"),
    "TM": re.compile(r"([0-9]{2}){1,3}(\.[0-9]{1,6})?"),
    "DT": re.compile(r"[0-9]{4,14}(\.[0-9]{1,6})?([+-][0-9]{4})?"),
}
_LAST: Final = "~"  # behind every digit: a shorter moment as the end of a range takes in all that it begins


@dataclass(frozen=True)
class Condition:
    """What one attribute must be."""

    tag: str
    """Eight hexadecimal digits; inside sequences, of each level, joined by full stops."""
    vr: str
    values: Sequence[str]
    """One of them must match; none for any (universal matching)."""

    @cached_property
    def exact(self) -> bool:
        """Whether only these very values match, without wildcards and ranges."""
        return bool(self.values) and not any(_is_pattern(self.vr, value) for value in self.values)

    @cached_property
    def _patterns(self) -> Sequence[re.Pattern[str]]:
        flags = re.IGNORECASE | re.DOTALL if self.vr == "PN" else re.DOTALL
        return [re.compile(_regular(value), flags) for value in self.values]

    def matches(self, model: Mapping[str, Any]) -> bool:
        """Whether the attributes hold a value that matches."""
        if not self.values:
            return True
        found = list(_values(model, self.tag.split(".")))
        return any(self._fits(value, text) for value in found for text in _texts(self.vr, value))

    def _fits(self, value: Any, text: str) -> bool:
        if self.vr in _RANGES:
            return any(_in_range(self.vr, wanted, text) for wanted in self.values)
        if self.vr in _NUMBERS:
            return any(_equal(wanted, value) for wanted in self.values)
        return any(pattern.fullmatch(text) for pattern in self._patterns)


def condition(tag: str, value: str) -> Condition:
    """A condition on an attribute. Raises INVALID_REQUEST where the value is none of its kind."""
    vr = dictionary_vr(int(tag.split(".")[-1], 16))
    if len(value) > _LONGEST * (64 if vr == "UI" else 1):
        raise _invalid("a value to search for is too long")
    text = value.strip()
    if text in ("", "*", '""'):
        return Condition(tag, vr, ())
    # PS3.18 8.3.4.3: UIDs may be listed with commas, any value with backslashes.
    parts = [part.strip() for part in re.split(r"[\\,]" if vr == "UI" else r"\\", text)]
    if len(parts) > _MOST:
        raise _invalid(f"at most {_MOST} values are searched for at once")
    for part in parts:
        if vr == "UI" and not dicom.is_uid(part):
            raise _invalid("a UID to search for is none")
        if vr in _RANGES and not all(not end or _FORMS[vr].fullmatch(_plain(vr, end)) for end in _ends(vr, part)):
            raise _invalid("a date or time to search for is none")
        if vr in _NUMBERS and not _number(part):
            raise _invalid("a number to search for is none")
        if vr == "SQ":
            raise _invalid("a sequence is searched for by an attribute in it")
    return Condition(tag, vr, tuple(parts))


def _is_pattern(vr: str, value: str) -> bool:
    if vr in _RANGES:
        return "-" in value
    return vr not in _NO_WILDCARDS and ("*" in value or "?" in value)


def _regular(value: str) -> str:
    """A value with wildcards as a regular expression that is matched in a time of its length times the text's.

    What stands between two stars is looked for once, from the left, and never given back (atomic groups): where it is
    found later, what follows is found later too. Only the last part is tied to the end.
    """
    first, *others = (_literal(part) for part in re.split(r"\*+", value))
    if not others:
        return first
    *between, last = others
    return first + "".join(f"(?>.*?{part})" for part in between) + f".*{last}"


def _literal(part: str) -> str:
    return "".join("." if one == "?" else re.escape(one) for one in part)


def _values(model: Mapping[str, Any], path: Sequence[str]) -> Iterator[Any]:
    for value in model.get(path[0], {}).get("Value", []):
        if len(path) == 1:
            yield value
        elif isinstance(value, dict):
            yield from _values(value, path[1:])


def _texts(vr: str, value: Any) -> Iterator[str]:
    if value is None:
        return
    if vr == "PN" and isinstance(value, dict):
        for text in value.values():
            yield str(text).strip()
            yield str(text).strip().rstrip("^ ")
    else:
        yield str(value).strip()


def _ends(vr: str, value: str) -> tuple[str, str]:
    """Both ends of a range; the same twice for a single moment."""
    if vr == "DT" and re.fullmatch(r"[^-]+-[0-9]{4}", value):
        return value, value  # an offset from UTC and no range
    first, dash, last = value.partition("-")
    return (first, last) if dash else (value, value)


def _plain(vr: str, value: str) -> str:
    """Without what the old form of dates and times puts between the digits (PS3.5 6.2)."""
    return value.replace(":", "") if vr == "TM" else value.replace(".", "") if vr == "DA" else value


def _in_range(vr: str, wanted: str, text: str) -> bool:
    first, last = (_plain(vr, end) for end in _ends(vr, wanted))
    moment = _plain(vr, text)
    return first <= moment + _LAST and moment <= last + _LAST if last else first <= moment + _LAST


def _number(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]{1,20}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,2})?", text) is not None


def _equal(wanted: str, value: Any) -> bool:
    try:
        return float(wanted) == float(value)
    except (TypeError, ValueError):
        return False


def _invalid(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, words)
