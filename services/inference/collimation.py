"""Where the blades of the collimator end, and whether they end at the lungs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.inference import thresholds
from services.inference.chest import SIDES, Look, clear_cells, edge_box, measurable
from services.inference.findings import FAIL, NOT_ASSESSABLE, PASS, WARN, Value, finding
from services.inference.preprocessing import Preprocessed, preprocess
from stepwedge.common.v1.common_pb2 import Finding, Reason

Edges = tuple[int, int, int, int]
"""Cells of the letterbox behind the blade at the top, bottom, left and right of the image."""

_ALIKE = 10
"""Steps of the grid, of 255, by which what lies behind one blade may differ: scatter, lettering left out."""
_BRIGHT = 220
"""Step of the grid from which on a border counts as unexposed."""
_STEP = 8
"""Steps of the grid by which the first row in the field is darker, somewhere, than what lies behind the blade."""
_MOST = 0.4
"""Share of a side that a blade covers at most; a border that goes on further is something else."""


def blades(prepared: Preprocessed, field: tuple[int, int, int, int] | None) -> Edges:
    """What lies behind blades: by the header's open field (pixels), or else by a uniform white border of the grid."""
    where = prepared.geometry
    if field is not None:
        top, bottom, left, right = field
        down, across = where.height / where.rows, where.width / where.columns
        return (
            round(top * down),
            round((where.rows - bottom) * down),
            round(left * across),
            round((where.columns - right) * across),
        )
    box = prepared.grid[where.top : where.top + where.height, where.left : where.left + where.width]
    sides = (box, box[::-1], box.T, box.T[::-1])
    return tuple(_white(side) for side in sides)  # type: ignore[return-value]


def _white(rows: NDArray[np.uint8]) -> int:
    """Leading rows [n, m] that are white and alike from end to end, if the picture begins after them."""
    most = int(_MOST * len(rows))
    low, high = np.percentile(rows[: most + 1], (2, 98), axis=1)
    behind = (low >= _BRIGHT) & (high - low <= _ALIKE)
    count = int(np.argmin(behind)) if not behind.all() else 0
    return count if count and low[count] <= low[count - 1] - _STEP else 0


class Inside(NamedTuple):
    """An image as the model is to see it. values: [rows, columns], what lies behind white blades as dark as the darkest
    of the rest. white: cells behind white blades."""

    values: NDArray[Any]
    prepared: Preprocessed
    white: Edges


def inside(values: NDArray[Any], inverted: bool, aspect: float = 1.0) -> Inside:
    """Prepare an image [rows, columns] without the white of its blades, which shows nothing and takes up the grey
    scale: the model takes every other chest within a wide white border for one that it does not know, and none within a
    black one (`python -m benchmarks.encodings --only border`)."""
    prepared = preprocess(values, inverted, aspect)
    white = blades(prepared, None)
    if not any(white):
        return Inside(values, prepared, white)
    top, bottom, left, right = _pixels_behind(values, prepared, white)
    field = (slice(top, values.shape[0] - bottom), slice(left, values.shape[1] - right))
    if not values[field].size:
        return Inside(values, prepared, white)
    filled = np.full_like(values, values[field].max() if inverted else values[field].min())
    filled[field] = values[field]
    return Inside(filled, preprocess(filled, inverted, aspect), white)


def _pixels_behind(values: NDArray[Any], prepared: Preprocessed, white: Edges) -> Edges:
    """Rows and columns of the image behind its white blades: those of whole cells, and those that follow and are, for
    nine tenths, as white as the first."""
    where, near = prepared.geometry, (prepared.high - prepared.low) * _ALIKE / 255
    sides = (values, values[::-1], values.T, values.T[::-1])
    lengths = (where.rows / where.height,) * 2 + (where.columns / where.width,) * 2
    found = []
    for side, cells, length in zip(sides, white, lengths, strict=True):
        count = max(0, math.floor((cells - 1) * length)) if cells else 0
        level = float(np.median(side[0]))
        for line in side[count : count + math.ceil(3 * length)] if cells else ():
            if max(abs(end - level) for end in np.percentile(line, (10, 90))) > near:
                break
            count += 1
        found.append(count)
    return found[0], found[1], found[2], found[3]


def finding_of(seen: Look, edges: Edges) -> Finding:
    """COLLIMATION. edges: of `blades`, in the orientation of the image as it came."""
    code = Reason.REASON_COLLIMATION
    height, width = seen.where.height, seen.where.width
    top, bottom, left, right = edges
    covered = 1 - max(0, height - top - bottom) * max(0, width - left - right) / (height * width)
    value = Value("collimated_share", covered)
    if not measurable(seen):
        return finding(code, NOT_ASSESSABLE, "where the lungs are is not known", value=value)
    worst, boxes = PASS, []
    lungs = seen.nested["lungs_full"]
    limit = thresholds.MARGIN_MM if seen.spacing_mm else thresholds.MARGIN
    for side, behind in zip((SIDES[name] for name in ("top", "bottom", "right", "left")), edges, strict=True):
        if not behind:
            continue
        cell = seen.cell[side.axis]
        low, high = (cell * (clear_cells(mask, side) - behind) for mask in (lungs.loose, lungs.tight))
        outcome = FAIL if high <= limit.fail else WARN if low <= limit.warn else PASS
        if outcome != PASS:
            boxes.append(edge_box(seen, lungs.middle, side))
        worst = max(worst, outcome)
    words = {
        PASS: "the field reaches beyond the lungs" if covered else "no blades are seen",
        WARN: "the lungs end at or close to a blade of the collimator",
        FAIL: "the lungs reach a blade of the collimator: they are cut off, or nearly so",
    }
    return finding(code, worst, words[worst], value=value, boxes=boxes)
