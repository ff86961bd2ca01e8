"""Preprocessing is total over arrays, blind to scale and type, and its geometry leads back to the image."""

from __future__ import annotations

import hashlib
import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from services.inference.preprocessing import GRID, Letterbox, letterbox, preprocess, shrink, to_image

RAMP = np.linspace(0, 200, 300 * 200).reshape(300, 200)
DTYPES = [
    "uint8",
    "int8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
    ">u2",
    ">i2",
    "?",
]


@settings(max_examples=100, deadline=None)
@given(
    arrays.arrays(
        dtype=st.sampled_from(DTYPES).map(np.dtype),
        shape=arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=70),
    ),
    st.booleans(),
)
def test_every_two_dimensional_array_becomes_a_grid_without_warning_or_error(pixels, inverted):
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        result = preprocess(pixels, inverted)
    assert result.grid.shape == (GRID, GRID)
    assert result.grid.dtype == np.uint8
    assert result.tensor.shape == (1, 1, GRID, GRID)
    assert result.tensor.dtype == np.float32
    assert 0 <= result.tensor.min() <= result.tensor.max() <= 1
    assert result.grid_sha256 == hashlib.sha256(result.grid.tobytes()).hexdigest()
    assert to_image(np.zeros((4, 64, 64)), result.geometry).shape == (4, *pixels.shape)


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name not in ("int8", "?")])
def test_the_storage_type_does_not_change_the_grid(dtype):
    whole = np.rint(RAMP).astype(np.uint8)
    expected = preprocess(whole).grid.astype(int)
    assert np.abs(preprocess(whole.astype(dtype)).grid.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("gain", "offset"), [(1, -1024), (10, 0), (37, 5000)])
def test_gain_and_offset_of_the_values_do_not_change_the_grid(gain, offset):
    moved = preprocess(RAMP * gain + offset).grid.astype(int)
    assert np.abs(moved - preprocess(RAMP).grid.astype(int)).max() <= 1


def test_monochrome1_gives_the_mirror_image_of_the_grey_scale_inside_the_letterbox_only():
    plain, inverted = preprocess(RAMP), preprocess(RAMP, inverted=True)
    box = np.s_[:, plain.geometry.left : plain.geometry.left + plain.geometry.width]
    assert np.abs(plain.grid[box].astype(int) + inverted.grid[box] - 255).max() <= 1
    outside = np.ones((GRID, GRID), bool)
    outside[box] = False
    assert not plain.grid[outside].any()
    assert not inverted.grid[outside].any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 2), (256, 256), (257, 255), (3000, 2500)])
def test_the_letterbox_keeps_the_aspect_and_stays_on_the_grid(shape):
    box = letterbox(*shape)
    assert max(box.height, box.width) == GRID
    assert min(box.height, box.width) >= 1
    assert 0 <= box.top <= GRID - box.height
    assert 0 <= box.left <= GRID - box.width
    assert abs(box.height * max(shape) - shape[0] * GRID) <= max(shape) * max(1, GRID / max(shape))


@pytest.mark.parametrize("value", [0, -5, 65535.0, np.nan, np.inf])
def test_a_constant_or_wholly_undefined_image_becomes_zero_and_says_so(value):
    result = preprocess(np.full((40, 30), value, np.float32))
    assert not result.grid.any()
    assert result.low == result.high


def test_undefined_and_infinite_values_do_not_disturb_the_rest():
    damaged = RAMP.copy()
    damaged[0, 0], damaged[0, 1], damaged[0, 2] = np.nan, np.inf, -np.inf
    assert np.abs(preprocess(damaged).grid[10:].astype(int) - preprocess(RAMP).grid[10:].astype(int)).max() <= 2


def test_bright_markers_on_one_percent_of_the_image_do_not_darken_it():
    marked = RAMP.copy()
    marked[:10, :40] = 60000
    assert preprocess(marked).high < 250


@pytest.mark.parametrize("pixels", [np.zeros((3, 3, 3)), np.zeros(9), np.zeros((0, 4)), np.zeros((4, 4), complex)])
def test_what_is_not_one_grey_image_is_refused(pixels):
    with pytest.raises(ValueError, match="needed"):
        preprocess(pixels)


@pytest.mark.parametrize("shape", [(512, 400), (400, 1000), (64, 64), (2048, 2500)])
@pytest.mark.parametrize("cells", [64, 128, 256])
def test_a_mask_goes_to_the_grid_and_comes_back_where_it_was(shape, cells):
    rows, columns = np.mgrid[: shape[0], : shape[1]] / np.array(shape)[:, None, None]
    disc = ((rows - 0.45) ** 2 + (columns - 0.4) ** 2 < 0.09).astype(np.float32)
    result = preprocess(disc)
    step = GRID // cells
    coarse = (result.grid / 255).reshape(cells, step, cells, step).mean((1, 3))
    back = to_image(coarse, result.geometry) > 0.5
    dice = 2 * (back & (disc > 0)).sum() / (back.sum() + disc.sum())
    assert dice > 0.985


def test_the_image_is_given_back_pixel_for_pixel_where_it_was_not_shrunk():
    geometry = Letterbox(256, 256, 0, 0, 256, 256)
    maps = np.random.default_rng(1).random((2, 256, 256), np.float32)
    assert np.array_equal(to_image(maps, geometry), maps)


def test_the_input_is_never_written_to():
    pixels = RAMP.copy()
    pixels.setflags(write=False)
    preprocess(pixels)


def test_five_megapixels_take_milliseconds_not_tenths_of_a_second():
    pixels = np.random.default_rng(1).integers(0, 4096, (2500, 2048)).astype(np.uint16)
    best = min(_seconds(pixels) for _ in range(5))
    assert best < 0.06, f"{best * 1000:.1f} ms"


def _seconds(pixels):
    start = time.perf_counter()
    preprocess(pixels)
    return time.perf_counter() - start


@pytest.mark.parametrize("aspect", [0.5, 1.25, 2.0])
def test_pixels_that_are_not_square_are_shown_in_proportion(aspect):
    square = np.add.outer(np.arange(240) ** 1.5, 3 * np.arange(200)).astype(np.float32)
    stretched = cv2.resize(square, (200, round(240 / aspect)), interpolation=cv2.INTER_AREA)
    plain, found = preprocess(square), preprocess(stretched, aspect=aspect)
    assert (found.geometry.height, found.geometry.width) == (plain.geometry.height, plain.geometry.width)
    assert np.abs(found.grid.astype(int) - plain.grid).max() <= 4
    assert shrink(stretched, 120, aspect).shape == shrink(square, 120).shape
