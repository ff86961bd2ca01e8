"""Coded entries (PS3.3 8.8) inside content that becomes a dummy: the standard's words stay, private ones go."""

from __future__ import annotations

from typing import Final

from services.redaction.dummies import WORD
from shared.dicom_encoding import Element

_VALUE: Final = 0x00080100
_SCHEME: Final = 0x00080102
_VERSION: Final = 0x00080103
_MEANING: Final = 0x00080104
_OTHER: Final = frozenset({0x00080119, 0x00080120})


def strict_code(element: Element, *, public: bool) -> Element | None:
    """The part of a code, kept where its scheme is public; None where the element is no part of a code.

    The meaning is free text whatever the scheme, and goes: the value says the same to whoever knows the scheme.
    """
    tag = element.tag
    if tag in (_VALUE, _SCHEME):
        return element if public else Element(tag, "SH", b"99ANON" if tag == _SCHEME else WORD)
    if tag == _MEANING:
        return Element(tag, "LO", WORD)
    if tag in _OTHER:
        return element if public else Element(tag, element.vr, WORD)
    if tag == _VERSION:
        return element if public else Element(tag, "SH", b"0")
    return None
