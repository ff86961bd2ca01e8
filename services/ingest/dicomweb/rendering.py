"""A frame as a picture to look at (PS3.18 8.3.5): modality and VOI transformation applied, never for diagnosis."""

import io
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut

from services.ingest.dicomweb.transcoding import frame_count
from shared import dicom
from shared.errors import ErrorCode, StepwedgeError

JPEG, PNG, GIF = "image/jpeg", "image/png", "image/gif"
FORMATS: Final[Mapping[str, str]] = {JPEG: "JPEG", PNG: "PNG", GIF: "GIF"}
THUMBNAIL: Final = 256
_MAX_SIDE: Final = 8192
_MAX_FRAME_BYTES: Final = 1 << 28
_MAX_SAMPLES: Final = 1 << 26
"""Of a frame that is made a picture: each is eight bytes on its way, several times over."""
_FUNCTIONS: Final = frozenset({"linear", "linear-exact", "sigmoid"})
_NUMBER: Final = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?([eE][+-]?[0-9]{1,2})?")


@dataclass(frozen=True, slots=True)
class Wish:
    """How it shall look."""

    window: tuple[float, float, str] | None = None
    """Centre, width, function."""
    viewport: tuple[int, int] | None = None
    """Largest width and height; the picture keeps its shape."""
    quality: int = 90


def wish(parameters: Mapping[str, str]) -> Wish:
    """Read the query parameters `window`, `viewport` and `quality`. Raises INVALID_REQUEST."""
    window = viewport = None
    if "window" in parameters:
        parts = parameters["window"].split(",")
        numbers = [float(part) for part in parts[:2] if _NUMBER.fullmatch(part)]
        function = parts[2].lower() if len(parts) > 2 else "linear"
        if len(numbers) != 2 or len(parts) > 3 or function not in _FUNCTIONS or numbers[1] <= 0:
            raise _invalid("window is centre, width, and linear, linear-exact or sigmoid")
        window = (numbers[0], numbers[1], function)
    if "viewport" in parameters:
        parts = parameters["viewport"].split(",")
        sides = [int(part) for part in parts if re.fullmatch(r"[0-9]{1,5}", part)]
        if len(sides) != 2 or len(parts) != 2 or not all(0 < side <= _MAX_SIDE for side in sides):
            raise _invalid(f"viewport is width and height, at most {_MAX_SIDE}")
        viewport = (sides[0], sides[1])
    quality = parameters.get("quality", "90")
    if not re.fullmatch(r"[0-9]{1,3}", quality) or not 1 <= int(quality) <= 100:
        raise _invalid("quality is 1 to 100")
    return Wish(window, viewport, int(quality))


def rendered(data: bytes, number: int, kind: str, wanted: Wish) -> bytes:
    """Frame `number` (from 1; 0 for one from the middle) as a picture of this media type.

    Raises ENTRY_NOT_FOUND, PIXELS_UNDECODABLE.
    """
    dataset = dicom.read(data)
    count = frame_count(dataset)
    index = (count // 2 if count > 1 else 0) if number == 0 else number - 1
    if index >= count:
        raise StepwedgeError(ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND, "the object has no such frame")
    frame = next(dicom.frames(dataset, max_bytes=_MAX_FRAME_BYTES, rgb=True, only=[index]))
    if frame.size > _MAX_SAMPLES:
        raise StepwedgeError(ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE, "the frame is too large to be made a picture")
    try:
        picture = Image.fromarray(_eight_bits(frame, dataset, wanted.window))
        if wanted.viewport is not None:
            picture.thumbnail(wanted.viewport, Image.Resampling.BILINEAR)
        buffer = io.BytesIO()
        picture.save(buffer, FORMATS[kind], **({"quality": wanted.quality} if kind == JPEG else {}))
    except (ValueError, TypeError, IndexError, AttributeError, KeyError, OverflowError, MemoryError, struct.error):
        message = "the frame cannot be made a picture"
        raise StepwedgeError(ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE, message) from None
    return buffer.getvalue()


def _eight_bits(frame: NDArray[Any], dataset: Dataset, window: tuple[float, float, str] | None) -> NDArray[Any]:
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(frame, dataset)
        return (colours >> 8).astype(np.uint8) if colours.dtype.itemsize > 1 else colours.astype(np.uint8)
    if frame.ndim == 3:
        stored = int(dataset.get("BitsStored") or 8)
        return (frame >> max(0, stored - 8)).astype(np.uint8) if stored > 8 else frame.astype(np.uint8)
    values = apply_modality_lut(frame, dataset)
    if window is not None:
        grey = _windowed(values.astype(np.float64), *window)
    elif dataset.get("VOILUTSequence") or dataset.get("WindowWidth") is not None:
        grey = _stretched(apply_voi_lut(values, dataset), _range_of(dataset))
    else:
        grey = _stretched(values, None)
    # PS3.3 C.11.6 and C.7.6.3.1.2: where both are there, they say the same thing.
    inverse = photometric == "MONOCHROME1" or str(dataset.get("PresentationLUTShape", "")) == "INVERSE"
    whole: NDArray[Any] = np.rint((1.0 - grey if inverse else grey) * 255).astype(np.uint8)
    return whole


def _windowed(values: NDArray[Any], centre: float, width: float, function: str) -> NDArray[Any]:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, onto 0 to 1."""
    if function == "sigmoid":
        curve: NDArray[Any] = 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -60, 60)))
        return curve
    if function == "linear":
        centre, width = centre - 0.5, max(width - 1.0, 1e-9)
    return np.clip((values - centre) / width + 0.5, 0.0, 1.0)


def _range_of(dataset: Dataset) -> tuple[float, float] | None:
    """What `apply_voi_lut` maps a window onto: the range of the stored values after the modality transformation."""
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return 0.0, float(2**bits - 1)
    bits = int(dataset.BitsStored)
    signed = int(dataset.get("PixelRepresentation") or 0) == 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    return ends[0], ends[1]


def _stretched(values: NDArray[Any], ends: tuple[float, float] | None) -> NDArray[Any]:
    """Onto 0 to 1, from these ends or from the smallest and largest value that there is."""
    values = np.nan_to_num(values.astype(np.float64))
    low, high = ends if ends is not None else (float(values.min()), float(values.max()))
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return np.zeros(values.shape)
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def _invalid(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, words)
