"""Masks of one bit a pixel are those of the logits enlarged as numbers, and their PNG is one that anybody reads."""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from services.inference import bilevel
from services.inference.preprocessing import GRID, letterbox, to_image

SIZES = ((2500, 2048), (1023, 1777), (300, 257), (64, 200), (1, 1), (1, 300), (300, 1), (7, 3))


def plane(seed: int, smooth: float) -> NDArray[np.float32]:
    """Values on both sides of 0 over the whole grid."""
    noise = np.random.default_rng(seed).normal(size=(GRID, GRID)).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), smooth), np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("smooth", [0.5, 6.0])
def test_a_mask_is_where_the_enlarged_plane_is_above_0(size: tuple[int, int], smooth: float) -> None:
    where, fine = letterbox(*size), plane(size[0], smooth)
    bits = bilevel.enlarged(fine, where)
    assert bits.shape == (size[0], (size[1] + 7) // 8)
    wrong = (to_image(fine, where) > 0) != (bilevel.unpacked(bits, size[1]) > 0)
    assert wrong.mean() < 1e-5  # a value may be 0 up to rounding


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_a_plane_of_one_value_is_all_outside_or_all_inside(value: float) -> None:
    bits = bilevel.enlarged(np.full((GRID, GRID), value, np.float32), letterbox(70, 50))
    assert set(np.unique(bilevel.unpacked(bits, 50))) == {255 if value > 0 else 0}


@pytest.mark.parametrize("size", SIZES)
def test_two_readers_of_png_see_the_mask(size: tuple[int, int]) -> None:
    bits = bilevel.enlarged(plane(3, 6.0), letterbox(*size))
    written, mask = bilevel.png(bits, size[1]), bilevel.unpacked(bits, size[1])
    decoded = cv2.imdecode(np.frombuffer(written, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    assert np.array_equal(decoded, mask)
    with Image.open(BytesIO(written), formats=["PNG"]) as picture:
        assert np.array_equal(np.asarray(picture.convert("L")), mask)


def test_the_mask_of_a_radiograph_takes_few_bytes() -> None:
    bits = bilevel.enlarged(plane(4, 12.0), letterbox(2500, 2048))
    assert len(bilevel.png(bits, 2048)) < 40_000
