"""The figures of the report, on shapes whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from distillation import measures, not_a_chest, procedural
from distillation.calibrate import distance
from services.inference.preprocessing import GRID


def _square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((64, 64), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_dice_of_halves_and_of_nothing():
    assert measures.dice(_square(0, 0, 10), _square(0, 5, 10)) == pytest.approx(0.5)
    assert measures.dice(_square(0, 0, 0), _square(0, 0, 0)) == 1.0
    assert measures.dice(_square(0, 0, 10), _square(0, 0, 0)) == 0.0


def test_hausdorff_is_the_shift_of_a_shifted_square_and_the_diagonal_where_one_is_empty():
    assert measures.hausdorff95(_square(10, 10, 20), _square(10, 17, 20)) == pytest.approx(7, abs=0.5)
    assert measures.hausdorff95(_square(10, 10, 20), _square(0, 0, 0)) == pytest.approx(np.hypot(64, 64))
    assert measures.hausdorff95(_square(10, 10, 20), _square(10, 10, 20)) == 0.0


def test_the_cardiothoracic_ratio_ignores_stray_cells():
    right, left, heart = _square(0, 0, 20), _square(0, 40, 20), _square(25, 20, 24)
    heart[63, 63] = True
    assert measures.cardiothoracic_ratio(right, left, heart) == pytest.approx(24 / 60)
    assert np.isnan(measures.cardiothoracic_ratio(right, left, _square(0, 0, 0)))


def test_the_interval_holds_the_mean_and_is_the_same_each_time():
    values = np.random.default_rng(1).normal(0.9, 0.05, 200)
    found = measures.interval(values)
    assert found == measures.interval(values)
    assert found["low"] < found["mean"] < found["high"]
    assert measures.interval(np.array([np.nan])) == {"n": 0}


def test_distance_grows_with_strangeness_in_and_outside_the_components():
    axes = np.eye(160)[:2]
    statistics = {"mean": [0.0] * 160, "components": axes.tolist(), "variances": [4.0, 1.0], "residual_variance": 2.0}
    features = np.zeros((3, 160), np.float32)
    features[1, 0], features[2, 100] = 8, 8
    assert distance(features, statistics) == pytest.approx([0, 4, np.sqrt(32)])


def test_families_of_foreign_pictures_for_evaluation_were_never_trained_on():
    assert not set(not_a_chest.TRAINED) & set(not_a_chest.NEVER_TRAINED)
    rng = np.random.default_rng(1)
    for draw in (*not_a_chest.TRAINED.values(), *not_a_chest.NEVER_TRAINED.values()):
        grid = draw(rng)
        assert grid.shape == (GRID, GRID)
        assert grid.dtype == np.uint8
    chest, _ = procedural.chest(rng)
    for _ in range(12):
        assert not_a_chest.trained(chest, rng).shape == (GRID, GRID)


def test_surface_dice_counts_outlines_within_the_tolerance():
    a = np.zeros((64, 64), bool)
    a[20:40, 20:40] = True
    assert measures.surface_dice(a, a) == 1
    assert measures.surface_dice(a, np.roll(a, 2, 0), tolerance=2) == 1
    assert 0.3 < measures.surface_dice(a, np.roll(a, 6, 0), tolerance=2) < 0.8
    assert measures.surface_dice(a, np.zeros_like(a)) == 0
    assert measures.surface_dice(np.zeros_like(a), np.zeros_like(a)) == 1


def test_iou_and_dice_tell_the_same():
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 40, 40)) > 0.5
    overlap = measures.iou(a, b)
    assert measures.dice(a, b) == pytest.approx(2 * overlap / (1 + overlap))


def test_honest_probabilities_have_no_calibration_error_and_boastful_ones_do():
    rng = np.random.default_rng(4)
    p = rng.random(200_000)
    truth = rng.random(len(p)) < p
    assert measures.reliability(p, truth)["ece"] < 0.01
    assert measures.reliability(np.where(p > 0.5, 0.99, 0.01), truth)["ece"] > 0.2


def test_auroc_is_the_chance_of_the_right_order():
    assert measures.auroc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert measures.auroc(np.array([1.0]), np.array([1.0])) == 0.5
    assert measures.auroc(np.array([0.0]), np.array([1.0, 2.0])) == 0
    assert np.isnan(measures.auroc(np.array([]), np.array([1.0])))


def test_the_area_under_risk_and_coverage_is_least_for_the_ideal_order():
    risk = np.array([0.0, 0.1, 0.2, 0.5])
    ideal, worst = measures.risk_coverage(-risk, risk), measures.risk_coverage(risk, risk)
    assert ideal["aurc"] == ideal["aurc_ideal"] < worst["aurc"]
    assert worst["curve"][-1] == [1.0, 0.2]
