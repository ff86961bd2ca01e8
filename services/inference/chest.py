"""What is measured on a frontal chest radiograph from the model's answer, and the findings that follow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from services.inference import edges, masks, thresholds
from services.inference.findings import FAIL, NOT_ASSESSABLE, PASS, WARN, Value, finding
from services.inference.masks import Mask, Nested
from services.inference.preprocessing import Letterbox
from services.inference.registry import FLAGS, Answer, Model
from services.inference.thresholds import Threshold
from stepwedge.common.v1.common_pb2 import Box, Finding, Outcome, Reason

_TURNS: Final = {
    "rotated_90": "a quarter turn clockwise",
    "rotated_180": "upside down",
    "rotated_270": "a quarter turn anticlockwise",
}
"""Flags of a turn, in the order of the quarter turns clockwise that they mean."""
_UNMEASURABLE: Final = "outlines that are unsure, of no chest, or of one that does not stand upright are not measured"
_LEAST_CELLS: Final = 2
"""Cells that a row or column of a mask must have to count as its end: one alone is noise."""
_STRETCHED: Final = 1.15
"""Height of a cell over its width, or the other way round, up to which what the model says of the edges is heeded:
training stretched no chest further, and of one that is, it takes clear upper and lower edges for ones that cut."""


class Side(NamedTuple):
    """One side of the image: where in a mask its distance is counted, and what it is called."""

    code: Reason.ValueType
    axis: int
    """Which is measured along: 0 for rows (top, bottom), 1 for columns."""
    from_end: bool


SIDES: Final[Mapping[str, Side]] = {
    "top": Side(Reason.REASON_LUNG_MARGIN_TOP, 0, False),
    "bottom": Side(Reason.REASON_LUNG_MARGIN_BOTTOM, 0, True),
    "right": Side(Reason.REASON_LUNG_MARGIN_RIGHT, 1, False),
    "left": Side(Reason.REASON_LUNG_MARGIN_LEFT, 1, True),
}
"""The patient's right is on the image's left."""
_OPPOSITE: Final = {"right": "left", "left": "right"}
_NO_MARKERS: Final[Mapping[bool, Sequence[Box]]] = {True: (), False: ()}
_SIDES_EXCHANGED: Final = [1, 0, 2, 3]
"""Order of `registry.CHANNELS` in which right and left are exchanged."""


@dataclass(frozen=True)
class Look:
    """One look of the model at one image, and what is read from it.

    probabilities: of the flags. distance: of the features. confidences: by group. nested: masks by channel.
    """

    answer: Answer
    where: Letterbox
    spacing_mm: tuple[float, float] | None
    frame: int
    probabilities: Mapping[str, float]
    distance: float
    confidences: Mapping[str, float]
    nested: Mapping[str, Nested]
    ends: Mapping[str, NDArray[np.float64]] | None = None
    """Where the lungs end beside each edge, as `edges.beside` gives it; None where the release does not say."""
    turned: int = 0
    """Quarter turns clockwise by which the image was found turned, and by which it was turned back for this look."""
    first_turned: float = 0.0
    """Probability of that turn, by the look before."""
    mirrored: float | None = None
    """Probability of exchanged sides by two looks, at the image and its mirror image; None where one was enough."""
    behind: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Rows and columns of the image at its top, bottom, left and right that are not in `where`, being behind blades."""
    exchanged: bool = False
    """Whether masks and measures bear the sides of a patient whose right is on the image's right."""

    @property
    def cell(self) -> tuple[float, float]:
        """Height and width of a cell of the grid, mm; where no spacing is known, as shares of height and width."""
        if self.spacing_mm is None:
            return 1 / self.where.height, 1 / self.where.width
        rows, columns = self.spacing_mm
        return rows * self.where.rows / self.where.height, columns * self.where.columns / self.where.width

    @property
    def aspect(self) -> float:
        """Height of a cell of the grid over its width, in the patient; about 1 by the letterbox, but for rounding."""
        rows, columns = self.spacing_mm or (self.where.aspect, 1.0)
        return rows * self.where.rows / self.where.height / (columns * self.where.columns / self.where.width)

    @property
    def confidence(self) -> float:
        """Confidence in the lungs, 0 to 1."""
        return self.confidences["lungs_full"]

    @property
    def outlines_hold(self) -> bool:
        """Whether measurements may rest on the outlines."""
        return self.confidence >= thresholds.CONFIDENCE.fail and bool(self.nested["lungs_full"].middle.any())

    def is_foreign(self) -> bool:
        """Whether the model takes the image for no frontal chest radiograph, or it is unlike all it was trained on."""
        return not_a_chest(self).outcome == FAIL

    def thorax(self) -> Mask | None:
        """The convex hull of lungs and heart on the whole grid, bool [256, 256]; None where outlines do not hold."""
        if not self.outlines_hold:
            return None
        middle = self.nested["lungs_full"].middle | self.nested["heart"].middle
        hull = np.zeros((256, 256), np.uint8)
        corners = cv2.convexHull(cv2.findNonZero(middle.view(np.uint8))).reshape(-1, 2)
        cv2.fillConvexPoly(hull, corners + np.array([self.where.left, self.where.top], np.int32), 1)
        return hull.view(np.bool_)


