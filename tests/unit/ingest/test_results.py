"""Results made of decisions: right pixel for pixel, the same each time, valid by two checkers, of any vendor."""

import dataclasses
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from PIL import Image as Picture
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian

from services.ingest.results import checking, codes, identity, making, page, report, segmentation
from services.ingest.results.material import Decided, Image, Kind, Made
from services.ingest.results.workshop import checker
from shared import phantom
from shared.errors import ErrorCode, StepwedgeError
from shared.objects import ObjectStore, Zone, open_store
from shared.paths import ROOT
from shared.settings import Destination, Ingest, Objects, Results
from stepwedge.common.v1 import common_pb2
from stepwedge.inference.v1 import inference_pb2
from tests.shared_material import SHARED, needs_shared

EVERY = (Kind.SEG, Kind.SR, Kind.PDF)
DCIODVFY = checker(Ingest(results=Results(keep=["seg", "sr", "pdf"])))
CHEST = phantom.chest(5, columns=256, rows=320)


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    settings = Objects(original=str(tmp_path / "original"), deidentified=str(tmp_path / "deidentified"))
    return open_store(settings, {Zone.ORIGINAL, Zone.DEIDENTIFIED})


def chest() -> Dataset:
    return phantom.to_dicom(
        CHEST, patient_name="DOE^JANE", patient_id="4711", study_uid="2.25.1", series_uid="2.25.2",
        sop_instance_uid="2.25.3",
    )  # fmt: skip


def file_of(ds: Dataset) -> bytes:
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def assessment(objects: ObjectStore, masks: dict[int, Any], shape: tuple[int, int]) -> inference_pb2.Assessment:
    """What inference says of an image with these outlines: two findings, a value with an interval, an area."""
    found = inference_pb2.Assessment(rows=shape[0], columns=shape[1])
    found.findings.add(code=common_pb2.REASON_PIXELS_UNDECODABLE, outcome=common_pb2.OUTCOME_PASS, detail="decodes")
    found.findings.add(code=common_pb2.REASON_BLANK_IMAGE, outcome=common_pb2.OUTCOME_PASS)
    margin = found.findings.add(
        code=common_pb2.REASON_LUNG_MARGIN_TOP, outcome=common_pb2.OUTCOME_WARN, detail="Near – 3.25 mm", threshold=5
    )
    margin.measurement.CopyFrom(
        common_pb2.Measurement(name="lung_margin_top", value=3.25, unit="mm", low=2.0, high=4.0)
    )
    margin.boxes.add(left=10, top=0, width=100, height=20)
    found.measurements.add(name="cardiothoracic_ratio", value=0.51, unit="1", low=0.48, high=0.53)
    found.measurements.add(name="right_lung_area", value=12345.678901, unit="mm2")
    found.measurements.add(name="new_and_not_in_the_table", value=1e-6, unit="{pixels}")
    for structure, mask in masks.items():
        buffer = BytesIO()
        Picture.fromarray((np.asarray(mask) > 0).astype(np.uint8) * 255).save(buffer, "PNG")
        stored = objects.put(Zone.DEIDENTIFIED, buffer.getvalue())
        found.masks.add(structure=structure, png=common_pb2.ObjectReference(sha256=stored.sha256))
    if masks:
        found.model.CopyFrom(inference_pb2.ModelPin(name="chest-student", version="0.2.0", sha256="ef" * 32))
    return found


MASKS = {place: CHEST.masks[name] for place, name in enumerate(phantom.STRUCTURES, 1)}


def image(objects: ObjectStore, ds: Dataset, found: inference_pb2.Assessment, row: int = 1, **more: Any) -> Image:
    return of_bytes(objects, file_of(ds), ds, found, row, **more)


def of_bytes(
    objects: ObjectStore, data: bytes, ds: Dataset, found: inference_pb2.Assessment, row: int = 1, **more: Any
) -> Image:
    known = {"verdict": common_pb2.VERDICT_REVIEW, "reasons": (common_pb2.REASON_LUNG_MARGIN_TOP,), **more}
    return Image(
        row=row,
        sop_class_uid=str(ds.SOPClassUID),
        sop_instance_uid=str(ds.SOPInstanceUID),
        series_instance_uid=str(ds.SeriesInstanceUID),
        modality=str(ds.get("Modality", "")),
        sha256=objects.put(Zone.ORIGINAL, data).sha256,
        content_sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        conflict=False,
        assessment=found.SerializeToString(),
        **known,
    )


