"""What can be said of any image without a model: whether it is blank, whether its grey values are clipped, and
estimates of its depth, noise and sharpness."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from services.inference.findings import Value
from services.inference.preprocessing import GRID, Letterbox, letterbox

BLOCKS = 64
"""Blocks along the longer side in which structure is looked for; a block has at least 4 x 4 pixels."""

_LEAST_BLOCKS = 4
_LEAST_SIDE = 64  # pixels
_NEAR = 1 / 256
"""Share of the range that still counts as its end: one grey value in 8 bits, what a lossy codec spreads."""
_CENTRE = 0.6
"""Share of each side that the central box takes: inside the collimation and the air of a usual exposure."""
_MANY = 2 << 20
"""Pixels beyond which an image is thinned out before it is measured."""
_PART = 1024
"""Rows and columns of the central part in which noise and sharpness are estimated."""
_NEARLY_ALL = 0.995
"""Share of the pixels on one value that makes an image blank whatever the rest is."""
_MARKER = 0.04
"""Share of the blocks that lettering and side markers may take on an image that is blank all the same."""


@dataclass(frozen=True)
class Range:
    """Ends of the grey values, and how many pixels lie on them.

    low, high: least and greatest stored value, padding left out.
    at_low, at_high: share of the pixels at each end, float32 [256, 256] over the letterbox; zero outside it.
    """

    low: float
    high: float
    at_low: NDArray[np.float32]
    at_high: NDArray[np.float32]
    geometry: Letterbox

    def in_centre(self) -> tuple[float, float]:
        """Shares at the lower and the upper end in the central box of the image."""
        where = self.geometry
        rows, columns = (
            slice(start + round(length * (1 - _CENTRE) / 2), start + max(1, round(length * (1 + _CENTRE) / 2)))
            for start, length in ((where.top, where.height), (where.left, where.width))
        )
        return float(self.at_low[rows, columns].mean()), float(self.at_high[rows, columns].mean())

    def within(self, region: NDArray[np.bool_]) -> tuple[float, float]:
        """Shares at the lower and the upper end in a region of the grid, bool [256, 256], not empty."""
        return float(self.at_low[region].mean()), float(self.at_high[region].mean())


def grey_range(values: NDArray[Any], padding: NDArray[np.bool_] | None = None, aspect: float = 1.0) -> Range:
    """Where the grey values of `values` [rows, columns] end; `padding` marks pixels that show nothing. aspect: of
    `preprocessing.letterbox`."""
    where = letterbox(values.shape[0], values.shape[1], aspect)
    seen = values if padding is None or padding.all() else values[~padding]
    low, high = float(seen.min()), float(seen.max())
    near = (high - low) * _NEAR
    values, padding = _thinned(values), None if padding is None else _thinned(padding)
    at_low, at_high = values <= low + near, values >= high - near
    if padding is not None:
        at_low, at_high = at_low & ~padding, at_high & ~padding
    return Range(low, high, _shares(at_low, where), _shares(at_high, where), where)


def structure(values: NDArray[Any], *, shading: bool = True) -> float | None:
    """How far the picture is from an empty one: what remains of its shape once border and shading are taken out, in
    multiples of the noise. An empty exposure has up to 3, the faintest radiographs have 8. None for an image with a
    side of less than 16 pixels, and for one of several values with a side of less than 64, whose blocks are too few to
    tell a picture from noise.

    Nearly all pixels of one value are nothing at once. Else uniform borders are trimmed from the means of blocks, a
    quadratic surface (heel effect, flat field) is subtracted, and the spread between percentiles 4 and 96, so that a
    side marker does not count, is held against the noise: the standard deviation within the quieter quarter of the
    blocks, or the rounding of the grey values. Where there is no `shading` (colour), neither
    border nor surface is taken out.
    """
    values = _thinned(values)
    means, spreads = _blocks(values)
    if min(means.shape) < _LEAST_BLOCKS:
        return None
    if _of_one_value(values) >= _NEARLY_ALL:
        return 0.0
    if min(values.shape) < _LEAST_SIDE:
        return None
    least = max(0.3 if values.dtype.kind in "iu" else 0.0, float(np.ptp(means)) * 1e-4, 1e-12)
    inside = _trimmed(means, 2 * max(least, _quiet(spreads))) if shading else (slice(None), slice(None))
    inner = means[inside]
    if min(inner.shape) < _LEAST_BLOCKS:
        return 0.0
    shape = _flattened(inner) if shading else inner.ravel()
    low, high = np.percentile(shape, (100 * _MARKER, 100 - 100 * _MARKER))
    return float((high - low) / max(least, _quiet(spreads[inside])))


def _thinned(values: NDArray[Any]) -> NDArray[Any]:
    """Every so many rows and columns, so that large images cost no more than middling ones."""
    step = math.ceil(math.sqrt(values.size / _MANY))
    return values if step <= 1 else np.ascontiguousarray(values[::step, ::step])


def _of_one_value(values: NDArray[Any]) -> float:
    """Share of the pixels that lie within one grey value in 256 of the median."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return 1.0
    stride = max(1, min(values.shape) // 512)
    middle, near = float(np.median(values[::stride, ::stride])), (high - low) * _NEAR
    return float(np.count_nonzero((values >= middle - near) & (values <= middle + near)) / values.size)


def _blocks(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each block; what is left over at the lower and right edge does not count."""
    side = max(4, min(max(values.shape) // BLOCKS, min(values.shape) // (2 * _LEAST_BLOCKS)))
    rows, columns = (max(1, length // side) for length in values.shape)
    whole = values[: rows * side, : columns * side].astype(np.float32)
    whole -= whole.mean()
    means = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float64)
    np.multiply(whole, whole, out=whole)
    squares = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float64)
    return means, np.sqrt(np.maximum(squares - means * means, 0.0))


def _quiet(spreads: NDArray[np.float64]) -> float:
    return float(np.percentile(spreads, 25))


def _trimmed(means: NDArray[np.float64], tolerance: float) -> tuple[slice, slice]:
    """The rows and columns inside uniform borders, less the blocks that lie half on them."""
    top, bottom, left, right = 0, means.shape[0], 0, means.shape[1]
    for _ in range(2):  # corners hide what is uniform in the first round
        inner = means[top:bottom, left:right]
        top, bottom = top + _uniform(inner, tolerance), bottom - _uniform(inner[::-1], tolerance)
        inner = means[top:bottom, left:right].T
        left, right = left + _uniform(inner, tolerance), right - _uniform(inner[::-1], tolerance)
    return slice(top, max(top, bottom)), slice(left, max(left, right))


def _uniform(rows: NDArray[np.float64], tolerance: float) -> int:
    """How many leading rows are uniform and alike, and the one after them."""
    if rows.size == 0:
        return 0
    for index, row in enumerate(rows):
        if np.ptp(row) > tolerance or abs(row.mean() - rows[0].mean()) > tolerance:
            return index + (index > 0)
    return len(rows)


def _flattened(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Less its best quadratic surface."""
    y, x = (axis.ravel() / max(means.shape) for axis in np.indices(means.shape))
    terms = np.stack((np.ones_like(x), x, y, x * x, x * y, y * y), 1)
    fitted, *_ = np.linalg.lstsq(terms, means.ravel(), rcond=None)
    return np.asarray(means.ravel() - terms @ fitted)


def _shares(plane: NDArray[np.bool_], where: Letterbox) -> NDArray[np.float32]:
    grid = np.zeros((GRID, GRID), np.float32)
    box = grid[where.top : where.top + where.height, where.left : where.left + where.width]
    shrunk = cv2.resize(plane.view(np.uint8) * np.uint8(255), (where.width, where.height), interpolation=cv2.INTER_AREA)
    box[:] = shrunk / np.float32(255)
    return grid


def estimates(values: NDArray[Any]) -> Iterator[Value]:
    """Grey levels, noise and sharpness of a grey picture [rows, columns]; the last two of its central part, in the
    spacing of its own pixels, and only where that has 32 rows and columns and more than one value."""
    yield Value("grey_levels", float(_levels(_thinned(values))), "{levels}")
    rows, columns = (slice((n - min(n, _PART)) // 2, (n + min(n, _PART)) // 2) for n in values.shape)
    part = values[rows, columns].astype(np.float32)
    low, high = (float(end) for end in np.percentile(part[::4, ::4], (1, 99))) if min(part.shape) >= 32 else (0.0, 0.0)
    if not high > low:
        return
    part -= low
    part /= high - low
    np.clip(part, -1.0, 2.0, out=part)
    yield Value("noise", _noise(part))
    steep, blurred = (_steepest(part, sigma) for sigma in (1.0, 2.0))
    if blurred > 0:
        yield Value("sharpness", steep / blurred)


def _levels(values: NDArray[Any]) -> int:
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        levels = 1 << 8 * values.dtype.itemsize
        plane = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
        return int(np.count_nonzero(cv2.calcHist([plane], [0], None, [levels], [0, levels])))
    return len(np.unique(values))


def _median(values: NDArray[np.float32]) -> np.float32:
    """`np.median` of [n], n above 0, in a tenth of its time for many: a sample tells between which values it lies, and
    only those are put in order."""
    first, last = (len(values) - 1) // 2, len(values) // 2
    sample = np.sort(values[:: max(1, len(values) // 4096)])
    middle, near = len(sample) // 2, 2 * math.isqrt(len(sample))
    low, high = sample[max(0, middle - near)], sample[min(len(sample) - 1, middle + near)]
    below, between = int(np.count_nonzero(values < low)), values[(values >= low) & (values <= high)]
    if below <= first and last < below + len(between):
        values, first, last = between, first - below, last - below
    return np.float32(np.mean(np.partition(values, (first, last))[first : last + 1]))


def _noise(part: NDArray[np.float32]) -> float:
    """By the difference of two Laplacians, which is blind to slopes and curves (Immerkaer 1996)."""
    residue = cv2.filter2D(part, -1, np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32))
    inside = np.asarray(residue[1:-1, 1:-1], np.float32).ravel()
    return float(_median(np.abs(inside, out=inside))) / (0.6745 * 6)


def _steepest(part: NDArray[np.float32], sigma: float) -> float:
    """The slope that one pixel in 200 reaches, after a blur of `sigma` pixels; of every other row and column."""
    soft = cv2.GaussianBlur(part, (0, 0), sigma)
    across = cv2.Sobel(soft, cv2.CV_32F, 1, 0)[::2, ::2]
    down = cv2.Sobel(soft, cv2.CV_32F, 0, 1, soft)[::2, ::2]
    # Not cv2.magnitude, whose last bit depends on where in memory its buffers lie.
    return float(np.percentile(np.sqrt(across * across + down * down), 99.5))
