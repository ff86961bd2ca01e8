"""Chests drawn by formula, with their truth: for golden inputs and quick tests, where no patient's image may be."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from services.inference.preprocessing import GRID, preprocess


def chest(rng: Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A grid uint8 [256, 256] and its masks bool [4, 256, 256] in the order of the channels."""
    middle = 128 + rng.uniform(-6, 6)
    top, bottom = rng.uniform(24, 44), rng.uniform(196, 222)
    half, gap = rng.uniform(82, 96), rng.uniform(13, 18)
    y, x = np.mgrid[:GRID, :GRID].astype(np.float64)
    across = np.abs(x - middle)
    height = np.clip((y - top) / (bottom - top), 0, 1)
    apex = np.sqrt(1 - (1 - np.clip(height * 5, 0, 1)) ** 2)
    outer = gap + (half - gap) * apex * (0.62 + 0.38 * height**0.8)
    inner = gap + 10 * np.clip(1 - height * 8, 0, 1)
    sides = []
    for sign, lower in ((-1, 0.0), (1, 8.0)):
        offset = (x - middle) * sign
        share = np.clip((offset - gap) / (half - gap), 0, 1)
        dome = bottom - 26 + lower - 12 * np.sin(np.pi * share**0.8) + 26 * share**3
        sides.append((offset > inner) & (offset < outer) & (y > top) & (y < dome))
    heart = _ellipse((int(middle + 16), int(bottom - 58)), (int(rng.uniform(44, 52)), int(rng.uniform(33, 40))), 38.0)
    behind = (x > middle + gap) & (across < outer * 0.97) & (y > top) & (y < bottom - 14)
    right, left = sides[0] & ~heart, sides[1] & ~heart
    full = right | left | (behind & (heart | sides[1])) | (sides[0] & heart)
    trunk = half + 14 + 16 * np.clip((90 - y) / 90, 0, 1)
    body = np.clip((trunk - across) / 10, 0, 1) ** 0.7 * np.clip((y + 60) / 90, 0, 1)
    image = (
        0.62 * body + 0.3 * np.exp(-((across / (gap + 4)) ** 4)) + 0.12 * np.clip((y - bottom + 40) / 50, 0, 1) * body
    )
    image = image + 0.14 * heart - (0.42 + 0.06 * np.sin(x / 9) * np.sin(y / 11)) * (right | left)
    for k in range(10):
        rib = top - 4 + k * (bottom - top) / 9.5 + 0.0035 * (across - 46) ** 2
        image += 0.09 * body * np.exp(-(((y - rib) / 3.5) ** 2)) * (across > gap + 2) * (across < trunk - 6)
    collar = top + 20 - 0.16 * across
    image += 0.1 * np.exp(-(((y - collar) / 4) ** 2)) * (across > gap - 3) * (across < half)
    soft = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 1.8)
    grid = preprocess(soft + 0.01 * rng.standard_normal((GRID, GRID)).astype(np.float32)).grid
    return grid, np.stack((right, left, heart, full))


def _ellipse(centre: tuple[int, int], axes: tuple[int, int], angle: float) -> NDArray[np.bool_]:
    drawn = np.zeros((GRID, GRID), np.uint8)
    cv2.ellipse(drawn, centre, axes, angle, 0, 360, 1, -1)
    return drawn > 0