def decided(*images: Image, study: str = "2.25.1", **more: Any) -> Decided:
    known = {
        "revision": 1,
        "record_index": 17,
        "verdict": common_pb2.VERDICT_REVIEW,
        "reasons": (common_pb2.REASON_LUNG_MARGIN_TOP,),
        "details": ("The lungs – nearly cut off.",),
        **more,
    }
    return Decided(
        study_instance_uid=study,
        pseudonym="2.25.1234567",
        decided_at=datetime(2026, 3, 1, 22, 30, 5, 123456, UTC),
        log="stepwedge/audit",
        policy_sha256="cd" * 32,
        software_build="0.1.0+0123456789abcdef",
        images=images,
        **known,
    )


def bytes_of(objects: ObjectStore, made: Made) -> bytes:
    return objects.get(Zone.ORIGINAL, made.sha256)


def made_of(objects: ObjectStore, about: Decided, *kinds: Kind) -> dict[Kind, bytes]:
    return {one.kind: bytes_of(objects, one) for one in making.make(about, kinds or EVERY, objects, DCIODVFY)}


def test_the_same_decision_makes_the_same_objects_byte_for_byte(objects: ObjectStore):
    about = decided(image(objects, chest(), assessment(objects, MASKS, CHEST.image.shape)))
    first = making.make(about, EVERY, objects, DCIODVFY)
    assert making.make(about, EVERY, objects, DCIODVFY) == first
    other = making.make(dataclasses.replace(about, revision=2, record_index=30), EVERY, objects, DCIODVFY)
    uids = [one.sop_instance_uid for one in (*first, *other)]
    assert len(set(uids)) == 6, "another decision's objects are others"


def test_segments_are_the_masks_pixel_for_pixel_and_keep_their_tracking_over_revisions(objects: ObjectStore):
    about = decided(image(objects, chest(), assessment(objects, MASKS, CHEST.image.shape)))
    first = hd.seg.segread(BytesIO(made_of(objects, about, Kind.SEG)[Kind.SEG]))
    assert np.array_equal(first.pixel_array > 0, np.stack([mask > 0 for mask in MASKS.values()]))
    later = hd.seg.segread(
        BytesIO(made_of(objects, dataclasses.replace(about, revision=2, record_index=40), Kind.SEG)[Kind.SEG])
    )
    assert [one.TrackingUID for one in first.SegmentSequence] == [one.TrackingUID for one in later.SegmentSequence]
    assert first.SOPInstanceUID != later.SOPInstanceUID


@pytest.mark.parametrize(("rows", "columns"), [(7, 9), (13, 3), (33, 70), (1, 17)])
def test_outlines_of_sizes_that_fill_no_byte_come_back_whole(objects: ObjectStore, rows: int, columns: int):
    ds = chest()
    ds.Rows, ds.Columns = rows, columns
    ds.PixelData = b"\0" * (2 * rows * columns)
    chance = np.random.default_rng(rows)
    masks = {place: chance.random((rows, columns)) > 0.5 for place in (1, 2, 3, 4)}
    about = decided(image(objects, ds, assessment(objects, masks, (rows, columns))))
    read = hd.seg.segread(BytesIO(made_of(objects, about, Kind.SEG)[Kind.SEG]))
    assert np.array_equal(read.pixel_array > 0, np.stack(list(masks.values())))


@pytest.mark.parametrize(
    "spacing", ["0.14\\0.14", " 0.14\\0.14", "1.4e-1\\1.4e-1", "0.138888888888888889\\0.1388", "0.14", "0,1"]
)
def test_pixel_spacing_as_vendors_write_it_does_not_spoil_the_outlines(objects: ObjectStore, spacing: str):
    ds, written = chest(), spacing.encode() + b" " * (len(spacing) % 2)
    ds[0x00280030] = RawDataElement(Tag(0x00280030), "DS", len(written), written, 0, False, True)
    about = decided(image(objects, ds, assessment(objects, MASKS, CHEST.image.shape)))
    read = hd.seg.segread(BytesIO(made_of(objects, about, Kind.SEG)[Kind.SEG]))
    assert np.array_equal(read.pixel_array > 0, np.stack([mask > 0 for mask in MASKS.values()]))


