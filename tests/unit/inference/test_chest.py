"""Turned, mirrored, rotated, breathed in, collimated: the chest against the phantom's truth."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from services.inference import chest as measures
from services.inference.assess import AssessmentResult, Assessor
from services.inference.findings import as_markdown, name
from services.inference.preprocessing import preprocess
from services.inference.registry import EDGES, SHARES
from shared import paths, phantom
from shared.policy import Policy
from stepwedge.common.v1.common_pb2 import Finding, Outcome, Reason, Verdict
from tests.unit.inference.conftest import chest
from tests.unit.inference.test_assess import as_object


def found(result: AssessmentResult, code: str) -> Finding:
    """The one finding of a code."""
    (one,) = [one for one in result.findings if name(one.code) == code]
    return one


def outcome(result: AssessmentResult, code: str) -> str:
    """ "WARN" of OUTCOME_WARN."""
    return Outcome.Name(found(result, code).outcome).removeprefix("OUTCOME_")


@cache
def drawn(seed: int = 3, **changes: float) -> phantom.Phantom:
    """A phantom of one anatomy with something changed."""
    anatomy = phantom.chest(seed, columns=64, rows=80).anatomy
    return phantom.chest(seed, columns=512, rows=640, anatomy=replace(anatomy, **changes))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_image_says_by_how_much_and_honest_headers_soften_it(assessor: Assessor, turns: int) -> None:
    image = phantom.turned(chest(1), turns)
    plain = assessor.assess_dicom(as_object(image))
    assert outcome(plain, "TURNED") == "FAIL"
    assert outcome(plain, "IMPLAUSIBLE_ANATOMY") == "PASS"
    orientation = {1: ["F", "R"], 2: ["R", "H"], 3: ["H", "L"]}[turns]
    assert outcome(assessor.assess_dicom(as_object(image, PatientOrientation=orientation)), "TURNED") == "WARN"


def test_sides_are_held_against_the_header(assessor: Assessor) -> None:
    straight, exchanged = chest(1), phantom.mirrored(chest(1))
    told = {"PatientOrientation": ["R", "F"]}
    expected = {(True, False): "PASS", (True, True): "WARN", (False, False): "WARN", (False, True): "PASS"}
    for (right, honest), outcome_of in expected.items():
        data = as_object(straight if right else exchanged, **(told if honest else {}))
        assert outcome(assessor.assess_dicom(data), "MIRRORED") == outcome_of


def test_a_mirrored_image_is_for_a_person_to_look_at(assessor: Assessor) -> None:
    result = assessor.assess_dicom(as_object(phantom.mirrored(chest(2))))
    verdict, reasons = Policy.load(paths.POLICY).instance_verdict(result.findings, modality="DX")
    assert (verdict, reasons) == (Verdict.VERDICT_REVIEW, [Reason.REASON_MIRRORED])


def test_of_an_image_whose_header_exchanges_the_sides_all_that_is_told_is_of_the_patients_sides(
    assessor: Assessor,
) -> None:
    one = chest(22, right=-12.0)
    plain = assessor.assess_dicom(as_object(one))
    other = assessor.assess_dicom(as_object(phantom.mirrored(one), PatientOrientation=["R", "F"]))
    assert outcome(other, "MIRRORED") == "PASS"
    for code in ("LUNG_MARGIN_RIGHT", "LUNG_MARGIN_LEFT", "LUNG_MARGIN_TOP", "IMPLAUSIBLE_ANATOMY", "ROTATION"):
        assert outcome(other, code) == outcome(plain, code), code
    assert outcome(other, "LUNG_MARGIN_RIGHT") == "FAIL"
    right = found(other, "LUNG_MARGIN_RIGHT")
    assert right.measurement.name == "lung_margin_right"
    assert right.boxes[0].left > other.columns / 2, "the place is where it is in the image"
    ours, theirs = ({value.name: value.value for value in one.measurements} for one in (plain, other))
    for measure in ("right_lung_area", "left_lung_area", "rotation_index"):
        assert theirs[measure] == pytest.approx(ours[measure], rel=0.05, abs=0.03)
    assert abs(ours["rotation_index"]) > 0.03
    assert np.flatnonzero(other.masks["right_lung_field"].any(0)).mean() > other.columns / 2


def test_the_rotation_index_follows_the_turn_of_the_body(assessor: Assessor) -> None:
    degrees = [-12.0, 0.0, 12.0]
    truth, seen = [], []
    for angle in degrees:
        image = drawn(rotation_degrees=angle)
        right, left = (image.masks[f"{side}_lung_field"] > 0 for side in ("right", "left"))
        truth.append(measures.rotation_index(right, left))
        measured = found(assessor.assess_array(image.image, spacing_mm=(image.spacing_mm,) * 2), "ROTATION").measurement
        assert measured.low <= measured.value <= measured.high
        seen.append(measured.value)
    assert truth == sorted(truth, reverse=True)
    assert seen == sorted(seen, reverse=True)
    # As the documents say: far too little to find a chest that is turned.
    assert abs(seen[0] - seen[-1]) < 0.1


def test_a_phantom_that_is_not_rotated_is_drawn_as_ever() -> None:
    anatomy = phantom.chest(3, columns=128, rows=160).anatomy
    assert np.array_equal(
        phantom.chest(3, columns=128, rows=160, anatomy=replace(anatomy, rotation_degrees=0.0)).image,
        phantom.chest(3, columns=128, rows=160, anatomy=anatomy).image,
    )


def test_the_inspiration_index_follows_the_level_of_inspiration(assessor: Assessor) -> None:
    levels = [0.65, 0.8, 0.95]
    seen = []
    for level in levels:
        image = drawn(height=level)
        measured = found(assessor.assess_array(image.image, spacing_mm=(image.spacing_mm,) * 2), "INSPIRATION")
        assert measured.measurement.low <= measured.measurement.value <= measured.measurement.high
        seen.append(measured.measurement.value)
    for (low, high), (level, further) in zip(pairwise(seen), pairwise(levels), strict=True):
        assert high / low == pytest.approx(further / level, rel=0.1)


def test_pixels_that_are_not_square_change_no_index(assessor: Assessor) -> None:
    image = drawn()
    half = np.ascontiguousarray(image.image[::2])  # rows twice as far apart
    square = found(assessor.assess_array(image.image, spacing_mm=(0.7, 0.7)), "INSPIRATION").measurement.value
    other = found(assessor.assess_array(half, spacing_mm=(1.4, 0.7)), "INSPIRATION").measurement.value
    assert other == pytest.approx(square, rel=0.08)


def test_of_a_chest_that_is_stretched_further_than_training_did_only_the_outlines_tell_its_margins(
    assessor: Assessor,
) -> None:
    prepared = preprocess(drawn().image)
    look = measures.look(assessor.model, prepared.grid, prepared.geometry, (0.7, 0.7), 0)
    cut = {edge: np.ones(len(SHARES)) for edge in EDGES}
    for across, heeded in ((0.7, True), (0.65, True), (0.35, False), (1.4, False)):
        seen = replace(look, spacing_mm=(0.7, across))
        outlined, told = (list(measures.margins(replace(seen, ends=ends))) for ends in (None, cut))
        assert (told != outlined) is heeded


@pytest.mark.parametrize("blades_mm", [0.0, 10.0, 20.0])
def test_the_share_behind_the_blades_is_measured(assessor: Assessor, blades_mm: float) -> None:
    image = phantom.chest(3, columns=512, rows=640, collimation_mm=blades_mm)
    measured = found(assessor.assess_array(image.image, spacing_mm=(image.spacing_mm,) * 2), "COLLIMATION").measurement
    width, height = 358.4, 448.0
    truth = 1 - (width - 2 * blades_mm) * (height - 2 * blades_mm) / (width * height)
    assert measured.value == pytest.approx(truth, abs=0.03)


def test_lungs_that_end_at_a_blade_are_found(assessor: Assessor) -> None:
    clear = phantom.chest(3, columns=512, rows=640, collimation_mm=10.0)
    cut = phantom.chest(3, columns=512, rows=640, collimation_mm=60.0)
    outcomes = [
        outcome(assessor.assess_array(one.image, spacing_mm=(one.spacing_mm,) * 2), "COLLIMATION")
        for one in (clear, cut)
    ]
    assert outcomes[0] == "PASS"
    assert outcomes[1] in {"WARN", "FAIL"}


@pytest.mark.parametrize("blade", [0, 4095])
def test_lungs_behind_a_blade_are_cut_off_and_all_lies_where_the_image_has_it(assessor: Assessor, blade: int) -> None:
    whole = chest(1)
    image, lungs = whole.image.copy(), whole.masks["right_lung_field"] > 0
    first = int(np.flatnonzero(lungs.any(0))[0]) + 40
    image[:, :first] = min(blade, int(image.max()))
    result = assessor.assess_array(image, spacing_mm=(whole.spacing_mm,) * 2)
    assert outcome(result, "COLLIMATION") == outcome(result, "LUNG_MARGIN_RIGHT") == "FAIL"
    assert outcome(result, "LUNG_MARGIN_LEFT") == "PASS"
    (box,) = found(result, "COLLIMATION").boxes
    assert (box.left, box.left + box.width <= image.shape[1]) == (first, True)
    mask = result.masks["right_lung_field"] > 0
    assert mask.shape == image.shape
    assert not mask[:, :first].any()
    assert 2 * (mask & lungs).sum() / (mask.sum() + lungs[:, first:].sum()) > 0.95


def test_the_header_tells_where_the_blades_are(assessor: Assessor) -> None:
    image = chest(1)
    rows, columns = image.image.shape
    said: dict[str, Any] = {
        "CollimatorShape": "RECTANGULAR",
        "CollimatorUpperHorizontalEdge": "0",
        "CollimatorLowerHorizontalEdge": str(rows + 1),
        "CollimatorLeftVerticalEdge": "0",
        "CollimatorRightVerticalEdge": str(columns // 2),
    }
    result = found(assessor.assess_dicom(as_object(image, **said)), "COLLIMATION")
    assert result.outcome == Outcome.OUTCOME_FAIL
    assert result.measurement.value == pytest.approx(0.5, abs=0.01)
    assert result.boxes


def test_the_document_holds_the_table() -> None:
    assert (paths.ROOT / "docs" / "findings.md").read_text("utf-8").endswith("\n" + as_markdown())
