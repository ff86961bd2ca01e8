"""What the header alone shows to be wrong."""

from __future__ import annotations

import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import MPEG4HP41, JPEG2000Lossless, RLELossless

from services.inference import header, required
from services.inference.assess import Assessor
from services.inference.findings import name
from services.redaction.engine import redact
from services.redaction.profile import Profile
from shared import paths, phantom
from shared.policy import Policy
from shared.pseudonyms import Pseudonyms
from stepwedge.common.v1.common_pb2 import Finding, Outcome, Verdict

SMALL = phantom.chest(1, columns=256, rows=320)


def an_object(**attributes: Any) -> Dataset:
    """A phantom's data set, with attributes set or (None) taken away."""
    uids = dict.fromkeys(("study_uid", "series_uid", "sop_instance_uid"), "2.25.1")
    dataset: Dataset = phantom.to_dicom(SMALL, patient_name="", patient_id="", **uids)
    for keyword, value in attributes.items():
        if value is None:
            dataset.pop(keyword, None)
        else:
            with pydicom.config.disable_value_validation():
                setattr(dataset, keyword, value)
    return dataset


def outcome(found: Finding | None) -> str:
    """ "WARN" of OUTCOME_WARN; "-" where there is no finding."""
    return "-" if found is None else Outcome.Name(found.outcome).removeprefix("OUTCOME_")


