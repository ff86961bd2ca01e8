"""Code Strings (PS3.5 6.2, CS): defined terms stay, what is none becomes a dummy; nobody hides a name in one."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from services.redaction.dummies import WORD
from services.redaction.facts import objects
from services.redaction.words import is_term

CHARACTER_SET: Final = 0x00080005
STRUCTURAL: Final = frozenset({CHARACTER_SET, 0x00080060, 0x00081160, 0x00280004, 0x0040A010, 0x0040A040, 0x00700023})
"""Terms, and numbers of frames, on which a reader's parsing depends; a name that equals one is not worth an unreadable
object, so they are held against the terms themselves instead."""


@lru_cache(maxsize=1)
def _closed() -> dict[int, tuple[frozenset[str], bytes]]:
    """Attributes that have no terms but the standard's, and what stands for another."""
    return {
        int(tag, 16): (frozenset(entry["terms"]), entry["dummy"].encode()) for tag, entry in objects()["terms"].items()
    }


@lru_cache(maxsize=16384)
def checked_terms(tag: int, value: bytes) -> bytes | None:
    """The value with a dummy for each term that is none; None where every term is one, as nearly always."""
    if tag == CHARACTER_SET:
        return None
    terms = value.split(b"\\")
    kept = [_checked(tag, term) for term in terms]
    return None if kept == terms else b"\\".join(kept)


def _checked(tag: int, term: bytes) -> bytes:
    text = term.strip(b"\0 ").decode("ascii", "replace")
    if not text:
        return term
    closed = _closed().get(tag)
    if closed is not None:
        return term if text in closed[0] else closed[1]
    return term if text.encode() == WORD or is_term(text) else WORD
