"""The radiographs, their masks in two conventions, and what each mask says of the other convention's channels."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from services.inference.preprocessing import GRID, PREPROCESSING_VERSION, Letterbox, letterbox, preprocess

CHANNELS = ("right_lung_field", "left_lung_field", "heart", "lungs_full")
FLAGS = ("inverted", "rotated_90", "rotated_180", "rotated_270", "mirrored", "not_a_chest")
MAP = 128  # side of the targets and of the network's answer
CONVENTION_CHANNELS = {"field": (0, 1, 2), "full": (3,), "": ()}
HELD_OUT = ("test", "test_crossvendor")  # for the final report only: never trained on, chosen by or calibrated with
IGNORE = 255
CROSS_WEIGHT = 128  # of 255: what one convention implies about the other counts half


@dataclass(frozen=True)
class Radiograph:
    """One row of index.csv."""

    id: str
    source: str
    split: str
    patient: str
    convention: str
    row: dict[str, str]


@dataclass
class Pool:
    """Images ready to train on, row by row.

    grids: uint8 [n, 256, 256]; targets, weights: uint8 [n, 128, 128, 4], 255 = one; soft: teachers' answers, same
    shape, or None, and taught: bool [n], which images have them; complete: bool [n, 4], where a person labelled the
    whole channel; boxes: the letterboxes; margins: float32 [n, 4], from the lungs to the upper, lower, left and right
    edge of the image as shares of its height or width, 0 where the lungs are cut off there, NaN where nobody says.
    """

    radiographs: list[Radiograph]
    grids: NDArray[np.uint8]
    targets: NDArray[np.uint8]
    weights: NDArray[np.uint8]
    complete: NDArray[np.bool_]
    boxes: list[Letterbox]
    margins: NDArray[np.float32]
    soft: NDArray[np.uint8] | None = None
    taught: NDArray[np.bool_] | None = None

    def rows_of(self, source: str) -> NDArray[np.int64]:
        return np.array([i for i, item in enumerate(self.radiographs) if item.source == source], np.int64)

    def against_the_convention(self) -> list[int]:
        """Rows with a `field` label that is not one (see `draws_the_heart_border`), told on the maps of 128."""
        return [
            i
            for i, item in enumerate(self.radiographs)
            if item.convention == "field"
            and not draws_the_heart_border(self.targets[i, ..., 1] > 127, self.targets[i, ..., 2] > 127)
        ]


def read_index(root: Path) -> list[Radiograph]:
    """Every radiograph of the set; raises FileNotFoundError where the set is absent."""
    with (root / "index.csv").open(newline="", encoding="utf-8") as file:
        return [
            Radiograph(row["id"], row["source"], row["split"], row["patient"], row["mask_convention"], row)
            for row in csv.DictReader(file)
        ]


def read_image(root: Path, item: Radiograph) -> NDArray[np.uint8]:
    return np.asarray(cv2.imread(str(root / "images" / f"{item.id}.jpg"), cv2.IMREAD_GRAYSCALE), np.uint8)


def read_truth(root: Path, item: Radiograph) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Human masks at the image's own size: bool [channels, rows, columns] in the order of the convention's channels,
    and bool [rows, columns], false where the mask says "ignore"."""
    labels = cv2.imread(str(root / "masks" / f"{item.id}.png"), cv2.IMREAD_GRAYSCALE)
    channels = CONVENTION_CHANNELS[item.convention]
    return np.stack([labels == value for value in range(1, len(channels) + 1)]), np.asarray(labels != IGNORE)


def on_grid(mask: NDArray[np.bool_], box: Letterbox, side: int) -> NDArray[np.float32]:
    """The share of each cell that the mask covers: float32 [side, side] in 0..1."""
    grid = np.zeros((GRID, GRID), np.float32)
    inside = cv2.resize(mask.astype(np.float32), (box.width, box.height), interpolation=cv2.INTER_AREA)
    grid[box.top : box.top + box.height, box.left : box.left + box.width] = inside
    return grid if side == GRID else np.asarray(cv2.resize(grid, (side, side), interpolation=cv2.INTER_AREA))


LEAST_SHIFT = 0.21  # of the heart's width; set on training and validation labels, where 5 of 158 lie below


def draws_the_heart_border(left: NDArray[np.bool_], heart: NDArray[np.bool_]) -> bool:
    """Whether a `field` label lets the left lung stop at the heart, by the label alone.

    Down three quarters of the heart its border must move sideways by `LEAST_SHIFT` of the heart's width. In one label
    of 18 it goes straight down behind the heart, or the two are exchanged: another convention, or a slip.
    """
    rows, columns = np.flatnonzero(heart.any(1)), np.flatnonzero(heart.any(0))
    lung = np.flatnonzero(left.any(1))
    if not len(rows) or not len(lung):
        return False
    low = min(rows[0] + int(0.75 * (rows[-1] - rows[0])), lung[-1])
    border = np.where(left.any(1), left.argmax(1), left.shape[1])
    if not left[low].any() or low < rows[0]:
        return False
    shift = border[low] - border[rows[0] : low + 1].min()
    return bool(shift >= LEAST_SHIFT * (columns[-1] - columns[0] + 1))


def load_pool(root: Path, cache: Path, splits: tuple[str, ...], progress: Callable[[int, int], None]) -> Pool:
    """The pool of the given splits, built once and kept under `cache`; never of the held-out splits."""
    if set(splits) & set(HELD_OUT):
        raise ValueError("the test splits are for the final report only")
    items = [item for item in read_index(root) if item.split in splits]
    key = hashlib.sha256(json.dumps([PREPROCESSING_VERSION, MAP, 3, [i.id for i in items]]).encode()).hexdigest()[:16]
    place = cache / key
    boxes = [letterbox(*_size(root, item)) for item in items] if not (place / "boxes.npy").exists() else []
    if not (place / "boxes.npy").exists():
        _build(root, items, boxes, place, progress)
    boxes = [Letterbox(*(int(value) for value in row)) for row in np.load(place / "boxes.npy")]
    grids, targets, weights, complete, margins = (
        np.load(place / f"{name}.npy", mmap_mode="r") for name in ("grids", "targets", "weights", "complete", "margins")
    )
    return Pool(items, grids, targets, weights, complete, boxes, margins)


