"""Free text of which only words remain that name nobody: an allow-list, not a hunt for names (PS3.15 E.3.5)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from services.redaction.facts import TABLES
from services.redaction.text import fold

_TOKEN: Final = re.compile(r"[^\W\d_]+|\d+(?:[.,]\d+)?")
_OTHER: Final = re.compile(r"[^\w \-/+.,:;%()\[\]*=<>&#'\r\n]")
_MOST_DIGITS: Final = 3
_MOST_IN_A_RUN: Final = 4
"""More digits that only separators keep apart may be a number of somebody, a day or a telephone number."""
_RUN: Final = re.compile(r"[\d\W_]*\d[\d\W_]*")
_SPELT: Final = re.compile(r"(?<![^\W\d_])[^\W\d_](?:[\W_]+[^\W\d_](?![^\W\d_])){2,}")
"""Three letters or more that stand alone in a row: a name that is spelt."""
_SPACES: Final = re.compile(r"[ \t]{2,}")
_PADDING: Final = " -_/+.,:;%()[]*=<>&#\r\n\t"
_LETTERS: Final = re.compile(r"[^\W\d_]{2,}")
_TERM: Final = re.compile(r"[A-Z0-9_ \-./+]{1,16}")
_TERM_WORD: Final = re.compile(r"[A-Z]+")
_SHORT: Final = 2
_TECHNICAL: Final = re.compile(r"[^\W_]+")
_PARTS: Final = re.compile(r"[A-Za-z]+|\d+")
_SHORT_PART: Final = 3
_MOST_DIGITS_OF_A_CODE: Final = 6


def _lines(name: str) -> frozenset[str]:
    text = (TABLES / name).read_text(encoding="utf-8")
    return frozenset(line for line in text.split("\n") if line and not line.startswith("#"))


@lru_cache(maxsize=1)
def vocabulary() -> frozenset[str]:
    """Words that name nobody, in lower case without accents."""
    return _lines("words.txt")


@lru_cache(maxsize=1)
def terms() -> frozenset[str]:
    """Defined terms and enumerated values of Code Strings."""
    return _lines("terms.txt")


def cleaned(text: str) -> str:
    """The text without the words that the vocabulary does not have, and without long numbers; may be empty."""
    text = _OTHER.sub(" ", _SPELT.sub(" ", _RUN.sub(_short_runs, text)))
    kept = _SPACES.sub(" ", _TOKEN.sub(_known, text)).strip(_PADDING)
    return kept if _LETTERS.search(kept) else ""


@lru_cache(maxsize=16384)
def technical(text: str) -> str:
    """As `cleaned`, for labels and settings of devices: short tokens of letters and digits stay too; may be empty."""
    if len(text) <= _SHORT and text.isascii() and text.isalpha():
        return text
    text = _OTHER.sub(" ", _SPELT.sub(" ", _RUN.sub(_short_runs, text)))
    kept = _SPACES.sub(" ", _TECHNICAL.sub(_known_or_mixed, text)).strip()
    return kept if any(c.isalnum() for c in kept) else ""


@lru_cache(maxsize=4096)
def is_code(text: str) -> bool:
    """Whether a value or a designator of a private scheme is made of known words, short letters and few digits."""
    if not text.isascii() or sum(c.isdigit() for c in text) > _MOST_DIGITS_OF_A_CODE:
        return False
    return all(len(word) <= _SHORT_PART or fold(word) in vocabulary() for word in _LETTERS.findall(text))


def _known_or_mixed(match: re.Match[str]) -> str:
    """The token where letters and digits alternate in it and neither run is long ("T1TFE", "B30s", "1H")."""
    token = match.group()
    parts = _PARTS.findall(token)
    if token.isascii() and len(parts) > 1 and max(map(len, parts)) <= _SHORT_PART:
        return token if sum(c.isdigit() for c in token) <= _MOST_IN_A_RUN else ""
    return _TOKEN.sub(_known, token)


def _short_runs(match: re.Match[str]) -> str:
    run = match.group()
    return run if sum(c.isdigit() for c in run) <= _MOST_IN_A_RUN else " "


def _known(match: re.Match[str]) -> str:
    token = match.group()
    if token[0].isdigit():
        return token if len(re.sub(r"\D", "", token)) <= _MOST_DIGITS and token.isascii() else ""
    if len(token) == 1 and token.isascii():
        return token
    return token if fold(token) in vocabulary() else ""


@lru_cache(maxsize=16384)
def is_term(term: str) -> bool:
    """Whether a Code String is one of the standard, or made of words and numbers that name nobody (PS3.5 6.2)."""
    upper = term.strip().upper()
    if not upper or upper in terms():
        return True
    if not _TERM.fullmatch(upper) or sum(c.isdigit() for c in upper) > _MOST_IN_A_RUN:
        return False
    return all(len(word) <= _SHORT or word.lower() in vocabulary() for word in _TERM_WORD.findall(upper))
