"""What was found and decided as a DICOM Structured Report after TID 1500 (PS3.16), one for each decision.

The first group of measurements is the study's: verdict, reasons, and where the decision stands in the audit log. Each
image has a group of its own (TID 1501) with every finding as a qualitative evaluation and every measured value with its
unit (UCUM), interval and threshold; places are polylines on the image. A structure with a segment has a group that
points to it (TID 1410). Nobody but the device observed anything: the document says so, and is unverified.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import highdicom as hd
import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CompositeContentItem,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    GraphicTypeValues,
    ImageContentItem,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    NumContentItem,
    ObservationContext,
    ObserverContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    ReferencedSegmentationFrame,
    RelationshipTypeValues,
    ScoordContentItem,
    SourceImageForMeasurementGroup,
    SourceImageForSegmentation,
    TextContentItem,
    TrackingIdentifier,
)
from highdicom.sr import Measurement as MeasurementItem
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as standard
from pydicom.uid import UID, SecondaryCaptureImageStorage

from services.ingest.results import codes, identity, segmentation
from services.ingest.results.codes import Concept
from services.ingest.results.material import Decided, Image, Kind, Named, Outlines
from services.ingest.results.segmentation import code
from shared.build import VERSION
from shared.reasons import WORDS
from stepwedge.common.v1.common_pb2 import Finding, Measurement, Outcome, Verdict
from stepwedge.inference.v1 import inference_pb2

SERIES_NUMBER: Final = 8_802
MOST_GROUPS: Final = 40
"""Images with a group of their own; those with the worst verdict first. A CT study of a thousand slices is one
document, and what it leaves out it says."""
_MOST_BOXES: Final = 64

Group = MeasurementsAndQualitativeEvaluations | PlanarROIMeasurementsAndQualitativeEvaluations
Outlined = Mapping[int, Outlines]
"""Row of an instance to its segmentation."""


def report(decided: Decided, header: Dataset, outlined: Outlined) -> Dataset:
    """The report on a decision. header: of one image as received."""
    groups: list[Group] = [_study_group(decided)]
    for image in _with_groups(decided.images):
        assessment = inference_pb2.Assessment.FromString(image.assessment)
        groups += _groups_of(decided, image, assessment, outlined.get(image.row))
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=_observer(decided)),
        procedure_reported=code(codes.IMAGING_PROCEDURE),
        imaging_measurements=groups,
        title=standard.DCM.ImagingMeasurementReport,
    )
    made = ComprehensiveSR(
        evidence=_evidence(decided, outlined),
        content=content,
        series_instance_uid=identity.uid(decided, Kind.SR, "series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=identity.uid(decided, Kind.SR),
        instance_number=decided.revision,
        manufacturer=codes.MANUFACTURER,
        is_complete=True,
        is_final=True,
        previous_versions=None if decided.predecessor is None else [_named(decided, decided.predecessor)],
        series_description="Stepwedge image quality report",
    )
    _name_classes(made, decided)
    made.CodingSchemeIdentificationSequence = [identity.scheme()]
    identity.dress(made, decided, header)
    return made


def groups(decided: Decided, outlined: Outlined) -> int:
    """How many measurement groups the report on a decision holds."""
    with_groups = _with_groups(decided.images)
    segments = sum(len(outlined[image.row].segments) for image in with_groups if image.row in outlined)
    return 1 + len(with_groups) + segments


def _observer(decided: Decided) -> ObserverContext:
    return ObserverContext(
        observer_type=standard.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=identity.device_uid(decided),
            name="Stepwedge",
            manufacturer_name=codes.MANUFACTURER,
            model_name=codes.MODEL,
            serial_number=identity.serial_number(decided),
        ),
    )


def _evidence(decided: Decided, outlined: Outlined) -> list[Dataset]:
    """Everything that the decision is on and that the report names, each once (PS3.3 C.17.2.3)."""
    images = {image.sop_instance_uid: identity.stand_in(decided, image) for image in decided.images}
    for one in images.values():
        one.SOPClassUID = SecondaryCaptureImageStorage  # highdicom knows only classes that are not retired
    return [*images.values(), *(_named(decided, one.named) for one in outlined.values())]


def _name_classes(made: Dataset, decided: Decided) -> None:
    """Say of each image in the evidence which class it is of."""
    classes = {image.sop_instance_uid: image.sop_class_uid for image in decided.images}
    for study in made.CurrentRequestedProcedureEvidenceSequence:
        for series in study.ReferencedSeriesSequence:
            for one in series.ReferencedSOPSequence:
                one.ReferencedSOPClassUID = classes.get(one.ReferencedSOPInstanceUID, one.ReferencedSOPClassUID)


def _named(decided: Decided, named: Named) -> Dataset:
    item = Dataset()
    item.SOPClassUID, item.SOPInstanceUID = named.sop_class_uid, named.sop_instance_uid
    item.StudyInstanceUID, item.SeriesInstanceUID = decided.study_instance_uid, named.series_instance_uid
    return item


# -- the study --------------------------------------------------------------------------------------------------------


def _study_group(decided: Decided) -> MeasurementsAndQualitativeEvaluations:
    left_out = len(decided.images) - len(_with_groups(decided.images))
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(identity.lasting_uid(decided, "study"), "Study"),
        finding_type=code(codes.IMAGE_QUALITY),
        algorithm_id=_software(decided),
        qualitative_evaluations=[
            QualitativeEvaluation(code(codes.QUALITY_ASSESSMENT), code(codes.VERDICTS[decided.verdict]))
        ],
    )
    content = group[0].ContentSequence
    for number, reason in enumerate(decided.reasons):
        words = decided.details[number] if number < len(decided.details) else WORDS[reason]  # type: ignore[index]
        content.append(_evaluation(codes.QUALITY_FINDING, codes.finding(reason), words))
    for one in inference_pb2.Assessment.FromString(decided.findings).findings:
        content.append(_evaluation(codes.finding(one.code), codes.OUTCOMES[one.outcome], one.detail))
    for concept, text in (
        (codes.DECISION, f"decided/{decided.pseudonym}/{decided.revision}"),
        (codes.LOG, decided.log),
        (codes.POLICY, decided.policy_sha256),
        (codes.COMMENT, f"Decided {identity.utc(decided.decided_at)}."),
        (codes.REVISION, str(decided.revision)),
        (codes.RECORD_INDEX, str(decided.record_index)),
        *(((codes.LEFT_OUT, _left_out(left_out)),) if left_out else ()),
    ):
        content.append(_text(concept, text, RelationshipTypeValues.CONTAINS))
    return group


def _left_out(count: int) -> str:
    return f"{count} further images of this decision, none with a worse verdict than those below, have no group here."


def _software(decided: Decided) -> AlgorithmIdentification:
    return AlgorithmIdentification(
        name="Stepwedge policy",
        version=VERSION,
        parameters=[f"policy_sha256={decided.policy_sha256}", f"software_build={decided.software_build}"],
        manufacturer=codes.MANUFACTURER,
    )


# -- an image ---------------------------------------------------------------------------------------------------------

_BY_GRAVITY: Final = {Verdict.VERDICT_REJECT: 0, Verdict.VERDICT_NOT_ASSESSABLE: 1, Verdict.VERDICT_REVIEW: 2}


def _with_groups(images: Sequence[Image]) -> list[Image]:
    """The images that get groups, in order of receipt."""
    worst = sorted(range(len(images)), key=lambda place: (_BY_GRAVITY.get(images[place].verdict, 3), place))  # type: ignore[call-overload]
    return [images[place] for place in sorted(worst[:MOST_GROUPS])]


def _groups_of(
    decided: Decided, image: Image, assessment: inference_pb2.Assessment, outlined: Outlines | None
) -> Iterable[Group]:
    values = {one.name: one for one in assessment.measurements}
    values |= {one.measurement.name: one.measurement for one in assessment.findings if one.HasField("measurement")}
    structures = () if outlined is None else outlined.segments
    of_segments = {codes.STRUCTURES[structure].area for structure in structures}
    thresholds = {
        one.measurement.name: one.threshold
        for one in assessment.findings
        if one.HasField("measurement") and one.HasField("threshold")
    }
    yield _image_group(
        decided,
        image,
        assessment,
        [_measured(one, thresholds.get(name)) for name, one in values.items() if name not in of_segments],
    )
    for number, structure in enumerate(structures, 1):
        area = values.get(codes.STRUCTURES[structure].area)
        yield _segment_group(decided, image, assessment, outlined.named, number, structure, area)  # type: ignore[union-attr]


def _image_group(
    decided: Decided, image: Image, assessment: inference_pb2.Assessment, measurements: list[MeasurementItem]
) -> MeasurementsAndQualitativeEvaluations:
    tracked = identity.lasting_uid(decided, "image", image.sop_instance_uid, image.content_sha256)
    named, is_image = (image.sop_class_uid, image.sop_instance_uid), _is_image(image)
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(tracked, "Image"),
        finding_type=code(codes.IMAGE_QUALITY),
        algorithm_id=_model(assessment) or _software(decided),
        measurements=measurements,
        qualitative_evaluations=[
            QualitativeEvaluation(code(codes.VERDICT_OF_IMAGE), code(codes.VERDICTS[image.verdict]))
        ],
        source_images=[SourceImageForMeasurementGroup(image.sop_class_uid, image.sop_instance_uid)]
        if is_image
        else None,
    )
    content = group[0].ContentSequence
    if not is_image:
        content.append(
            CompositeContentItem(code(codes.SOURCE_OBJECT), *named, relationship_type=RelationshipTypeValues.CONTAINS)
        )
    found = {one.code for one in assessment.findings}
    for one in assessment.findings:
        content.append(_finding(image, one))
    for reason in image.reasons:
        if reason not in found:  # found by ingest itself: a conflict of UIDs
            content.append(_evaluation(codes.QUALITY_FINDING, codes.finding(reason), WORDS[reason]))  # type: ignore[index]
    return group


def _is_image(image: Image) -> bool:
    """Whether the class is one of images; one that we do not know may be."""
    name = UID(image.sop_class_uid).name
    return name == image.sop_class_uid or " Image Storage" in name


def _model(assessment: inference_pb2.Assessment) -> AlgorithmIdentification | None:
    if not assessment.HasField("model"):
        return None
    algorithm = segmentation.algorithm_of(assessment.model)
    return AlgorithmIdentification(
        name=algorithm["name"],
        version=algorithm["version"],
        parameters=[algorithm["parameters"]] if algorithm["parameters"] else None,
        family=code(codes.ARTIFICIAL_INTELLIGENCE),
        manufacturer=codes.MANUFACTURER,
    )


def _segment_group(
    decided: Decided,
    image: Image,
    assessment: inference_pb2.Assessment,
    named: Named,
    number: int,
    structure: int,
    area: Measurement | None,
) -> PlanarROIMeasurementsAndQualitativeEvaluations:
    said = codes.STRUCTURES[structure]
    label, tracked = segmentation.tracking(decided, image, structure)
    group = PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(tracked, label),
        referenced_segment=ReferencedSegmentationFrame(
            sop_class_uid=named.sop_class_uid,
            sop_instance_uid=named.sop_instance_uid,
            frame_number=number,
            segment_number=number,
            source_image=SourceImageForSegmentation(image.sop_class_uid, image.sop_instance_uid),
        ),
        finding_category=code(codes.ANATOMICAL_STRUCTURE),
        finding_type=code(said.type),
        finding_sites=None
        if said.side is None
        else [hd.sr.FindingSite(anatomic_location=code(said.type), laterality=code(said.side))],
        algorithm_id=_model(assessment),
        measurements=[] if area is None else [_measured(area, None)],
    )
    for item in group[0].ContentSequence:
        if "ReferencedSOPSequence" in item and "ReferencedSegmentNumber" in item.ReferencedSOPSequence[0]:
            del item.ReferencedSOPSequence[0].ReferencedSegmentNumber  # PS3.3 C.10.3: not beside a frame number
    return group


def _finding(image: Image, finding: Finding) -> CodeContentItem:
    """A check and its outcome, what is to be said of it, and where."""
    shown = finding.outcome in (Outcome.OUTCOME_WARN, Outcome.OUTCOME_FAIL)
    places = [_place(image, box) for box in finding.boxes[:_MOST_BOXES]] if shown else []
    return _evaluation(codes.finding(finding.code), codes.OUTCOMES[finding.outcome], finding.detail, places)


def _place(image: Image, box: object) -> ScoordContentItem:
    # PS3.3 C.18.6.1.2: 0\0 is the upper left corner of the upper left pixel.
    left, top = float(box.left), float(box.top)  # type: ignore[attr-defined]
    right, bottom = left + box.width, top + box.height  # type: ignore[attr-defined]
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]])
    place = ScoordContentItem(
        name=code(codes.PLACE),
        graphic_type=GraphicTypeValues.POLYLINE,
        graphic_data=corners,
        relationship_type=RelationshipTypeValues.INFERRED_FROM,
    )
    of_image = ImageContentItem(
        name=code(codes.SOURCE_IMAGE),
        referenced_sop_class_uid=image.sop_class_uid,
        referenced_sop_instance_uid=image.sop_instance_uid,
        referenced_frame_numbers=[box.frame + 1] if box.frame else None,  # type: ignore[attr-defined]
        relationship_type=RelationshipTypeValues.SELECTED_FROM,
    )
    place.ContentSequence = hd.sr.ContentSequence([of_image])
    return place


def _measured(value: Measurement, threshold: float | None) -> MeasurementItem:
    unit = codes.unit(value.unit)
    item = MeasurementItem(name=code(codes.measurement(value.name)), value=value.value, unit=code(unit))
    below = value.value - value.low if value.HasField("low") else None
    above = value.high - value.value if value.HasField("high") else None
    properties = [
        _number(concept, round(number, 6), unit, RelationshipTypeValues.HAS_PROPERTIES)
        for concept, number in (
            (codes.UNCERTAIN_BELOW, below),
            (codes.UNCERTAIN_ABOVE, above),
            (codes.THRESHOLD, threshold),
        )
        if number is not None
    ]
    if properties:
        item[0].ContentSequence = hd.sr.ContentSequence(properties)
    return item


# -- content items ----------------------------------------------------------------------------------------------------


def _evaluation(name: Concept, value: Concept, words: str, places: Sequence[ScoordContentItem] = ()) -> CodeContentItem:
    item = CodeContentItem(code(name), code(value), RelationshipTypeValues.CONTAINS)
    said = [_text(codes.COMMENT, words, RelationshipTypeValues.HAS_PROPERTIES)] if words else []
    if said or places:  # an empty sequence is not allowed
        item.ContentSequence = hd.sr.ContentSequence([*said, *places])
    return item


def _text(name: Concept, text: str, relationship: RelationshipTypeValues) -> TextContentItem:
    return TextContentItem(code(name), identity.ascii_only(text) or "-", relationship)


def _number(name: Concept, value: float, unit: Concept, relationship: RelationshipTypeValues) -> NumContentItem:
    return NumContentItem(code(name), value, code(unit), relationship_type=relationship)
