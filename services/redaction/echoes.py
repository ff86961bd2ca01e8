"""Free text that repeats who the patient is: finds, in a value that the profile keeps, what it took out elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import permutations
from typing import Final

from pydicom.datadict import tag_for_keyword

from services.redaction.facts import rows
from services.redaction.text import fold
from services.redaction.values import is_public_uid

_MIN_WORD: Final = 3
_MIN_COMPACT: Final = 6
_MIN_ID: Final = 4
_MAX_IDENTIFIERS: Final = 2000
_MIN_DIGITS: Final = 6
_MONTHS: Final = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_UMLAUTS: Final = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "Ä": "ae", "Ö": "oe", "Ü": "ue", "Å": "aa"}
)
_SPELT_OUT: Final = re.compile(r"([ao])e|(?<![aeq])(u)e")
_IDEOGRAPHS: Final = "\u2e80"
"""Above it, one character may be a whole name."""
_UID: Final = re.compile(r"[0-9]+(?:\.[0-9]+){3,}")
_MIN_UID: Final = 20


@lru_cache(maxsize=1)
def kinds() -> dict[int, str]:
    """Which attributes name somebody, and how: `person`, `id`, `place` or `date`."""
    found = {tag_for_keyword(row["keyword"]): row["kind"] for row in rows("identifiers.csv")}
    return {tag: kind for tag, kind in found.items() if tag is not None}


@lru_cache(maxsize=1)
def _common() -> frozenset[str]:
    return frozenset(row["word"] for row in rows("common_words.csv"))


class Echoes:
    """What to look for in one object. Each identifier is (kind, decoded text)."""

    def __init__(self, identifiers: Iterable[tuple[str, str]]) -> None:
        words: set[str] = set()
        runs: set[str] = set()
        for kind, text in sorted(set(identifiers))[:_MAX_IDENTIFIERS]:
            for part in text.split("\\"):
                for phrase in _phrases(kind, part):
                    words.add(phrase)
                    compact = phrase.replace(" ", "")
                    if kind != "place" and len(compact) >= _MIN_COMPACT:
                        runs.add(compact)
        alternatives = sorted(words, key=lambda w: (-len(w), w))
        self._words = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, alternatives)) + r")(?!\w)") if words else None
        other = sorted(w for w in words if not w.isascii() and len(w) > 1)
        joined = sorted(runs) + other
        self._runs = re.compile("|".join(map(re.escape, joined))) if joined else None

    def __contains__(self, text: str) -> bool:
        if self._words is None:
            return False
        folded = fold(text)
        if self._words.search(folded):
            return True
        return self._runs is not None and self._runs.search(folded.replace(" ", "")) is not None


def _phrases(kind: str, text: str) -> Iterator[str]:
    if kind == "person":
        for group in text.split("="):
            for spelling in {fold(group), fold(group.translate(_UMLAUTS)), _SPELT_OUT.sub(r"\1\2", fold(group))}:
                yield from _names(spelling.split())
    elif kind == "date":
        yield from _dates(text)
    else:
        phrase = fold(text)
        longest = _MIN_ID if any(c.isdigit() for c in phrase) else _MIN_ID + 1
        if len(phrase.replace(" ", "")) >= longest and phrase not in _common():
            yield phrase
        if kind == "id":  # "0087731" of "MRN0087731"
            yield from (digits for digits in re.findall(r"[0-9]+", phrase) if len(digits) >= _MIN_DIGITS)


def _names(words: list[str]) -> Iterator[str]:
    for word in words:
        long_enough = len(word) >= (_MIN_WORD if word.isascii() else 2)
        if (long_enough or word >= _IDEOGRAPHS) and word not in _common():
            yield word
    telling = [word for word in words if word not in _common()]
    if telling and len("".join(words)) >= 4:
        for count in range(2, min(len(words), 3) + 1):
            for order in permutations(words[:4], count):
                if any(word in telling for word in order):
                    yield " ".join(order)


def _dates(text: str) -> Iterator[str]:
    """The notations of one day: 19800312, 1980 03 12, 12 03 1980, 3 12 1980, 12 mar 1980 and so on."""
    digits = re.sub(r"\D", "", text)[:8]
    if len(digits) != 8 or not 1 <= int(digits[4:6]) <= 12 or int(digits[:4]) < 1850:
        return
    year, month, day = digits[:4], digits[4:6], digits[6:]
    yield digits
    yield f"{day}{month}{year}"
    yield f"{month}{day}{year}"
    full = _MONTHS[int(month) - 1]
    for m in {month, str(int(month))}:
        for d in {day, str(int(day))}:
            yield from (f"{d} {m} {year[2:]}", f"{m} {d} {year[2:]}")
            yield f"{year} {m} {d}"
            yield f"{d} {m} {year}"
            yield f"{m} {d} {year}"
            for name in (full[:3], full):
                yield f"{d} {name} {year}"
                yield f"{name} {d} {year}"


def names_instance(text: str) -> bool:
    """Whether the text holds a UID that no standard registered: as good as the number of a study (PS3.15 E.3.9)."""
    return any(len(uid) >= _MIN_UID and not is_public_uid(uid) for uid in _UID.findall(text))