def measurable(seen: Look) -> bool:
    """Whether distances on the image mean anything: outlines that hold, on a chest that stands upright."""
    return seen.outlines_hold and not seen.turned and not quarter_turns(seen) and not seen.is_foreign()


def quarter_turns(seen: Look) -> int:
    """Quarter turns clockwise by which the image is surely turned."""
    likeliest = max(_TURNS, key=lambda flag: seen.probabilities[flag])
    return 1 + list(_TURNS).index(likeliest) if seen.probabilities[likeliest] >= thresholds.TURNED.fail else 0


def upright(model: Model, grid: NDArray[np.uint8], seen: Look) -> Look:
    """A second look at a grid that was found turned, turned back: its flags and confidences are of the upright image,
    its masks lie where the image is as it came."""
    turns = quarter_turns(seen)
    righted = np.ascontiguousarray(np.rot90(grid, turns))  # anticlockwise
    again = look(model, righted, seen.where, None, seen.frame, seen.behind)
    logits = np.ascontiguousarray(np.rot90(again.answer.logits, -turns, axes=(1, 2)))
    return replace(
        again,
        answer=again.answer._replace(logits=logits),
        spacing_mm=seen.spacing_mm,
        nested=masks.nested(logits, seen.where),
        ends=None,
        turned=turns,
        first_turned=seen.probabilities[list(_TURNS)[turns - 1]],
    )


def mirror_image(model: Model, grid: NDArray[np.uint8], seen: Look) -> Answer | None:
    """The model's answer to the mirror image of an upright grid, where the first look is not sure of the side."""
    if seen.probabilities["mirrored"] < thresholds.SIDE_IS_SURE[0] or seen.is_foreign():
        return None
    return model.answer(np.ascontiguousarray(grid[:, ::-1]))


def with_mirror_image(seen: Look, other: Answer) -> Look:
    """The look with the sides by both: whatever draws the model to one side without regard to the image, cancels."""
    place = FLAGS.index("mirrored")
    half = 0.5 * (float(seen.answer.flags[place]) - float(other.flags[place]))
    return replace(seen, mirrored=0.5 * (1 + math.tanh(0.5 * half)))


def with_sides_exchanged(seen: Look, directions: tuple[str, str]) -> Look:
    """The look by the patient's sides, where the header says that the image shows them exchanged: to the model the
    right lung is the one on the image's left. directions: as `turned`."""
    if seen.turned or not _says_exchanged(directions):
        return seen
    logits = np.ascontiguousarray(seen.answer.logits[_SIDES_EXCHANGED])
    answer = seen.answer._replace(logits=logits)
    return replace(seen, answer=answer, nested=masks.nested(logits, seen.where), exchanged=True)


def _says_exchanged(directions: tuple[str, str]) -> bool:
    """Whether rows run to the patient's right, and columns to the feet (PS3.3 C.7.6.1.1.1)."""
    return (directions[0][:1], directions[1][:1]) == ("R", "F")


