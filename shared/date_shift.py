"""Dates moved per person (PS3.15 E.3.6, modified dates), so that no constant date gives the move away.

Every date of a person's care moves by one number of days that the pseudonym key makes from the person's pseudonym, so
that the days between two examinations stay what they were. Whoever knows one true date of a person could compute the
number, and with it every other date of that person; of nobody else. Therefore only dates of that care move. What may
be the same for many people, and so be known, becomes a date that means nothing (`DUMMY`):

- what stands for "unknown" (`_PLACEHOLDERS`), and days on which there was no radiology yet or is none yet;
- dates of devices and documents, which many people share: calibration, manufacture, installation, versions;
- every date more than `WINDOW_DAYS` from the day of the examination: few planted constants lie closer.

Times of day stay (a move of whole days changes no interval), and so do the offsets of time zones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

WINDOW_DAYS: Final = 31
"""A date farther than this from the examination is not moved but lost."""
MOST_DAYS: Final = 3652
"""Dates move back by 1 to this many days (ten years); never forward, so that no result lies in the future."""
DUMMY: Final = "19000101"
OLDEST_AGE: Final = 89
"""Ages above it become 90 (HIPAA Safe Harbor, 45 CFR 164.514(b)(2)(i)(C))."""

_FIRST_DAY: Final = date(1895, 11, 8)  # Röntgen's first observation
_LAST_DAY: Final = date(2100, 1, 1)
_PLACEHOLDERS: Final = frozenset(
    date(int(text[:4]), int(text[4:6]), int(text[6:]))
    for text in ("19000101", "19010101", "19111111", "19700101", "19700102", "19800101", "19800106", "20000101")
)
_SHARED: Final = re.compile(
    r"Calibrat|Manufactur|Install|Maintenance|Expir|Effective|Version|Sterili|Lot|Birth|Death|Certif|Approval|Digital"
)
_DA: Final = re.compile(r"(\d{4})[.\-/]?(\d\d)[.\-/]?(\d\d)")
_TM: Final = re.compile(r"([01]\d|2[0-3])(:?[0-5]\d(:?([0-5]\d|60)(\.\d{1,6})?)?)?")
_DT: Final = re.compile(
    r"(\d{4})(\d\d)?(\d\d)?((?:[01]\d|2[0-3])(?:[0-5]\d(?:(?:[0-5]\d|60)(?:\.\d{1,6})?)?)?)?([+-](?:0\d|1[0-4])[0-5]\d)?"
)
_AS: Final = re.compile(r"(\d{3})([DWMY])")
_PER_YEAR: Final = {"D": 365.2425, "W": 52.1775, "M": 12.0, "Y": 1.0}


@dataclass(frozen=True, slots=True)
class DateShift:
    """How the dates of one object move.

    days: below zero. anchor: the day of the examination; None where the object does not tell it, and then no date is
    kept. done: the object was redacted before under this key, its dates have moved already and stay.
    """

    days: int
    anchor: date | None
    done: bool = False

    def moved(self, vr: str, text: str, keyword: str = "") -> str:
        """The value or values (joined by backslashes) of an attribute of VR DA, DT or TM. keyword: of PS3.6, if known.

        An empty value stays empty; one that is no date or time, or that may not move, becomes one that means nothing.
        """
        if self.done:
            return text
        return "\\".join(self._one(vr, part.strip("\0 "), keyword) for part in text.split("\\"))

    def _one(self, vr: str, text: str, keyword: str) -> str:
        if not text:
            return ""
        if vr == "TM":
            return text if _TM.fullmatch(text) and not _SHARED.search(keyword) else "000000"
        if vr == "DA":
            match = _DA.fullmatch(text)
            found = _day(*match.groups()) if match else None
            new = None if found is None or _SHARED.search(keyword) else self._day_moved(found)
            return DUMMY if new is None else f"{new:%Y%m%d}" if new.year > 999 else DUMMY
        return self._date_time(text, keyword)

    def _date_time(self, text: str, keyword: str) -> str:
        match = _DT.fullmatch(text)
        dummy = DUMMY + "000000"
        if match is None or _SHARED.search(keyword):
            return dummy
        year, month, day, rest, zone = match.groups()
        found = _day(year, month or "07", day or ("15" if month else "01"))
        new = None if found is None else self._day_moved(found)
        if new is None:
            return dummy
        # A year, or a month, moves by the day in its middle and stays a year or a month.
        precision = 4 if month is None else 6 if day is None else 8
        return f"{new:%Y%m%d}"[:precision] + (rest or "" if day else "") + (zone or "")

    def _day_moved(self, found: date) -> date | None:
        if self.anchor is None or not is_of_care(found) or abs((found - self.anchor).days) > WINDOW_DAYS:
            return None
        return found + timedelta(days=self.days)


def anchor(candidates: Iterable[str]) -> date | None:
    """The day of the examination: the first of the values (DA or DT: of the study, the series, the acquisition, the
    content, in this order) that is a day of somebody's care."""
    for text in candidates:
        match = _DA.match(text.strip("\0 "))
        found = _day(*match.groups()) if match else None
        if found is not None and is_of_care(found):
            return found
    return None


def is_of_care(day: date) -> bool:
    """Whether somebody may have been examined on that day: no placeholder, not before radiology, not in the future."""
    return _FIRST_DAY <= day < _LAST_DAY and day not in _PLACEHOLDERS


def _day(year: str, month: str, day: str) -> date | None:
    try:
        return date(int(year), int(month), int(day))
    except ValueError:
        return None


def capped_age(text: str) -> str:
    """An age (VR AS) as it may stay: "093Y" and "1100M" become "090Y"; what is no age becomes empty."""
    match = _AS.fullmatch(text.strip("\0 "))
    if match is None:
        return ""
    return "090Y" if int(match[1]) / _PER_YEAR[match[2]] >= OLDEST_AGE + 1 else match[0]


def capped_years(years: float) -> float:
    """An age in years, as a number: at most 90."""
    return min(years, OLDEST_AGE + 1.0)
