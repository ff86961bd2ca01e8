"""What lies between the blades of the collimator, and whether they end at the lungs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.inference import thresholds
from services.inference.chest import SIDES, Look, Side, edge_box, measurable
from services.inference.findings import FAIL, NOT_ASSESSABLE, PASS, WARN, Value, finding
from services.inference.masks import Mask
from services.inference.preprocessing import Letterbox, Preprocessed, preprocess
from stepwedge.common.v1.common_pb2 import Finding, Reason

Edges = tuple[int, int, int, int]
"""Rows and columns of the image behind the blade at its top, bottom, left and right."""

_BLACK: Final = 35
"""Step of the grid, of 255, up to which there can be a blade: blackened by the device, or by its screen."""
_WHITE: Final = 220
"""Step from which on there can be one: unexposed."""
_ALIKE: Final = 6
"""Steps by which a white one may differ along its edge."""
_STEP: Final = (24, 8)
"""Steps by which the picture differs from what lies behind a black and a white blade within three cells; an abdomen is
nearly white."""
_STRAIGHT: Final = 0.8
"""Cells by which the edge of a blade may leave a straight line. Air ends with the body, which does."""
_LONG: Final = (0.4, 0.7)
"""Shares of the side, and of what the blade covers of it, along which its edge is seen at least."""
_STEEPEST: Final = math.tan(math.radians(15))
"""How much the edge may rise along the side."""
_LEVEL: Final = 2.0
"""Cells by which its two ends may differ where it lies along the side."""
_LEAST: Final = 64
"""Rows and columns of an image in which blades are looked for."""
_LEAST_CELLS: Final = 2
"""Cells that a blade covers at least; a single one is a line at the rim of many an image."""
_SHOWN: Final = (0.05, 0.4)
"""Shares of a row that are no padding: at most of one that is all padding, and at least of the first that is not."""
_MOST: Final = 0.4
"""Share of a side that a blade covers at most; a border that goes on further is something else."""
_PICKED: Final = 24
"""Points of an edge through which lines are laid, two by two."""


class Blade(NamedTuple):
    """What covers a side of the letterbox on the grid: so many cells at one end of the side and at the other; below
    zero where a blade that stands askew enters further on. white: unexposed, not black."""

    first: float
    last: float
    white: bool

    def depth(self, length: int) -> NDArray[np.float64]:
        """Cells that it covers at each of `length` places along the side."""
        return np.linspace(self.first, self.last, length)


Blades = tuple[Blade | None, Blade | None, Blade | None, Blade | None]
"""Those at the top, bottom, left and right."""
_NONE: Final = (0, 0, 0, 0)


class Field(NamedTuple):
    """What lies between the blades, as far as pixels tell: all of the image where they tell of none. values: [rows,
    columns] of the largest part whose sides are those of the image. prepared: of it, on the grid. behind: how much of
    the image is not in it. askew: the blades that reach into it; what lies behind white ones is made dark."""

    values: NDArray[Any]
    prepared: Preprocessed
    behind: Edges
    askew: Blades


def field_of(
    values: NDArray[Any], inverted: bool, aspect: float = 1.0, padding: NDArray[np.bool_] | None = None
) -> Field:
    """Prepare what lies between the blades of an image [rows, columns], and within its padding, bool [rows, columns].
    The rest shows nothing, and the model, which knows of no blades, would take lungs that end at one for lungs that end
    clear of the image's edge (`python -m benchmarks.quality blades`)."""
    behind = _NONE if padding is None else _padded(padding)
    values = _within(values, behind)
    prepared = preprocess(values, inverted, aspect)
    blades: Blades = (None, None, None, None)
    for _ in range(2):  # a border may lie in another one
        blades = _blades(prepared)
        more = _behind(values, prepared, blades)
        if not any(more):
            break
        values = _within(values, more)
        prepared = preprocess(values, inverted, aspect)
        behind = tuple(one + other for one, other in zip(behind, more, strict=True))  # type: ignore[assignment]
    askew: Blades = tuple(None if one is None or _is_level(one) else one for one in blades)  # type: ignore[assignment]
    if any(one is not None and one.white for one in askew):
        values = values.copy()
        values[_hidden(askew, prepared.geometry, values.shape, beyond=1)] = prepared.high if inverted else prepared.low
        prepared = preprocess(values, inverted, aspect)
    return Field(values, prepared, behind, askew)


