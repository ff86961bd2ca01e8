"""Chests drawn by formula, with their truth: for golden inputs and quick tests, where no patient's image may be."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from services.inference.preprocessing import GRID, preprocess


def chest(rng: Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A grid uint8 [256, 256] and its masks bool [4, 256, 256] in the order of the channels."""
    middle = 128 + rng.uniform(-8, 8)
    top, bottom = rng.uniform(38, 62), rng.uniform(180, 208)
    half, gap = rng.uniform(58, 74), rng.uniform(15, 21)
    y, x = np.mgrid[:GRID, :GRID].astype(np.float64)
    height = np.clip((y - top) / (bottom - top), 0, 1)
    sides = []
    for sign in (-1, 1):
        outer = half * np.sqrt(np.clip(1 - (1 - height) ** 2.6, 0, 1)) * (0.82 + 0.18 * height)
        offset = (x - middle) * sign
        dome = bottom - 16 - 14 * np.cos((offset - gap - 20) / 34) + (10 if sign > 0 else 0)
        sides.append((offset > gap) & (offset < outer) & (y > top) & (y < np.maximum(dome, top)))
    low = bottom - 34
    centre, axes = (int(middle + 14), int(low)), (int(rng.uniform(36, 46)), int(rng.uniform(26, 34)))
    heart = _ellipse(centre, axes, 28.0)
    full_left = (x > middle + gap) & (x < middle + half * 0.97) & (y > top) & (y < bottom) & (sides[1] | heart)
    right, left = sides[0] & ~heart, sides[1] & ~heart
    body = _ellipse((int(middle), 170), (int(half * 1.5), 178), 0.0)
    image = 0.55 * body + 0.12 * (np.abs(x - middle) < gap) + 0.12 * (heart & ~(right | left))
    image = image - 0.38 * (right | left) + 0.05 * body * (y > bottom - 12)
    for k in range(9):
        rib = top + 4 + k * (bottom - top) / 8.5 + 0.0022 * (np.abs(x - middle) - 20) ** 2
        image += 0.06 * body * np.exp(-(((y - rib) / 3.0) ** 2)) * (np.abs(x - middle) > gap)
    soft = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 1.6)
    grid = preprocess(soft + 0.012 * rng.standard_normal((GRID, GRID)).astype(np.float32)).grid
    return grid, np.stack((right, left, heart, right | left | full_left))


def _ellipse(centre: tuple[int, int], axes: tuple[int, int], angle: float) -> NDArray[np.bool_]:
    drawn = np.zeros((GRID, GRID), np.uint8)
    cv2.ellipse(drawn, centre, axes, angle, 0, 360, 1, -1)
    return drawn > 0
