"""R, L, AP and PA in the picture: read where they stand alone, and held against image and header."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from services.inference import side_markers
from services.inference.assess import AssessmentResult, Assessor
from services.inference.findings import name
from services.inference.header import sided
from services.inference.preprocessing import preprocess
from services.inference.side_markers import Marker
from shared import dicom, paths, phantom
from shared.letters import reads
from shared.phantom import Phantom
from shared.policy import Policy
from stepwedge.common.v1.common_pb2 import Finding, Outcome, Verdict
from tests.unit.inference.conftest import chest
from tests.unit.inference.test_assess import as_object


def read(image: NDArray[Any], **given: Any) -> list[Marker]:
    return side_markers.find(image, preprocess(image), inverted=False, **given)


def found(result: AssessmentResult, code: str) -> Finding:
    return next(one for one in result.findings if name(one.code) == code)


def told(result: AssessmentResult, code: str) -> str:
    return Outcome.Name(found(result, code).outcome).removeprefix("OUTCOME_")


@pytest.mark.parametrize("text", ["R", "L", "AP", "PA"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_marker_is_read_where_it_is(text: str, seed: int) -> None:
    bare = chest(seed)
    image = phantom.marked(bare, text).image
    (one,) = read(image)
    assert (one.text, one.backwards) == (text, False)
    rows, columns = np.nonzero(image != bare.image)
    assert abs(one.box.left - columns.min()) < 8
    assert abs(one.box.top + one.box.height - rows.max()) < 8
    (mirrored,) = read(np.ascontiguousarray(image[:, ::-1]))
    assert (mirrored.text, mirrored.backwards) == (text, True)
    assert abs(mirrored.box.left + mirrored.box.width + one.box.left - image.shape[1]) < 8


def test_nothing_is_read_where_nothing_is_written() -> None:
    for seed in range(1, 5):
        assert not read(chest(seed).image)
    assert not read(np.zeros((300, 300), np.uint16))


@pytest.mark.parametrize("text", ["B", "E", "7", "RIB", "LINDA", "R. MEYER", "RL", "LR", "JL", "PAR"])
def test_other_letters_and_words_are_no_markers(text: str) -> None:
    image = (chest(1).image >> 4).astype(np.uint8)
    cv2.putText(image, text, (120, 130), cv2.FONT_HERSHEY_DUPLEX, 1.5, 250, 2, cv2.LINE_AA)
    assert not read(image)


def test_of_a_picture_full_of_writing_little_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(side_markers, "reads", lambda *given: asked.append(given) or reads(*given))
    page = np.zeros((1500, 1500), np.uint8)
    for row in range(60, 1500, 40):
        cv2.putText(page, "L R A P " * 12, (10, row), cv2.FONT_HERSHEY_DUPLEX, 1.0, 255, 1, cv2.LINE_AA)
    assert not read(page)
    assert 0 < len(asked) <= 128, "so many pieces at each of two levels, of more than a thousand"


MARKED: dict[str, Phantom] = {text: phantom.marked(chest(2), text) for text in ("R", "L")}


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("text", ["R", "L"])
def test_a_mirrored_image_whose_marker_is_written_backwards_fails(assessor: Assessor, text: str, turns: int) -> None:
    straight, exchanged = MARKED[text], phantom.mirrored(MARKED[text])
    fine, wrong = (
        assessor.assess_dicom(as_object(phantom.turned(one, turns), ImagerPixelSpacing=None))
        for one in (straight, exchanged)
    )
    assert (told(fine, "MIRRORED"), told(wrong, "MIRRORED")) == ("PASS", "FAIL")
    assert not found(fine, "MIRRORED").boxes
    (box,) = found(wrong, "MIRRORED").boxes
    ink = np.zeros(exchanged.image.shape, bool)
    ink[:] = np.flip(MARKED[text].image != chest(2).image, 1)
    rows, columns = np.nonzero(np.rot90(ink, turns))
    assert abs(box.left - columns.min()) < 8
    assert abs(box.top + box.height - rows.max()) < 8
    assert Policy.load(paths.POLICY).instance_verdict(wrong.findings, modality="DX")[0] == Verdict.VERDICT_REVIEW


def test_a_marker_on_the_wrong_side_is_a_doubt_and_one_that_lay_face_down_says_nothing(assessor: Assessor) -> None:
    bare, marked = chest(2).image, MARKED["L"].image
    rows, columns = np.nonzero(bare != marked)
    window = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
    other = (window[0], slice(bare.shape[1] - window[1].stop, bare.shape[1] - window[1].start))
    wrong, face_down = bare.copy(), bare.copy()
    wrong[other] = marked[window]
    face_down[window] = marked[window][:, ::-1]
    results = [assessor.assess_array(image, spacing_mm=(0.35, 0.35)) for image in (wrong, face_down)]
    assert [told(one, "MIRRORED") for one in results] == ["WARN", "PASS"]
    assert "a side marker says otherwise" in found(results[0], "MIRRORED").detail
    assert "marker" not in found(results[1], "MIRRORED").detail


def test_markers_are_held_against_the_header_that_exchanges_the_sides(assessor: Assessor) -> None:
    exchanged = as_object(phantom.mirrored(MARKED["R"]), PatientOrientation=["R", "F"])
    assert told(assessor.assess_dicom(exchanged), "MIRRORED") == "PASS"
    straight = assessor.assess_dicom(as_object(MARKED["R"], PatientOrientation=["R", "F"]))
    assert told(straight, "MIRRORED") == "FAIL"


HAND = {"BodyPartExamined": "HAND", "AnatomicRegionSequence": None, "ViewPosition": "PA", "ViewCodeSequence": None}


@pytest.mark.parametrize(
    ("marker", "side", "expected"), [("L", "L", "PASS"), ("R", "L", "FAIL"), ("L", "R", "FAIL"), ("R", "", "WARN")]
)
def test_the_side_of_a_limb_is_read_from_its_marker(assessor: Assessor, marker: str, side: str, expected: str) -> None:
    data = as_object(MARKED[marker], **HAND, ImageLaterality=side or None, Laterality=None)
    result = assessor.assess_dicom(data)
    assert result.pin is None, "no chest"
    assert told(result, "LATERALITY") == expected
    assert len(found(result, "LATERALITY").boxes) == (expected == "FAIL")


@pytest.mark.parametrize("view", ["AP", "PA"])
def test_a_view_that_is_written_in_the_picture_is_held_against_the_header(assessor: Assessor, view: str) -> None:
    for written in ("AP", "PA"):
        data = as_object(phantom.marked(chest(3), written), ViewPosition=view, ViewCodeSequence=None)
        result = assessor.assess_dicom(data)
        assert told(result, "VIEW") == ("PASS" if written == view else "FAIL")
        assert sum(name(one.code) == "VIEW" for one in result.findings) == 1


def test_a_side_is_that_of_the_header_only_where_it_names_one() -> None:
    def of(**attributes: Any) -> tuple[str, str]:
        return sided(dicom.read(as_object(chest(1), **attributes)))

    assert of(BodyPartExamined="KNEE", Laterality="L", ViewPosition="AP", ViewCodeSequence=None) == ("L", "AP")
    assert of(BodyPartExamined="", Laterality="L")[0] == "L"
    assert of(BodyPartExamined="PELVIS", Laterality="L")[0] == "", "the lone R of a pelvis names the patient's right"
    assert of(BodyPartExamined="KNEE", Laterality="L", ImageLaterality="R")[0] == ""
    assert of(Modality="MR", Laterality="L") == ("", "")