def look(
    model: Model,
    grid: NDArray[np.uint8],
    where: Letterbox,
    spacing_mm: tuple[float, float] | None,
    frame: int,
    behind: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Look:
    """Let the model look at a grid uint8 [256, 256]. behind: of `Look`."""
    answer = model.answer(grid)
    flags = 0.5 * (1 + np.tanh(0.5 * answer.flags[: len(FLAGS)].astype(np.float64)))
    return Look(
        answer,
        where,
        spacing_mm,
        frame,
        dict(zip(FLAGS, flags.tolist(), strict=True)),
        model.calibration.distance(answer.features),
        masks.confidence(answer.logits, model.calibration.temperature, model.calibration.bias),
        masks.nested(answer.logits, where),
        edges.beside(answer.flags),
        behind=behind,
    )


def polarity(seen: Look) -> Finding:
    """INVERTED_POLARITY."""
    value = Value("probability_inverted", seen.probabilities["inverted"])
    outcome = _above(value.value, thresholds.INVERTED)
    words = {
        PASS: "black and white are as the photometric interpretation says",
        WARN: "black and white may be exchanged",
        FAIL: "black and white are exchanged; the image was measured the other way round",
    }
    return _finding(Reason.REASON_INVERTED_POLARITY, outcome, words, value, thresholds.INVERTED.fail)


def not_a_chest(seen: Look) -> Finding:
    """NOT_A_CHEST."""
    flag, distance = seen.probabilities["not_a_chest"], seen.distance
    by_flag, by_distance = _above(flag, thresholds.NOT_A_CHEST), _above(distance, thresholds.FOREIGN)
    if by_flag == FAIL and seen.confidence >= thresholds.SURELY_LUNGS[0]:
        by_flag = WARN
    words = {
        PASS: "looks like a frontal chest radiograph",
        WARN: "may not be a frontal chest radiograph",
        FAIL: "does not look like a frontal chest radiograph",
    }
    if by_distance > by_flag:
        value, limit = Value("feature_distance", distance), thresholds.FOREIGN
        words |= {WARN: "unlike most chest radiographs", FAIL: "unlike any chest radiograph that the model has seen"}
    else:
        value, limit = Value("probability_not_a_chest", flag), thresholds.NOT_A_CHEST
    return _finding(Reason.REASON_NOT_A_CHEST, max(by_flag, by_distance), words, value, limit.fail)


def low_confidence(seen: Look) -> Finding:
    """LOW_CONFIDENCE."""
    limit = thresholds.CONFIDENCE
    score = seen.confidence
    outcome = FAIL if score < limit.fail else WARN if score < limit.warn else PASS
    words = {
        PASS: "the model is sure of the outlines of the lungs",
        WARN: "the model is less sure of the outlines of the lungs than usual",
        FAIL: "the model is not sure of the outlines of the lungs; nothing was measured from them",
    }
    return _finding(Reason.REASON_LOW_CONFIDENCE, outcome, words, Value("confidence_lungs_full", score), limit.warn)


def margins(seen: Look) -> Iterator[Finding]:
    """LUNG_MARGIN_TOP, BOTTOM, RIGHT and LEFT."""
    if not measurable(seen):
        yield from (finding(side.code, NOT_ASSESSABLE, _UNMEASURABLE) for side in SIDES.values())
        return
    lungs = seen.nested["lungs_full"]
    chances = masks.chances(seen.answer.logits, seen.where, "lungs_full", lungs)
    ends = seen.ends if max(seen.aspect, 1 / seen.aspect) <= _STRETCHED else None
    for edge in SIDES:
        yield _margin(seen, edge, margin_beside(edge, lungs, chances, ends))


def _margin(seen: Look, edge: str, found: edges.Margin) -> Finding:
    side, lungs = SIDES[edge], seen.nested["lungs_full"]
    name = _OPPOSITE.get(edge, edge) if seen.exchanged else edge
    unit, limit = ("mm", thresholds.MARGIN_MM) if seen.spacing_mm else ("1", thresholds.MARGIN)
    length = seen.cell[side.axis] * lungs.middle.shape[side.axis]
    low, expected, high = (length * one for one in found)
    value = Value(f"lung_margin_{name}", expected, unit, low, high)
    outcome = FAIL if high <= limit.fail else WARN if low <= limit.warn else PASS
    words = {
        PASS: "the lungs end clear of this edge",
        WARN: "the lungs end at or close to this edge",
        FAIL: "the lungs reach this edge: they are cut off, or nearly so",
    }
    boxes = [] if outcome == PASS else [edge_box(seen, lungs.middle, side)]
    return finding(SIDES[name].code, outcome, words[outcome], value=value, threshold=limit.fail, boxes=boxes)


def margin_beside(
    edge: str, lungs: Nested, chances: NDArray[np.float64], ends: Mapping[str, NDArray[np.float64]] | None
) -> edges.Margin:
    """The margin between the lungs and an edge, by their outlines and, where the release has it, by what the model says
    of the edge (`edges.beside`). chances: [height, width], of `masks.chances`."""
    side = SIDES[edge]
    length = lungs.middle.shape[side.axis]
    low, high = (clear_cells(mask, side) / length for mask in (lungs.loose, lungs.tight))
    expected = expected_cells(chances, side) / length
    outlined = edges.Margin(min(low, expected), expected, max(high, expected))
    return outlined if ends is None else edges.margin(ends[edge], outlined)


def clear_cells(mask: Mask, side: Side) -> int:
    """Cells between the mask and its edge; the whole extent where the mask is empty."""
    filled = np.flatnonzero(mask.sum(1 - side.axis) >= _LEAST_CELLS)
    length = int(mask.shape[side.axis])
    if len(filled) == 0:
        return length
    return int(length - 1 - filled[-1]) if side.from_end else int(filled[0])


def expected_cells(chances: NDArray[np.float64], side: Side) -> float:
    """Cells that are to be expected between the lungs and an edge, by their probability [height, width]: the sum over
    the rows (or columns) from that edge of the chance that none before holds lung. It tells lungs that are cut off from
    those that are not better than any one of the nested masks, since it heeds how sure the model is near the edge."""
    rows = chances if side.axis == 0 else chances.T
    rows = rows[::-1] if side.from_end else rows
    if rows.shape[1] < _LEAST_CELLS:
        return float(len(rows))
    most = np.partition(rows, rows.shape[1] - _LEAST_CELLS, axis=1)[:, rows.shape[1] - _LEAST_CELLS]
    return float((1 - np.maximum.accumulate(most)).sum())


def edge_box(seen: Look, mask: Mask, side: Side) -> Box:
    """The strip of the image from its edge to the lung and a little into it, as wide as the lung is there."""
    length, depth = mask.shape[side.axis], clear_cells(mask, side) + 4
    strip = slice(length - depth, length) if side.from_end else slice(0, depth)
    part = mask[strip] if side.axis == 0 else mask[:, strip]
    across = np.flatnonzero(part.any(side.axis))
    ends = (int(across[0]), int(across[-1]) + 1) if len(across) else (0, mask.shape[1 - side.axis])
    along = (max(0, strip.start), min(length, strip.stop))
    rows, columns = (along, ends) if side.axis == 0 else (ends, along)
    return _box(seen, rows, columns)


def _box(seen: Look, rows: tuple[int, int], columns: tuple[int, int]) -> Box:
    """Cells of the letterbox as pixels of the image."""
    above, _, beside, _ = seen.behind
    down, across = seen.where.rows / seen.where.height, seen.where.columns / seen.where.width
    top, bottom = round(rows[0] * down), min(seen.where.rows, round(rows[1] * down))
    left, right = round(columns[0] * across), min(seen.where.columns, round(columns[1] * across))
    size = max(1, right - left), max(1, bottom - top)
    return Box(frame=seen.frame, left=beside + left, top=above + top, width=size[0], height=size[1])


def anatomy(seen: Look) -> Finding:
    """IMPLAUSIBLE_ANATOMY: the worst of what is wrong, and its words."""
    outcome, words = max(_oddities(seen), key=lambda one: one[0], default=(PASS, "the outlines are plausible"))
    boxes = []
    middle = seen.nested["lungs_full"].middle
    if outcome != PASS and middle.any():
        rows, columns = np.flatnonzero(middle.any(1)), np.flatnonzero(middle.any(0))
        boxes.append(_box(seen, (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)))
    return finding(Reason.REASON_IMPLAUSIBLE_ANATOMY, outcome, words, boxes=boxes)


def _oddities(seen: Look) -> Iterator[tuple[Outcome.ValueType, str]]:
    if seen.turned:
        return  # TURNED says so; outlines are of the image turned back, and no rule here is made for them
    full = seen.nested["lungs_full"].middle
    if not full.any():
        yield FAIL, "no lungs were found"
        return
    least, most, _ = thresholds.LUNG_SHARE
    if not least <= full.mean() <= most:
        yield WARN, "the lungs take an unusual share of the image"
    sides = ("left", "right") if seen.exchanged else ("right", "left")
    right, left = (seen.nested[f"{side}_lung_field"].middle for side in sides)
    yield from _odd_fields(right, left, full)


def _odd_fields(right: Mask, left: Mask, full: Mask) -> Iterator[tuple[Outcome.ValueType, str]]:
    """What is odd about the two lung fields among themselves and beside the lungs in full."""
    least = thresholds.FIELD_SHARE[0]
    if min(right.mean(), left.mean()) < least:
        yield WARN, "one lung field was not found"
        return
    if max(right.sum(), left.sum()) > thresholds.FIELD_RATIO[0] * min(right.sum(), left.sum()):
        yield WARN, "one lung field is much smaller than the other"
    if _middle_column(right) >= _middle_column(left):
        yield WARN, "the lung fields are not side by side"
    fields = right | left
    if 2 * int((fields & full).sum()) < thresholds.AGREEMENT[0] * (int(fields.sum()) + int(full.sum())):
        yield WARN, "the two outlines of the lungs contradict each other"


def _middle_column(mask: Mask) -> float:
    return float(np.flatnonzero(mask.any(0)).mean())


def cardiothoracic(seen: Look) -> Finding:
    """CARDIOTHORACIC_RATIO: a measurement; NOT_ASSESSABLE where an outline that it needs is absent."""
    code = Reason.REASON_CARDIOTHORACIC_RATIO
    if not measurable(seen):
        return finding(code, NOT_ASSESSABLE, _UNMEASURABLE)
    channels = [seen.nested[name] for name in ("heart", "right_lung_field", "left_lung_field")]
    if not all(one.middle.any() for one in channels):
        return finding(code, NOT_ASSESSABLE, "the heart or a lung field was not found")
    heart, right, left = channels
    value = _width(heart.middle) / _width(right.middle | left.middle)
    # The heart at its narrowest in the lungs at their widest, and the other way round.
    low = _width(heart.tight) / _width(right.loose | left.loose)
    high = _width(heart.loose) / max(1, _width(right.tight | left.tight))
    ratio = Value("cardiothoracic_ratio", value, "1", min(low, value), max(high, value))
    return finding(code, PASS, "width of the heart over width of the lung fields", value=ratio)


_BAND: Final = (0.15, 0.50)
"""Part of the height of the lung fields in which their widths are compared: below the apices, above the heart."""


def rotation_index(right: Mask, left: Mask) -> float | None:
    """(left - right) / (left + right) of the mean widths of the two lung fields, bool [height, width], between the
    apices and the heart; None where one of them is not there. Positive where the left one is wider."""
    if not (right.any() and left.any()):
        return None
    rows = [np.flatnonzero(mask.any(1)) for mask in (right, left)]
    top, bottom = max(int(one[0]) for one in rows), min(int(one[-1]) for one in rows)
    band = slice(top + round(_BAND[0] * (bottom - top)), top + round(_BAND[1] * (bottom - top)) + 1)
    wide_right, wide_left = (int(mask[band].sum()) for mask in (right, left))
    return (wide_left - wide_right) / (wide_left + wide_right) if wide_left and wide_right else None


def lung_height(mask: Mask) -> float:
    """Cells from the apex of a lung field, bool [height, width], to its base in the middle third of its columns, where
    the dome of the diaphragm is; 0 where there is none."""
    columns = np.flatnonzero(mask.any(0))
    if len(columns) == 0:
        return 0.0
    third = len(columns) // 3
    middle = mask[:, columns[third] : columns[len(columns) - 1 - third] + 1]
    filled = middle.any(0)
    if not filled.any():
        return 0.0
    base = mask.shape[0] - np.argmax(middle[::-1, filled], axis=0)
    return float(np.median(base) - np.flatnonzero(mask.any(1))[0])


def _width(mask: Mask) -> int:
    columns = np.flatnonzero(mask.any(0))
    return int(columns[-1] - columns[0] + 1) if len(columns) else 0


_STORED_TURNS: Final[Mapping[tuple[str, str], int]] = {("L", "F"): 0, ("H", "L"): 1, ("R", "H"): 2, ("F", "R"): 3}
"""Patient Orientation (0020,0020) of a frontal image -> quarter turns clockwise from upright."""


def turned(seen: Look, directions: tuple[str, str]) -> Finding:
    """TURNED. directions: of rows and columns by the header, empty where unsaid."""
    code, limit = Reason.REASON_TURNED, thresholds.TURNED
    if seen.is_foreign() or not seen.nested["lungs_full"].middle.any():
        return finding(code, NOT_ASSESSABLE, "no chest was found that could stand upright")
    found, likeliest = seen.turned, max(_TURNS, key=lambda flag: seen.probabilities[flag])
    value = Value("probability_turned", seen.first_turned if found else seen.probabilities[likeliest])
    stored = _STORED_TURNS.get((directions[0][:1], directions[1][:1]))
    if found and found == stored:
        return finding(code, WARN, "the image is turned, as its header says", value=value, threshold=limit.fail)
    if found:
        words = f"the image is turned: {list(_TURNS.values())[found - 1]}"
        return finding(code, FAIL, words, value=value, threshold=limit.fail)
    if value.value >= limit.warn:
        words = f"the image may be turned: {_TURNS[likeliest]}"
        return finding(code, WARN, words, value=value, threshold=limit.fail)
    return finding(code, PASS, "the image stands upright", value=value, threshold=limit.fail)


def mirrored(seen: Look, directions: tuple[str, str], markers: Mapping[bool, Sequence[Box]] = _NO_MARKERS) -> Finding:
    """MIRRORED. directions: as `turned`. markers: places of the side markers that say, like `True`, that right and left
    are exchanged, and of those that do not."""
    code, limit = Reason.REASON_MIRRORED, thresholds.MIRRORED
    if seen.is_foreign() or not (seen.outlines_hold or any(markers.values())):
        return finding(code, NOT_ASSESSABLE, "outlines that are unsure, or of no chest, tell no side")
    value = Value("probability_mirrored", seen.probabilities["mirrored"] if seen.mirrored is None else seen.mirrored)
    said = _says_exchanged(directions)
    looks, looks_upright = value.value >= limit.warn, value.value <= 1 - limit.warn
    words = {
        (True, False): "right and left look exchanged",
        (True, True): "right and left are exchanged, as the header says",
        (False, True): "the header says that right and left are exchanged, and they do not look it",
    }.get((looks, said), "right and left look as they should")
    doubt = looks_upright if said else looks
    if not seen.outlines_hold:
        words, doubt = "the outlines are unsure", False
    outcome = WARN if doubt else PASS
    if markers[True] and markers[False]:
        outcome = WARN
        words += "; side markers contradict each other"
    elif markers[not said]:
        outcome = FAIL if doubt else WARN
        words += ", and so says a side marker" if doubt else "; a side marker says otherwise"
    elif markers[said]:
        words += "; a side marker says otherwise" if doubt else ", and so says a side marker"
    return finding(code, outcome, words, value=value, threshold=limit.warn, boxes=markers[not said])


def rotation(seen: Look) -> Finding:
    """ROTATION: WARN where the index lies beyond what chests have; never FAIL."""
    code, (least, most) = Reason.REASON_ROTATION, thresholds.ROTATION[0]
    if not measurable(seen):
        return finding(code, NOT_ASSESSABLE, _UNMEASURABLE)
    right, left = (seen.nested[f"{side}_lung_field"] for side in ("right", "left"))
    found = [
        rotation_index(one, other)
        for one, other in ((right.middle, left.middle), (right.loose, left.tight), (right.tight, left.loose))
    ]
    if any(one is None for one in found):
        return finding(code, NOT_ASSESSABLE, "a lung field was not found")
    middle, low, high = (float(one) for one in found if one is not None)
    value = Value("rotation_index", middle, "1", min(low, middle), max(high, middle))
    beyond = not least <= middle <= most
    words = "the lung fields differ in width as they hardly do in a straight chest" if beyond else "no gross difference"
    return finding(code, WARN if beyond else PASS, words, value=value, threshold=least if middle < 0 else most)


def inspiration(seen: Look) -> Finding:
    """INSPIRATION: FAIL where the whole interval lies below the limit, WARN where it straddles it."""
    code, limit = Reason.REASON_INSPIRATION, thresholds.INSPIRATION
    if not measurable(seen):
        return finding(code, NOT_ASSESSABLE, _UNMEASURABLE)
    found = [_inspiration(seen, *pair) for pair in (("middle", "middle"), ("tight", "loose"), ("loose", "tight"))]
    if not all(found):
        return finding(code, NOT_ASSESSABLE, "a lung field was not found")
    middle = found[0]
    low, high = min(found[1], middle), max(found[2], middle)
    value = Value("inspiration_index", middle, "1", low, high)
    outcome = FAIL if high < limit.fail else WARN if low < limit.warn else PASS
    words = {
        PASS: "the lungs are as high for their width as usual",
        WARN: "the lungs may be low for their width",
        FAIL: "the lungs are low for their width",
    }
    return _finding(code, outcome, words, value, limit.fail)


def _inspiration(seen: Look, height: str, width: str) -> float:
    """Height of masks of one kind over width of masks of another; 0 where there is none."""
    fields = [seen.nested[f"{side}_lung_field"] for side in ("right", "left")]
    heights = [lung_height(getattr(one, height)) for one in fields]
    across = _width(getattr(fields[0], width) | getattr(fields[1], width))
    return float(np.mean(heights)) * seen.aspect / across if all(heights) and across else 0.0


def values(seen: Look) -> Iterator[Value]:
    """Measurements that stand beside the findings."""
    for channel, one in seen.nested.items():
        down, across = seen.cell
        unit = "mm2" if seen.spacing_mm else "1"
        name = f"{channel.removesuffix('_field')}_area"
        yield Value(name, *_areas(one, down * across, unit))
    for group, score in seen.confidences.items():
        yield Value(f"confidence_{group}", score)
    yield Value("probability_inverted", seen.probabilities["inverted"])
    yield Value("quarter_turns", float(seen.turned), "{quarter_turns}")
    yield Value("probability_not_a_chest", seen.probabilities["not_a_chest"])
    yield Value("feature_distance", seen.distance)


def _areas(one: Nested, cell: float, unit: str) -> tuple[float, str, float, float]:
    low, middle, high = (cell * int(mask.sum()) for mask in (one.tight, one.middle, one.loose))
    return middle, unit, low, high


def _above(value: float, limit: Threshold) -> Outcome.ValueType:
    return FAIL if value >= limit.fail else WARN if value >= limit.warn else PASS


def _finding(
    code: Reason.ValueType,
    outcome: Outcome.ValueType,
    words: Mapping[Outcome.ValueType, str],
    value: Value,
    threshold: float,
) -> Finding:
    return finding(code, outcome, words[outcome], value=value, threshold=threshold)
