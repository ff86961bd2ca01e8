"""Free text that repeats who the patient is: finds, in a value that the profile keeps, what it took out elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import permutations
from typing import Final

from pydicom.datadict import tag_for_keyword

from services.redaction.profile import rows
from services.redaction.text import fold

_MIN_WORD: Final = 3
_MIN_COMPACT: Final = 6
_MIN_ID: Final = 4
_MAX_IDENTIFIERS: Final = 2000
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


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
        other = sorted(w for w in words if not w.isascii())
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
            yield from _names(fold(group).split())
    elif kind == "date":
        yield from _dates(text)
    else:
        phrase = fold(text)
        longest = _MIN_ID if any(c.isdigit() for c in phrase) else _MIN_ID + 1
        if len(phrase.replace(" ", "")) >= longest and phrase not in _common():
            yield phrase


def _names(words: list[str]) -> Iterator[str]:
    for word in words:
        long_enough = len(word) >= (_MIN_WORD if word.isascii() else 2)
        if long_enough and word not in _common():
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
    name = _MONTHS[int(month) - 1]
    for m in {month, str(int(month))}:
        for d in {day, str(int(day))}:
            yield f"{year} {m} {d}"
            yield f"{d} {m} {year}"
            yield f"{m} {d} {year}"
            yield f"{d} {name} {year}"
            yield f"{name} {d} {year}"
