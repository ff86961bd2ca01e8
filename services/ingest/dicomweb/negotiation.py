"""What a client takes: Accept headers (RFC 9110 12.5.1, PS3.18 8.3.3 and 8.7.4), and the query parameter that stands in
for them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.ingest.dicomweb.multipart import MediaType, media_type
from shared.errors import ErrorCode, StepwedgeError

DICOM: Final = "application/dicom"
DICOM_JSON: Final = "application/dicom+json"
DICOM_XML: Final = "application/dicom+xml"
JSON: Final = "application/json"
OCTETS: Final = "application/octet-stream"
MULTIPART: Final = "multipart/related"

_MOST: Final = 64
# A quotation that is never closed is one element to the end, which cannot be read: every character is looked at once.
_ELEMENT: Final = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.?)*+(?:"|\Z))++')


class NotAcceptableError(Exception):
    """Nothing that the client takes can be had (406)."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One media type that the client takes; inside a multipart, that of its parts."""

    name: str
    multipart: bool
    transfer_syntax: str
    """As asked for; "*" for as it lies here; empty for none named."""
    quality: float


def accepted(headers: Sequence[str], parameter: str = "") -> list[Wanted]:
    """What is taken, best first; none stands for anything. Raises INVALID_REQUEST where it cannot be read.

    `parameter`: the query parameter `accept` (PS3.18 8.3.3.1), which stands before the header.
    """
    found = []
    for text in (parameter,) if parameter else headers:
        found += [_wanted(media_type(part)) for part in _ELEMENT.findall(text) if part.strip()]
    if len(found) > _MOST:
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "too many media types are named")
    return sorted((one for one in found if one.quality > 0), key=lambda one: -one.quality)


def _wanted(given: MediaType) -> Wanted:
    try:
        quality = float(given.parameters.get("q", "1"))
    except ValueError:
        quality = 1.0
    multipart = given.name == MULTIPART
    name = given.parameters.get("type", "*/*").lower() if multipart else given.name
    return Wanted(name, multipart, given.parameters.get("transfer-syntax", ""), min(max(quality, 0.0), 1.0))


def matches(wanted: Wanted, name: str, *, multipart: bool = False) -> bool:
    """Whether a media type is one that is taken."""
    if wanted.name == "*/*":
        return True
    if wanted.multipart != multipart:
        return False
    return wanted.name == name or (wanted.name.endswith("/*") and name.startswith(wanted.name[:-1]))


def choose(wanted: Sequence[Wanted], offered: Sequence[str]) -> str:
    """The first of what is wanted that is offered (single part); the first offered where anything is taken.

    Raises NotAcceptableError.
    """
    if not wanted:
        return offered[0]
    for one in wanted:
        for name in offered:
            if matches(one, name):
                return name
    raise NotAcceptableError