@pytest.mark.parametrize(("stated", "said"), [("2.25.99", "2.25.99"), ("1.2.x", None), ("", None)])
def test_outlines_lie_in_the_frame_of_reference_of_their_image(objects: ObjectStore, stated: str, said: str | None):
    ds = chest()
    ds[0x00200052] = RawDataElement(Tag(0x00200052), "UI", len(stated), stated.encode(), 0, False, True)
    about = decided(image(objects, ds, assessment(objects, MASKS, CHEST.image.shape)))
    read = hd.seg.segread(BytesIO(made_of(objects, about, Kind.SEG)[Kind.SEG]))
    assert read.get("FrameOfReferenceUID") == said
    assert ("PositionReferenceIndicator" in read) == (said is not None)


def test_an_outline_without_a_pixel_makes_no_segment(objects: ObjectStore):
    masks = {1: MASKS[1], 3: np.zeros_like(MASKS[1])}
    about = decided(image(objects, chest(), assessment(objects, masks, CHEST.image.shape)))
    (one,) = making.make(about, [Kind.SEG], objects, DCIODVFY)
    assert one.segments == (1,)
    nothing = decided(image(objects, chest(), assessment(objects, {3: masks[3]}, CHEST.image.shape)))
    assert making.make(nothing, [Kind.SEG], objects, DCIODVFY) == []


def colour(ds: Dataset) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 3, "RGB"


def several_frames(ds: Dataset) -> None:
    ds.NumberOfFrames = 2


def another_size(ds: Dataset) -> None:
    ds.Rows = ds.Rows - 1


@pytest.mark.parametrize("change", [colour, several_frames, another_size])
def test_an_image_that_outlines_cannot_be_laid_on_gets_a_report_alone(
    objects: ObjectStore, change: Callable[[Dataset], None]
):
    ds = chest()
    change(ds)
    about = decided(image(objects, ds, assessment(objects, MASKS, CHEST.image.shape)))
    assert [one.kind for one in making.make(about, EVERY, objects, DCIODVFY)] == [Kind.SR, Kind.PDF]


def test_patient_and_study_come_as_received_in_their_own_character_set(objects: ObjectStore):
    ds = chest()
    ds.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    ds.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    ds.StudyDate, ds.AccessionNumber, ds.StudyID = "20260228", "A-17", "9"
    ds.TimezoneOffsetFromUTC = "+0900"
    about = decided(image(objects, ds, assessment(objects, MASKS, CHEST.image.shape)))
    original = dcmread(BytesIO(file_of(ds)))
    for kind, data in made_of(objects, about).items():
        read = dcmread(BytesIO(data))
        assert read.get_item("PatientName").value == original.get_item("PatientName").value, kind
        assert list(read.SpecificCharacterSet) == ["", "ISO 2022 IR 87"]
        assert (read.StudyDate, read.AccessionNumber, read.StudyInstanceUID) == ("20260228", "A-17", "2.25.1")
        assert (read.ContentDate, read.ContentTime) == ("20260302", "073005.123456"), "in the time zone of the study"


def test_values_that_vendors_write_and_the_standard_does_not_know_pass_through(objects: ObjectStore):
    ds = chest()
    ds.PatientSex = "U"
    ds.PatientName = "NO HAT"
    ds["PatientBirthDate"]._value = "1961.02.03"
    ds.StudyTime = "12:30"
    about = decided(image(objects, ds, assessment(objects, MASKS, CHEST.image.shape)))
    for kind, data in made_of(objects, about).items():
        assert dcmread(BytesIO(data)).PatientSex == "U", kind


