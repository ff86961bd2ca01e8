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


def test_confidence_is_the_expected_dice():
    sure = _square(8, 8, 30).astype(np.float32)
    assert measures.soft_dice_confidence(sure) == pytest.approx(1.0)
    assert measures.soft_dice_confidence(sure * np.float32(0.6)) == pytest.approx(2 * 0.6 / 1.6)
    assert measures.soft_dice_confidence(sure * 0) == 0.0


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
