"""Pictures that are no chest radiographs, in families: some to train on, others kept for evaluation only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from services.inference.preprocessing import GRID, preprocess

Grid = NDArray[np.uint8]


def _stretch(image: Any) -> Grid:
    return preprocess(np.asarray(image, np.float32)).grid


def _noise(rng: Generator) -> Grid:
    noise = rng.standard_normal((GRID, GRID), np.float32)
    return _stretch(cv2.GaussianBlur(noise, (0, 0), float(rng.uniform(0.1, 3))))


def _clouds(rng: Generator) -> Grid:
    image = np.zeros((GRID, GRID), np.float32)
    for side in (2, 4, 8, 16, 32, 64):
        octave = rng.standard_normal((side, side)).astype(np.float32) / np.float32(side ** rng.uniform(0.2, 1))
        image += cv2.resize(octave, (GRID, GRID), interpolation=cv2.INTER_CUBIC)
    return _stretch(image)


def _gradient(rng: Generator) -> Grid:
    y, x = np.mgrid[:GRID, :GRID] / GRID
    image = rng.normal() * x + rng.normal() * y + rng.normal() * (x - rng.random()) ** 2 + rng.normal() * (y - 0.5) ** 2
    return _stretch(image + rng.uniform(0, 0.05) * rng.standard_normal((GRID, GRID)))


def _page(rng: Generator) -> Grid:
    image = np.full((GRID, GRID), 255, np.uint8)
    size = float(rng.uniform(0.25, 0.7))
    for y in range(int(rng.integers(8, 24)), GRID, int(40 * size) + 4):
        words = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz    .,"), int(rng.integers(3, 40))))
        cv2.putText(
            image,
            words,
            (int(rng.integers(2, 30)), y),
            int(rng.integers(0, 4)),
            size,
            int(rng.integers(0, 90)),
            1,
            cv2.LINE_AA,
        )
    return 255 - image if rng.random() < 0.5 else image


def _shapes(rng: Generator) -> Grid:
    image = np.full((GRID, GRID), float(rng.random()), np.float32)
    for _ in range(int(rng.integers(1, 9))):
        centre, axes = rng.integers(0, GRID, 2), rng.integers(5, 110, 2)
        cv2.ellipse(
            image,
            centre.tolist(),
            axes.tolist(),
            float(rng.uniform(0, 180)),
            0,
            360,
            float(rng.random()),
            -1,
            cv2.LINE_AA,
        )
    soft = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.3, 6)))
    return _stretch(soft + rng.uniform(0, 0.08) * rng.standard_normal((GRID, GRID)))


def _limb(rng: Generator) -> Grid:
    """Soft tissue with one or two long bones, as a limb shows."""
    image = np.zeros((GRID, GRID), np.float32)
    wide, lean = int(rng.integers(40, 100)), int(rng.integers(-40, 40))
    for thick, bright in ((wide, 0.3), (int(wide * 0.45), 0.7), (int(wide * 0.3), 0.55)):
        for offset in (-wide // 5, wide // 5) if thick < wide and wide > 65 else (0,):
            ends = ((128 + offset - lean, -20), (128 + offset + lean, 276))
            cv2.line(image, *ends, bright, max(thick // (2 if offset else 1), 3), cv2.LINE_AA)
    soft = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(1.5, 5))) + 0.03 * rng.standard_normal((GRID, GRID))
    return np.ascontiguousarray(np.rot90(_stretch(soft), int(rng.integers(4))))


def _disc_slice(rng: Generator) -> Grid:
    """An axial slice: a bright round body with dark and bright organs on a black field."""
    image = np.zeros((GRID, GRID), np.float32)
    axes = (int(rng.integers(70, 115)), int(rng.integers(55, 105)))
    cv2.ellipse(image, (128, 128), axes, float(rng.uniform(-8, 8)), 0, 360, 0.5, -1, cv2.LINE_AA)
    for _ in range(int(rng.integers(3, 12))):
        centre = (128 + rng.uniform(-0.7, 0.7, 2) * axes).astype(int)
        organ = rng.integers(4, 32, 2)
        cv2.ellipse(
            image, centre.tolist(), organ.tolist(), float(rng.uniform(0, 180)), 0, 360, float(rng.uniform(0.1, 1)), -1
        )
    return _stretch(cv2.GaussianBlur(image, (0, 0), 1.2) + 0.03 * rng.standard_normal((GRID, GRID)))


def _fan(rng: Generator) -> Grid:
    """An ultrasound sector: speckle in a fan on black."""
    speckle = cv2.GaussianBlur(
        rng.standard_normal((GRID, GRID)).astype(np.float32) ** 2, (0, 0), float(rng.uniform(0.7, 2))
    )
    fan = np.zeros((GRID, GRID), np.float32)
    half = float(rng.uniform(25, 45))
    cv2.ellipse(fan, (128, 10), (235, 235), 90, -half, half, 1.0, -1)
    return _stretch(fan * speckle * np.asarray(cv2.resize(rng.random((6, 6)).astype(np.float32), (GRID, GRID))))


def _stripes(rng: Generator) -> Grid:
    y, x = np.mgrid[:GRID, :GRID]
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 60)
    return _stretch(np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period))


def _chequers(rng: Generator) -> Grid:
    side = int(rng.integers(6, 50))
    y, x = np.mgrid[:GRID, :GRID] // side
    return _stretch((x + y) % 2 + rng.uniform(0, 0.2) * rng.standard_normal((GRID, GRID)))


def _cells(rng: Generator) -> Grid:
    points = rng.integers(0, GRID, (int(rng.integers(8, 60)), 2))
    y, x = np.mgrid[:GRID:2, :GRID:2]
    nearest = np.argmin((y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2, axis=-1)
    return _stretch(
        cv2.resize(rng.random(len(points)).astype(np.float32)[nearest], (GRID, GRID), interpolation=cv2.INTER_NEAREST)
    )


def _rings(rng: Generator) -> Grid:
    y, x = np.mgrid[:GRID, :GRID] - rng.uniform(60, 196, (2, 1, 1))
    return _stretch(np.cos(np.hypot(x, y) * rng.uniform(0.05, 0.6)))


TRAINED: dict[str, Callable[[Generator], Grid]] = {
    "noise": _noise, "clouds": _clouds, "gradient": _gradient, "page": _page, "shapes": _shapes,
    "axial slice": _disc_slice, "stripes": _stripes,
}  # fmt: skip
NEVER_TRAINED: dict[str, Callable[[Generator], Grid]] = {
    "limb": _limb, "ultrasound fan": _fan, "chequers": _chequers, "cells": _cells, "rings": _rings,
}  # fmt: skip


def crop(grid: Grid, rng: Generator) -> Grid:
    """A small part of a radiograph: too little to be one."""
    side = int(rng.integers(28, 72))
    top, left = rng.integers(0, GRID - side, 2)
    return preprocess(np.ascontiguousarray(grid[top : top + side, left : left + side])).grid


def shuffled(grid: Grid, rng: Generator) -> Grid:
    """The pieces of a radiograph in another order."""
    n = int(rng.choice((2, 4, 8)))
    tiles = grid.reshape(n, GRID // n, n, GRID // n).swapaxes(1, 2).reshape(-1, GRID // n, GRID // n)
    order = rng.permutation(len(tiles))
    if n == 2:
        order = np.roll(np.arange(4), int(rng.integers(1, 4)))
    return np.ascontiguousarray(tiles[order].reshape(n, n, GRID // n, -1).swapaxes(1, 2).reshape(GRID, GRID))


def trained(grid: Grid, rng: Generator) -> Grid:
    """One negative to train on; `grid` is a radiograph for the families made of radiographs."""
    choice = int(rng.integers(len(TRAINED) + 3))
    if choice < len(TRAINED):
        return list(TRAINED.values())[choice](rng)
    return shuffled(grid, rng) if choice == len(TRAINED) else crop(grid, rng)


def read_objects(folder: Path) -> dict[str, list[Grid]]:
    """Non-chest DICOM objects by modality, one grid a file (the middle frame); what cannot be read is passed over."""
    import pydicom

    found: dict[str, list[Grid]] = {}
    for path in sorted(folder.rglob("*.dcm")):
        try:
            data = pydicom.dcmread(path)
            modality = str(data.get("Modality", ""))
            if modality not in ("CT", "MR", "US", "NM", "PT"):
                continue
            pixels = data.pixel_array
            if data.get("SamplesPerPixel", 1) == 3:
                pixels = pixels.mean(-1)
            frame = pixels[len(pixels) // 2] if pixels.ndim == 3 else pixels
            found.setdefault(modality, []).append(preprocess(np.asarray(frame, np.float32)).grid)
        except Exception:  # noqa: BLE001, S112 - a test object made to be broken is no picture
            continue
    return found
