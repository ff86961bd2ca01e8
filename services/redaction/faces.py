"""Whether an object may show a face by which a person could be recognized (PS3.15 E.3.2)."""

from __future__ import annotations

from typing import Final

from services.redaction import values
from services.redaction.facts import objects
from shared.dicom_encoding import PIXEL_TAGS, Elements

_MODALITY: Final = 0x00080060
_BODY_PART: Final = 0x00180015
_RECOGNIZABLE: Final = 0x00280302


def may_show(elements: Elements) -> bool:
    """Whether the object has pixels that show, or may be rendered to show, a face: by what it says itself, else by its
    modality and body part. An object that says neither may."""
    if not any(element.tag in PIXEL_TAGS for element in elements):
        return False
    if values.first(elements, _RECOGNIZABLE).upper() == "YES":
        return True
    table = objects()["faces"]
    modality = values.first(elements, _MODALITY).upper()
    if modality in table["never"]:
        return False
    return modality in table["photographs"] or values.first(elements, _BODY_PART).upper() not in table["other_parts"]
