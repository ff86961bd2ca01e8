"""Objects over the lungs: found on phantoms that have them, at their place, and not on those that have none."""

from __future__ import annotations

import numpy as np
import pytest

from services.inference import in_the_way
from services.inference.assess import Assessor
from shared import paths, phantom
from shared.phantom import Foreign
from shared.policy import Policy
from stepwedge.common.v1.common_pb2 import Reason, Verdict
from tests.unit.inference.test_assess import as_object
from tests.unit.inference.test_chest import found, outcome

CODE = "OBJECT_IN_THE_WAY"


def drawn(*foreign: Foreign, seed: int = 3) -> phantom.Phantom:
    return phantom.chest(seed, columns=512, rows=640, foreign=foreign)


@pytest.mark.parametrize("one", [Foreign("coin", -70, 190), Foreign("electrode", 72, 150), Foreign("necklace", 0, 160)])
def test_an_object_is_told_with_its_place(assessor: Assessor, one: Foreign) -> None:
    image = drawn(one)
    told = found(assessor.assess_dicom(as_object(image)), CODE)
    assert outcome(assessor.assess_dicom(as_object(image)), CODE) == "WARN"
    assert told.measurement.name == "object_score"
    assert told.measurement.value >= told.threshold
    rows, columns = image.image.shape
    for box in told.boxes:
        assert 0 <= box.left < box.left + box.width <= columns
        assert 0 <= box.top < box.top + box.height <= rows
    places = [
        image.masks["foreign"][box.top : box.top + box.height, box.left : box.left + box.width] for box in told.boxes
    ]
    assert any(place.any() for place in places)


@pytest.mark.parametrize("seed", [2, 5, 6])
def test_nothing_is_told_where_nothing_is(assessor: Assessor, seed: int) -> None:
    assert outcome(assessor.assess_dicom(as_object(drawn(seed=seed))), CODE) == "PASS"


def test_what_hides_much_of_the_lungs_is_for_a_person_to_look_at(assessor: Assessor) -> None:
    coins = [Foreign("coin", side * x, y) for side in (-1, 1) for x, y in ((60, 150), (85, 190), (75, 235), (105, 260))]
    result = assessor.assess_dicom(as_object(drawn(*coins)))
    assert outcome(result, CODE) == "FAIL"
    verdict, reasons = Policy.load(paths.POLICY).instance_verdict(result.findings, modality="DX")
    assert verdict == Verdict.VERDICT_REVIEW
    assert Reason.REASON_OBJECT_IN_THE_WAY in reasons


def test_black_and_white_exchanged_change_no_score(assessor: Assessor) -> None:
    image = drawn(Foreign("coin", -70, 190))
    plain = found(assessor.assess_dicom(as_object(image)), CODE).measurement.value
    for other in (phantom.monochrome1(image), phantom.inverted(image)):
        assert found(assessor.assess_dicom(as_object(other)), CODE).measurement.value == pytest.approx(plain, abs=0.3)


def test_an_object_is_told_on_a_larger_detector_too(assessor: Assessor) -> None:
    image = phantom.chest(3, columns=2048, rows=2560, foreign=(Foreign("electrode", 72, 150),))
    assert outcome(assessor.assess_dicom(as_object(image)), CODE) == "WARN"


def test_where_no_lungs_are_known_nothing_is_looked_for(assessor: Assessor) -> None:
    image = phantom.turned(drawn(Foreign("coin", -70, 190)), 1)
    assert outcome(assessor.assess_dicom(as_object(image)), CODE) == "NOT_ASSESSABLE"


def test_hardly_any_lung_gives_no_pieces() -> None:
    picture = np.random.default_rng(1).integers(0, 255, (80, 64)).astype(np.uint8)
    lungs = np.zeros(picture.shape, np.bool_)
    assert in_the_way.pieces(picture, lungs) == []
    lungs[10:20, 10:20] = True
    assert in_the_way.pieces(picture, lungs) == []


def test_a_flat_picture_has_no_objects() -> None:
    picture = np.full((200, 160), 100, np.uint8)
    assert in_the_way.pieces(picture, np.ones(picture.shape, np.bool_)) == []


def test_pieces_that_lie_within_another_are_told_once() -> None:
    one, within, beside = ((10, 10, 20, 20), (12, 12, 5, 5), (60, 60, 9, 9))
    scored = zip((3.0, 2.0, 1.0), (one, within, beside), strict=True)
    given = [in_the_way.Piece(score, place, np.ones(place[2:], np.bool_)) for score, place in scored]
    assert [piece.place for piece in in_the_way.objects(given, 0.0)] == [one, beside]
    assert in_the_way.objects(given, 4.0) == []
