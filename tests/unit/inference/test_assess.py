"""From an object to its findings, with the released model."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.data import get_testdata_file

from services.inference.assess import AssessmentResult, Assessor
from services.inference.findings import MEASUREMENTS, ORDER, TABLE, name
from services.inference.registry import CHANNELS
from shared import phantom
from shared.errors import ErrorCode, StepwedgeError
from stepwedge.common.v1.common_pb2 import Outcome, Reason
from tests.shared_material import SHARED, needs_shared
from tests.unit.inference.conftest import chest

CHEST_ONLY = {"LUNG_MARGIN_TOP", "LUNG_MARGIN_BOTTOM", "LUNG_MARGIN_RIGHT", "LUNG_MARGIN_LEFT", "LOW_CONFIDENCE"}


def outcomes(result: AssessmentResult) -> dict[str, str]:
    """Code -> outcome."""
    return {name(one.code): Outcome.Name(one.outcome).removeprefix("OUTCOME_") for one in result.findings}


def troubles(result: AssessmentResult) -> dict[str, str]:
    """Code -> outcome of what did not pass."""
    return {code: outcome for code, outcome in outcomes(result).items() if outcome != "PASS"}


def failures(result: AssessmentResult) -> set[str]:
    """Codes that failed."""
    return {code for code, outcome in outcomes(result).items() if outcome == "FAIL"}


def ending(assessor: Assessor, data: bytes) -> str:
    """The error that an object ends with, or else the first finding that did not pass."""
    try:
        return next(iter(troubles(assessor.assess_dicom(data))))
    except StepwedgeError as error:
        return error.name


def as_object(of: phantom.Phantom, **attributes: Any) -> bytes:
    """A phantom as a DX object, with attributes set or (None) taken away."""
    names = dict.fromkeys(("study_uid", "series_uid", "sop_instance_uid"), "2.25.1")
    dataset = phantom.to_dicom(of, patient_name="", patient_id="", **names)
    for keyword, value in attributes.items():
        if value is None and keyword in dataset:
            delattr(dataset, keyword)
        elif value is not None:
            setattr(dataset, keyword, value)
    return as_bytes(dataset)


def as_bytes(dataset: Any) -> bytes:
    """A data set as a Part 10 file."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dice(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Overlap of two masks."""
    return float(2 * np.count_nonzero((one > 0) & (other > 0)) / (np.count_nonzero(one) + np.count_nonzero(other)))


@pytest.mark.parametrize("seed", range(4))
def test_a_good_chest_passes_every_check(assessor: Assessor, seed: int) -> None:
    result = assessor.assess_dicom(as_object(chest(seed)))
    assert troubles(result) == {}
    assert set(outcomes(result)) >= CHEST_ONLY
    assert result.confidence is not None
    assert result.confidence > 0.8


def test_findings_come_in_the_order_of_the_table_and_measurements_are_known(assessor: Assessor) -> None:
    result = assessor.assess_dicom(as_object(chest(1)))
    places = [ORDER[one.code] for one in result.findings]
    assert places == sorted(set(places))
    names = [one.name for one in result.measurements]
    assert len(names) == len(set(names))
    assert set(names) <= set(MEASUREMENTS)


def test_the_table_defines_each_finding_once() -> None:
    codes = [definition.code for definition in TABLE]
    assert len(codes) == len(set(codes))
    elsewhere = {"UNSPECIFIED", "BURNED_IN_TEXT_POSSIBLE", "NOT_REDACTABLE", "INSTANCE_CONFLICT", "PROCESSING_FAILED"}
    elsewhere |= {"INCOMPLETE"}
    assert {name(code) for code in codes} == {name(code) for code in Reason.values()} - elsewhere
    assert all(definition.title and definition.definition and definition.source for definition in TABLE)


def test_masks_have_the_size_of_the_image_and_agree_with_the_truth(assessor: Assessor) -> None:
    truth = chest(2)
    masks = assessor.assess_dicom(as_object(truth)).masks
    assert list(masks) == list(CHANNELS)
    for channel, mask in masks.items():
        assert mask.shape == truth.image.shape
        assert set(np.unique(mask)) == {0, 255}
        assert dice(mask, truth.masks[channel]) > 0.85, channel


