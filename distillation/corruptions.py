"""Faults of detectors, exposure and hands that no training image shows, and occlusion, in five severities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from services.inference.preprocessing import GRID, HIGH_PERCENTILE, LOW_PERCENTILE, Letterbox

Image = NDArray[Any]  # float32 [256, 256], 0..1
SEVERITIES = (1, 2, 3, 4, 5)


def corrupted(grid: NDArray[np.uint8], box: Letterbox, family: str, severity: int, rng: Generator) -> NDArray[np.uint8]:
    """A grid uint8 [256, 256] as serving would see the faulty image: stretched anew inside its letterbox."""
    change = {**FAMILIES, **OCCLUSION}[family]
    image = change(grid.astype(np.float32) / 255, severity, rng)
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    low, high = np.percentile(image[rows, columns], (LOW_PERCENTILE, HIGH_PERCENTILE))
    made = np.zeros_like(grid)
    if high > low:
        made[rows, columns] = np.rint(np.clip((image[rows, columns] - low) / (high - low), 0, 1) * 255)
    return made


def _dead_pixels(image: Image, severity: int, rng: Generator) -> Image:
    hit = rng.random(image.shape) < (0.002, 0.006, 0.015, 0.04, 0.1)[severity - 1]
    return np.asarray(np.where(hit, np.float32(rng.random(image.shape) > 0.5), image))


def _dead_lines(image: Image, severity: int, rng: Generator) -> Image:
    image = image.copy()
    lines = rng.choice(GRID, (1, 3, 6, 12, 25)[severity - 1], replace=False)
    image[lines] = rng.random((len(lines), 1)) > 0.5
    return image


def _motion(image: Image, severity: int, rng: Generator) -> Image:
    """The patient moved: smeared along one direction."""
    length = (3, 5, 8, 12, 18)[severity - 1]
    kernel = np.zeros((2 * length + 1,) * 2, np.float32)
    angle = rng.uniform(0, np.pi)
    half = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    ends = (np.rint(length - half).astype(int).tolist(), np.rint(length + half).astype(int).tolist())
    cv2.line(kernel, *ends, 1.0)
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE))


def _defocus(image: Image, severity: int, rng: Generator) -> Image:
    radius = (1, 2, 3, 4, 6)[severity - 1]
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = (x**2 + y**2 <= radius**2).astype(np.float32)
    return np.asarray(cv2.filter2D(image, -1, disc / disc.sum(), borderType=cv2.BORDER_REPLICATE))


def _posterised(image: Image, severity: int, rng: Generator) -> Image:
    levels = (32, 16, 10, 7, 5)[severity - 1]
    return np.asarray(np.rint(image * levels) / np.float32(levels))


def _ghost(image: Image, severity: int, rng: Generator) -> Image:
    """The last exposure has not left the detector."""
    dy, dx = rng.integers(12, 60, 2) * rng.choice((-1, 1), 2)
    share = np.float32((0.06, 0.1, 0.16, 0.24, 0.34)[severity - 1])
    return np.asarray(image * (1 - share) + share * np.roll(image, (int(dy), int(dx)), (0, 1)))


def _veil(image: Image, severity: int, rng: Generator) -> Image:
    """Scatter: a broad light from one place, strongest there."""
    y, x = (np.mgrid[:GRID, :GRID] / GRID - rng.uniform(0.2, 0.8, (2, 1, 1))).astype(np.float32)
    strength = np.float32((0.15, 0.25, 0.4, 0.6, 0.8)[severity - 1])
    glow = np.exp(-(x**2 + y**2) / np.float32(0.18)) * strength
    return np.asarray(image * (1 - glow) + glow)


def _step(image: Image, severity: int, rng: Generator) -> Image:
    """Two panels of a detector read out with different gain."""
    seam, image = int(rng.integers(GRID // 4, 3 * GRID // 4)), image.copy()
    part = (slice(seam, None), slice(None)) if rng.random() < 0.5 else (slice(None), slice(seam, None))
    image[part] *= np.float32((0.95, 0.9, 0.8, 0.7, 0.55)[severity - 1])
    return image


def _moire(image: Image, severity: int, rng: Generator) -> Image:
    """Scan lines of a digitiser against those of a grid: a beat in both directions."""
    y, x = np.mgrid[:GRID, :GRID].astype(np.float32)
    waves = np.sin(x * np.float32(rng.uniform(0.2, 0.9))) * np.sin(y * np.float32(rng.uniform(0.2, 0.9)))
    return np.asarray(image + np.float32((0.02, 0.04, 0.08, 0.12, 0.2)[severity - 1]) * waves)


def _hidden(image: Image, severity: int, rng: Generator) -> Image:
    """A thing that nothing shines through lies on the chest: a disc of 2 to 10 % of the picture, dark or bright."""
    image = image.copy()
    radius = int(np.sqrt((0.02, 0.035, 0.05, 0.075, 0.1)[severity - 1] / np.pi) * GRID)
    centre = rng.integers(GRID // 4, 3 * GRID // 4, 2).tolist()
    cv2.circle(image, centre, radius, float(rng.choice((0.0, 1.0))), -1, cv2.LINE_AA)
    return image


FAMILIES: dict[str, Callable[[Image, int, Generator], Image]] = {
    "dead pixels": _dead_pixels, "dead lines": _dead_lines, "motion": _motion, "defocus": _defocus,
    "posterised": _posterised, "ghost": _ghost, "veil": _veil, "step": _step, "moire": _moire,
}  # fmt: skip
OCCLUSION: dict[str, Callable[[Image, int, Generator], Image]] = {"occlusion": _hidden}
