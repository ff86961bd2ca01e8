"""Objects that lie over the lungs: a necklace, a button, a coin, an electrode with its lead, a pacemaker, a zip.

What is brighter than its surroundings is taken out at four sizes (white top-hat), and each piece of it is measured:
how large it is, how bright against its surroundings and against what is usual in these lungs, how steep its rim. One
weighted sum of these measures, fitted to objects drawn into radiographs (`python -m benchmarks.objects fit`), tells
objects from ribs, vessels and hila. Nothing here depends on the model but where the lungs are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from services.inference import thresholds
from services.inference.chest import Look, measurable
from services.inference.findings import FAIL, NOT_ASSESSABLE, PASS, WARN, Value, finding
from services.inference.masks import Mask
from services.inference.preprocessing import shrink
from stepwedge.common.v1.common_pb2 import Box, Finding, Reason

LONGEST: Final = 512
"""Longer side of the working picture, pixels; smaller images are looked at as they are."""
_STEPS: Final = 160
"""Grey steps of the working picture between percentiles 1 and 99."""
_DARKEST: Final = 24
"""Step of percentile 1; what is brighter than percentile 99 has 71 steps more."""
_SIZES: Final = (0.016, 0.035, 0.075, 0.16)
"""Sizes up to which a top-hat lets things through, as shares of the longer side: about 7, 15, 32 and 70 mm."""
_OUTSTANDING: Final = (2.2, 2.2, 2.0, 2.0)
"""How often percentile 90 of a top-hat in the lungs a pixel has to reach to belong to a piece."""
_MOST_PIECES: Final = 7
"""Largest pieces of each size that are measured."""
_LEAST_PIXELS: Final = 4
_LEAST_LUNG: Final = 800
"""Pixels of lung under which nothing is looked for."""
_GAP: Final = 0.06
"""Gaps in the outline of the lungs, as a share of the longer side, that are taken for something that hides lung."""

Plane = NDArray[np.uint8]


@dataclass(frozen=True)
class Piece:
    """Something bright in the lungs. score: from 0 on rather an object than anatomy, see `WEIGHTS`. place: top, left,
    height, width in the working picture. own: which pixels of that place are its."""

    score: float
    place: tuple[int, int, int, int]
    own: Mask


def working_picture(
    pixels: NDArray[Any], *, inverted: bool, low: float, high: float, aspect: float = 1.0, longest: int = LONGEST
) -> Plane:
    """The image [rows, columns] as uint8, `longest` at its longer side; bright is dense. low, high: the values that
    percentiles 1 and 99 have. aspect: of its pixels, `preprocessing.shrink`."""
    small = shrink(pixels, longest, aspect)
    share = (small - low) / (high - low)
    share = 1 - share if inverted else share
    return np.asarray(np.clip(np.rint(_DARKEST + _STEPS * share), 0, 255), np.uint8)


def over_the_lungs(lungs: Mask, shape: tuple[int, int]) -> Mask:
    """Where objects are looked for, in the working picture: the lungs, and what is missing in them."""
    gap = max(3, round(_GAP * max(lungs.shape))) | 1
    wide = cv2.copyMakeBorder(lungs.astype(np.uint8), gap, gap, gap, gap, cv2.BORDER_CONSTANT)
    closed = cv2.morphologyEx(wide, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (gap, gap)))
    inside = closed[gap:-gap, gap:-gap]
    return cv2.resize(inside, shape[::-1], interpolation=cv2.INTER_NEAREST) > 0


@dataclass(frozen=True)
class _Layers:
    """Of the working picture: blurred, depth in the lungs, top-hats, slopes; what is usual in the lungs (90 %)."""

    soft: Plane
    depth: NDArray[np.float32]
    hats: tuple[Plane, ...]
    slopes: NDArray[np.float32]
    usual_hats: tuple[float, ...]
    usual_slope: float
    middle: float


def _layers(picture: Plane, lungs: Mask) -> _Layers:
    soft = cv2.GaussianBlur(picture, (0, 0), 0.7)
    sides = [max(3, round(size * max(picture.shape))) | 1 for size in _SIZES]
    hats = tuple(
        np.asarray(cv2.morphologyEx(soft, cv2.MORPH_TOPHAT, np.ones((side, side), np.uint8)), np.uint8)
        for side in sides
    )
    slopes = cv2.magnitude(cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)) / 8
    return _Layers(
        np.asarray(soft, np.uint8),
        np.asarray(cv2.distanceTransform(lungs.view(np.uint8), cv2.DIST_L2, 3), np.float32),
        hats,
        np.asarray(slopes, np.float32),
        tuple(max(1.0, _of_counts(hat, lungs, 0.9)) for hat in hats),
        max(0.25, float(np.percentile(slopes[lungs], 90))),
        _of_counts(soft, lungs, 0.5),
    )


def _of_counts(plane: Any, lungs: Mask, share: float) -> float:
    """The grey step under which a share of the lungs lies."""
    counts = np.cumsum(cv2.calcHist([plane], [0], lungs.view(np.uint8), [256], [0, 256]).ravel())
    return float(np.searchsorted(counts, share * counts[-1]))


def measured(picture: Plane, lungs: Mask) -> Iterator[tuple[NDArray[np.float64], tuple[int, int, int, int], Mask]]:
    """The measures of every piece, in the order of `WEIGHTS`; its place (top, left, height, width), and the pixels of
    that place that belong to it."""
    if int(lungs.sum()) < _LEAST_LUNG:
        return
    layers = _layers(picture, lungs)
    for size, hat in enumerate(layers.hats):
        hot = (hat > _OUTSTANDING[size] * layers.usual_hats[size]) & lungs
        count, labels, stats, _ = cv2.connectedComponentsWithStats(hot.view(np.uint8), connectivity=8)
        order = 1 + np.argsort(-stats[1:count, cv2.CC_STAT_AREA], kind="stable")[:_MOST_PIECES]
        for label in order:
            left, top, width, height, area = (int(one) for one in stats[label])
            if area < _LEAST_PIXELS:
                break
            around = (slice(max(0, top - 2), top + height + 2), slice(max(0, left - 2), left + width + 2))
            piece = labels[around] == label
            yield (
                _measures(layers, size, around, piece, area, (height, width)),
                (top, left, height, width),
                labels[top : top + height, left : left + width] == label,
            )


def _measures(
    layers: _Layers, size: int, around: tuple[slice, slice], piece: Mask, area: int, box: tuple[int, int]
) -> NDArray[np.float64]:
    longest = max(layers.soft.shape)
    body, near = piece.view(np.uint8), np.ones((3, 3), np.uint8)
    rim = cv2.dilate(body, near) > cv2.erode(body, near, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    slopes = layers.slopes[around]
    on_rim = np.quantile(slopes[rim], (0.2, 0.5, 0.9)) / layers.usual_slope
    hats = [hat[around][piece] for hat in layers.hats]
    grey = layers.soft[around][piece]
    found = [
        float(np.hypot(*box)) / longest,
        area**0.5 / longest,
        area / (box[0] * box[1]),
        *(float(one.max()) / usual for one, usual in zip(hats, layers.usual_hats, strict=True)),
        *(float(one.mean()) / usual for one, usual in zip(hats, layers.usual_hats, strict=True)),
        *(float(one.max()) / _STEPS for one in hats),
        float(slopes[piece].max()) / layers.usual_slope,
        float(slopes[piece].max()) / _STEPS,
        *(float(one) for one in on_rim),
        (float(grey.max()) - _DARKEST) / _STEPS,
        float(np.median(layers.depth[around][piece])) / longest,
        float(layers.depth[around][piece].max()) / longest,
    ]
    above = (float(np.percentile(grey, 90)) - layers.middle) / _STEPS
    logs = np.log(np.maximum(found, 0.0) + 0.02)
    return np.concatenate([np.eye(len(_SIZES))[size], logs, [above]])


MEASURES: Final = (
    *(f"of size {size}" for size in (1, 2, 3, 4)),
    *("log extent", "log root of area", "log share of its box"),
    *(f"log {what} of top-hat {size}" for what in ("most", "mean", "range") for size in (1, 2, 3, 4)),
    *("log steepest slope", "log its range", *(f"log {share} % slope of the rim" for share in (20, 50, 90))),
    *("log brightest", "log median depth in the lungs", "log greatest depth in the lungs"),
    "brightness above the lungs",
)
BIAS: Final = 14.249
WEIGHTS: Final[Sequence[float]] = (
    -0.178,  # of size 1
    0.223,  # of size 2
    -0.013,  # of size 3
    -0.011,  # of size 4
    -1.604,  # log extent
    4.471,  # log root of area
    -0.072,  # log share of its box
    0.657,  # log most of top-hat 1
    0.622,  # log most of top-hat 2
    -0.537,  # log most of top-hat 3
    -0.533,  # log most of top-hat 4
    1.560,  # log mean of top-hat 1
    -1.316,  # log mean of top-hat 2
    -0.757,  # log mean of top-hat 3
    -0.113,  # log mean of top-hat 4
    0.037,  # log range of top-hat 1
    -1.998,  # log range of top-hat 2
    -0.043,  # log range of top-hat 3
    1.281,  # log range of top-hat 4
    -1.968,  # log steepest slope
    1.127,  # log its range
    1.489,  # log 20 % slope of the rim
    1.707,  # log 50 % slope of the rim
    2.225,  # log 90 % slope of the rim
    4.365,  # log brightest
    0.476,  # log median depth in the lungs
    1.931,  # log greatest depth in the lungs
    4.215,  # brightness above the lungs
)
"""Fitted by `python -m benchmarks.objects fit --most 700`; a score of 0 is what 1.5 % of the radiographs without an
object exceed."""


def pieces(picture: Plane, lungs: Mask) -> list[Piece]:
    """Every piece with its score, the likeliest object first."""
    weights = np.array(WEIGHTS)
    found = [Piece(float(measures @ weights) + BIAS, place, own) for measures, place, own in measured(picture, lungs)]
    return sorted(found, key=lambda one: -one.score)


def objects(found: Sequence[Piece], limit: float) -> list[Piece]:
    """The pieces that are objects, without those that lie, for the most part, within the box of a likelier one."""
    kept: list[Piece] = []
    for one in found:
        if one.score >= limit and all(_within(one.place, other.place) < 0.5 for other in kept):
            kept.append(one)
    return kept


def _within(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Share of the smaller of two boxes that lies in both."""
    down = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    across = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(0, down) * max(0, across) / min(one[2] * one[3], other[2] * other[3])


