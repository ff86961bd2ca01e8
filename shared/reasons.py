"""What each reason says to a person: one sentence, no identity, the same on every screen and in every answer."""

from collections.abc import Mapping
from types import MappingProxyType

from stepwedge.common.v1.common_pb2 import Reason

WORDS: Mapping[Reason.ValueType, str] = MappingProxyType(
    {
        Reason.REASON_PIXELS_UNDECODABLE: "The pixel data is damaged or in a form that does not decode.",
        Reason.REASON_NO_PIXELS: "The object holds no image.",
        Reason.REASON_BLANK_IMAGE: "The image is blank.",
        Reason.REASON_SATURATED: "A large part of the image is clipped to black or white.",
        Reason.REASON_INVERTED_POLARITY: "Black and white are exchanged, against what the header says.",
        Reason.REASON_NOT_A_CHEST: "The image does not look like a frontal chest radiograph.",
        Reason.REASON_LUNG_MARGIN_TOP: "The lungs are cut off at the upper edge.",
        Reason.REASON_LUNG_MARGIN_BOTTOM: "The lungs are cut off at the lower edge.",
        Reason.REASON_LUNG_MARGIN_RIGHT: "The right lung is cut off at the side.",
        Reason.REASON_LUNG_MARGIN_LEFT: "The left lung is cut off at the side.",
        Reason.REASON_LOW_CONFIDENCE: "The model is not sure of what it outlined.",
        Reason.REASON_BURNED_IN_TEXT_POSSIBLE: "The picture may show text that names a person; it was not passed on.",
        Reason.REASON_NOT_REDACTABLE: "Identity could not be removed with certainty, so nothing was passed on.",
        Reason.REASON_NO_MODEL: "No released model covers this kind of image; only general checks were made.",
        Reason.REASON_INSTANCE_CONFLICT: "Two different objects claim the same SOP Instance UID; both are kept.",
        Reason.REASON_PROCESSING_FAILED: "A step failed and was given up; `stepwedge explain` says which.",
        Reason.REASON_CARDIOTHORACIC_RATIO: "The heart is wide in proportion to the chest.",
        Reason.REASON_IMAGE_TOO_SMALL: "The image is too small to assess.",
        Reason.REASON_IMPLAUSIBLE_ANATOMY: "The outlines of the lungs are implausible in number, size or place.",
        Reason.REASON_EXPOSURE: "The exposure at the detector was far from its target.",
        Reason.REASON_ROTATION: "The chest may be turned about its long axis.",
        Reason.REASON_INSPIRATION: "The lungs look less breathed in than usual.",
        Reason.REASON_TURNED: "The image stands on its side or upside down.",
        Reason.REASON_MIRRORED: "Right and left look exchanged.",
        Reason.REASON_COLLIMATION: "The collimated field ends at or inside the lungs.",
        Reason.REASON_OBJECT_IN_THE_WAY: "Something that is no anatomy lies over the lungs.",
        Reason.REASON_UNUSED_DEPTH: "Only a small part of the grey values that the image could hold is used.",
        Reason.REASON_FRAMES: "The number of frames contradicts the pixel data, or frames are repeated.",
        Reason.REASON_SPACING: "The distance of the pixels is absent or impossible.",
        Reason.REASON_LATERALITY: "Side, orientation and body part contradict each other.",
        Reason.REASON_VIEW: "The attributes of the view contradict each other.",
        Reason.REASON_DATES: "Dates in the header cannot be.",
        Reason.REASON_ATTRIBUTES_ABSENT: "Attributes that this kind of object requires are absent.",
        Reason.REASON_DUPLICATE_IMAGES: "Images of the study have the same pixels under different identifiers.",
        Reason.REASON_SLICES: "Slices of a series are missing, unevenly spaced, or two lie in one place.",
        Reason.REASON_GEOMETRY: "Orientation, pixel spacing or size changes within a series.",
        Reason.REASON_MIXED_PATIENTS: "The images of the study name more than one patient.",
        Reason.REASON_NOISE: "The image is much noisier, or much less so, than others of its device.",
        Reason.REASON_INCOMPLETE: "Not everything came that was announced, or that the rules of the site ask for.",
        Reason.REASON_SHARPNESS: "The image is much less sharp, or much sharper, than others of its device.",
    }
)


def name(reason: Reason.ValueType) -> str:
    """Return the code of a reason as people and JSON see it, "BLANK_IMAGE"."""
    return Reason.Name(reason).removeprefix("REASON_")
