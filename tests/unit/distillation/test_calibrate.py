"""What is fitted on validation images."""

import numpy as np
import pytest

from distillation import calibrate
from distillation.runtime import sigmoid
from services.inference import masks


def test_platt_finds_the_slope_and_the_bias_that_made_the_truth_and_every_source_counts_the_same():
    rng = np.random.default_rng(1)
    large = rng.normal(0, 4, 200_000)
    small = rng.normal(0, 4, 20_000)
    drawn = [np.stack((z, rng.random(len(z)) < sigmoid(0.5 * z + bias))) for z, bias in ((large, -0.4), (small, -0.4))]
    assert calibrate.fit_platt(drawn) == pytest.approx((0.5, -0.4), abs=0.03)
    apart = [np.stack((z, rng.random(len(z)) < sigmoid(0.5 * z + bias))) for z, bias in ((large, 0.5), (small, -0.5))]
    assert calibrate.fit_platt(apart)[1] == pytest.approx(0.0, abs=0.05)


def test_confidence_is_the_expected_dice_of_the_mask_under_calibrated_probabilities():
    logits = np.full((4, 64, 64), -400, np.float32)
    even, none = np.ones(4), np.zeros(4)
    assert masks.confidence(logits, even, none) == {"lung_fields": 0.0, "heart": 0.0, "lungs_full": 0.0}
    logits[2, 8:38, 8:38] = 40
    assert masks.confidence(logits, even, none)["heart"] == pytest.approx(1.0)
    logits[2, 8:38, 8:38] = np.log(0.6 / 0.4)
    assert masks.confidence(logits, even, none)["heart"] == pytest.approx(2 * 0.6 / 1.6, rel=1e-5)
    logits[2, 8:38, 8:38] = 2.0
    halved = masks.confidence(logits, np.array([1, 1, 4.0, 1]), np.array([0, 0, -0.5, 0]))
    assert halved["heart"] == pytest.approx(2 * 0.5 / 1.5, rel=1e-5), "the mask is still where the logit is over 0"
