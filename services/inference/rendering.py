"""A de-identified image, or a mask, as a PNG for a screen."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from services.inference.lookup_tables import as_curved
from services.inference.pixels import MAX_FRAME_BYTES, rendered_frame
from shared import dicom
from shared.errors import ErrorCode, StepwedgeError

LONGEST_SIDE: Final = (16, 4096)
"""Least and greatest longest side that may be asked for, pixels."""
USUAL_SIDE: Final = 1024
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_ENDS: Final = (0.5, 99.5)
"""Percentiles between which the grey values are shown where the object names no window."""


class Window(NamedTuple):
    """What part of the grey values is shown, each as a share of them."""

    center: float
    width: float


class Picture(NamedTuple):
    """A PNG, and the size of the whole image that it shows."""

    png: bytes
    rows: int
    columns: int
    frames: int


def render(data: bytes, *, frame: int = 0, window: Window | None = None, longest_side: int = 0) -> Picture:
    """Show one frame of an object.

    Parameters
    ----------
    data
        A DICOM object, or a PNG of ours (a mask), which is only made smaller.
    frame
        First is 0.
    window
        Overrides what the object says (Window Center, Window Width: PS3.3 C.11.2.1.2); of values that the object shows
        through a table or a curve (C.11.2) it is a part of what that makes of them.
    longest_side
        Of the answer, pixels; 0 for `USUAL_SIDE`. Nothing is enlarged.

    Raises
    ------
    StepwedgeError
        INVALID_REQUEST, MALFORMED_DICOM, PIXELS_UNDECODABLE.
    """
    side = longest_side or USUAL_SIDE
    if not LONGEST_SIDE[0] <= side <= LONGEST_SIDE[1]:
        raise _invalid("longest_side is 16 to 4096")
    if window is not None and not (0 <= window.center <= 1 and 0 < window.width <= 4):
        raise _invalid("the window is a centre from 0 to 1 and a width above 0")
    if data.startswith(_PNG):
        mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        if mask is None:
            raise StepwedgeError(ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE, "the mask does not decode")
        rows, columns = mask.shape
        return Picture(_encoded(_shrunk(mask, side)), rows, columns, 1)
    dataset = dicom.read(data)
    found = rendered_frame(dataset, frame, max_bytes=MAX_FRAME_BYTES)
    rows, columns = found.values.shape[:2]
    curved = None if found.shown is None else as_curved(found.values, found.shown)
    small = _shrunk(found.values if curved is None else curved, side)
    coloured = small.ndim == 3 and small.dtype == np.uint8
    shown = small if coloured else _windowed(small, dataset, window, curved=curved is not None)
    if found.inverted:
        shown = np.asarray(255 - shown)
    if shown.ndim == 3:
        shown = np.ascontiguousarray(shown[..., ::-1])  # cv2 writes BGR
    return Picture(_encoded(shown), rows, columns, found.frames)


def _windowed(values: NDArray[Any], dataset: Dataset, window: Window | None, *, curved: bool) -> NDArray[np.uint8]:
    """Grey values in 8 bits, linearly between the ends of the window. curved: the object's own way of showing them has
    been gone, and they fill 16 bits."""
    floats = values.astype(np.float32)
    low, high = float(floats.min()), float(floats.max())
    if window is not None:
        center, width = low + window.center * (high - low), window.width * (high - low)
        low, high = center - width / 2, center + width / 2
    elif curved:
        low, high = 0.0, 65535.0
    else:
        low, high = _of_object(dataset, low, high) or tuple(map(float, np.percentile(floats, _ENDS)))
    if high <= low:
        return np.zeros(floats.shape, np.uint8)
    return np.asarray(np.clip((floats - low) * (255 / (high - low)), 0, 255), np.uint8)


def _of_object(dataset: Dataset, low: float, high: float) -> tuple[float, float] | None:
    """The ends of the object's own window in stored values; None where it names none that shows anything."""
    try:
        center, width = (_first(dataset.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
        slope, intercept = float(dataset.get("RescaleSlope", 1) or 1), float(dataset.get("RescaleIntercept", 0) or 0)
        ends = sorted(((center + half * width) - intercept) / slope for half in (-0.5, 0.5))
    except (TypeError, ValueError, OverflowError):
        return None
    seen = min(ends[1], high) - max(ends[0], low)
    return (ends[0], ends[1]) if width >= 1 and seen > 0.02 * (high - low) else None


def _first(value: Any) -> float:
    return float(value if isinstance(value, int | float | str) else value[0])


def _shrunk(values: NDArray[Any], side: int) -> NDArray[Any]:
    rows, columns = values.shape[:2]
    scale = side / max(rows, columns)
    if scale >= 1:
        return values
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA))


def _encoded(picture: NDArray[np.uint8]) -> bytes:
    whole, data = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not whole:
        raise StepwedgeError(ErrorCode.ERROR_CODE_INTERNAL, "the picture could not be encoded")
    return bytes(data)


def _invalid(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, words)