def code(value: str) -> Sequence:
    """A code sequence of one item."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", "x"
    return Sequence([item])


def test_a_good_object_passes_every_check() -> None:
    assert {outcome(one) for one in header.findings(an_object())} == {"PASS"}
    assert {outcome(one) for one in header.findings(an_object(Modality="CR", SOPClassUID="1.2.840.10008.5.1.4.1.1.1"))}


@pytest.mark.parametrize(
    ("index", "target", "expected", "deviation"),
    [
        ("250", "250", "PASS", 0.0),
        ("313", "250", "PASS", 0.976),
        ("320", "250", "WARN", 1.072),
        ("200", "250", "PASS", -0.969),
        ("190", "250", "WARN", -1.192),
        ("500", "250", "FAIL", 3.010),
        ("498", "250", "WARN", 2.993),
        ("125", "250", "FAIL", -3.010),
        ("250", None, "NOT_ASSESSABLE", None),
        (None, "250", "NOT_ASSESSABLE", None),
        ("250", "", "NOT_ASSESSABLE", None),
        ("0", "250", "NOT_ASSESSABLE", None),
        ("250", "0", "NOT_ASSESSABLE", None),
        ("-250", "-250", "NOT_ASSESSABLE", None),
        ("1e300", "250", "NOT_ASSESSABLE", None),
        ("250", "1e-300", "NOT_ASSESSABLE", None),
    ],
)
def test_the_deviation_index_is_recomputed(index: Any, target: Any, expected: str, deviation: float | None) -> None:
    found = header.exposure(an_object(ExposureIndex=index, TargetExposureIndex=target, DeviationIndex=None))
    assert found is not None
    assert outcome(found) == expected
    assert found.HasField("measurement") is (deviation is not None)
    if deviation is not None:
        assert found.measurement.value == pytest.approx(deviation, abs=0.001)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_index_that_is_no_number_is_not_assessable(value: float) -> None:
    dataset = an_object(ExposureIndex=None)
    dataset.ExposureIndex = pydicom.valuerep.DSfloat(value, validation_mode=0)
    assert outcome(header.exposure(dataset)) == "NOT_ASSESSABLE"
    assert all(math.isfinite(one.value) for one in header.exposure_values(dataset))


@pytest.mark.parametrize(("stored", "expected"), [("0.0", "PASS"), ("0.1", "PASS"), ("-2.5", "WARN"), ("nan", "WARN")])
def test_a_stored_deviation_index_that_contradicts_is_a_doubt(stored: str, expected: str) -> None:
    dataset = an_object(DeviationIndex=None)
    dataset.DeviationIndex = pydicom.valuerep.DSfloat(float(stored), validation_mode=0)
    assert outcome(header.exposure(dataset)) == expected


@pytest.mark.parametrize(
    ("index", "target", "stored", "expected"),
    [
        ("7", "6", "0.3", "PASS"),  # of 6.5 to 7.5 over 5.5 to 6.5: 0 to 1.3 dB
        ("7", "6", "-2", "WARN"),
        ("7.00", "6.00", "0.3", "WARN"),  # 0.67 dB
        ("700", "600", "0.3", "WARN"),
        ("700", "600", "1", "PASS"),
    ],
)
def test_the_rounding_of_low_indices_contradicts_nothing(index: str, target: str, stored: str, expected: str) -> None:
    dataset = an_object(ExposureIndex=index, TargetExposureIndex=target, DeviationIndex=stored)
    assert outcome(header.exposure(dataset)) == expected


@pytest.mark.parametrize("exposure", [0.25, 0.7, 1.0, 1.5, 4.0])
def test_the_phantoms_exposure_is_found(assessor: Assessor, exposure: float) -> None:
    uids = dict.fromkeys(("study_uid", "series_uid", "sop_instance_uid"), "2.25.1")
    drawn = phantom.chest(2, columns=512, rows=640, exposure=exposure)
    buffer = BytesIO()
    phantom.to_dicom(drawn, patient_name="", patient_id="", **uids).save_as(buffer, enforce_file_format=True)
    result = assessor.assess_dicom(buffer.getvalue())
    (found,) = [one for one in result.findings if name(one.code) == "EXPOSURE"]
    assert found.measurement.value == pytest.approx(10 * math.log10(exposure), abs=0.001)
    verdict, reasons = Policy.load(paths.POLICY).instance_verdict(result.findings, modality="DX")
    assert (verdict == Verdict.VERDICT_REVIEW) is (abs(10 * math.log10(exposure)) > 3)
    assert (found.code in reasons) is (exposure != 1.0)


def test_other_modalities_have_no_deviation_index() -> None:
    assert header.exposure(an_object(Modality="CT")) is None


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, "PASS"),
        ({"ImagerPixelSpacing": ["0", "0"]}, "FAIL"),
        ({"ImagerPixelSpacing": ["-0.2", "0.2"]}, "FAIL"),
        ({"ImagerPixelSpacing": ["0.2", "2000"]}, "FAIL"),
        ({"ImagerPixelSpacing": None}, "NOT_ASSESSABLE"),
        ({"ImagerPixelSpacing": None, "Modality": "CT"}, "-"),
        ({"ImagerPixelSpacing": None, "Modality": "CT", "PixelSpacing": ["0", "0"]}, "FAIL"),
        ({"ImagerPixelSpacing": None, "Modality": "NM", "PixelSpacing": ["9", "9"]}, "-"),
        ({"PixelSpacing": ["0.4", "0.2"]}, "PASS"),
        ({"ImagerPixelSpacing": None, "Modality": "CT", "PixelSpacing": ["0.7", "0.7"]}, "PASS"),
        ({"ImagerPixelSpacing": None, "Modality": "CT", "PixelSpacing": ["0.0007", "0.0007"]}, "FAIL"),
        ({"ImagerPixelSpacing": None, "Modality": "MR", "PixelSpacing": ["700", "700"]}, "FAIL"),
        ({"ImagerPixelSpacing": None, "Modality": "SM", "PixelSpacing": ["0.0005", "0.0005"]}, "-"),
    ],
)
def test_a_distance_that_cannot_be_is_a_fault(attributes: dict[str, Any], expected: str) -> None:
    assert outcome(header.spacing(an_object(**attributes))) == expected


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, "PASS"),
        ({"Laterality": "L", "ImageLaterality": "R"}, "FAIL"),
        ({"PatientOrientation": ["L", "R"]}, "FAIL"),
        ({"PatientOrientation": ["P", "F"]}, "PASS"),
        ({"ImageLaterality": "X"}, "WARN"),
        ({"ImageLaterality": "L"}, "WARN"),
        ({"BodyPartExamined": "KNEE"}, "WARN"),
        ({"BodyPartExamined": "KNEE", "AnatomicRegionSequence": None}, "PASS"),
        ({"BodyPartExamined": "KNEE", "AnatomicRegionSequence": None, "ImageLaterality": None}, "WARN"),
        ({"Laterality": None, "ImageLaterality": None, "PatientOrientation": None}, "-"),
    ],
)
def test_sides_that_contradict_each_other_are_found(attributes: dict[str, Any], expected: str) -> None:
    assert outcome(header.laterality(an_object(**attributes))) == expected


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, "PASS"),
        ({"ViewPosition": "AP"}, "FAIL"),
        ({"ViewPosition": "LL"}, "FAIL"),
        ({"ViewPosition": "AP", "ViewCodeSequence": code("399348003")}, "PASS"),
        ({"ViewPosition": None}, "PASS"),
        ({"ViewPosition": None, "ViewCodeSequence": None}, "-"),
        ({"PatientOrientation": ["P", "F"]}, "FAIL"),
    ],
)
def test_views_that_contradict_each_other_are_found(attributes: dict[str, Any], expected: str) -> None:
    assert outcome(header.view(an_object(**attributes))) == expected


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"PatientBirthDate": "19700229"}, "FAIL"),
        ({"PatientBirthDate": "19720229"}, "PASS"),
        ({"PatientBirthDate": "20300101"}, "FAIL"),
        ({"StudyDate": "20261301"}, "FAIL"),
        ({"StudyDate": "00010101"}, "FAIL"),
        ({"StudyDate": "2026.01.01"}, "PASS"),
        ({"AcquisitionDate": "20260102"}, "WARN"),
        ({"StudyDate": "", "ContentDate": "", "AcquisitionDate": ""}, "-"),
    ],
)
def test_dates_that_cannot_be_are_found(attributes: dict[str, Any], expected: str) -> None:
    assert outcome(header.dates(an_object(**attributes))) == expected


def test_absent_attributes_are_named_by_their_keywords_alone() -> None:
    found = header.attributes(an_object(ImageLaterality=None, BurnedInAnnotation=""))
    assert outcome(found) == "WARN"
    assert found.detail == "absent, or empty where they must not be: ImageLaterality, BurnedInAnnotation"


@pytest.mark.parametrize("profile", ["basic", "research"])
def test_a_good_object_that_was_redacted_still_has_what_its_iod_requires(profile: str) -> None:
    written = BytesIO()
    an_object().save_as(written, enforce_file_format=True)
    clean = redact(written.getvalue(), Pseudonyms(bytes(range(32))), Profile.load(Profile.file(profile))).data
    assert outcome(header.attributes(pydicom.dcmread(BytesIO(clean)))) == "PASS"


@pytest.mark.parametrize(
    ("sop_class", "missing", "count"),
    [
        ("1.2.840.10008.5.1.4.1.1.2", "RescaleIntercept", 1),  # CT, type 1
        ("1.2.840.10008.5.1.4.1.1.2", "PatientBirthDate", 1),  # type 2
        ("1.2.840.10008.5.1.4.1.1.2", "SoftwareVersions", 0),  # type 3
        ("1.2.3.4", "SOPInstanceUID", 1),  # no class of the standard: the short list
        ("1.2.3.4", "PatientBirthDate", 0),
    ],
)
def test_what_is_required_depends_on_the_iod(sop_class: str, missing: str, count: int) -> None:
    whole = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    whole.SOPClassUID = sop_class
    before = header.attributes(whole).measurement.value
    if missing in whole:
        del whole[missing]
    assert header.attributes(whole).measurement.value - before == count


def test_a_long_list_of_what_is_absent_is_cut() -> None:
    bare = Dataset()
    bare.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    found = header.attributes(bare)
    assert found.measurement.value > 20
    assert found.detail.endswith(" more")


@pytest.mark.parametrize("indent", [None, 2, 4])
def test_a_table_is_read_however_it_is_indented(tmp_path: Path, indent: int | None) -> None:
    one = {"keyword": "Rows", "type": "1", "path": []}
    within = {"keyword": "CodeValue", "type": "1", "path": ["CodeSequence"]}
    written = tmp_path / "modules.json"
    written.write_text(json.dumps({"image": [one, within], "empty": [], "other": [one]}, indent=indent))
    read = {module: [each for each in found if each] for module, found in required._modules(written)}
    assert read == {"image": [("1", "Rows")], "empty": [], "other": [("1", "Rows")]}


def test_where_the_tables_are_not_installed_the_short_list_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(required, "_tables", dict)
    found = header.attributes(an_object(PatientBirthDate=None, ImageLaterality=None))
    assert found.measurement.value == 1


@pytest.mark.parametrize(("spacing", "expected"), [("0.7", "PASS"), ("0", "FAIL"), ("-1", "FAIL"), ("0.0007", "FAIL")])
@pytest.mark.parametrize("group", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_the_distance_of_an_enhanced_object_is_judged(group: str, spacing: str, expected: str) -> None:
    measures, item = Dataset(), Dataset()
    measures.PixelSpacing = [spacing, spacing]
    item.PixelMeasuresSequence = Sequence([measures])
    enhanced = an_object(ImagerPixelSpacing=None, Modality="CT", **{group: Sequence([item])})
    assert outcome(header.spacing(enhanced)) == expected


def loop(frames: list[np.ndarray], **attributes: Any) -> Dataset:
    """A native multi-frame object of another modality."""
    data = b"".join(frame.astype("<u2").tobytes() for frame in frames)
    return an_object(Modality="CT", PixelData=data, NumberOfFrames=len(frames), **attributes)


def test_frames_that_are_missing_surplus_or_repeated_are_found() -> None:
    image = SMALL.image
    different = [image, image + 1, image + 2]
    assert outcome(header.frames(loop(different))) == "PASS"
    missing, surplus = loop(different), loop(different)
    missing.NumberOfFrames, surplus.NumberOfFrames = 4, 2
    assert [outcome(header.frames(one)) for one in (missing, surplus)] == ["FAIL", "FAIL"]
    repeated = header.frames(loop([image, image, image + 1, image + 1]))
    assert repeated is not None
    assert (outcome(repeated), repeated.measurement.value) == ("WARN", 2)
    empty = np.zeros_like(image)
    assert outcome(header.frames(loop([empty, empty, image]))) == "PASS"
    for said in ({"Modality": "US"}, {"FrameIncrementPointer": 0x00181063}, {"Modality": "SEG"}):
        filmed = loop([image, image])
        filmed.update(said)
        assert outcome(header.frames(filmed)) == "PASS"


def test_repeated_frames_of_one_value_are_none_however_they_are_written() -> None:
    air, image = np.full_like(SMALL.image, 64536), SMALL.image
    assert outcome(header.frames(loop([air, air, image]))) == "PASS"
    for frame, expected in ((air, "PASS"), (image, "WARN")):
        compressed = loop([frame])
        compressed.BitsStored, compressed.HighBit = 16, 15
        compressed.compress(RLELossless)
        (part,) = generate_frames(compressed.PixelData, number_of_frames=1)
        compressed.PixelData, compressed.NumberOfFrames = encapsulate([part, part]), 2
        assert outcome(header.frames(compressed)) == expected


def test_frames_of_floating_pixels_are_counted() -> None:
    dataset = an_object(PixelData=None, NumberOfFrames=3, BitsAllocated=32)
    dataset.FloatPixelData = b"".join((SMALL.image + n).astype("<f4").tobytes() for n in range(3))
    assert outcome(header.frames(dataset)) == "PASS"
    dataset.NumberOfFrames = 4
    found = header.frames(dataset)
    assert found is not None
    assert (outcome(found), found.detail) == ("FAIL", "fewer frames than are stated: 3 in the pixel data, 4 stated")


def test_a_film_is_not_taken_for_a_frame() -> None:
    film = an_object(NumberOfFrames=120, PixelData=encapsulate([bytes(64)]))
    film.file_meta.TransferSyntaxUID = MPEG4HP41
    assert header.is_film(film)
    assert outcome(header.frames(film)) == "-"


@pytest.mark.parametrize(("stated", "expected"), [(2, "WARN"), (3, "FAIL"), (1, "FAIL")])
def test_encapsulated_frames_are_counted_by_their_table(stated: int, expected: str) -> None:
    part = bytes(range(256)) * 4
    dataset = an_object(Modality="CT", NumberOfFrames=stated)
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = encapsulate([part, part])
    assert outcome(header.frames(dataset)) == expected


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize(("stated", "expected"), [(2, "PASS"), (3, "FAIL"), (1, "FAIL"), (None, "FAIL")])
def test_codestreams_are_counted_with_a_table_and_without(stated: int | None, expected: str, table: bool) -> None:
    dataset = an_object(Modality="CT", NumberOfFrames=stated)
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    parts = [b"\xff\x4f\xff\x51" + bytes([n]) * 1020 for n in range(2)]
    dataset.PixelData = encapsulate(parts, fragments_per_frame=2, has_bot=table)
    assert outcome(header.frames(dataset)) == expected


@pytest.mark.parametrize("value", ["0", "-3"])
def test_a_number_of_frames_that_is_none_is_a_doubt(value: str) -> None:
    assert outcome(header.frames(an_object(NumberOfFrames=value))) == "WARN"


def test_blades_of_another_matrix_are_not_believed() -> None:
    def edges(*values: int) -> dict[str, str]:
        names = ("UpperHorizontal", "LowerHorizontal", "LeftVertical", "RightVertical")
        pairs = zip(names, values, strict=True)
        return {"CollimatorShape": "RECTANGULAR"} | {f"Collimator{name}Edge": str(value) for name, value in pairs}

    assert header.open_field(an_object(**edges(10, 300, 20, 240))) == (10, 299, 20, 239)
    for wrong in ((-10, 300, 20, 240), (10, 3000, 20, 240), (300, 10, 20, 240), (10, 20, 20, 30)):
        assert header.open_field(an_object(**edges(*wrong))) is None
    assert header.open_field(an_object()) is None


@pytest.mark.parametrize(
    "attributes",
    [
        {"PatientOrientation": "L"},
        {"PatientOrientation": ["", ""]},
        {"ViewCodeSequence": Sequence([])},
        {"AnatomicRegionSequence": Sequence([Dataset()])},
        {"Rows": None},
        {"BitsAllocated": None},
        {"PixelData": b"\0"},
    ],
)
def test_no_header_breaks_the_checks(attributes: dict[str, Any]) -> None:
    assert list(header.findings(an_object(**attributes)))


def test_redaction_keeps_what_these_checks_read() -> None:
    kept = ("ExposureIndex", "TargetExposureIndex", "DeviationIndex", "ImageLaterality", "PatientOrientation")
    kept = (*kept, "ImagerPixelSpacing", "ViewPosition", "ViewCodeSequence", "AnatomicRegionSequence")
    before = an_object()
    buffer = BytesIO()
    before.save_as(buffer, enforce_file_format=True)
    clean = redact(buffer.getvalue(), Pseudonyms(bytes(range(32))), Profile.basic()).data
    after = pydicom.dcmread(BytesIO(clean))
    assert {keyword: after.get(keyword) for keyword in kept} == {keyword: before.get(keyword) for keyword in kept}


def an_enhanced_object(positions: list[float]) -> Dataset:
    """An object of several frames that lie at these places along its normal."""
    dataset = Dataset()
    frames = []
    for place in positions:
        plane, content = Dataset(), Dataset()
        plane.ImagePositionPatient = ["0", "0", f"{place}"]
        content.PlanePositionSequence = Sequence([plane])
        frames.append(content)
    axes, shared = Dataset(), Dataset()
    axes.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    shared.PlaneOrientationSequence = Sequence([axes])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return dataset


@pytest.mark.parametrize(
    ("positions", "expected", "missing"),
    [
        ([0, 5, 10, 15, 20, 25], "PASS", 0),
        ([25, 0, 10, 5, 20, 15], "PASS", 0),
        ([0, 5, 10, 20, 25, 30, 35], "FAIL", 1),
        ([0, 5, 10, 25, 30, 35, 40, 45], "FAIL", 2),
        ([0, 5, 10, 10, 15, 20], "FAIL", 0),
        ([0, 5, 10, 17, 22, 27], "WARN", 0),
        ([0, 5, 10, 15, 20] * 3, "PASS", 0),
        ([0, 5, 10, 15, 20] * 3 + [0, 5, 10, 15], "FAIL", 0),
    ],
)
def test_frames_of_an_enhanced_object_that_are_missing_or_uneven_are_seen(
    positions: list[float], expected: str, missing: int
) -> None:
    found = header.frame_slices(an_enhanced_object(positions))
    assert found is not None
    assert outcome(found) == expected
    if missing:
        assert found.measurement.value == missing


@pytest.mark.parametrize("positions", [[], [0], [0, 1, 9], [3, 3, 3, 3, 3]])
def test_too_few_places_are_not_judged(positions: list[float]) -> None:
    assert header.frame_slices(an_enhanced_object(positions)) is None
