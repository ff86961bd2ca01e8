"""Coded entries (PS3.3 8.8) inside content that becomes a dummy or is cleaned: public words stay, private ones go."""

from __future__ import annotations

import unicodedata
from enum import Enum
from typing import Final

from services.redaction import words
from services.redaction.dummies import WORD
from services.redaction.text import DEFAULT, decode
from shared.dicom_encoding import Element

VALUE: Final = 0x00080100
SCHEME: Final = 0x00080102
VERSION: Final = 0x00080103
MEANING: Final = 0x00080104
_OTHER: Final = frozenset({0x00080119, 0x00080120})


class Mode(Enum):
    """How the content of an item is looked at."""

    PLAIN = "plain"
    """By the profile alone."""
    STRICT = "strict"
    """As what becomes a dummy: terms, counts and public codes stay."""
    CLEAN = "clean"
    """As what is cleaned: of free text, the words that name nobody stay too."""


def coded(element: Element, public: bool, mode: Mode) -> Element | None:
    """The part of a code, kept where its scheme is public; None where the element is no part of a code.

    The meaning is free text whatever the scheme: it goes where the content becomes a dummy, since the value says the
    same to whoever knows the scheme, and keeps the words that name nobody where the content is cleaned.
    """
    tag = element.tag
    if tag == MEANING:
        return _meaning(element, mode)
    if tag in (VALUE, SCHEME):
        return element if public else Element(tag, "SH", b"99ANON" if tag == SCHEME else WORD)
    if tag in _OTHER:
        return element if public else Element(tag, element.vr, WORD)
    if tag == VERSION:
        return element if public else Element(tag, "SH", b"0")
    return None


def _meaning(element: Element, mode: Mode) -> Element:
    if mode is Mode.STRICT:
        return Element(element.tag, "LO", WORD)
    text = bytes(element.value).rstrip(b"\0 ")
    if not text or text == WORD:
        return element
    # Judged as it will be written: a word that loses a letter is another one.
    plain = unicodedata.normalize("NFKD", decode(element.value, DEFAULT)).encode("ascii", "ignore").decode()
    kept = words.cleaned(plain).encode()
    if kept == text:
        return element
    return Element(element.tag, "LO", kept[:64] or WORD)
