"""From a DICOM object, or a plain picture, to one frame of grey values that says which of its ends is white."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_color_lut
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from services.inference.coverage import RADIOGRAPHY, modality_of
from services.inference.lookup_tables import Shown, is_big_endian, is_raw, more_is_more_dose, shown_of, table_of
from shared import dicom
from shared.errors import ErrorCode, StepwedgeError

MAX_FRAME_BYTES: Final = 256 << 20
"""Most bytes that a decoded frame may take; the largest detectors give 40 MB."""

_PLAIN: Final = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation")
_UNCOMPRESSED: Final = frozenset(
    {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian}
)
_MACROS: Final = (
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "PixelMeasuresSequence",
    "FramePixelDataPropertiesSequence",
)
"""Functional groups that say something of the grey scale or of sizes (PS3.3 C.7.6.16.2, C.8.19.6)."""
_OF_A_FRAME: Final = (
    "PresentationLUTShape", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "SOPClassUID", "PresentationIntentType", "PixelIntensityRelationship", "PixelIntensityRelationshipSign",
    "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio",
)  # fmt: skip
_SIGNED: Final = ("<u2", "<i2")
"""By Pixel Representation (PS3.3 C.7.6.3.1)."""

_SPACING_MM: Final = (0.01, 5.0)
"""Distances between pixel centres that an X-ray detector or a digitizer can have, mm."""
_PIXELS: Final = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_PIXELS_OF_REAL_NUMBERS: Final = frozenset(map(BaseTag, _PIXELS[:2]))
_NATIVE: Final = {np.dtype(kind) for kind in (np.uint8, np.uint16, np.int16, np.float32)}
_WIDENED: Final[Mapping[str, str]] = {"b1": "u1", "i1": "i2"}
_ASPECT: Final = (0.25, 4.0)
"""Height of a pixel over its width that a digitizer can have."""
_SQUARE: Final = 0.02
"""By which part that ratio is off where pixels still count as square: rounding of what is stated."""


@dataclass(frozen=True)
class Frame:
    """One frame as it is assessed.

    values: [rows, columns] in uint8, uint16, int16 or float32, finite; after a Modality LUT given as a table, before a
        linear rescale (which changes no order unless its slope is negative, and then `inverted` says so).
    inverted: the lowest value is shown white.
    padding: bool [rows, columns], true where PixelPaddingValue or a shutter says that there is no image; None where
        nowhere. These pixels are as dark as the darkest of the others.
    spacing_mm: distance of rows and of columns, mm; None where absent or absurd.
    index, count: which frame of how many.
    colour: the values are the luminance of a colour picture.
    bits: bits stored per sample.
    aspect: height of a pixel over its width; 1 where nothing is said.
    shown: how the object wants its grey values to be shown; None where it does not say.
    """

    values: NDArray[Any]
    inverted: bool
    padding: NDArray[np.bool_] | None = None
    spacing_mm: tuple[float, float] | None = None
    index: int = 0
    count: int = 1
    colour: bool = False
    bits: int = 16
    aspect: float = 1.0
    shown: Shown | None = None


def has_pixels(dataset: Dataset) -> bool:
    """Whether the object has pixel data at all (PS3.3 C.7.6.3, C.7.6.24)."""
    return any(BaseTag(tag) in dataset for tag in _PIXELS)


def frame_of(dataset: Dataset, *, middle: bool) -> Frame:
    """The frame of a data set that is assessed: the first, or of a volume or a loop the `middle` one.

    Only that frame is decoded. Raises PIXELS_UNDECODABLE.
    """
    count = _number(dataset, "NumberOfFrames", 1)
    index = count // 2 if middle else 0
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip()
    stored = _as_it_lies(dataset)
    if stored is None:
        stored = _lying_high(dataset, index)
    if stored is None:
        wanted = dicom.frames(dataset, max_bytes=MAX_FRAME_BYTES, rgb=photometric.startswith("YBR"), only=[index])
        stored = next(wanted, None)
    if stored is None or stored.ndim not in (2, 3) or stored.size == 0:
        raise _undecodable("the frame is empty")
    said = _of_frame(dataset, index)
    colour = stored.ndim == 3 or photometric == "PALETTE COLOR"
    if photometric == "PALETTE COLOR":
        stored = _coloured(stored, dataset)
    values = luminance(stored)
    if colour and modality_of(dataset) in RADIOGRAPHY and stored.shape[2] >= 3:
        colour = not _channels_alike(stored)  # a screenshot of a radiograph has its grey values
    bits = _number(dataset, "BitsStored", 8 * stored.dtype.itemsize)
    if stored.ndim == 2:
        values = _without_overlays(values, dataset, bits)
    inverted = _inverted(said, photometric)
    padding = _hidden(values, dataset) if stored.ndim == 2 else None
    if padding is not None:
        values = _filled(values, padding, inverted=inverted)
    values, shown = _as_said(values, said, big_endian=is_big_endian(dataset))
    if stored.ndim != 2:
        shown = None
    spacing = spacing_mm(said)
    return Frame(values, inverted, padding, spacing, index, count, colour, bits, _aspect(said, spacing), shown)


def _as_it_lies(dataset: Dataset) -> NDArray[Any] | None:
    """The frame of an uncompressed grey image of 16 bits, read-only and without a copy of what may be 40 MB; None where
    decoding it would change anything, or the object is not plainly such an image."""
    said = [dataset.get(keyword) for keyword in _PLAIN]
    data = dataset.get("PixelData")
    if not (isinstance(data, bytes) and all(isinstance(one, int) for one in said)) or sys.byteorder != "little":
        return None
    rows, columns, samples, allocated, stored, signed = said
    if (
        dataset.file_meta.get("TransferSyntaxUID") not in (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
        or dataset.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2")
        or (samples, allocated) != (1, 16)
        or dataset.get("NumberOfFrames", 1) != 1
        or not (0 < 2 * rows * columns <= min(len(data), MAX_FRAME_BYTES) and 1 < stored <= 16 and signed in (0, 1))
        or _PIXELS_OF_REAL_NUMBERS & dataset.keys()
    ):
        return None
    values: NDArray[Any] = np.frombuffer(data, _SIGNED[signed], rows * columns).reshape(rows, columns)
    if stored == allocated:
        return values
    lowest, highest = _ends(stored, signed)
    return values if lowest <= int(values.min()) and int(values.max()) < highest else None


def _ends(stored: int, signed: int) -> tuple[int, int]:
    """The least value of so many bits, and the first beyond the greatest."""
    return (-(1 << stored - 1), 1 << stored - 1) if signed else (0, 1 << stored)


def _lying_high(dataset: Dataset, index: int) -> NDArray[Any] | None:
    """A frame of uncompressed grey samples that lie at the top of their words, moved down; None for another.

    High Bit is one less than Bits Stored now (PS3.5 8.1.1); in older objects it need not be. Some say 15 of samples
    that lie as they should: those have nothing in the upper bits.
    """
    said = [dataset.get(keyword) for keyword in (*_PLAIN, "HighBit")]
    data = dataset.get("PixelData")
    if not (isinstance(data, bytes) and all(isinstance(one, int) for one in said)):
        return None
    rows, columns, samples, allocated, stored, signed, high = said
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax not in _UNCOMPRESSED or samples != 1 or allocated != 16 or not stored <= high < allocated or stored < 2:
        return None
    size = rows * columns
    if not (0 < 2 * size <= MAX_FRAME_BYTES and 2 * size * (index + 1) <= len(data)):
        return None
    words = np.frombuffer(data, ">u2" if is_big_endian(dataset) else "<u2", size, 2 * size * index).astype(np.uint16)
    lowest, highest = _ends(stored, signed)
    as_they_should = words.view(np.int16) if signed else words
    if lowest <= int(as_they_should.min()) and int(as_they_should.max()) < highest:
        return None
    values = ((words >> (high + 1 - stored)) & ((1 << stored) - 1)).reshape(rows, columns)
    if not signed:
        return np.asarray(values, np.uint16)
    sign = 1 << (stored - 1)
    return np.asarray((values.astype(np.int32) ^ sign) - sign, np.int16)


def _of_frame(dataset: Dataset, index: int) -> Dataset:
    """What an object says of the grey scale and the size of one frame: of an enhanced one, by its functional groups,
    those of the frame before those of all (PS3.3 C.7.6.16); else the object itself."""
    groups = [
        *_item(dataset.get("PerFrameFunctionalGroupsSequence"), index),
        *_item(dataset.get("SharedFunctionalGroupsSequence"), 0),
    ]
    if not groups:
        return dataset
    told = Dataset()
    macros = [one for group in groups for macro in _MACROS for one in _item(group.get(macro), 0)]
    for source in (*macros, dataset):
        for keyword in _OF_A_FRAME:
            if keyword in source and keyword not in told:
                told[keyword] = source[keyword]
    return told


def _item(items: Any, index: int) -> list[Dataset]:
    return [items[index]] if isinstance(items, DicomSequence) and index < len(items) else []


class ForScreen(NamedTuple):
    """One frame for a screen. values: [rows, columns], or [rows, columns, 3] in RGB of uint8. inverted: its lowest
    value is white. frames: how many there are. shown: as `Frame` has it."""

    values: NDArray[Any]
    inverted: bool
    frames: int
    shown: Shown | None = None


def rendered_frame(dataset: Dataset, index: int, *, max_bytes: int) -> ForScreen:
    """Any frame of a data set for a screen. Raises INVALID_REQUEST where there is no such frame, PIXELS_UNDECODABLE."""
    count = max(1, _number(dataset, "NumberOfFrames", 1))
    if not 0 <= index < count:
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "the object has no such frame")
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip()
    stored = _lying_high(dataset, index)
    if stored is None:
        stored = next(dicom.frames(dataset, max_bytes=max_bytes, rgb=photometric.startswith("YBR"), only=[index]), None)
    if stored is None or stored.ndim not in (2, 3) or stored.size == 0:
        raise _undecodable("the frame is empty")
    if photometric == "PALETTE COLOR":
        stored = _coloured(stored, dataset)
    if stored.ndim == 3 and stored.shape[2] >= 3:
        depth = max(1, _number(dataset, "BitsStored", 8))
        colour = stored[..., :3]
        if colour.dtype != np.uint8:
            top = np.iinfo(np.uint16).max if photometric == "PALETTE COLOR" else 2**depth - 1
            wide = colour.astype(np.float32) * (255 / top)
            colour = np.clip(wide, 0, 255).astype(np.uint8)
        return ForScreen(np.ascontiguousarray(colour), False, count)
    values = _without_overlays(luminance(stored), dataset, _number(dataset, "BitsStored", 8 * stored.dtype.itemsize))
    said = _of_frame(dataset, index)
    inverted, hidden = _inverted(said, photometric), _hidden(values, dataset)
    if hidden is not None:
        values = _filled(values, hidden, inverted=inverted)
    values, shown = _as_said(values, said, big_endian=is_big_endian(dataset))
    return ForScreen(values, inverted, count, shown)


def _as_said(values: NDArray[Any], said: Dataset, *, big_endian: bool) -> tuple[NDArray[Any], Shown | None]:
    """Values after their Modality LUT, finite, and how they want to be shown."""
    looked_up = bool(said.get("ModalityLUTSequence")) and values.dtype.kind in "iu"
    signed = values.dtype.kind == "i" and not looked_up
    found = _finite(_modality_table(values, said, big_endian=big_endian))
    return found, shown_of(said, signed=signed, big_endian=big_endian, looked_up=looked_up)


def picture(data: bytes) -> Frame:
    """A PNG, JPEG or TIFF file as one frame, turned as its EXIF orientation asks; the lowest value is black.

    Raises NOT_DICOM where the bytes are none of these, PIXELS_UNDECODABLE where they do not decode.
    """
    size = picture_size(data)
    if size is None:
        raise StepwedgeError(ErrorCode.ERROR_CODE_NOT_DICOM, "neither a DICOM object nor a PNG, JPEG or TIFF picture")
    columns, rows, sample_bytes = size
    if not (0 < columns * rows * sample_bytes <= MAX_FRAME_BYTES):
        raise _undecodable("the picture is larger than may be decoded, or empty")
    try:
        stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    except cv2.error:
        stored = None
    if stored is None or stored.size == 0:
        raise _undecodable("the picture does not decode")
    grey = stored.ndim == 2 or stored.shape[2] < 3 or _channels_alike(stored)
    plain = np.ascontiguousarray(stored[..., 0] if stored.ndim == 3 and grey else stored)
    values = plain if plain.ndim == 2 else luminance(np.ascontiguousarray(plain[..., 2::-1]))  # cv2 gives BGR
    return Frame(_finite(_widened(values)), inverted=False, colour=not grey, bits=8 * stored.dtype.itemsize)


def plain(image: NDArray[Any], *, inverted: bool, spacing: tuple[float, float] | None) -> Frame:
    """An array [rows, columns] or [rows, columns, 3 (RGB)] of any real type as one frame. Raises ValueError."""
    if image.ndim not in (2, 3) or image.size == 0 or image.dtype.kind not in "buif":
        raise ValueError("an array of real numbers of two dimensions, or three for colour, is needed")
    values = _finite(_widened(luminance(image)))
    bits = 1 if image.dtype.kind == "b" else 8 * image.dtype.itemsize
    possible = _plausible(spacing)
    aspect = _aspect(Dataset(), possible)
    return Frame(values, inverted, spacing_mm=possible, colour=image.ndim == 3, bits=bits, aspect=aspect)


def luminance(stored: NDArray[Any]) -> NDArray[Any]:
    """Grey values [rows, columns] of [rows, columns] or of [rows, columns, samples] in the order R, G, B."""
    values = _widened(stored)
    if values.ndim == 2:
        return values
    if values.shape[2] < 3:
        return np.ascontiguousarray(values[..., 0])
    if values.dtype == np.int16:
        values = values.astype(np.float32)
    grey: NDArray[Any] = cv2.cvtColor(np.ascontiguousarray(values[..., :3]), cv2.COLOR_RGB2GRAY)
    return grey


SPACINGS: Final = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
"""PS3.3 10.7.1.3, C.8.6.1; the first that is possible counts."""


def spacing_mm(dataset: Dataset, keywords: Sequence[str] = SPACINGS) -> tuple[float, float] | None:
    """Distance of rows and of columns, mm, from the first attribute that holds a possible one."""
    for keyword in keywords:
        value = dataset.get(keyword)
        try:
            found = _plausible((float(value[0]), float(value[1])))
        except (TypeError, ValueError, IndexError, OverflowError):
            continue
        if found:
            return found
    return None


def _aspect(said: Dataset, spacing: tuple[float, float] | None) -> float:
    """Height of a pixel over its width, by its spacing, else by Pixel Aspect Ratio (PS3.3 C.7.6.3.1.7)."""
    ratio = said.get("PixelAspectRatio")
    try:
        found = float(ratio[0]) / float(ratio[1]) if spacing is None else spacing[0] / spacing[1]
    except (TypeError, ValueError, IndexError, ZeroDivisionError, OverflowError):
        return 1.0
    return found if _ASPECT[0] <= found <= _ASPECT[1] and abs(found - 1) > _SQUARE else 1.0


def _plausible(spacing: tuple[float, float] | None) -> tuple[float, float] | None:
    low, high = _SPACING_MM
    return spacing if spacing is not None and all(low <= value <= high for value in spacing) else None


def _inverted(said: Dataset, photometric: str) -> bool:
    """Whether the lowest stored value is white: MONOCHROME1 (PS3.3 C.7.6.3.1.2), which a Presentation LUT Shape of
    INVERSE says once more (C.8.11.3.1.2), and a negative rescale slope turns round. Nobody looks at raw values as they
    are: theirs are white where the dose is least, by Pixel Intensity Relationship Sign (C.8.11.3.1.2)."""
    looked_up = "ModalityLUTSequence" in said
    if is_raw(said) and not looked_up and (more_dose := more_is_more_dose(said)) is not None:
        return more_dose
    white = photometric == "MONOCHROME1" or str(said.get("PresentationLUTShape", "")).strip() == "INVERSE"
    try:
        negative = float(said.get("RescaleSlope", 1) or 1) < 0 and not looked_up
    except (TypeError, ValueError):
        negative = False
    return white != negative


def _coloured(stored: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    try:
        return np.asarray(apply_color_lut(stored, dataset))
    except Exception:  # noqa: BLE001 - pydicom raises whatever the table makes it raise
        raise _undecodable("the palette does not read") from None


def _modality_table(values: NDArray[Any], said: Dataset, *, big_endian: bool) -> NDArray[Any]:
    """Values after a Modality LUT that is given as a table (PS3.3 C.11.1)."""
    items = said.get("ModalityLUTSequence")
    if not items or values.dtype.kind not in "iu":
        return values
    try:
        return table_of(items[0], signed=values.dtype.kind == "i", big_endian=big_endian).of(values)
    except Exception:  # noqa: BLE001 - as above
        raise _undecodable("the Modality LUT does not read") from None


def _without_overlays(values: NDArray[Any], dataset: Dataset, bits: int) -> NDArray[Any]:
    """Less the bits that hold an overlay (retired, PS3.3 C.9.2 of 2004) where the object says that there are some."""
    embedded = any(
        _number(dataset, (group, 0x0102), 0) >= bits
        for group in range(0x6000, 0x6020, 2)
        if BaseTag((group << 16) | 0x0102) in dataset and BaseTag((group << 16) | 0x3000) not in dataset
    )
    if not embedded or values.dtype.kind != "u" or bits >= 8 * values.dtype.itemsize:
        return values
    return np.asarray(values & values.dtype.type((1 << bits) - 1))


def _padding(values: NDArray[Any], dataset: Dataset) -> NDArray[np.bool_] | None:
    """Where Pixel Padding Value, or the range up to its limit, stands (PS3.3 C.7.5.1.1.2)."""
    ends = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        try:
            ends.append(_signed_like(int(dataset.get(keyword)), values.dtype))
        except (TypeError, ValueError):
            break
    if not ends:
        return None
    found: NDArray[np.bool_] = (values >= min(ends)) & (values <= max(ends))
    share = np.count_nonzero(found) / found.size
    # All of it is no padding but an empty image, and nothing of it is nothing to heed.
    return found if 0 < share < 1 else None


def _hidden(values: NDArray[Any], dataset: Dataset) -> NDArray[np.bool_] | None:
    """Where no image is: padding, and what lies behind a shutter; None where nowhere."""
    padding, behind = _padding(values, dataset), _behind_shutter(values.shape[0], values.shape[1], dataset)
    if padding is None or behind is None:
        return behind if padding is None else padding
    return padding if (both := padding | behind).all() else both


def _behind_shutter(rows: int, columns: int, dataset: Dataset) -> NDArray[np.bool_] | None:
    """What a Display Shutter (PS3.3 C.7.6.11) covers, bool [rows, columns]: by the standard it is not to be seen. None
    where there is none, or one that leaves less open than a mistake would. Edges lie just outside; they and points
    count from 1, rows first."""
    shapes = dataset.get("ShutterShape") or ()
    opening = np.ones((rows, columns), np.uint8)
    try:
        for shape in [shapes] if isinstance(shapes, str) else shapes:
            _SHUTTERS[str(shape).strip().upper()](opening, dataset)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, cv2.error):
        return None
    share = np.count_nonzero(opening) / opening.size
    return opening == 0 if _LEAST_OPEN <= share < 1 else None


def _rectangular(opening: NDArray[np.uint8], dataset: Dataset) -> None:
    names = ("UpperHorizontal", "LowerHorizontal", "LeftVertical", "RightVertical")
    top, bottom, left, right = (int(dataset.get(f"Shutter{name}Edge")) for name in names)
    closed = np.ones_like(opening)
    closed[max(0, top) : max(0, bottom - 1), max(0, left) : max(0, right - 1)] = 0
    opening[closed > 0] = 0


def _circular(opening: NDArray[np.uint8], dataset: Dataset) -> None:
    (row, column), (radius,) = _places(dataset, "CenterOfCircularShutter"), _places(dataset, "RadiusOfCircularShutter")
    _cut(opening, lambda plane: cv2.circle(plane, (column - 1, row - 1), radius, 1, -1))


def _polygonal(opening: NDArray[np.uint8], dataset: Dataset) -> None:
    corners = np.array(_places(dataset, "VerticesOfThePolygonalShutter"), np.int32).reshape(-1, 2) - 1
    _cut(opening, lambda plane: cv2.fillPoly(plane, [np.ascontiguousarray(corners[:, ::-1])], 1))


def _places(dataset: Dataset, keyword: str) -> list[int]:
    """Whole numbers of pixels; ValueError for what is far beyond any image, which nobody should be made to draw."""
    value = dataset.get(keyword)
    places = [int(one) for one in (value if isinstance(value, MultiValue | list | tuple) else [value])]
    if not 0 < len(places) <= _MOST_PLACES or max(map(abs, places)) > _FARTHEST:
        raise ValueError(keyword)
    return places


def _cut(opening: NDArray[np.uint8], draw: Callable[[NDArray[np.uint8]], Any]) -> None:
    plane = np.zeros_like(opening)
    draw(plane)
    np.multiply(opening, plane, out=opening)


_SHUTTERS: Final[Mapping[str, Callable[[NDArray[np.uint8], Dataset], None]]] = {
    "RECTANGULAR": _rectangular,
    "CIRCULAR": _circular,
    "POLYGONAL": _polygonal,
}
_MOST_PLACES: Final = 2048
_FARTHEST: Final = 1 << 16
_LEAST_OPEN: Final = 0.25
"""Share of the picture that a shutter leaves open at least, as `header.open_field` has it."""


def _signed_like(value: int, dtype: np.dtype[Any]) -> int:
    """The value as the pixels have it: the VR may be read as unsigned although the pixels are signed, or otherwise."""
    if dtype == np.int16 and value > 0x7FFF:
        return value - 0x10000
    if dtype == np.uint16 and value < 0:
        return value + 0x10000
    return value


def _filled(values: NDArray[Any], padding: NDArray[np.bool_], *, inverted: bool) -> NDArray[Any]:
    """With the padding as dark as the darkest pixel of the image."""
    seen = values[~padding]
    filled = values.copy()
    filled[padding] = seen.max() if inverted else seen.min()
    return filled


def _widened(values: NDArray[Any]) -> NDArray[Any]:
    """In native byte order and one of the types of `Frame.values`."""
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    if native.dtype in _NATIVE:
        return np.ascontiguousarray(native)
    with np.errstate(over="ignore", invalid="ignore"):
        wide: NDArray[Any] = native.astype(_WIDENED.get(f"{native.dtype.kind}{native.dtype.itemsize}", "f4"))
    return wide


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    """NaN as the least finite value, infinities as the finite ends, and no value so large that squares overflow."""
    if values.dtype.kind != "f":
        return values
    limit = np.float32(1e15)
    inside = np.abs(values) <= limit
    if inside.all():
        return values
    finite = values[inside]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    held: NDArray[Any] = np.clip(np.nan_to_num(values, nan=low, posinf=high, neginf=low), low, high)
    return held


def _channels_alike(stored: NDArray[Any]) -> bool:
    """Whether a picture of three channels is grey all the same."""
    first = stored[..., 0]
    return bool((first == stored[..., 1]).all() and (first == stored[..., 2]).all())


def _number(dataset: Dataset, key: str | tuple[int, int], default: int) -> int:
    found: Any = dataset.get(key)
    value = getattr(found, "value", found)  # a tag gives the element, a keyword its value
    try:
        return default if value is None else max(0, int(value))
    except (TypeError, ValueError):
        return default


def _undecodable(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE, words)


def picture_size(data: bytes) -> tuple[int, int, int] | None:
    """Columns, rows and bytes a pixel that a PNG, JPEG or TIFF file declares, before anything is decoded; None for
    another kind of file."""
    for signature, size in _SIZES.items():
        if data.startswith(signature):
            return size(data)
    return None


def _png_size(data: bytes) -> tuple[int, int, int]:
    if len(data) < 26:
        return 0, 0, 0
    columns, rows, depth, colour = struct.unpack_from(">IIBB", data, 16)  # ISO/IEC 15948 11.2.2
    return columns, rows, {2: 3, 4: 2, 6: 4}.get(colour, 1) * max(1, depth // 8)


def _jpeg_size(data: bytes) -> tuple[int, int, int]:
    return dicom.codestream_size(data) or (0, 0, 0)


def _tiff_size(data: bytes) -> tuple[int, int, int]:
    """Of the first directory (TIFF 6.0, section 2); the sizes that count are short or long and stand in the entry."""
    order = "<" if data[:2] == b"II" else ">"
    found = {0x100: 0, 0x101: 0, 0x102: 8, 0x115: 1}  # ImageWidth, ImageLength, BitsPerSample, SamplesPerPixel
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (entries,) = struct.unpack_from(f"{order}H", data, start)
        for index in range(entries):
            tag, kind, count = struct.unpack_from(f"{order}HHI", data, start + 2 + 12 * index)
            if tag in found and kind in (3, 4) and count == 1:
                form = f"{order}{'H' if kind == 3 else 'I'}"
                (found[tag],) = struct.unpack_from(form, data, start + 2 + 12 * index + 8)
            elif tag == 0x102:
                found[tag] = 64  # a list elsewhere in the file: reckon with the most
    except struct.error:
        return 0, 0, 0
    columns, rows, bits, samples = found.values()
    return columns, rows, max(1, bits // 8) * samples


_SIZES: Final[Mapping[bytes, Callable[[bytes], tuple[int, int, int]]]] = {
    b"\x89PNG\r\n\x1a\n": _png_size,
    b"\xff\xd8\xff": _jpeg_size,
    b"II*\0": _tiff_size,
    b"MM\0*": _tiff_size,
}
"""First bytes of a file -> what reads its size."""
