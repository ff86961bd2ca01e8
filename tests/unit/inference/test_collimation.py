"""White blades of the collimator: found, and taken out of what the model sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from services.inference.collimation import inside
from services.inference.preprocessing import preprocess


def _chest(rows: int = 700, columns: int = 500) -> NDArray[np.uint16]:
    """Smooth, from 300 to some 3500, with nothing uniform at its edges."""
    y, x = np.mgrid[0:rows, 0:columns]
    return np.asarray(1900 + 1500 * np.sin(x / 40) * np.cos(y / 70) + x / 10, np.uint16)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("border", [(60, 60, 60, 60), (0, 35, 0, 0), (0, 0, 41, 0), (17, 0, 0, 90)])
def test_what_lies_behind_white_blades_is_dark_to_the_pixel(border: tuple[int, int, int, int], inverted: bool) -> None:
    top, bottom, left, right = border
    values = np.pad(_chest(), ((top, bottom), (left, right)), constant_values=4095)
    expected = np.pad(_chest(), ((top, bottom), (left, right)), constant_values=_chest().min())
    if inverted:
        values, expected = 4095 - values, 4095 - expected
    found = inside(values, inverted)
    assert (found.values == expected).all()
    assert [one > 0 for one in found.white] == [one > 0 for one in border]
    assert (found.prepared.grid == preprocess(expected, inverted).grid).all()


@pytest.mark.parametrize("surround", [0, 2000])
def test_what_is_not_white_stays(surround: int) -> None:
    values = np.pad(_chest(), 40, constant_values=surround)
    found = inside(values, False)
    assert found.values is values
    assert not any(found.white)


@pytest.mark.parametrize("values", [np.full((80, 80), 7, np.uint8), np.eye(64, dtype=np.float32), np.ones((1, 9))])
def test_an_odd_picture_is_only_prepared(values: NDArray[Any]) -> None:
    assert inside(values, False).values is values


def test_noise_behind_a_blade_leaves_no_white_line() -> None:
    values = np.pad(_chest(), 60, constant_values=3950).astype(np.float32)
    values += np.random.default_rng(1).normal(0, 40, values.shape).astype(np.float32)
    border = np.ones(values.shape, np.bool_)
    border[60:-60, 60:-60] = False
    assert (inside(values, False).values[border] < 600).all()
