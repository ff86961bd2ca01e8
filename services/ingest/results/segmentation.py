"""Outlines of one image as a DICOM Segmentation (PS3.3 A.51), pixel for pixel on the image that they were drawn on.

The masks are those of the assessment, which inference gives at the image's own size; nothing is scaled here. The frames
say by Derivation Image (C.7.6.16.2.6) which image they lie on, pixel on pixel. So they need no Pixel Measures of their
own (A.51.5.1), and have none: readers want a Slice Thickness in those, which a projection has not.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

import highdicom as hd
import numpy as np
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    XRayAngiographicImageStorage,
    XRayRadiofluoroscopicImageStorage,
)

from services.ingest.results import codes, identity
from services.ingest.results.codes import Concept
from services.ingest.results.material import Decided, Image, Kind
from stepwedge.inference.v1 import inference_pb2

SERIES_NUMBER: Final = 8_801
_PINS: Final = ("sha256", "calibration_sha256", "preprocessing", "preprocessed_sha256", "output_sha256")
_DIRECTIONS: Final = re.compile(r"[ALRPHF]{1,3}")
_RADIOGRAPHS: Final = frozenset(
    {
        ComputedRadiographyImageStorage,
        DigitalXRayImageStorageForPresentation,
        DigitalXRayImageStorageForProcessing,
        SecondaryCaptureImageStorage,
        XRayAngiographicImageStorage,
        XRayRadiofluoroscopicImageStorage,
    }
)
_MONOCHROME: Final = ("MONOCHROME1", "MONOCHROME2")

Masks = Mapping[int, NDArray[np.bool_]]
"""`Structure` to [rows, columns], True inside."""


def fits(header: Dataset, assessment: inference_pb2.Assessment) -> bool:
    """Whether masks of this assessment can be laid on the image: a radiograph of one frame, one sample a pixel, of the
    same size."""
    return (
        bool(assessment.masks)
        and header.get("SOPClassUID") in _RADIOGRAPHS
        and int(header.get("NumberOfFrames") or 1) == 1
        and header.get("SamplesPerPixel", 1) == 1
        and header.get("PhotometricInterpretation") in _MONOCHROME
        and (header.get("Rows"), header.get("Columns")) == (assessment.rows, assessment.columns)
    )


def segmentation(
    decided: Decided, image: Image, header: Dataset, masks: Masks, assessment: inference_pb2.Assessment
) -> Dataset | None:
    """The segmentation of an image; None where no mask holds a pixel.

    header: of the image as received. masks: at the image's own size.
    """
    drawn = [structure for structure in codes.STRUCTURES if structure in masks and masks[structure].any()]
    if not drawn:
        return None
    source = identity.stand_in(decided, image, header)
    algorithm = algorithm_of(assessment.model)
    made = Segmentation(
        source_images=[source],
        pixel_array=np.stack([masks[structure] for structure in drawn], axis=-1)[np.newaxis].astype(np.uint8),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _segment(number, structure, decided, image, algorithm) for number, structure in enumerate(drawn, 1)
        ],
        series_instance_uid=identity.uid(decided, Kind.SEG, "series", image.sop_instance_uid, image.content_sha256),
        series_number=SERIES_NUMBER,
        sop_instance_uid=identity.uid(decided, Kind.SEG, image.sop_instance_uid, image.content_sha256),
        instance_number=1,
        manufacturer=codes.MANUFACTURER,
        manufacturer_model_name=codes.MODEL,
        software_versions=decided.software_build[:64],
        device_serial_number=identity.serial_number(decided),
        content_label="STEPWEDGE",
        content_description="Outlines that image quality was measured on",
        series_description="Stepwedge outlines",
        omit_empty_frames=False,
    )
    organization = identity.uid(decided, Kind.SEG, "dimensions", image.sop_instance_uid, image.content_sha256)
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization  # highdicom takes one by chance
    made.PatientOrientation = _orientation(header)
    frame_of_reference = str(header.get("FrameOfReferenceUID") or "")
    if UID(frame_of_reference).is_valid:  # PS3.3 C.7.4.1: what lies on the image lies in the image's frame
        made.FrameOfReferenceUID = frame_of_reference
        made.PositionReferenceIndicator = None
    identity.dress(made, decided, header)
    return made


def sop_instance_uid(decided: Decided, image: Image) -> tuple[str, str, str]:
    """SOP class, SOP instance and series of an image's segmentation, before it is made."""
    named = (image.sop_instance_uid, image.content_sha256)
    return (
        str(SegmentationStorage),
        identity.uid(decided, Kind.SEG, *named),
        identity.uid(decided, Kind.SEG, "series", *named),
    )


def tracking(decided: Decided, image: Image, structure: int) -> tuple[str, str]:
    """Tracking ID and UID of a structure of an image (PS3.3 C.8.20.2): the same in every revision."""
    return codes.STRUCTURES[structure].label, identity.lasting_uid(
        decided, "tracked", image.sop_instance_uid, structure
    )


def algorithm_of(model: inference_pb2.ModelPin) -> dict[str, str]:
    """How the model is named (PS3.3 10.16, Algorithm Identification): name, version, and what pins it."""
    return {
        "name": identity.ascii_only(model.name) or "unnamed",
        "version": identity.ascii_only(model.version) or "unknown",
        "parameters": ", ".join(f"{name}={getattr(model, name)}" for name in _PINS if getattr(model, name)),
    }


def code(concept: Concept) -> Code:
    """A concept as pydicom and highdicom take it."""
    return Code(concept.value, concept.scheme, concept.meaning)


def _segment(
    number: int, structure: int, decided: Decided, image: Image, algorithm: Mapping[str, str]
) -> SegmentDescription:
    said = codes.STRUCTURES[structure]
    tracking_id, tracking_uid = tracking(decided, image, structure)
    segment = SegmentDescription(
        segment_number=number,
        segment_label=said.label,
        segmented_property_category=code(codes.ANATOMICAL_STRUCTURE),
        segmented_property_type=code(said.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm["name"],
            family=code(codes.ARTIFICIAL_INTELLIGENCE),
            version=algorithm["version"],
            source=codes.MANUFACTURER,
        ),
        tracking_uid=tracking_uid,
        tracking_id=tracking_id,
        display_color=hd.color.CIELabColor(*map(float, said.lab)),
    )
    segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters = algorithm["parameters"]
    if said.side is not None:
        side = hd.sr.CodedConcept(*said.side)
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = identity.sequence(side)
    return segment


def _orientation(header: Dataset) -> list[str]:
    """Patient Orientation as received; empty (it is of type 2C) where the image does not say or says what cannot be."""
    stated = header.get("PatientOrientation") or []
    fits = isinstance(stated, Iterable) and not isinstance(stated, str) and len(list(stated)) == 2
    said = [str(one) for one in stated] if fits else []
    return said if all(_DIRECTIONS.fullmatch(one) for one in said) else []
