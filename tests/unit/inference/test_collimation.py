"""Blades of the collimator, white or blackened: found to the pixel, and left out of what the model sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from services.inference.collimation import field_of
from services.inference.preprocessing import preprocess

WHITE, BLACK = 4095, 0


def _chest(rows: int = 700, columns: int = 500) -> NDArray[np.uint16]:
    """Smooth, from 300 to some 3500, with nothing uniform at its edges."""
    y, x = np.mgrid[0:rows, 0:columns]
    return np.asarray(1900 + 1500 * np.sin(x / 40) * np.cos(y / 70) + x / 10, np.uint16)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("blade", [WHITE, BLACK])
@pytest.mark.parametrize("border", [(60, 60, 60, 60), (0, 35, 0, 0), (0, 0, 41, 0), (17, 0, 0, 90), (0, 0, 300, 0)])
def test_what_lies_behind_blades_is_left_out_to_the_pixel(
    border: tuple[int, int, int, int], blade: int, inverted: bool
) -> None:
    top, bottom, left, right = border
    inner = _chest()
    values = np.pad(inner, ((top, bottom), (left, right)), constant_values=blade)
    if inverted:
        values, inner = 4095 - values, 4095 - inner
    found = field_of(values, inverted)
    assert found.behind == border
    assert (found.values == inner).all()
    assert (found.prepared.grid == preprocess(inner, inverted).grid).all()


@pytest.mark.parametrize("degrees", [-6, 3, 12])
@pytest.mark.parametrize("blade", [WHITE, BLACK])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_blade_that_stands_askew_is_found_and_white_ones_are_dark(turns: int, blade: int, degrees: int) -> None:
    values = _chest(512, 512)
    rise = np.tan(np.radians(degrees))
    edge = 60 + rise * (np.arange(512) - 256)
    hidden = np.rot90(np.arange(512)[:, None] < edge, turns)
    values[hidden] = blade
    found = field_of(values, False)
    assert found.behind == (0, 0, 0, 0)
    (askew,) = [one for one in found.askew if one is not None]
    assert found.askew.index(askew) == (0, 2, 1, 3)[turns]
    assert askew.white == (blade == WHITE)
    depths = sorted((askew.first, askew.last))
    assert depths == pytest.approx(sorted((edge[0] / 2, edge[-1] / 2)), abs=1)
    assert (found.values[hidden] < 600).all()


def test_a_blade_askew_is_dark_where_pixels_are_not_square_and_some_are_no_numbers() -> None:
    values = _chest(1024, 512).astype(np.float32)
    edge = 60 + 0.1 * (np.arange(1024) - 512)
    hidden = np.arange(512) < edge[:, None]
    values[hidden] = WHITE
    values[700, 300] = np.nan
    found = field_of(values, False, 0.5)
    assert [one is not None for one in found.askew] == [False, False, True, False]
    assert (found.values[hidden] < 600).all()
    assert (found.values == values)[:, 130:].sum() == 1024 * (512 - 130) - 1


def _body() -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """A body in black air, and where the air is."""
    y, x = np.mgrid[0:600, 0:500]
    air = ((x - 250) / 200) ** 2 + ((y - 300) / 280) ** 4 > 1
    return np.where(air, BLACK, _chest(600, 500)).astype(np.uint16), air


def test_padding_is_left_out_to_the_pixel_also_beside_air() -> None:
    inner, _ = _body()
    values, padding = (np.pad(one, ((2, 400), (0, 90)), constant_values=of) for one, of in ((inner, 0), (inner < 0, 1)))
    padding[200, -60:-30] = False  # a marker
    found = field_of(values, False, padding=padding)
    assert found.behind == (2, 400, 0, 90)
    assert (found.prepared.grid == preprocess(inner, False).grid).all()


def test_air_with_the_value_of_the_padding_stays() -> None:
    values, air = _body()
    assert field_of(values, False, padding=air).behind == (0, 0, 0, 0)
    assert field_of(values, False, padding=np.ones_like(air)).behind == (0, 0, 0, 0)


def test_a_line_at_the_rim_is_no_blade() -> None:
    values = np.pad(_chest(), 2, constant_values=BLACK)
    assert field_of(values, False).values is values


def test_the_field_is_the_same_whichever_way_round_black_and_white_are_taken() -> None:
    values = np.pad(_chest(), ((0, 50), (70, 0)), constant_values=BLACK)
    one, other = field_of(values, False), field_of(values, True)
    assert one.behind == other.behind == (0, 50, 70, 0)


def test_what_is_neither_white_nor_black_stays() -> None:
    values = np.pad(_chest(), 40, constant_values=2000)
    found = field_of(values, False)
    assert found.values is values
    assert found.behind == (0, 0, 0, 0)


def test_air_beside_the_body_stays() -> None:
    """Black from end to end, but it ends with the body, which is round."""
    y, x = np.mgrid[-1:1:700j, -1:1:500j]
    body = 1 - (x / 0.85) ** 2 - 0.25 * y**2
    values = np.where(body > 0, 400 + 3000 * np.sqrt(np.maximum(body, 0)), 0).astype(np.uint16)
    assert field_of(values, False).behind == (0, 0, 0, 0)


@pytest.mark.parametrize("values", [np.full((80, 80), 7, np.uint8), np.eye(64, dtype=np.float32), np.ones((1, 9))])
def test_an_odd_picture_is_only_prepared(values: NDArray[Any]) -> None:
    assert field_of(values, False).values is values


def test_noise_behind_a_blade_leaves_no_line_of_it() -> None:
    values = np.pad(_chest(), 60, constant_values=3950).astype(np.float32)
    values += np.random.default_rng(1).normal(0, 40, values.shape).astype(np.float32)
    assert all(58 <= one <= 61 for one in field_of(values, False).behind)


def test_lettering_behind_a_blade_hides_it_not() -> None:
    values = np.pad(_chest(), 80, constant_values=BLACK)
    values[20:40, 100:115] = 4095
    assert field_of(values, False).behind == (80, 80, 80, 80)
