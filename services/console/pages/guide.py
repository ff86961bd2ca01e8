"""Help where it is needed: how to begin, and what each finding means."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.responses import Response

from services.console import diagrams
from services.console.web import ADMINISTRATOR, AUDITOR, EVERYBODY, OPERATOR, RADIOGRAPHER, Call, route
from shared import reasons

WHAT_TO_DO: Final = {
    "PIXELS_UNDECODABLE": "Send the image again. If it comes the same way, export it again from the modality.",
    "BLANK_IMAGE": "Check that the exposure was made and the detector was connected; then repeat.",
    "SATURATED": "Check exposure and detector; where the lungs themselves are clipped, repeat.",
    "INVERTED_POLARITY": "Send the image again with the right grey scale; nothing needs to be exposed again.",
    "NOT_A_CHEST": "Check body part and view in the header against the image.",
    "LUNG_MARGIN_TOP": "The apices must be on the image: move the field upwards, and repeat if they matter.",
    "LUNG_MARGIN_BOTTOM": "Both costophrenic angles must be on the image: move the field downwards.",
    "LUNG_MARGIN_RIGHT": "The right chest wall must be on the image: centre the patient.",
    "LUNG_MARGIN_LEFT": "The left chest wall must be on the image: centre the patient.",
    "LOW_CONFIDENCE": "Look at the image yourself: the model is not sure of its outlines.",
    "BURNED_IN_TEXT_POSSIBLE": "Look at the image at its source; it was not passed on.",
    "NOT_REDACTABLE": "Look at the object at its source; it was not passed on.",
    "NO_MODEL": "Nothing: this kind of image gets the general checks only.",
    "INSTANCE_CONFLICT": "Find out which of the two objects is right; both are kept.",
    "PROCESSING_FAILED": "The story of the study says which step failed; the operator can put it back in the queue.",
    "CARDIOTHORACIC_RATIO": "Nothing: it is a measurement for the reader, never a fault of the image.",
    "IMAGE_TOO_SMALL": "Send the image in its full size.",
    "IMPLAUSIBLE_ANATOMY": "Look at the outlines on the image; where they are wrong, judge the image yourself.",
    "EXPOSURE": "Check dose and exposure control; repeat only where the image is too noisy or clipped to read.",
    "ROTATION": "Compare the ends of the clavicles with the spinous processes; the index shows a strong turn only.",
    "INSPIRATION": "Count the ribs above the diaphragm; disease can keep the lungs small too.",
    "TURNED": "Turn the image upright and send it again; nothing needs to be exposed again.",
    "MIRRORED": "Compare the side marker and the patient with the image before anybody reads it.",
    "COLLIMATION": "Open the collimator to the chest wall, and repeat if what is missing matters.",
    "UNUSED_DEPTH": "Check that the modality sends its original, not a picture exported in 8 bits.",
    "FRAMES": "Send the object again from the modality and count its frames there.",
    "SPACING": "Measure no lengths on this image; have the modality or the export corrected.",
    "LATERALITY": "Compare side, orientation and body part in the header with the image and the order.",
    "VIEW": "Find out which view was taken, and correct the header.",
    "DATES": "Check the clock of the modality and the birth date in the order.",
    "ATTRIBUTES_ABSENT": "Have the modality or the export corrected; the image itself can be read.",
    "DUPLICATE_IMAGES": "Find out whether an image was sent twice, or one is missing in whose place another stands.",
    "SLICES": "Send the whole series again from the modality, and count its slices there.",
    "GEOMETRY": "Check whether two series were joined into one; measure nothing across the change.",
    "MIXED_PATIENTS": "Stop: find out whose images these are before anybody reads them; correct them at the source.",
    "NOISE": "Compare with earlier images of the device; have dose, detector and processing checked where it stays so.",
    "SHARPNESS": "Look for motion; have focus, grid, detector and processing checked where it stays so.",
    "OBJECT_IN_THE_WAY": (
        "Look at the marked place: take off what can be taken off, and repeat if it hides what matters."
    ),
    "INCOMPLETE": "Send what is missing; it is judged with the rest, and the decision is made anew.",
    "NO_PIXELS": "Nothing: the object is not an image.",
}
"""Code of a reason -> what a person does about it."""


FIRST_STEPS: Final = {
    RADIOGRAPHER: (
        ("/studies", "Work list", "Every study that arrives stands here with its verdict, newest first."),
        (
            "/studies?verdict=REJECT",
            "Rejected studies",
            "Open one: why it was rejected stands on top, with what to do.",
        ),
        ("/studies", "A study", "Look at the outlines on the image, and record what you hold to be right yourself."),
        ("/quality", "Quality", "How often what is rejected, in which room and on which device."),
    ),
    OPERATOR: (
        ("/operator", "Operation", "Every service must say that it serves, and no certificate may end soon."),
        (
            "/studies",
            "Work list",
            "Send an image from a modality: it appears within seconds, or its sender was told why not.",
        ),
        (
            "/studies?state=DEAD_LETTER",
            "Dead letter",
            "What was given up stands here with its error, and can be put back.",
        ),
        ("/quality", "Quality", "Drift of what is measured shows a change of device, exposure or model early."),
    ),
    AUDITOR: (
        ("/audit", "Audit log", "Search by accession or patient number, by person, by time, or by model."),
        ("/audit", "A decision", "Open its dossier: every step with its proof, checked before your eyes; print it."),
        (
            "/audit",
            "Take it away",
            "Export the log, and check it with verifier/verify.py on a machine that trusts nobody.",
        ),
        ("/audit/guarding", "Erasure and hold", "What one of you asks for, a second person must agree to."),
    ),
    ADMINISTRATOR: (
        ("/people", "Accounts", "Make an account for each person, with one role; the first password is shown once."),
        ("/operator", "Operation", "Every service must say that it serves, and no certificate may end soon."),
    ),
}
"""Role -> where a newcomer goes first: (page, its name, what is to be seen there)."""


PICTURED: Final = frozenset(
    path.stem.upper() for path in (Path(__file__).parent.parent / "static" / "findings").glob("*.webp")
)
"""Codes of the findings of which there is a picture (`services.inference.pictures`)."""


async def guide(call: Call) -> Response:
    """The page."""
    entries = [
        (reasons.name(code), words, WHAT_TO_DO.get(reasons.name(code), "")) for code, words in reasons.WORDS.items()
    ]
    return call.page(
        "help.html",
        entries=entries,
        pictured=PICTURED,
        drawn=diagrams.DRAWN,
        drawing=diagrams.drawing,
        first=FIRST_STEPS[call.signed_in.role],
    )


ROUTES: Final = [route("/help", guide, EVERYBODY)]