def _covered(found: Sequence[Piece], limit: float, lungs: Mask) -> float:
    """Share of the lungs that objects take."""
    taken = np.zeros(lungs.shape, np.bool_)
    for one in found:
        if one.score >= limit:
            top, left, height, width = one.place
            taken[top : top + height, left : left + width] |= one.own
    return int(taken.sum()) / int(lungs.sum())


_MOST_BOXES: Final = 12


def finding_of(seen: Look, pixels: NDArray[Any], *, inverted: bool, low: float, high: float) -> Finding:
    """OBJECT_IN_THE_WAY. pixels: those of the field [rows, columns]; the rest as `working_picture`."""
    code, limit = Reason.REASON_OBJECT_IN_THE_WAY, thresholds.OBJECT
    if not measurable(seen):
        return finding(code, NOT_ASSESSABLE, "where the lungs are is not known")
    if not high > low:
        return finding(code, NOT_ASSESSABLE, "the image has one value only")
    picture = working_picture(pixels, inverted=inverted, low=low, high=high, aspect=seen.where.aspect)
    lungs = over_the_lungs(seen.nested["lungs_full"].middle, picture.shape)
    found = pieces(picture, lungs)
    value = Value("object_score", found[0].score if found else thresholds.NO_OBJECT)
    told = objects(found, limit.warn)
    if not told:
        return finding(
            code, PASS, "nothing that looks like an object lies over the lungs", value=value, threshold=limit.warn
        )
    hidden = _covered(found, limit.warn, lungs)
    outcome = FAIL if hidden >= thresholds.HIDDEN[0] else WARN
    words = {
        WARN: "something that does not look like anatomy lies over the lungs",
        FAIL: "something that does not look like anatomy hides a large part of the lungs",
    }
    boxes = [_box(one, picture.shape, seen) for one in told[:_MOST_BOXES]]
    return finding(code, outcome, words[outcome], value=value, threshold=limit.warn, boxes=boxes)


def _box(one: Piece, shape: tuple[int, int], seen: Look) -> Box:
    """Place in the working picture as pixels of the image, with a little room."""
    top, left, height, width = one.place
    down, across = seen.where.rows / shape[0], seen.where.columns / shape[1]
    first = (max(0, round((top - 2) * down)), max(0, round((left - 2) * across)))
    last = (
        min(seen.where.rows, round((top + height + 2) * down)),
        min(seen.where.columns, round((left + width + 2) * across)),
    )
    above, _, beside, _ = seen.behind
    size = (last[1] - first[1], last[0] - first[0])
    return Box(frame=seen.frame, left=beside + first[1], top=above + first[0], width=size[0], height=size[1])
