"""Whether the chest model covers an object, by what its header says: a frontal radiograph of a chest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pydicom.dataset import Dataset


class Coverage(StrEnum):
    """What the header says of the model's business."""

    COVERED = "covered"
    """It names a frontal radiograph of the chest."""
    SILENT = "silent"
    """It names a radiograph, and neither body part nor view against it: the pixels decide."""
    OTHER = "other"
    """It names something else."""


@dataclass(frozen=True)
class Covered:
    """The answer, and why in words of ours (never a value of the header)."""

    coverage: Coverage
    why: str = ""


RADIOGRAPHY: Final = frozenset({"CR", "DX", "RG"})
"""Modalities (PS3.3 C.7.3.1.1.1) in which a chest radiograph is stored."""
SAY_NOTHING: Final = frozenset({"", "OT", "SC", "XC"})
"""Modalities that leave open what the image is."""
_SOP_CLASSES: Final = {
    "1.2.840.10008.5.1.4.1.1.1": "CR",
    "1.2.840.10008.5.1.4.1.1.1.1": "DX",
    "1.2.840.10008.5.1.4.1.1.1.1.1": "DX",
}
"""SOP classes of radiography, for objects without a modality."""
DERIVED: Final = frozenset({"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "PR", "SR", "KO", "REG", "FID", "RWV", "M3D", "DOC"})
"""Modalities whose objects are not pictures of a patient; nothing can be wrong with their grey values."""
VOLUMES: Final = frozenset({"CT", "MR", "PT", "NM", "US", "IVUS", "XA", "RF", "OPT", "IVOCT", "ECHO"})
"""Modalities whose multi-frame objects are volumes or loops: their middle frame is looked at, not their first."""

# PS3.16 Annex L, and how systems of several languages write it in (0018,0015).
_CHEST_WORDS: Final = ("CHEST", "THORA", "TORAX", "TORAC", "LUNG", "PULMO", "POUMON", "PECHO", "BRUST", "CXR")
_CHEST_CODES: Final = frozenset(
    {
        *("T-D3000", "51185008"),  # chest, thorax
        *("T-28000", "39607008", "T-D3050", "43799004"),  # lung, thoracic cavity
        *("R-FAB56", "416550000", "T-D00F7", "416775004"),  # chest and abdomen; chest, abdomen and pelvis
        "816094009",  # chest (present release of SNOMED CT)
    }
)
_OTHER_PARTS_OF_ANNEX_L: Final = """
    ABDOMEN ABDOMENPELVIS ACJOINT ANKLE ANKLES ANUS ARM BLADDER BONE BRAIN BREAST BUTTOCK CALCANEUS CALF CERVIX
    CLAVICLE COCCYX COLON CSPINE CTSPINE DENTAL EAR ELBOW ELBOWS EXTREMITY EYE FACE FACIALBONES FEMUR FIBULA FINGER
    FINGERS FOOT FEET FOREARM HAND HANDS HEAD HEEL HIP HIPS HUMERUS JAW KIDNEY KNEE KNEES KUB LEG LEGS LIVER
    LOWERLIMB LOWEREXTREMITY LOWERLEG LSPINE LSSPINE LUMBARSPINE MANDIBLE MAXILLA NASALBONE NECK NOSE ORBIT PATELLA
    PELVIS RADIUS SACRUM SCAPULA SHOULDER SHOULDERS SIJOINT SINUS SINUSES SKULL SPINE SSPINE STERNUM TEETH TIBIA TLSPINE
    TMJ TOE TOES THIGH THUMB TSPINE THORACICSPINE ULNA UPPERARM UPPERLIMB UPPEREXTREMITY UTERUS WHOLESPINE WRIST
    WRISTS ZYGOMA
"""
_OTHER_PARTS: Final = frozenset(_OTHER_PARTS_OF_ANNEX_L.split())
_NOT_CHEST_PHRASES: Final = ("SPINE", "RIB", "WIRBEL", "RACHIS", "COLUMNA", "STERNUM")

FRONTAL_VIEWS: Final = frozenset({"PA", "AP"})
_NOT_FRONTAL: Final = (
    "LL RL LAT LATERAL LLAT RLAT LLD RLD LLO RLO LAO RAO LPO RPO OBL OBLIQUE DECUB DECUBITUS CC MLO ML LM"
)
_OTHER_VIEWS: Final = frozenset(_NOT_FRONTAL.split())
_FRONTAL_CODES: Final = frozenset(
    {"R-10206", "399348003", "R-10214", "272479007", "R-10202", "399033003"}  # PS3.16 CID 4010: AP, PA, frontal
)


def coverage(dataset: Dataset) -> Covered:
    """Hold the header against what the model was made for.

    Heeds Modality (0008,0060), SOP Class, Body Part Examined (0018,0015), Anatomic Region Sequence (0008,2218), View
    Position (0018,5101), View Code Sequence (0054,0220) and the row direction of Patient Orientation (0020,0020).
    """
    modality = modality_of(dataset)
    if modality not in RADIOGRAPHY and modality not in SAY_NOTHING:
        return Covered(Coverage.OTHER, "no released model covers this modality")
    part = _part(dataset)
    if modality in SAY_NOTHING and part is not True:
        return Covered(Coverage.OTHER, "neither modality nor body part says that this is a radiograph of a chest")
    if part is False:
        return Covered(Coverage.OTHER, "no released model covers this body part")
    view = _view(dataset)
    if view is False:
        return Covered(Coverage.OTHER, "no released model covers this view")
    named = part is True and (view is True or view is None)
    return Covered(Coverage.COVERED if named else Coverage.SILENT)


class Part(StrEnum):
    """What body part and anatomic region say together."""

    CHEST = "chest"
    OTHER = "other"
    UNSAID = "unsaid"
    CONTRADICTED = "contradicted"
    """One says the chest, the other something else."""


def part_of(dataset: Dataset) -> Part:
    """Hold Body Part Examined (0018,0015) against Anatomic Region Sequence (0008,2218)."""
    by_text, by_code = _part_by_text(dataset), _part_by_code(dataset)
    if by_text is not None and by_code is not None and by_text != by_code:
        return Part.CONTRADICTED
    chest = by_code if by_text is None else by_text
    return Part.UNSAID if chest is None else Part.CHEST if chest else Part.OTHER


def view_named(dataset: Dataset) -> set[str]:
    """The views that View Position (0018,5101) and View Code Sequence (0054,0220) name: AP, PA, or LATERAL for all
    that are not frontal. A code for frontal without direction names none."""
    text = _text(dataset, "ViewPosition")
    words = {"".join(letter for letter in word if letter.isalpha()) for word in text.split()}
    named = words & FRONTAL_VIEWS
    if not named and words & _OTHER_VIEWS:
        named = {"LATERAL"}
    return named | {_VIEW_CODES[code] for code in _codes(dataset, "ViewCodeSequence") if code in _VIEW_CODES}


_VIEW_CODES: Final = {
    **dict.fromkeys(("R-10206", "399348003"), "AP"),
    **dict.fromkeys(("R-10214", "272479007"), "PA"),
    **dict.fromkeys(("R-10236", "399067008", "R-10232", "399173006", "R-10228", "399198007"), "LATERAL"),
}
"""Codes of PS3.16 CID 4010: projections, the lateral ones together."""


def modality_of(dataset: Dataset) -> str:
    """Modality (0008,0060), else what the SOP class implies, else empty."""
    value = _text(dataset, "Modality")
    return value or _SOP_CLASSES.get(_text(dataset, "SOPClassUID"), "")


def _part(dataset: Dataset) -> bool | None:
    """Whether the body part is the chest, by its words before its codes; None where nothing known is said."""
    by_text = _part_by_text(dataset)
    return _part_by_code(dataset) if by_text is None else by_text


def _part_by_text(dataset: Dataset) -> bool | None:
    text = _text(dataset, "BodyPartExamined")
    squeezed = "".join(letter for letter in text if letter.isalpha())
    if squeezed in _OTHER_PARTS or any(phrase in squeezed for phrase in _NOT_CHEST_PHRASES):
        return False
    if any(word in squeezed for word in _CHEST_WORDS):
        return True
    return None


def _part_by_code(dataset: Dataset) -> bool | None:
    codes = _codes(dataset, "AnatomicRegionSequence")
    return any(code in _CHEST_CODES for code in codes) if codes else None


def _view(dataset: Dataset) -> bool | None:
    """Whether the view is frontal; None where nothing known is said."""
    text = _text(dataset, "ViewPosition")
    words = {"".join(letter for letter in word if letter.isalpha()) for word in text.split()}
    if words & FRONTAL_VIEWS:
        return True
    if words & _OTHER_VIEWS:
        return False
    codes = _codes(dataset, "ViewCodeSequence")
    if codes:
        return any(code in _FRONTAL_CODES for code in codes)
    # PS3.3 C.7.6.1.1.1: rows that run from front to back, or back to front, show the patient from the side.
    orientation = dataset.get("PatientOrientation")
    row = str(orientation[0]).upper() if orientation and not isinstance(orientation, str) else ""
    return False if row[:1] in {"A", "P"} else None


def _codes(dataset: Dataset, keyword: str) -> list[str]:
    items = dataset.get(keyword)
    return [code for code in _values(items) if code] if items else []


def _values(items: Iterable[Dataset]) -> Iterable[str]:
    for item in items:
        value = item.get("CodeValue", "") if isinstance(item, Dataset) else ""
        yield value.strip() if isinstance(value, str) else ""


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return value.strip("\0 ").upper() if isinstance(value, str) else ""