@pytest.mark.parametrize("edge", ["top", "bottom", "right", "left"])
def test_lungs_that_are_cut_off_fail_at_that_edge_alone(assessor: Assessor, edge: str) -> None:
    cut = chest(4, **{edge: -30.0})
    result = assessor.assess_dicom(as_object(cut))
    assert f"LUNG_MARGIN_{edge.upper()}" in failures(result)
    others = {f"LUNG_MARGIN_{other.upper()}" for other in ("top", "bottom", "right", "left") if other != edge}
    assert not failures(result) & others
    found = next(one for one in result.findings if name(one.code) == f"LUNG_MARGIN_{edge.upper()}")
    (box,) = found.boxes
    rows, columns = cut.image.shape
    assert 0 <= box.left < box.left + box.width <= columns
    assert 0 <= box.top < box.top + box.height <= rows
    assert {"top": box.top == 0, "bottom": box.top + box.height == rows}.get(edge, True)
    assert {"right": box.left == 0, "left": box.left + box.width == columns}.get(edge, True)


def test_margins_are_told_in_millimetres_with_an_interval(assessor: Assessor) -> None:
    truth = chest(3)
    result = assessor.assess_dicom(as_object(truth))
    for edge in ("top", "right", "left"):
        found = next(one for one in result.measurements if one.name == f"lung_margin_{edge}")
        assert found.unit == "mm"
        assert found.low <= found.value <= found.high
        assert found.value == pytest.approx(truth.margins_mm[edge], abs=10)


@pytest.mark.parametrize("spacing", [["0", "0"], ["9", "9"], ["0.00001", "1"], None])
def test_without_a_possible_spacing_margins_are_shares_of_the_field(assessor: Assessor, spacing: Any) -> None:
    data = as_object(chest(3), PixelSpacing=spacing, ImagerPixelSpacing=spacing)
    found = next(one for one in assessor.assess_dicom(data).measurements if one.name == "lung_margin_top")
    assert found.unit == "1"
    assert 0 < found.value < 0.5


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("exchanged", [False, True])
def test_turned_and_inverted_images_are_found_and_outlined_all_the_same(
    assessor: Assessor, turns: int, exchanged: bool
) -> None:
    if not turns and not exchanged:
        return
    image = phantom.turned(chest(1), turns) if turns else chest(1)
    image = phantom.inverted(image) if exchanged else image
    result = assessor.assess_dicom(as_object(image))
    expected = ({"TURNED"} if turns else set()) | ({"INVERTED_POLARITY"} if exchanged else set())
    assert failures(result) == expected
    assert all(dice(mask, image.masks[channel]) > 0.8 for channel, mask in result.masks.items())
    margins = {outcome for code, outcome in outcomes(result).items() if code.startswith("LUNG_MARGIN")}
    assert (margins == {"NOT_ASSESSABLE"}) is bool(turns)


