"""What lies between the blades of the collimator, and whether they end at the lungs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.inference import thresholds
from services.inference.chest import SIDES, Look, clear_cells, edge_box, measurable
from services.inference.findings import FAIL, NOT_ASSESSABLE, PASS, WARN, Value, finding
from services.inference.preprocessing import Preprocessed, preprocess
from stepwedge.common.v1.common_pb2 import Finding, Reason

Edges = tuple[int, int, int, int]
"""Rows and columns of the image behind the blade at its top, bottom, left and right."""

_ALIKE = 10
"""Steps of the grid, of 255, by which what lies behind one blade may differ: scatter; lettering is left out."""
_WHITE, _BLACK = 220, 35
"""Steps of the grid from which on, and up to which, a border can be what lies behind a blade: unexposed, or blackened
by the device."""
_STEP = 8
"""Steps of the grid by which the first row in the field differs from what lies behind the blade."""
_STRAIGHT = 0.6
"""Share of that row which does: beside air, which ends with the body, few cells do."""
_LEAST = 64
"""Rows and columns of an image in which blades are looked for."""
_LEAST_CELLS = 2
"""Cells of the grid that a blade covers at least; a single one is a line at the rim of many an image."""
_MOST = 0.4
"""Share of a side that a blade covers at most; a border that goes on further is something else."""


class Field(NamedTuple):
    """What lies between the blades, as far as pixels tell: all of the image where they tell of none. values: [rows,
    columns] of it. prepared: those on the grid. behind: how much of the image is not in it."""

    values: NDArray[Any]
    prepared: Preprocessed
    behind: Edges


def field_of(values: NDArray[Any], inverted: bool, aspect: float = 1.0) -> Field:
    """Prepare what lies between the blades of an image [rows, columns]. The rest shows nothing, and the model, which
    knows of no blades, would take lungs that end at one for lungs that end clear of the image's edge
    (`python -m benchmarks.quality blades`)."""
    prepared = preprocess(values, inverted, aspect)
    behind = _behind(values, prepared) if min(values.shape) >= _LEAST else (0, 0, 0, 0)
    top, bottom, left, right = behind
    inner = values[top : values.shape[0] - bottom, left : values.shape[1] - right]
    if not any(behind) or not inner.size:
        return Field(values, prepared, (0, 0, 0, 0))
    inner = np.ascontiguousarray(inner)
    return Field(inner, preprocess(inner, inverted, aspect), behind)


def _behind(values: NDArray[Any], prepared: Preprocessed) -> Edges:
    """Rows and columns behind blades: those of whole cells, and those that follow and are, for nine tenths, like the
    first."""
    where, near = prepared.geometry, (prepared.high - prepared.low) * _ALIKE / 255
    box = prepared.grid[where.top : where.top + where.height, where.left : where.left + where.width]
    found = []
    for side, cells, length in (
        (values, _uniform(box), where.rows / where.height),
        (values[::-1], _uniform(box[::-1]), where.rows / where.height),
        (values.T, _uniform(box.T), where.columns / where.width),
        (values.T[::-1], _uniform(box.T[::-1]), where.columns / where.width),
    ):
        count = max(0, math.floor((cells - 1) * length)) if cells else 0
        level = float(np.median(side[0]))
        for line in side[count : count + math.ceil(3 * length)] if cells else ():
            if max(abs(end - level) for end in np.percentile(line, (10, 90))) > near:
                break
            count += 1
        found.append(count)
    return found[0], found[1], found[2], found[3]


def _uniform(rows: NDArray[np.uint8]) -> int:
    """Leading rows [n, m] that are white, or black, and alike from end to end, if the picture begins with a straight
    edge after them."""
    most = int(_MOST * len(rows))
    low, high = np.percentile(rows[: most + 1], (5, 95), axis=1)
    alike = high - low <= _ALIKE
    for behind, sign in ((alike & (low >= _WHITE), -1), (alike & (high <= _BLACK), 1)):
        count = int(np.argmin(behind)) if not behind.all() else 0
        if count >= _LEAST_CELLS:
            # The row after the first one may lie half behind the blade.
            steps = sign * (rows[count : count + 2].astype(np.int16) - np.int16(np.median(rows[count - 1])))
            return count if float((steps >= _STEP).mean(axis=1).max()) >= _STRAIGHT else 0
    return 0


def finding_of(seen: Look, margins: Sequence[Finding], stated: tuple[int, int, int, int] | None) -> Finding:
    """COLLIMATION. margins: of `chest.margins`; they are those to a blade where the field ends at one. stated: the open
    field by the header (`header.open_field`), in pixels of the image."""
    code, where, behind = Reason.REASON_COLLIMATION, seen.where, seen.behind
    rows, columns = where.rows + behind[0] + behind[1], where.columns + behind[2] + behind[3]
    by_header = (0, 0, 0, 0)
    if stated is not None:
        by_header = (stated[0], rows - stated[1], stated[2], columns - stated[3])
    covered = [max(one, other) for one, other in zip(behind, by_header, strict=True)]
    open_share = max(0, rows - covered[0] - covered[1]) * max(0, columns - covered[2] - covered[3]) / (rows * columns)
    value = Value("collimated_share", 1 - open_share)
    if not measurable(seen):
        return finding(code, NOT_ASSESSABLE, "where the lungs are is not known", value=value)
    worst, boxes = PASS, []
    lungs = seen.nested["lungs_full"]
    limit = thresholds.MARGIN_MM if seen.spacing_mm else thresholds.MARGIN
    scale = (where.height / where.rows,) * 2 + (where.width / where.columns,) * 2
    for place, (margin, name) in enumerate(zip(margins, ("top", "bottom", "right", "left"), strict=True)):
        side = SIDES[name]
        if by_header[place] > behind[place]:
            cells = (by_header[place] - behind[place]) * scale[place]
            low, high = (
                seen.cell[side.axis] * (clear_cells(mask, side) - cells) for mask in (lungs.loose, lungs.tight)
            )
            outcome = FAIL if high <= limit.fail else WARN if low <= limit.warn else PASS
        elif behind[place]:
            outcome = margin.outcome
        else:
            continue
        if outcome != PASS:
            boxes.append(edge_box(seen, lungs.middle, side))
        worst = max(worst, outcome)
    words = {
        PASS: "the field reaches beyond the lungs" if any(covered) else "no blades are seen",
        WARN: "the lungs end at or close to a blade of the collimator",
        FAIL: "the lungs reach a blade of the collimator: they are cut off, or nearly so",
    }
    return finding(code, worst, words[worst], value=value, boxes=boxes)
