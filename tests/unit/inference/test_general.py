"""Blank and clipped images, told from pictures without any model."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from services.inference import general, thresholds
from shared import phantom
from tests.unit.inference.conftest import chest

RNG = np.random.default_rng(7)


def _marked(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    marked = image.copy()
    cv2.putText(marked, "L", (600, 150), cv2.FONT_HERSHEY_SIMPLEX, 4, (250,), 20)
    return marked


EMPTY: dict[str, NDArray[Any]] = {
    "zeros": np.zeros((500, 400), np.uint8),
    "one value": np.full((1000, 800), 1000, np.uint16),
    "white noise": RNG.normal(1000, 50, (1000, 800)).astype(np.uint16),
    "noise over the whole range": RNG.integers(0, 4096, (1500, 1500)).astype(np.uint16),
    "small noise": RNG.integers(0, 255, (64, 64)).astype(np.uint8),
    "Poisson noise": RNG.poisson(30, (512, 512)).astype(np.uint16),
    "correlated noise": cv2.GaussianBlur(RNG.normal(1000, 50, (1000, 800)).astype(np.float32), (0, 0), 3),
    "a border": np.pad(np.full((800, 600), 3000, np.uint16), 100),
    "noise in a border": np.pad(RNG.normal(3000, 30, (800, 600)).astype(np.uint16), 100),
    "noise in a wide border": np.pad(RNG.normal(3000, 30, (800, 600)).astype(np.uint16), 400, constant_values=200),
    "shading": np.tile(np.linspace(1000, 1400, 1000), (800, 1)).astype(np.uint16),
    "shading with noise": (np.tile(np.linspace(1000, 1400, 1000), (800, 1)) + RNG.normal(0, 15, (800, 1000))).astype(
        np.uint16
    ),
    "a few hot pixels": (RNG.random((1000, 1000)) < 0.001).astype(np.uint8) * np.uint8(255),
    "a side marker": _marked(RNG.normal(100, 3, (1000, 800)).astype(np.uint8)),
    "noise after JPEG": cv2.imdecode(cv2.imencode(".jpg", RNG.normal(128, 3, (600, 600)).astype(np.uint8))[1], 0),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_an_empty_exposure_is_blank_whatever_noise_border_or_shading_it_has(kind: str) -> None:
    found = general.structure(EMPTY[kind])
    assert found is not None
    assert found < thresholds.STRUCTURE.fail


@pytest.mark.parametrize("contrast", [1.0, 0.05, 0.01])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_chest_is_not_blank_however_low_its_contrast(seed: int, contrast: float) -> None:
    image = chest(seed).image
    flat = (1000 + image * contrast).astype(np.uint16)
    found = general.structure(flat)
    assert found is not None
    assert found > 2 * thresholds.STRUCTURE.warn


def test_a_small_picture_is_not_called_empty_unless_it_is_of_one_value() -> None:
    small = np.random.default_rng(0).integers(0, 4000, (16, 16)).astype(np.uint16)
    assert general.structure(small) is None
    assert general.structure(np.full((32, 32), 7, np.uint16)) == 0.0


def test_an_image_of_a_few_pixels_cannot_be_told() -> None:
    assert general.structure(np.zeros((15, 400), np.uint8)) is None
    assert general.structure(np.zeros((1, 1), np.uint8)) is None


def test_a_colour_ramp_is_a_picture() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    found = general.structure(ramp, shading=False)
    assert found is not None
    assert found > thresholds.STRUCTURE.warn


def test_the_ends_of_the_grey_values_are_counted_where_they_lie() -> None:
    image = np.full((400, 200), 500, np.uint16)
    image[:, :100] = 0
    image[0, 199] = 1000
    found = general.grey_range(image)
    assert (found.low, found.high) == (0, 1000)
    low, high = found.in_centre()
    assert low == pytest.approx(0.5, abs=0.02)
    assert high == 0


def test_padding_is_no_clipping() -> None:
    image = np.full((200, 200), 500, np.uint16)
    image[::2, ::2] = 700
    padding = np.zeros(image.shape, np.bool_)
    padding[:100] = True
    image[padding] = 0
    assert general.grey_range(image, padding).low == 500
    assert general.grey_range(image, padding).at_low[:120].max() == 0


def test_air_beside_the_patient_is_no_clipping() -> None:
    low, high = general.grey_range(chest(1).image).in_centre()
    assert max(low, high) < thresholds.CLIPPED_CENTRE.warn


def test_a_clipped_chest_is_found_at_either_end() -> None:
    over = general.grey_range(phantom.saturated(chest(1), 0.4).image).in_centre()
    assert over[1] > thresholds.CLIPPED_CENTRE.fail
    image = chest(1).image.astype(np.int32)
    under = general.grey_range(np.clip(image - np.quantile(image, 0.4), 0, None).astype(np.uint16)).in_centre()
    assert under[0] > thresholds.CLIPPED_CENTRE.fail


def test_the_largest_images_are_thinned_out() -> None:
    wide = np.zeros((1000, 30_000), np.uint8)
    wide[:, ::2] = 255
    assert general.structure(wide) is not None
    assert general.grey_range(wide).at_high.shape == (256, 256)


def estimated(values: NDArray[Any]) -> dict[str, float]:
    """Name -> value of the estimates."""
    return {one.name: one.value for one in general.estimates(values)}


def test_less_exposure_is_more_noise_and_blur_is_less_sharp() -> None:
    drawn = {share: phantom.chest(4, columns=512, rows=640, exposure=share).image for share in (1.0, 0.25, 0.0625)}
    noise = [estimated(image)["noise"] for image in drawn.values()]
    assert noise == sorted(noise)
    assert noise[2] > 2.5 * noise[0]
    blurred = [estimated(cv2.GaussianBlur(drawn[1.0], (0, 0), sigma))["sharpness"] for sigma in (0.5, 1.5, 3.0)]
    assert blurred == sorted(blurred, reverse=True)


@pytest.mark.parametrize(
    "values", [np.zeros((40, 40), np.uint8), np.ones((3, 900), np.int16), np.eye(2, dtype=np.float32)]
)
def test_where_nothing_can_be_estimated_only_the_levels_are_counted(values: NDArray[Any]) -> None:
    assert set(estimated(values)) == {"grey_levels"}


def test_sharpness_is_of_slopes_to_their_last_bit_wherever_in_memory_they_lie() -> None:
    for size in ((65, 67), (200, 333), (64, 64), (90, 1100)):
        part = RNG.normal(size=size).astype(np.float32)
        soft = cv2.GaussianBlur(part, (0, 0), 1.0)
        across, down = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
        slopes = np.sqrt(across * across + down * down)
        assert general._steepest(part, 1.0) == np.percentile(slopes[::2, ::2], 99.5)


@pytest.mark.parametrize("count", [1, 2, 3, 4095, 4096, 100_000, 100_001])
@pytest.mark.parametrize("kind", ["spread", "few values", "in order", "nearly one value"])
def test_the_median_is_that_of_numpy(count: int, kind: str) -> None:
    drawn = np.random.default_rng(count).normal(size=count)
    values = {
        "spread": drawn,
        "few values": np.round(drawn),
        "in order": np.sort(drawn),
        "nearly one value": np.where(np.arange(count) < count // 3, drawn, 0.0),
    }[kind].astype(np.float32)
    found = general._median(values)
    assert found == np.median(values)
    assert found.dtype == np.median(values).dtype


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int16])
def test_every_level_counts_once(kind: type[Any]) -> None:
    ends = np.iinfo(kind)
    values = RNG.integers(ends.min, ends.max, (80, 90), endpoint=True).astype(kind)
    assert general._levels(values) == len(np.unique(values))
