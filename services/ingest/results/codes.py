"""The concepts that results are written in: codes of the standards where they have them, else of a scheme of our own.

A coding scheme whose designator begins with "99" is private (PS3.16 8); each object says whose it is (PS3.3 C.12.1,
Coding Scheme Identification Sequence). The numbers of findings are those of `Reason` in the contracts, and never
change their meaning.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from shared.reasons import WORDS
from stepwedge.common.v1.common_pb2 import Outcome, Reason, Structure, Verdict

SCHEME: Final = "99STEPWEDGE"
SCHEME_NAME: Final = "Stepwedge image quality assurance"
SCHEME_VERSION: Final = "1"
MANUFACTURER: Final = "Stepwedge"
MODEL: Final = "Stepwedge"


class Concept(NamedTuple):
    """A coded concept (PS3.3 8.1); the value holds 16 characters at most (SH), the meaning 64 (LO)."""

    value: str
    scheme: str
    meaning: str


def _own(value: str, meaning: str) -> Concept:
    return Concept(value, SCHEME, meaning)


class Segmented(NamedTuple):
    """How a structure is said in a segment (PS3.3 C.8.20.4) and in a report."""

    label: str
    type: Concept
    """Segmented property type, CID 7152 and the like."""
    side: Concept | None
    """Its modifier: laterality, CID 244."""
    lab: tuple[int, int, int]
    """Recommended Display CIELab Value: L* 0 to 100, a* and b* -128 to 127."""
    area: str
    """Name of the measurement of its area."""


_LUNG: Final = Concept("39607008", "SCT", "Lung")
RIGHT: Final = Concept("24028007", "SCT", "Right")
LEFT: Final = Concept("7771000", "SCT", "Left")
BOTH_SIDES: Final = Concept("51440002", "SCT", "Bilateral")
ANATOMICAL_STRUCTURE: Final = Concept("91723000", "SCT", "Anatomical Structure")
IMAGING_PROCEDURE: Final = Concept("363679005", "SCT", "Imaging procedure")
IMAGE_QUALITY: Final = Concept("111101", "DCM", "Image Quality")
QUALITY_ASSESSMENT: Final = Concept("111050", "DCM", "Quality Assessment")
QUALITY_FINDING: Final = Concept("111052", "DCM", "Quality Finding")
SOURCE_OBJECT: Final = Concept("260753009", "SCT", "Source")
SOURCE_IMAGE: Final = Concept("121324", "DCM", "Source image")
COMMENT: Final = Concept("121106", "DCM", "Comment")
ARTIFICIAL_INTELLIGENCE: Final = Concept("123110", "DCM", "Artificial Intelligence")
UNCERTAIN_BELOW: Final = Concept("371885007", "SCT", "-, range of lower measurement uncertainty")
UNCERTAIN_ABOVE: Final = Concept("371886008", "SCT", "+, range of upper measurement uncertainty")
NO_UNITS: Final = Concept("1", "UCUM", "no units")

STRUCTURES: Final[Mapping[int, Segmented]] = {
    Structure.STRUCTURE_RIGHT_LUNG_FIELD: Segmented("Right lung field", _LUNG, RIGHT, (72, -38, 28), "right_lung_area"),
    Structure.STRUCTURE_LEFT_LUNG_FIELD: Segmented("Left lung field", _LUNG, LEFT, (72, 4, -38), "left_lung_area"),
    Structure.STRUCTURE_HEART: Segmented(
        "Heart", Concept("80891009", "SCT", "Heart"), None, (60, 55, 34), "heart_area"
    ),
    Structure.STRUCTURE_LUNGS_FULL: Segmented("Lungs in full", _LUNG, BOTH_SIDES, (88, -4, 62), "lungs_full_area"),
}
"""Each structure of the contracts; a lung field stops at heart and diaphragm, lungs in full reach behind them."""

VERDICTS: Final[Mapping[int, Concept]] = {
    Verdict.VERDICT_ACCEPT: _own("VERDICT-1", "Accept: no person needs to look"),
    Verdict.VERDICT_REVIEW: _own("VERDICT-2", "Review: a person must look"),
    Verdict.VERDICT_REJECT: _own("VERDICT-3", "Reject: repeat while the patient is there"),
    Verdict.VERDICT_NOT_ASSESSABLE: _own("VERDICT-4", "Not assessable"),
}
OUTCOMES: Final[Mapping[int, Concept]] = {
    Outcome.OUTCOME_PASS: _own("OUTCOME-1", "Pass"),
    Outcome.OUTCOME_WARN: _own("OUTCOME-2", "Warn"),
    Outcome.OUTCOME_FAIL: _own("OUTCOME-3", "Fail"),
    Outcome.OUTCOME_NOT_ASSESSABLE: _own("OUTCOME-4", "Not assessable"),
}

VERDICT_OF_IMAGE: Final = _own("IMAGE-VERDICT", "Verdict on this image")
THRESHOLD: Final = _own("THRESHOLD", "Threshold that the value was held against")
PLACE: Final = _own("PLACE", "Place of the finding")
REVISION: Final = _own("REVISION", "Revision of the decision")
DECISION: Final = _own("DECISION", "Decision, by its key in the audit log")
RECORD_INDEX: Final = _own("RECORD-INDEX", "Index of the decision in the audit log")
LOG: Final = _own("LOG-ORIGIN", "Origin of the audit log")
POLICY: Final = _own("POLICY", "SHA-256 of the policy")
LEFT_OUT: Final = _own("LEFT-OUT", "Images without a group of their own")

_TITLES: Final[Mapping[str, str]] = {
    "PIXELS_UNDECODABLE": "Pixels do not decode",
    "NO_PIXELS": "No pixels",
    "BLANK_IMAGE": "Blank image",
    "SATURATED": "Clipped grey values",
    "INVERTED_POLARITY": "Inverted polarity",
    "NOT_A_CHEST": "Not a frontal chest radiograph",
    "LUNG_MARGIN_TOP": "Margin above the lungs",
    "LUNG_MARGIN_BOTTOM": "Margin below the lungs",
    "LUNG_MARGIN_RIGHT": "Margin beside the right lung",
    "LUNG_MARGIN_LEFT": "Margin beside the left lung",
    "LOW_CONFIDENCE": "Confidence in the outlines",
    "BURNED_IN_TEXT_POSSIBLE": "Text in the pixels possible",
    "NOT_REDACTABLE": "Identity cannot be removed",
    "NO_MODEL": "No model",
    "INSTANCE_CONFLICT": "Conflict of SOP Instance UIDs",
    "PROCESSING_FAILED": "Processing failed",
    "CARDIOTHORACIC_RATIO": "Cardiothoracic ratio",
    "IMAGE_TOO_SMALL": "Image too small",
    "IMPLAUSIBLE_ANATOMY": "Implausible outlines",
    "EXPOSURE": "Exposure",
    "ROTATION": "Rotation about the long axis",
    "INSPIRATION": "Inspiration",
    "TURNED": "Turned by quarters",
    "MIRRORED": "Right and left exchanged",
    "COLLIMATION": "Collimation",
    "OBJECT_IN_THE_WAY": "Object over the lungs",
    "UNUSED_DEPTH": "Unused depth",
    "FRAMES": "Frames",
    "SPACING": "Distance of the pixels",
    "LATERALITY": "Side and orientation",
    "VIEW": "View",
    "DATES": "Dates",
    "ATTRIBUTES_ABSENT": "Required attributes",
}

_MEASUREMENTS: Final[Mapping[str, tuple[str, str]]] = {
    "shorter_side": ("M-001", "Shorter side of the image"),
    "structure": ("M-002", "Structure of the image in multiples of the noise"),
    "clipped_low": ("M-003", "Share at the lower end of the grey values"),
    "clipped_high": ("M-004", "Share at the upper end of the grey values"),
    "lung_margin_top": ("M-005", "Margin above the lungs"),
    "lung_margin_bottom": ("M-006", "Margin below the lungs"),
    "lung_margin_right": ("M-007", "Margin beside the right lung"),
    "lung_margin_left": ("M-008", "Margin beside the left lung"),
    "cardiothoracic_ratio": ("M-009", "Cardiothoracic ratio"),
    "right_lung_area": ("M-010", "Area of the right lung field"),
    "left_lung_area": ("M-011", "Area of the left lung field"),
    "heart_area": ("M-012", "Area of the heart"),
    "lungs_full_area": ("M-013", "Area of the lungs in full"),
    "confidence_lung_fields": ("M-014", "Soft Dice Confidence of the lung fields"),
    "confidence_heart": ("M-015", "Soft Dice Confidence of the heart"),
    "confidence_lungs_full": ("M-016", "Soft Dice Confidence of the lungs in full"),
    "probability_inverted": ("M-017", "Probability of inverted polarity"),
    "quarter_turns": ("M-018", "Quarter turns by which the image is turned"),
    "probability_turned": ("M-019", "Probability of a turn by quarters"),
    "probability_mirrored": ("M-020", "Probability of exchanged sides"),
    "probability_not_a_chest": ("M-021", "Probability of no frontal chest radiograph"),
    "rotation_index": ("M-022", "Rotation index"),
    "inspiration_index": ("M-023", "Inspiration index"),
    "collimated_share": ("M-024", "Share of the image behind the blades"),
    "deviation_index": ("M-025", "Deviation index, recomputed"),
    "exposure_index": ("M-026", "Exposure index"),
    "target_exposure_index": ("M-027", "Target exposure index"),
    "stored_deviation_index": ("M-028", "Deviation index, as stored"),
    "grey_levels": ("M-029", "Different grey values"),
    "noise": ("M-030", "Noise as a share of the range"),
    "sharpness": ("M-031", "Sharpness"),
    "repeated_frames": ("M-032", "Repeated frames"),
    "frames_held": ("M-033", "Frames that the pixel data holds"),
    "pixel_aspect": ("M-034", "Distance of the rows over that of the columns"),
    "attributes_absent": ("M-035", "Required attributes that are absent"),
    "feature_distance": ("M-036", "Distance from the features of the training images"),
    "object_score": ("M-037", "Score of the likeliest object over the lungs"),
}


def finding(code: int) -> Concept:
    """The concept of a finding or reason, by its number in the contracts."""
    name = Reason.Name(code).removeprefix("REASON_")  # type: ignore[arg-type]
    title = _TITLES.get(name) or WORDS.get(code, name)  # type: ignore[call-overload]
    return _own(f"FINDING-{code}", title[:64])


def measurement(name: str) -> Concept:
    """The concept of a measurement by its name; one that the table does not have yet is its own meaning."""
    value, meaning = _MEASUREMENTS.get(name, (f"M-{name}"[:16], name.replace("_", " ")))
    return _own(value, meaning[:64])


def unit(ucum: str) -> Concept:
    """The concept of a unit (PS3.16 7.2.2): its UCUM code."""
    return NO_UNITS if ucum in ("", "1") else Concept(ucum[:16], "UCUM", ucum)