def test_patient_and_study_may_be_all_empty(objects: ObjectStore):
    ds = chest()
    for keyword in identity.INHERITED:
        if keyword in ds and keyword != "StudyInstanceUID":
            del ds[keyword]
    about = decided(image(objects, ds, assessment(objects, MASKS, CHEST.image.shape)))
    assert set(made_of(objects, about)) == set(EVERY)


def test_a_report_of_very_many_images_holds_the_worst_and_counts_the_rest(objects: ObjectStore):
    found = assessment(objects, {}, (10, 10))
    one = image(objects, chest(), found, verdict=common_pb2.VERDICT_ACCEPT, reasons=())
    images = [dataclasses.replace(one, row=row, sop_instance_uid=f"2.25.9{row}") for row in range(300)]
    images[250] = dataclasses.replace(images[250], verdict=common_pb2.VERDICT_REJECT)
    read = hd.sr.srread(BytesIO(made_of(objects, decided(*images), Kind.SR)[Kind.SR]))
    groups = read.content.get_image_measurement_groups()
    assert len(groups) == 1 + report.MOST_GROUPS
    named = {source.referenced_sop_instance_uid for group in groups[1:] for source in group.source_images}
    assert images[250].sop_instance_uid in named
    assert f"{300 - report.MOST_GROUPS} further images" in " ".join(texts(groups[0]))
    assert len(read.get_evidence()) == 300, "every image of the decision is evidence"


def test_the_place_of_a_finding_lies_on_the_image_by_its_corners(objects: ObjectStore):
    about = decided(image(objects, chest(), assessment(objects, MASKS, CHEST.image.shape)))
    read = dcmread(BytesIO(made_of(objects, about, Kind.SR)[Kind.SR]))
    (place,) = [item for item in _items(read) if item.get("ValueType") == "SCOORD"]
    assert [float(one) for one in place.GraphicData] == [10, 0, 110, 0, 110, 20, 10, 20, 10, 0]
    assert place.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "2.25.3"


def texts(group: Any) -> list[str]:
    """Every text in a measurement group."""
    return [str(item.TextValue) for item in _items(group[0]) if item.get("ValueType") == "TEXT"]


def _items(ds: Dataset) -> list[Dataset]:
    found = []
    for item in ds.get("ContentSequence", []):
        found += [item, *_items(item)]
    return found


def test_findings_of_more_than_one_image_stand_in_the_group_of_the_study(objects: ObjectStore):
    across = inference_pb2.Assessment()
    across.findings.add(code=common_pb2.REASON_SPACING, outcome=common_pb2.OUTCOME_FAIL, detail="slices are missing")
    one = image(objects, chest(), assessment(objects, {}, CHEST.image.shape))
    read = hd.sr.srread(BytesIO(made_of(objects, decided(one, findings=across.SerializeToString()), Kind.SR)[Kind.SR]))
    whole = read.content.get_image_measurement_groups()[0]
    assert "slices are missing" in texts(whole)


def test_the_page_is_one_page_and_names_patient_verdict_and_record(objects: ObjectStore):
    found = assessment(objects, {}, (10, 10))
    images = [dataclasses.replace(image(objects, chest(), found), row=row) for row in range(60)]
    document = dcmread(BytesIO(made_of(objects, decided(*images), Kind.PDF)[Kind.PDF])).EncapsulatedDocument
    assert document.count(b"/Type /Page\n") == 1
    header = chest()
    assert page.pdf(decided(*images), header) == page.pdf(decided(*images), header)


@pytest.mark.parametrize("kind", EVERY)
def test_a_result_that_was_changed_on_the_way_is_told_by_reading_back(objects: ObjectStore, kind: Kind):
    about = decided(image(objects, chest(), assessment(objects, MASKS, CHEST.image.shape)))
    data = made_of(objects, about, kind)[kind]
    read = dcmread(BytesIO(data))
    if kind == Kind.SEG:
        read.PixelData = read.PixelData[:-1] + bytes([read.PixelData[-1] ^ 0xFF])
    elif kind == Kind.SR:
        read.ContentSequence[-1].ContentSequence.pop()
    else:
        read.EncapsulatedDocument = b"<html>" + read.EncapsulatedDocument[6:]
    buffer = BytesIO()
    read.save_as(buffer)
    drawn = {place: mask > 0 for place, mask in MASKS.items()}
    groups = 1 + 1  # the study and its image; the segments have none where no SEG was made
    checking.read_back(kind, data, drawn, groups)
    with pytest.raises(StepwedgeError) as raised:
        checking.read_back(kind, buffer.getvalue(), drawn, groups)
    assert raised.value.code == ErrorCode.ERROR_CODE_RESULT_INVALID
    assert raised.value.permanent


