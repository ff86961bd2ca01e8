"""Where images lie in the patient: position and orientation of an object, or of each frame of an enhanced one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue


def numbers(dataset: Dataset, keyword: str, count: int) -> list[float]:
    """So many finite numbers of an attribute, or none."""
    value = dataset.get(keyword)
    if not isinstance(value, MultiValue | list) or len(value) != count:
        return []
    try:
        found = [float(one) for one in value]
    except (TypeError, ValueError, OverflowError):
        return []
    return found if all(math.isfinite(one) and abs(one) < 1e6 for one in found) else []


def frame_places(dataset: Dataset) -> Iterator[tuple[list[float], list[float], str]]:
    """Position, orientation and Stack ID of every frame of an enhanced object (PS3.3 C.7.6.16.2.2 to .4)."""
    shared = _first(dataset.get("SharedFunctionalGroupsSequence"))
    for item in dataset.get("PerFrameFunctionalGroupsSequence") or ():
        place = _first(item.get("PlanePositionSequence")) or _first(shared.get("PlanePositionSequence"))
        plane = _first(item.get("PlaneOrientationSequence")) or _first(shared.get("PlaneOrientationSequence"))
        position, axes = numbers(place, "ImagePositionPatient", 3), numbers(plane, "ImageOrientationPatient", 6)
        if position and are_axes(axes):
            content = _first(item.get("FrameContentSequence"))
            yield position, axes, str(content.get("StackID", ""))


def pixel_measures(dataset: Dataset) -> Iterator[Dataset]:
    """Pixel Measures of an enhanced object, for all frames and for single ones (PS3.3 C.7.6.16.2.1)."""
    groups = (dataset.get(f"{which}FunctionalGroupsSequence") or () for which in ("Shared", "PerFrame"))
    for item in chain.from_iterable(groups):
        yield _first(item.get("PixelMeasuresSequence"))


def _first(items: Any) -> Dataset:
    found = items[0] if items else None
    return found if isinstance(found, Dataset) else Dataset()


def are_axes(orientation: Sequence[float]) -> bool:
    """Whether six numbers are two directions at a right angle (PS3.3 C.7.6.2.1.1)."""
    if not orientation:
        return False
    rows, columns = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm(rows), np.linalg.norm(columns)
    return bool(all(0.99 < one < 1.01 for one in lengths) and abs(float(rows @ columns)) < 0.01)
