"""The one way from pixels to the network's input, for training and for serving alike: pure, frozen, versioned.

Any change to what `preprocess` returns for any input needs a new `PREPROCESSING_VERSION` and a retrained model: the
digest of the grid stands in every record, and a replay starts from the grid.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

PREPROCESSING_VERSION = "1.0.0"
GRID = 256
LOW_PERCENTILE, HIGH_PERCENTILE = 1.0, 99.0

# What cv2 shrinks natively; everything else is widened first. Integers over 16 bits need the 53 bits of a double.
_NATIVE = {np.dtype(kind) for kind in (np.uint8, np.uint16, np.int16, np.float32, np.float64)}
_WIDENED = {"b": "u1", "i1": "i2", "f2": "f4"}


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Where an image of `rows` x `columns` pixels lies on the square grid: a box of `height` x `width` cells. aspect:
    height of its pixels over their width."""

    rows: int
    columns: int
    top: int
    left: int
    height: int
    width: int
    aspect: float = 1.0


@dataclass(frozen=True)
class Preprocessed:
    """The network's input and what is needed to read its answer.

    grid: uint8 [256, 256], bright is high; zero outside the letterbox. This is what is hashed, kept and replayed.
    geometry: the letterbox of the image on the grid.
    low, high: the values of the image, in its own units, that became 0 and 255 (equal: the image is constant).
    """

    grid: NDArray[np.uint8]
    geometry: Letterbox
    low: float
    high: float

    @property
    def tensor(self) -> NDArray[np.float32]:
        """Float32 [1, 1, 256, 256] in 0..1, a function of the grid alone."""
        return to_tensor(self.grid)

    @cached_property
    def grid_sha256(self) -> str:
        """Lower-case hexadecimal SHA-256 of the grid's bytes in row order."""
        return hashlib.sha256(self.grid.tobytes()).hexdigest()


def letterbox(rows: int, columns: int, aspect: float = 1.0) -> Letterbox:
    """The largest centred box in proportion to `rows` x `columns` pixels, each `aspect` times as high as wide; at least
    one cell thick."""
    tall = rows * aspect
    longest = max(tall, columns)
    height, width = max(1, round(tall * GRID / longest)), max(1, round(columns * GRID / longest))
    return Letterbox(rows, columns, (GRID - height) // 2, (GRID - width) // 2, height, width, aspect)


def to_tensor(grid: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Float32 [1, 1, 256, 256] in 0..1 of a grid uint8 [256, 256]."""
    return (grid.astype(np.float32) / np.float32(255.0))[None, None]


def preprocess(pixels: NDArray[Any], inverted: bool = False, aspect: float = 1.0) -> Preprocessed:
    """Shrink, letterbox and stretch one image.

    pixels: [rows, columns] of any integer, boolean or real floating type, any byte order, after the Modality LUT
        (PS3.3 C.11.1). Of the VOI LUT (C.11.2) what shows the whole picture has been heeded (`lookup_tables.as_shown`);
        a window on a part of it is an operator's choice, not the detector's.
        NaN counts as the lowest finite value, infinities as the finite ends.
    inverted: true for Photometric Interpretation MONOCHROME1, where the lowest value is white (PS3.3 C.7.6.3.1.2).
    aspect: height of a pixel over its width; the grid shows the patient in proportion.

    The shrinking is by area (no aliasing); percentiles 1 and 99 of the shrunken image, letterbox excluded, become 0
    and 255; a constant image becomes 0 everywhere.

    Raises ValueError for anything that is not such an array.
    """
    if pixels.ndim != 2 or pixels.size == 0:
        raise ValueError(f"a two-dimensional, non-empty array is needed, not one of {pixels.ndim} dimensions")
    if pixels.dtype.kind not in "buif":
        raise ValueError(f"pixels of integer or real floating type are needed, not {pixels.dtype.kind!r}")
    rows, columns = pixels.shape
    geometry = letterbox(rows, columns, aspect)
    size = (geometry.width, geometry.height)
    small = cv2.resize(_finite(_widened(pixels)), size, interpolation=cv2.INTER_AREA).astype(np.float64)
    low, high = (float(value) for value in np.percentile(small, (LOW_PERCENTILE, HIGH_PERCENTILE)))
    grid = np.zeros((GRID, GRID), np.uint8)
    box = grid[geometry.top : geometry.top + geometry.height, geometry.left : geometry.left + geometry.width]
    span = high - low
    if np.isfinite(span) and span > 0:
        fraction = (np.clip(small, low, high) - low) / span
        box[:] = np.rint((1.0 - fraction if inverted else fraction) * 255.0)
    return Preprocessed(grid, geometry, low, high)


def shrink(pixels: NDArray[Any], longest: int, aspect: float = 1.0) -> NDArray[np.float32]:
    """Pixels [rows, columns] as `preprocess` takes them, shrunk by area to `longest` at the longer side, or as they are
    where they are no larger; square, where they were `aspect` times as high as wide."""
    rows, columns = pixels.shape
    share = min(1.0, longest / max(rows * aspect, columns))
    size = (max(1, round(columns * share)), max(1, round(rows * aspect * share)))
    return cv2.resize(_finite(_widened(pixels)), size, interpolation=cv2.INTER_AREA).astype(np.float32)


def to_image(maps: NDArray[np.floating], geometry: Letterbox) -> NDArray[np.float32]:
    """Maps over the whole grid, brought back to the image's own pixels, bilinear.

    maps: logits or probabilities [..., h, w], h = w, where h divides or equals 256 (the network may answer coarser).
    Returns float32 [..., rows, columns].
    """
    planes = np.ascontiguousarray(maps, dtype=np.float32).reshape(-1, *maps.shape[-2:])
    rows = slice(geometry.top, geometry.top + geometry.height)
    columns = slice(geometry.left, geometry.left + geometry.width)
    own = np.empty((len(planes), geometry.rows, geometry.columns), np.float32)
    for plane, target in zip(planes, own, strict=True):
        fine = plane if plane.shape == (GRID, GRID) else cv2.resize(plane, (GRID, GRID), interpolation=cv2.INTER_LINEAR)
        inside = np.ascontiguousarray(fine[rows, columns])
        target[:] = cv2.resize(inside, (geometry.columns, geometry.rows), interpolation=cv2.INTER_LINEAR)
    return own.reshape(*maps.shape[:-2], geometry.rows, geometry.columns)


def _widened(pixels: NDArray[Any]) -> NDArray[Any]:
    """The same values in native byte order and a type that cv2 shrinks."""
    native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if native.dtype in _NATIVE:
        return np.ascontiguousarray(native)
    kind = native.dtype.kind if native.dtype.kind == "b" else f"{native.dtype.kind}{native.dtype.itemsize}"
    wide: NDArray[Any] = native.astype(_WIDENED.get(kind, "f8"))
    return wide


def _finite(pixels: NDArray[Any]) -> NDArray[Any]:
    """Floating values without NaN and infinities, small enough that sums and differences stay finite."""
    if pixels.dtype.kind != "f":
        return pixels
    limit = float(np.finfo(pixels.dtype).max) / (8.0 * max(pixels.size, 1))
    with np.errstate(invalid="ignore"):
        if bool(np.abs(pixels).max() <= limit):  # NaN compares false
            return pixels
    finite = pixels[np.isfinite(pixels)]
    if finite.size == 0:
        return np.zeros_like(pixels)
    lowest, highest = np.clip((finite.min(), finite.max()), -limit, limit)
    held: NDArray[Any] = np.clip(np.nan_to_num(pixels, nan=lowest, posinf=highest, neginf=lowest), lowest, highest)
    return held
