"""Faults are the same for the same seed, grow with their severity, and stay inside the letterbox."""

from __future__ import annotations

import numpy as np
import pytest

from distillation import augment, corruptions, procedural
from services.inference.preprocessing import GRID, letterbox

BOX = letterbox(200, 256)
ALL = {**corruptions.FAMILIES, **corruptions.OCCLUSION}


@pytest.fixture(scope="module")
def grid():
    drawn = procedural.chest(np.random.default_rng(1))[0]
    drawn[: BOX.top] = drawn[BOX.top + BOX.height :] = 0
    return drawn


@pytest.mark.parametrize("family", ALL)
def test_a_fault_grows_with_its_severity_and_stays_inside_the_letterbox(grid, family):
    changes = []
    for severity in corruptions.SEVERITIES:
        made = corruptions.corrupted(grid, BOX, family, severity, np.random.default_rng(2))
        again = corruptions.corrupted(grid, BOX, family, severity, np.random.default_rng(2))
        assert made.dtype == np.uint8
        assert made.shape == (GRID, GRID)
        assert np.array_equal(made, again)
        assert not made[: BOX.top].any()
        assert not made[BOX.top + BOX.height :].any()
        changes.append(float(np.abs(made.astype(float) - grid).mean()))
    assert changes[0] < changes[-1]


def test_no_fault_is_a_change_that_training_makes():
    trained = {change.__name__ for _, change in augment._PHOTOMETRIC}
    assert not trained & {change.__name__ for change in corruptions.FAMILIES.values()}