def test_dciodvfy_complains_of_what_is_ours_and_not_of_what_came_with_the_image(objects: ObjectStore, tmp_path: Path):
    ds = chest()
    ds.PatientSex = "WRONG"
    about = decided(image(objects, ds, assessment(objects, MASKS, CHEST.image.shape)))
    file = tmp_path / "sr.dcm"
    file.write_bytes(made_of(objects, about, Kind.SR)[Kind.SR])
    assert checking.complaints(file, DCIODVFY) == []
    read = dcmread(file)
    del read.CompletionFlag
    read.save_as(file)
    assert checking.complaints(file, DCIODVFY) == ["CompletionFlag"]


def test_every_finding_and_measurement_has_a_concept_of_its_own_that_fits_its_attribute():
    reasons = [number for number in common_pb2.Reason.values() if number]
    concepts = [codes.finding(number) for number in reasons]
    assert len(set(concepts)) == len(concepts) == len({one.meaning for one in concepts})
    measured = [codes.measurement(name) for name in codes._MEASUREMENTS]
    assert len({one.value for one in measured}) == len(measured)
    for one in (*concepts, *measured, *codes.VERDICTS.values(), *codes.OUTCOMES.values()):
        assert len(one.value) <= 16
        assert len(one.meaning) <= 64
        assert one.meaning.isascii()


def test_results_are_asked_for_by_settings_and_need_their_checker(monkeypatch: pytest.MonkeyPatch):
    assert checker(Ingest()) == ""
    asked = Ingest(destinations=[Destination(name="a", url="https://a/b", send=["sr"])])
    assert checker(asked).endswith("dciodvfy")
    asked.results.dciodvfy = False
    assert checker(asked) == ""
    asked.results.dciodvfy = True
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sysconfig.get_path", lambda _: "/nowhere")
    with pytest.raises(StepwedgeError) as raised:
        checker(asked)
    assert raised.value.code == ErrorCode.ERROR_CODE_CONFIGURATION


@needs_shared
def test_studies_of_real_objects_of_many_makers_get_valid_reports(objects: ObjectStore):
    from shared import dicom

    assert SHARED is not None
    tried = 0
    for path in sorted((SHARED / "data" / "dicom").glob("*.dcm")):
        data = path.read_bytes()
        try:
            header = dicom.read_header(data)
            uids = dicom.uids(header)
        except StepwedgeError:
            continue
        one = of_bytes(objects, data, header, assessment(objects, {}, (10, 10)))
        made = made_of(objects, decided(one, study=uids.study), Kind.SR, Kind.PDF)
        assert set(made) == {Kind.SR, Kind.PDF}, path.name
        tried += 1
    assert tried > 10


def test_a_bare_header_is_enough(objects: ObjectStore):
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "2.25.8"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.1", "2.25.2"
    ds.ensure_file_meta()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    about = decided(image(objects, ds, inference_pb2.Assessment()), reasons=(), details=())
    assert set(made_of(objects, about)) == {Kind.SR, Kind.PDF}
    assert segmentation.fits(ds, inference_pb2.Assessment()) is False


def test_the_document_lists_every_concept_as_the_code_has_it():
    document = (ROOT / "docs" / "results.md").read_text()
    own = [codes.finding(number) for number in common_pb2.Reason.values() if number]
    own += [codes.measurement(name) for name in codes._MEASUREMENTS]
    own += [*codes.VERDICTS.values(), *codes.OUTCOMES.values()]
    own += [one for one in vars(codes).values() if isinstance(one, codes.Concept) and one.scheme == codes.SCHEME]
    assert [one for one in own if f"| `{one.value}` | {one.meaning} |" not in document] == []
