"""What becomes of an image that the model is unsure of."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from services.inference import ladder
from services.inference.assess import Assessor
from services.inference.backends import Outputs
from services.inference.registry import Model, load
from shared import phantom
from shared.paths import MODEL
from stepwedge.common.v1.common_pb2 import Outcome, Reason

UNSURE = Reason.REASON_LOW_CONFIDENCE


@pytest.fixture(scope="module")
def assessor() -> Assessor:
    """The engine with its ladder."""
    return Assessor(MODEL, ladder=True)


class Blurred:
    """A backend whose masks are less sure than they were, by a factor."""

    def __init__(self, inner: object, factor: float, shift: int = 0) -> None:
        self._inner, self._factor, self._shift = inner, factor, shift
        self.provider, self.description, self.platform = "Blurred", "Blurred", "blurred"

    def run(self, images: np.ndarray) -> Outputs:
        found = self._inner.run(images)  # type: ignore[attr-defined]
        return found._replace(logits=np.roll(found.logits, self._shift, axis=2) * np.float32(self._factor))

    def close(self) -> None:
        return None


def _made(first: float, second: float, shift: int = 0) -> Assessor:
    made = Assessor(MODEL, ladder=True)
    assert made.above is not None
    made.model.wrap(lambda inner: Blurred(inner, first))
    made.above.wrap(lambda inner: Blurred(inner, second, shift))
    return made


def _outcome(result: object) -> int:
    return next(one.outcome for one in result.findings if one.code == UNSURE)  # type: ignore[attr-defined]


IMAGE = phantom.chest(1).image


def test_an_image_that_the_model_is_sure_of_climbs_no_ladder(assessor: Assessor) -> None:
    result = assessor.assess_array(IMAGE)
    assert result.rungs == []
    assert result.pin is not None
    assert result.pin.sha256 == assessor.model.sha256


def test_an_unsure_image_is_looked_at_in_full_precision_and_both_looks_are_told() -> None:
    made = _made(0.15, 1.0)
    result = made.assess_array(IMAGE)
    served, whole = result.rungs
    assert (served.form, served.used, whole.form, whole.used) == ("served", False, "whole", True)
    assert served.confidence < 0.8 <= whole.confidence == result.confidence
    assert _outcome(result) == Outcome.OUTCOME_PASS
    assert result.pin is not None
    assert result.pin.sha256 == whole.model_sha256 == load(MODEL, whole=True).sha256
    assert made.above is not None
    assert result.pin.execution_provider == made.above.execution_provider


def test_an_image_that_both_are_unsure_of_goes_to_a_person() -> None:
    result = _made(0.15, 0.15).assess_array(IMAGE)
    served, whole = result.rungs
    assert (served.used, whole.used) == (True, False)
    assert _outcome(result) in (Outcome.OUTCOME_WARN, Outcome.OUTCOME_FAIL)
    assert result.pin is not None
    assert result.pin.sha256 == served.model_sha256


def test_a_second_look_that_sees_something_else_does_not_overrule_the_first() -> None:
    result = _made(0.15, 1.0, shift=20).assess_array(IMAGE)
    assert [one.used for one in result.rungs] == [True, False]
    assert _outcome(result) != Outcome.OUTCOME_PASS


def test_an_image_that_is_turned_climbs_as_it_stands_upright() -> None:
    result = _made(0.15, 1.0).assess_array(np.ascontiguousarray(np.rot90(IMAGE, 2)))
    assert [one.form for one in result.rungs] == ["served", "whole"]
    upright = _made(0.15, 1.0).assess_array(IMAGE)
    there, here = (one.masks["lungs_full"] > 0 for one in (result, upright))
    assert ladder.agreement(np.rot90(there, 2), here) > 0.9


def test_what_is_no_chest_climbs_no_ladder() -> None:
    clouds = cv2.GaussianBlur(np.random.default_rng(1).normal(size=(600, 500)).astype(np.float32), (0, 0), 15)
    result = _made(0.15, 1.0).assess_array(clouds)
    assert result.pin is not None
    assert not result.rungs


def test_the_look_at_the_mirror_image_is_symmetric() -> None:
    model: Model = load(MODEL, whole=True)
    model.wrap(ladder.LookingTwice)
    images = np.random.default_rng(2).random((1, 1, 256, 256)).astype(np.float32)
    ours = model.run(images).logits
    mirrored = model.run(np.ascontiguousarray(images[..., ::-1])).logits[:, [1, 0, 2, 3], :, ::-1]
    assert np.abs(ours - mirrored).max() < 1e-4


def test_masks_of_different_fields_agree_on_nothing() -> None:
    assert ladder.agreement(np.ones((8, 8), np.bool_), np.ones((8, 6), np.bool_)) == 0.0