def _within(values: NDArray[Any], edges: Edges) -> NDArray[Any]:
    top, bottom, left, right = edges
    rows, columns = values.shape
    return np.ascontiguousarray(values[top : rows - bottom, left : columns - right]) if any(edges) else values


def _padded(padding: NDArray[np.bool_]) -> Edges:
    """Rows and columns of padding, markers in it or not, that end all at once. Where they end little by little, air has
    the value of the padding."""
    found = []
    for side in _sides(padding):
        shown = 1 - side.mean(1)
        count = int((shown >= _SHOWN[1]).argmax())
        found.append(count if (shown[:count] <= _SHOWN[0]).all() else 0)
    top, bottom, left, right = found
    small = padding.shape[0] - top - bottom < _LEAST or padding.shape[1] - left - right < _LEAST
    return _NONE if small else (top, bottom, left, right)


def _blades(prepared: Preprocessed) -> Blades:
    where = prepared.geometry
    if min(where.rows, where.columns) < _LEAST:
        return None, None, None, None
    box = prepared.grid[where.top : where.top + where.height, where.left : where.left + where.width]
    return tuple(_blade(side) for side in _sides(box))  # type: ignore[return-value]


def _sides(image: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The image so that its top, bottom, left and right are the first row."""
    yield from (image, image[::-1], image.T, image.T[::-1])


def _blade(rows: NDArray[np.uint8]) -> Blade | None:
    """The blade that covers the first of the rows [n, m], if there is one: white or black to a straight edge."""
    most = int(_MOST * len(rows))
    near = rows[: most + 3].astype(np.float64)
    white = float(np.median(near[0]))
    black, unexposed = near <= _BLACK, near >= max(_WHITE, white - _ALIKE)
    for hidden, sign, least in ((black, 1, _STEP[0]), (unexposed, -1, _STEP[1])):
        depth = np.where(hidden.all(0), len(near), hidden.argmin(0))
        along = np.flatnonzero((depth >= _LEAST_CELLS) & (depth <= most))
        outside, inside = near[depth[along] - 2, along], near[depth[along] + 2, along]
        far = sign * (inside - outside) >= least
        along, outside, inside = along[far], outside[far], inside[far]
        # Cells at the edge lie partly behind it: by how much, their values tell.
        cells = near[depth[along] + np.arange(-1, 2)[:, None], along]
        ends = depth[along] - 1 + np.clip((cells - inside) / (outside - inside), 0, 1).sum(0)
        edge = _line(along.astype(np.float64), ends, rows.shape[1])
        if edge is not None:
            return Blade(*edge, white=sign < 0)
    return None


def _line(x: NDArray[np.float64], y: NDArray[np.float64], length: int) -> tuple[float, float] | None:
    """Where the straight line on which most of the points lie begins and ends, at 0 and at `length` - 1."""
    least = _LONG[0] * length
    if len(x) < least:
        return None
    picked = np.unique(np.linspace(0, len(x) - 1, _PICKED).astype(int))
    one, other = (picked[ends] for ends in np.triu_indices(len(picked), 1))
    apart = x[other] - x[one]
    far = apart >= 0.3 * length
    rise = (y[other] - y[one])[far] / apart[far]
    one, rise = one[far][abs(rise) <= _STEEPEST], rise[abs(rise) <= _STEEPEST]
    if not len(rise):
        return None
    off = np.abs(y - (y[one] - rise * x[one])[:, None] - rise[:, None] * x)
    on = off[(off <= _STRAIGHT).sum(1).argmax()] <= _STRAIGHT
    if on.sum() < least:
        return None
    slope, start = np.polyfit(x[on], y[on], 1)
    on = np.abs(y - start - slope * x) <= _STRAIGHT
    covered = int((start + slope * np.arange(length) >= _LEAST_CELLS).sum())
    if on.sum() < max(least, _LONG[1] * covered):
        return None
    return float(start), float(start + slope * (length - 1))


def _is_level(blade: Blade) -> bool:
    return abs(blade.last - blade.first) <= _LEVEL


def _behind(values: NDArray[Any], prepared: Preprocessed, blades: Blades) -> Edges:
    """Rows and columns behind blades that lie along their side: those of whole cells, and those that follow and are,
    for nine tenths, like the first."""
    where, near = prepared.geometry, (prepared.high - prepared.low) * _ALIKE / 255
    sizes = (where.rows / where.height,) * 2 + (where.columns / where.width,) * 2
    found = []
    for side, blade, size in zip(_sides(values), blades, sizes, strict=True):
        if blade is None or not _is_level(blade):
            found.append(0)
            continue
        count = max(0, math.floor((min(blade.first, blade.last) - 1) * size))
        level = float(np.median(side[0]))
        for line in side[count : count + math.ceil(3 * size)]:
            if max(abs(end - level) for end in np.percentile(line, (10, 90))) > near:
                break
            count += 1
        found.append(count)
    return found[0], found[1], found[2], found[3]


def _hidden(blades: Blades, where: Letterbox, shape: tuple[int, ...], beyond: float = 0) -> Mask:
    """What lies behind blades, and so many cells beyond, on an image of the letterbox's place: bool `shape`."""
    hidden = np.zeros(shape, np.bool_)
    sizes = (shape[0] / where.height,) * 2 + (shape[1] / where.width,) * 2
    for side, blade, size in zip(_sides(hidden), blades, sizes, strict=True):
        if blade is not None:
            depth = blade.depth(side.shape[1])
            side |= np.arange(len(side))[:, None] < np.where(depth > 0, (depth + beyond) * size, 0)
    return hidden


def finding_of(
    seen: Look, margins: Sequence[Finding], field: Field, stated: tuple[int, int, int, int] | None
) -> Finding:
    """COLLIMATION. margins: of `chest.margins`; they are those to a blade where the field ends at one. stated: the open
    field by the header (`header.open_field`), in pixels of the image."""
    code, where = Reason.REASON_COLLIMATION, seen.where
    height, width = where.height, where.width
    sizes = (where.rows / height,) * 2 + (where.columns / width,) * 2
    by_header: Blades = (None, None, None, None)
    if stated is not None:
        top, bottom, left, right = stated
        rows, columns = where.rows + sum(seen.behind[:2]), where.columns + sum(seen.behind[2:])
        cells = [
            (edge - behind) / size
            for edge, behind, size in zip((top, rows - bottom, left, columns - right), seen.behind, sizes, strict=True)
        ]
        by_header = tuple(Blade(one, one, False) if one > 0 else None for one in cells)  # type: ignore[assignment]
    hidden = _hidden(field.askew, where, (height, width)) | _hidden(by_header, where, (height, width))
    covered = 1 - (1 - float(hidden.mean())) * where.rows * where.columns / (
        (where.rows + sum(seen.behind[:2])) * (where.columns + sum(seen.behind[2:]))
    )
    value = Value("collimated_share", covered)
    if not measurable(seen):
        return finding(code, NOT_ASSESSABLE, "where the lungs are is not known", value=value)
    worst, boxes = PASS, []
    lungs = seen.nested["lungs_full"]
    limit = thresholds.MARGIN_MM if seen.spacing_mm else thresholds.MARGIN
    for place, (margin, name) in enumerate(zip(margins, ("top", "bottom", "right", "left"), strict=True)):
        side = SIDES[name]
        outcomes = [margin.outcome] if seen.behind[place] else []
        for blade in (by_header[place], field.askew[place]):
            if blade is not None:
                cell = seen.cell[side.axis]
                low, high = (cell * _clear_of(blade, mask, side) for mask in (lungs.loose, lungs.tight))
                outcomes.append(FAIL if high <= limit.fail else WARN if low <= limit.warn else PASS)
        outcome = max(outcomes, default=PASS)
        if outcome != PASS:
            boxes.append(edge_box(seen, lungs.middle, side))
        worst = max(worst, outcome)
    words = {
        PASS: "the field reaches beyond the lungs" if covered > 0 else "no blades are seen",
        WARN: "the lungs end at or close to a blade of the collimator",
        FAIL: "the lungs reach a blade of the collimator: they are cut off, or nearly so",
    }
    return finding(code, worst, words[worst], value=value, boxes=boxes)


def _clear_of(blade: Blade, mask: Mask, side: Side) -> float:
    """Cells between a mask and a blade at a side, where they are least but for one column; below zero where it reaches
    behind the blade, and the whole extent where it is empty."""
    rows = mask if side.axis == 0 else mask.T
    rows = rows[::-1] if side.from_end else rows
    along = np.flatnonzero(rows.any(0))
    if len(along) < 2:
        return float(len(rows))
    return float(np.partition(rows[:, along].argmax(0) - blade.depth(rows.shape[1])[along], 1)[1])
