"""Whether the pixels may show text that names a person, judged by a table and what the object says of itself."""

from __future__ import annotations

from typing import Final

from services.redaction import values
from services.redaction.facts import objects
from shared.dicom_encoding import PIXEL_TAGS, Encoded

_SOP_CLASS: Final = 0x00080016
_IMAGE_TYPE: Final = 0x00080008
_MODALITY: Final = 0x00080060
_CONVERSION: Final = 0x00080064
_BURNED_IN: Final = 0x00280301
_RECOGNIZABLE: Final = 0x00280302


def risk(original: Encoded) -> str:
    """One sentence on why text may be burned in, without identity; empty where nothing speaks for it.

    YES in Burned In Annotation always stands. NO is believed but of a screen or a document. Where the object does not
    say, its kind decides. An object without pixels has no such risk.
    """
    elements = original.data_set
    if not any(element.tag in PIXEL_TAGS for element in elements):
        return ""
    said = values.first(elements, _BURNED_IN).upper()
    if said == "YES":
        return "the object says that annotations are burned in"
    if values.first(elements, _RECOGNIZABLE).upper() == "YES":
        return "the object says that a face or the like may be recognized"
    if _embedded_overlay(original):
        return "overlays are embedded in compressed pixel data"
    table = objects()["suspect"]
    for term in values.terms(elements, _IMAGE_TYPE):
        if term in table["image_types"]:
            return f"by its image type it is {table['image_types'][term]}"
    if said == "NO":
        return ""
    return _by_kind(original)


def _by_kind(original: Encoded) -> str:
    elements = original.data_set
    table = objects()["suspect"]
    sop_class = values.first(elements, _SOP_CLASS)
    modality = values.first(elements, _MODALITY).upper()
    conversion = values.first(elements, _CONVERSION).upper()
    kinds = (
        ("conversions", conversion, "it was made by {}"),
        ("transfer_syntaxes", original.transfer_syntax, "it is {}"),
        ("modalities", modality, "its modality is {}"),
        ("sop_classes", sop_class, "it is {}"),
    )
    for name, value, words in kinds:
        if value not in table[name] or (name == "sop_classes" and _plain(original, sop_class, modality)):
            continue
        return words.format(table[name][value]) + ", which often shows text, and it does not deny that"
    return ""


def _plain(original: Encoded, sop_class: str, modality: str) -> bool:
    """A radiograph wrapped as a secondary capture that says nothing of having been captured or derived."""
    plain = objects()["plain"]
    return (
        sop_class in plain["sop_classes"]
        and modality in plain["modalities"]
        and not values.first(original.data_set, _CONVERSION)
        and "DERIVED" not in values.terms(original.data_set, _IMAGE_TYPE)
    )


def _embedded_overlay(original: Encoded) -> bool:
    """An overlay in the bits beside the image (retired, PS3.5 8.1.2) that only decoding could take out."""
    if not any(e.tag in PIXEL_TAGS and e.fragments is not None for e in original.data_set):
        return False
    return any(
        0x6000 <= e.tag >> 16 <= 0x601E and e.tag & 0xFFFF == 0x0102 and any(bytes(e.value)) for e in original.data_set
    )