def _size(root: Path, item: Radiograph) -> tuple[int, int]:
    rows, columns = read_image(root, item).shape
    return rows, columns


def _build(
    root: Path, items: list[Radiograph], boxes: list[Letterbox], place: Path, progress: Callable[[int, int], None]
) -> None:
    place.mkdir(parents=True, exist_ok=True)
    grids = np.zeros((len(items), GRID, GRID), np.uint8)
    targets = np.zeros((len(items), MAP, MAP, len(CHANNELS)), np.uint8)
    weights = np.zeros_like(targets)
    complete = np.zeros((len(items), len(CHANNELS)), bool)
    margins = np.full((len(items), 4), np.nan, np.float32)
    for i, (item, box) in enumerate(zip(items, boxes, strict=True)):
        grids[i] = preprocess(read_image(root, item)).grid
        if item.convention:
            truth = read_truth(root, item)
            targets[i], weights[i] = _IMPLIED[item.convention](*truth, box)
            margins[i] = margins_of(item.convention, truth[0])
            complete[i, CONVENTION_CHANNELS[item.convention]] = True
        progress(i + 1, len(items))
    arrays: dict[str, NDArray[Any]] = {"grids": grids, "targets": targets, "weights": weights, "complete": complete}
    arrays["margins"] = margins
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", array)
    np.save(place / "boxes.npy", np.array([[b.rows, b.columns, b.top, b.left, b.height, b.width] for b in boxes]))


def _from_field(
    masks: NDArray[np.bool_], known: NDArray[np.bool_], box: Letterbox
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Right, left and heart are said; of the full lungs: they hold both fields, and end near their convex hull."""
    maps = np.stack([on_grid(mask, box, MAP) for mask in masks], axis=-1)
    targets, weights = np.zeros((MAP, MAP, 4), np.uint8), np.full((MAP, MAP, 4), 255, np.uint8)
    targets[..., :3] = np.rint(maps * 255)
    lungs = np.maximum(maps[..., 0], maps[..., 1])
    targets[..., 3] = np.where(lungs > 0.5, 255, 0)
    beyond = _hull(lungs > 0.5, 8) == 0
    weights[..., 3] = np.where((lungs > 0.9) | beyond, CROSS_WEIGHT, 0)
    return targets, weights


def _from_full(
    masks: NDArray[np.bool_], known: NDArray[np.bool_], box: Letterbox
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Both lungs are said; the fields lie inside them, each in its own lung, and the heart lies in their hull."""
    full = on_grid(masks[0], box, MAP)
    targets, weights = np.zeros((MAP, MAP, 4), np.uint8), np.zeros((MAP, MAP, 4), np.uint8)
    targets[..., 3] = np.rint(full * 255)
    weights[..., 3] = np.where(on_grid(~known, box, MAP) > 0, 0, 255)
    right, left = _sides(full > 0.5)
    near = np.ones((3, 3), np.uint8)
    for channel, other in ((0, left), (1, right)):
        outside = (cv2.dilate((full > 0.05).astype(np.uint8), near) == 0) | other
        weights[..., channel] = np.where(outside, CROSS_WEIGHT, 0)
    weights[..., 2] = np.where(_hull(full > 0.5, 6) == 0, CROSS_WEIGHT, 0)
    weights[..., :3] = np.minimum(weights[..., :3], weights[..., 3:])
    return targets, weights


def margins_of(convention: str, masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """See `Pool.margins`. Lung fields stop at the diaphragm: they do not say where the lungs end below."""
    lungs = masks[0] if convention == "full" else masks[0] | masks[1]
    if not lungs.any():
        return np.full(4, np.nan, np.float32)
    found: list[float] = []
    for filled in (lungs.any(1), lungs.any(0)):
        inside = np.flatnonzero(filled)
        cells = (int(inside[0]), len(filled) - 1 - int(inside[-1]))
        found += [0.0 if one < CUT_OFF else one / len(filled) for one in cells]
    return np.array([found[0], found[1] if convention == "full" else np.nan, *found[2:]], np.float32)


CUT_OFF = 2  # pixels: a mask that comes so close to the edge is cut off there (README of the set)

_IMPLIED = {"field": _from_field, "full": _from_full}


def _hull(mask: NDArray[np.bool_], margin: int) -> NDArray[np.uint8]:
    """One inside the convex hull of the mask widened by `margin` cells; one everywhere where the mask is empty."""
    hull = np.zeros(mask.shape, np.uint8)
    points = cv2.findNonZero(mask.astype(np.uint8))
    if points is None:
        return np.ones(mask.shape, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(points), 1)
    return np.asarray(cv2.dilate(hull, np.ones((2 * margin + 1,) * 2, np.uint8)))


def _sides(lungs: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The patient's right (on the image's left) and left lung, both empty where the two cannot be told apart."""
    _, labels, stats, centres = cv2.connectedComponentsWithStats(lungs.astype(np.uint8))
    sizes = stats[1:, cv2.CC_STAT_AREA]
    large = 1 + np.flatnonzero(sizes > 0.15 * sizes.sum())
    if len(large) != 2:
        return np.zeros_like(lungs), np.zeros_like(lungs)
    first, second = sorted(large, key=lambda label: float(centres[label][0]))
    return labels == first, labels == second