def test_monochrome1_is_as_good_as_monochrome2(assessor: Assessor) -> None:
    bright = assessor.assess_dicom(as_object(chest(1)))
    values = phantom.inverted(chest(1))
    dark = assessor.assess_dicom(
        as_object(values, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")
    )
    assert outcomes(dark) == outcomes(bright)
    assert dice(dark.masks["lungs_full"], bright.masks["lungs_full"]) > 0.99


def test_a_mirrored_image_is_a_doubt(assessor: Assessor) -> None:
    assert troubles(assessor.assess_dicom(as_object(phantom.mirrored(chest(2))))) == {"MIRRORED": "WARN"}


def test_a_blank_exposure_fails_and_is_not_shown_to_the_model(assessor: Assessor) -> None:
    result = assessor.assess_dicom(as_object(phantom.blank(chest(1))))
    assert failures(result) == {"BLANK_IMAGE"}
    assert result.pin is None
    assert not result.masks


@pytest.mark.parametrize(("clipped", "outcome"), [(0.0, "PASS"), (0.4, "FAIL")])
def test_clipping_is_judged_within_the_thorax(assessor: Assessor, clipped: float, outcome: str) -> None:
    image = phantom.saturated(chest(1), clipped) if clipped else chest(1)
    assert outcomes(assessor.assess_dicom(as_object(image)))["SATURATED"] == outcome


def test_another_view_or_body_part_gets_the_general_checks_alone(assessor: Assessor) -> None:
    for attributes in (
        {"ViewPosition": "LL", "ViewCodeSequence": None},
        {"BodyPartExamined": "KNEE", "AnatomicRegionSequence": None},
        {"Modality": "MG"},
    ):
        result = assessor.assess_dicom(as_object(chest(1), **attributes))
        found = troubles(result)
        found.pop("ATTRIBUTES_ABSENT", None)  # of what was taken away to change the view
        assert found == {"NO_MODEL": "NOT_ASSESSABLE"}, attributes
        assert not CHEST_ONLY & set(outcomes(result))
        assert result.pin is None


def test_where_the_header_is_silent_the_pixels_decide(assessor: Assessor) -> None:
    silent = dict.fromkeys(("BodyPartExamined", "ViewPosition", "AnatomicRegionSequence", "ViewCodeSequence"))
    of_a_chest = assessor.assess_dicom(as_object(chest(1), **silent))
    assert troubles(of_a_chest) == {"ATTRIBUTES_ABSENT": "WARN"}
    assert of_a_chest.masks
    other = chest(1)
    rings = np.hypot(*np.indices(other.image.shape)) % 97 * 40
    of_rings = assessor.assess_dicom(as_object(phantom.replace(other, image=rings.astype(np.uint16)), **silent))
    assert troubles(of_rings)["NO_MODEL"] == "NOT_ASSESSABLE"
    assert "NOT_A_CHEST" not in outcomes(of_rings)
    assert not of_rings.masks
    named = assessor.assess_dicom(as_object(phantom.replace(other, image=rings.astype(np.uint16))))
    assert "NOT_A_CHEST" in failures(named)


BUNDLED = ["CT_small.dcm", "MR_small.dcm", "examples_ybr_color.dcm", "examples_palette.dcm", "JPEG2000.dcm"]


@pytest.mark.parametrize("file", [*BUNDLED, "image_dfl.dcm", "examples_overlay.dcm"])
def test_sound_objects_of_other_kinds_are_not_faulted(assessor: Assessor, file: str) -> None:
    result = assessor.assess_dicom(Path(get_testdata_file(file, download=False)).read_bytes())
    assert troubles(result) == {"NO_MODEL": "NOT_ASSESSABLE"}


def test_an_object_that_lacks_what_its_kind_must_have_is_told_so(assessor: Assessor) -> None:
    data = Path(get_testdata_file("693_J2KI.dcm", download=False)).read_bytes()  # CT without a frame of reference
    result = assessor.assess_dicom(data)
    assert troubles(result) == {"NO_MODEL": "NOT_ASSESSABLE", "ATTRIBUTES_ABSENT": "WARN"}
    assert any("FrameOfReferenceUID" in finding.detail for finding in result.findings)


@pytest.mark.parametrize("file", ["rtplan.dcm", "test-SR.dcm", "waveform_ecg.dcm", "rtstruct.dcm"])
def test_an_object_without_an_image_says_so(assessor: Assessor, file: str) -> None:
    result = assessor.assess_dicom(Path(get_testdata_file(file, download=False)).read_bytes())
    assert outcomes(result) == {"NO_PIXELS": "NOT_ASSESSABLE"}


def test_a_segmentation_is_not_called_blank(assessor: Assessor) -> None:
    data = Path(get_testdata_file("liver_1frame.dcm", download=False)).read_bytes()
    found = troubles(assessor.assess_dicom(data))
    assert found == {"NO_MODEL": "NOT_ASSESSABLE", "ATTRIBUTES_ABSENT": "WARN"}  # it has no Number of Frames


@pytest.mark.parametrize(
    ("shape", "codes"),
    [
        ((1, 1), {"IMAGE_TOO_SMALL"}),
        ((1, 5000), {"IMAGE_TOO_SMALL"}),
        ((40, 40), {"IMAGE_TOO_SMALL"}),
        ((200, 30_000), {"NOT_A_CHEST"}),
        ((2000, 30_000), {"NOT_A_CHEST"}),
    ],
)
def test_images_of_no_possible_shape_have_a_defined_outcome(
    assessor: Assessor, shape: tuple[int, int], codes: set[str]
) -> None:
    image = cv2.resize(chest(1).image, shape[::-1], interpolation=cv2.INTER_AREA)
    result = assessor.assess_dicom(as_object(phantom.replace(chest(1), image=image)))
    assert failures(result) >= codes
    assert not result.masks
    assert (result.rows, result.columns) == shape


@pytest.mark.parametrize("kind", ["int16", "float32", "float64", "bool", "uint32"])
def test_every_kind_of_array_is_assessed(assessor: Assessor, kind: str) -> None:
    image = chest(1).image
    values = image > np.median(image) if kind == "bool" else image.astype(kind) - (2000 if kind == "int16" else 0)
    result = assessor.assess_array(values)
    assert result.masks["heart"].shape == image.shape
    if kind != "bool":
        assert not failures(result)


def test_an_array_that_is_none_is_refused(assessor: Assessor) -> None:
    for image in (np.zeros((0, 5)), np.zeros(5), np.zeros((2, 2), np.complex64)):
        with pytest.raises(ValueError, match="array"):
            assessor.assess_array(image)


def test_a_truncated_object_is_a_code_or_a_finding(assessor: Assessor) -> None:
    data = as_object(chest(1))
    for length in (0, 100, 132, 700, 3000, len(data) - 1):
        assert ending(assessor, data[:length]) in ("NOT_DICOM", "MALFORMED_DICOM", "PIXELS_UNDECODABLE", "NO_PIXELS")


def test_the_same_object_gives_the_same_bits(assessor: Assessor) -> None:
    data = as_object(chest(1))
    one, other = assessor.assess_dicom(data), assessor.assess_dicom(data)
    assert one.pin == other.pin
    assert one.findings == other.findings
    assert one.pin is not None
    assert len(one.pin.output_sha256) == len(one.pin.preprocessed_sha256) == 64


def test_a_file_becomes_one_object_of_json(assessor: Assessor, tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    file.write_bytes(as_object(chest(2, top=-30.0)))
    found = assessor.assess_file(file)
    shown = json.loads(json.dumps(found.as_json()))
    assert list(shown) == ["file", "verdict", "reasons", "findings", "measurements"]
    assert shown["file"] == str(file)
    assert (shown["verdict"], shown["reasons"]) == ("REJECT", ["LUNG_MARGIN_TOP"])
    margin = next(one for one in shown["findings"] if one["code"] == "LUNG_MARGIN_TOP")
    assert margin["outcome"] == "FAIL"
    assert set(margin) == {"code", "outcome", "detail", "measurement", "threshold", "boxes"}
    assert {"name", "value", "unit"} <= set(shown["measurements"][0])
    assert found.masks["heart"].shape == chest(1).image.shape


@pytest.mark.parametrize("form", [".png", ".jpg", ".tif"])
def test_a_picture_is_taken_for_a_frontal_chest(assessor: Assessor, tmp_path: Path, form: str) -> None:
    file = tmp_path / f"chest{form}"
    file.write_bytes(bytes(cv2.imencode(form, (chest(1).image >> 4).astype(np.uint8))[1]))
    shown = assessor.assess_file(file).as_json()
    assert (shown["verdict"], shown["reasons"]) == ("ACCEPT", [])


def test_a_file_that_cannot_be_read_or_is_nothing_known_is_a_code(assessor: Assessor, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    for file, code in (
        ("text.txt", ErrorCode.ERROR_CODE_NOT_DICOM),
        ("empty.png", ErrorCode.ERROR_CODE_NOT_DICOM),
        ("absent.dcm", ErrorCode.ERROR_CODE_FILE),
        (".", ErrorCode.ERROR_CODE_FILE),
    ):
        with pytest.raises(StepwedgeError) as caught:
            assessor.assess_file(tmp_path / file)
        assert caught.value.code == code


@needs_shared
@pytest.mark.parametrize(("file", "faults"), [("RG1_J2KI.dcm", {"SPACING"}), ("nih_dx_chest.dcm", set())])
def test_real_chest_radiographs_are_outlined_and_not_faulted(assessor: Assessor, file: str, faults: set[str]) -> None:
    assert SHARED is not None
    path = SHARED / "data" / "dicom" / file
    found = assessor.assess_file(path)
    assert failures(found.result) == faults  # the one states a spacing of zero
    assert found.as_json()["verdict"] == "ACCEPT"
    header = pydicom.dcmread(path, stop_before_pixels=True)
    assert found.masks["lungs_full"].shape == (header.Rows, header.Columns)


@needs_shared
def test_no_other_real_object_is_faulted(assessor: Assessor) -> None:
    assert SHARED is not None
    for path in sorted((SHARED / "data" / "dicom").glob("*.dcm")):
        found = failures(assessor.assess_file(path).result)
        faults = {"RG1_J2KI.dcm": {"SPACING"}}  # it states a spacing of zero
        assert found == faults.get(path.name, set()), path.name
