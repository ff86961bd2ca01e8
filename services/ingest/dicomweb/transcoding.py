"""An object in another transfer syntax: as it lies here, or as Explicit VR Little Endian (PS3.18 8.7.3.5).

Nothing is converted that need not be: values stay the bytes that were received, and only compressed pixel data is
decoded, by the decoders that run beside this process.
"""

import struct
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.uid import UID

from shared import dicom, dicom_encoding
from shared.dicom_encoding import EXPLICIT_LITTLE, Bytes, Element, Elements, Encoded
from shared.errors import ErrorCode, StepwedgeError

AS_IT_LIES: Final = "*"

MAX_DECODED_BYTES: Final = 1 << 30
"""Of all frames together, where they are wanted in one: some bytes of a codestream may hold thousands of pixels."""

_PIXEL_DATA: Final = 0x7FE00010
_OFFSETS: Final = frozenset({0x7FE00001, 0x7FE00002, 0x7FE00003})
_PHOTOMETRIC, _PLANAR, _SIGN = 0x00280004, 0x00280006, 0x00280103

MEDIA_TYPES: Final[Mapping[str, str]] = {
    # PS3.18 Table 8.7.3-5: what single frames of a transfer syntax travel as.
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.92": "image/jpx",
    "1.2.840.10008.1.2.4.93": "image/jpx",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}


def can_serve(stored: str, wanted: str) -> bool:
    """Whether an object in `stored` can be had in `wanted`; empty for the default, Explicit VR Little Endian."""
    if wanted in (AS_IT_LIES, stored):
        return True
    return wanted in ("", EXPLICIT_LITTLE) and (not UID(stored).is_encapsulated or stored in MEDIA_TYPES)


def transcoded(data: bytes, stored: str, wanted: str) -> list[Bytes]:
    """The object as a Part 10 file, in pieces. Raises PIXELS_UNDECODABLE, MALFORMED_DICOM."""
    if wanted in (AS_IT_LIES, stored) or (not wanted and stored == EXPLICIT_LITTLE):
        return _whole(data)
    encoded = dicom_encoding.parse(data)
    elements = encoded.data_set
    if any(element.fragments is not None for element in elements):
        elements = _decoded(encoded)
    elif not encoded.little:
        elements = _turned(elements)
    elif encoded.implicit and _signed(elements):
        elements = _with_signs(elements)
    body = dicom_encoding.encode(elements, implicit=False, little=True)
    return [_file_meta(encoded, elements), *body]


def _whole(data: bytes) -> list[Bytes]:
    """As received; with what a Part 10 file begins with, where the sender left it out."""
    if data[128:132] == b"DICM":
        return [data]
    if data[:2] == b"\2\0":
        return [bytes(128) + b"DICM", data]
    encoded = dicom_encoding.parse(data)
    return [_file_meta(encoded, encoded.data_set, encoded.transfer_syntax), data]


def _file_meta(encoded: Encoded, elements: Elements, syntax: str = EXPLICIT_LITTLE) -> bytes:
    """Preamble, prefix and group 0002 (PS3.10 7.1) as received, but for the transfer syntax."""
    meta = {element.tag: element for element in encoded.meta if element.tag != 0x00020000}
    if not meta:  # a bare data set
        named = {element.tag: element.value for element in elements if element.tag in (0x00080016, 0x00080018)}
        meta[0x00020001] = Element(0x00020001, "OB", b"\0\1")
        meta[0x00020002] = Element(0x00020002, "UI", named.get(0x00080016, b""))
        meta[0x00020003] = Element(0x00020003, "UI", named.get(0x00080018, b""))
    meta[0x00020010] = Element(0x00020010, "UI", syntax.encode())
    group = b"".join(dicom_encoding.encode([meta[tag] for tag in sorted(meta)], implicit=False, little=True))
    return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(group)) + group


def _decoded(encoded: Encoded) -> Elements:
    """The elements with native pixel data instead of encapsulated."""
    dataset = dicom.dataset_of(encoded, pixels=True)
    refuse_many(dataset)
    frames, colours, left = [], "", MAX_DECODED_BYTES
    for frame, colours in dicom.compressed_frames(dataset, max_bytes=MAX_DECODED_BYTES):  # noqa: B007 - all the same
        left -= frame.nbytes  # the header may say less than the codestreams
        if left < 0:
            raise _too_many()
        frames.append(_little(frame).tobytes())
    if not frames:
        raise StepwedgeError(ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE, "the object has no frames")
    vr = "OB" if int(dataset.BitsAllocated) <= 8 else "OW"
    made = {element.tag: element for element in encoded.data_set if element.tag not in _OFFSETS}
    made[_PIXEL_DATA] = Element(_PIXEL_DATA, vr, b"".join(frames))
    made[_PHOTOMETRIC] = Element(_PHOTOMETRIC, "CS", colours.encode("ascii"))
    if int(dataset.get("SamplesPerPixel", 1)) > 1:
        made[_PLANAR] = Element(_PLANAR, "US", b"\0\0")
    return [made[tag] for tag in sorted(made)]


def _little(frame: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.ascontiguousarray(frame.astype(frame.dtype.newbyteorder("<"), copy=False))


def _turned(elements: Elements) -> Elements:
    """Big endian values in little endian order, at every depth."""
    return [
        Element(element.tag, element.vr, b"", [_turned(item) for item in element.items])
        if element.items is not None
        else Element(element.tag, element.vr, dicom_encoding.swapped(element.value, dicom_encoding.WIDTHS[element.vr]))
        if element.vr in dicom_encoding.WIDTHS
        else element
        for element in elements
    ]


def _signed(elements: Elements) -> bool:
    return any(element.tag == _SIGN and bytes(element.value)[:2] == b"\1\0" for element in elements)


@cache
def _either() -> frozenset[int]:
    return frozenset(tag for tag, entry in DicomDictionary.items() if entry[0] in ("US or SS", "US or SS or OW"))


def _with_signs(elements: Elements) -> Elements:
    """Implicit VR leaves open whether these are US or SS; where pixels are signed, they are SS."""
    return [
        Element(element.tag, "SS", element.value) if element.tag in _either() and element.vr == "US" else element
        for element in elements
    ]


# -- frames


def native_frames(data: bytes, stored: str, numbers: list[int]) -> Iterator[bytes]:
    """Frames (numbers from 1) as native Little Endian pixels, each padded to whole bytes.

    Raises PIXELS_UNDECODABLE; ENTRY_NOT_FOUND for a frame that there is not.
    """
    encoded = dicom_encoding.parse(data)
    dataset = dicom.dataset_of(encoded, pixels=True)
    count = frame_count(dataset)
    _refuse_absent(numbers, count)
    pixels = next((element for element in encoded.data_set if element.tag in dicom_encoding.PIXEL_TAGS), None)
    if pixels is None:
        raise StepwedgeError(ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND, "the object has no pixel data")
    bits = int(dataset.get("BitsAllocated", 0) or 0)
    if pixels.fragments is None and bits % 8 == 0:
        size = _frame_bytes(dataset, pixels.tag)
        if not size or len(pixels.value) < size * count:
            raise StepwedgeError(ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE, "the pixel data is shorter than its frames")
        turn = not encoded.little and pixels.vr in dicom_encoding.WIDTHS
        for number in numbers:
            native = bytes(pixels.value[(number - 1) * size : number * size])
            yield dicom_encoding.swapped(native, dicom_encoding.WIDTHS[pixels.vr]) if turn else native
        return
    for frame in dicom.frames(dataset, only=[number - 1 for number in numbers]):
        yield np.packbits(frame.astype(bool), bitorder="little").tobytes() if bits == 1 else _little(frame).tobytes()


def stored_frames(data: bytes, numbers: list[int]) -> Iterator[bytes]:
    """Frames of encapsulated pixel data as they lie. Raises as `native_frames`."""
    dataset = dicom.read(data)
    count = frame_count(dataset)
    _refuse_absent(numbers, count)
    offsets = None
    if dataset.get("ExtendedOffsetTable") and dataset.get("ExtendedOffsetTableLengths"):
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    try:
        for number in numbers:
            yield get_frame(dataset.PixelData, number - 1, number_of_frames=count, extended_offsets=offsets)
    except (ValueError, TypeError, IndexError, AttributeError, EOFError, struct.error):
        raise StepwedgeError(ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE, "the frames cannot be told apart") from None


def frame_count(dataset: Dataset) -> int:
    """How many frames the header says."""
    try:
        return max(1, int(dataset.get("NumberOfFrames") or 1))
    except (TypeError, ValueError):
        return 1


def _refuse_absent(numbers: list[int], count: int) -> None:
    if any(number > count for number in numbers):
        raise StepwedgeError(ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND, "the object has no such frame")


def refuse_many(dataset: Dataset) -> None:
    """Raise PIXELS_UNDECODABLE where the frames, decoded, are more than are held at once."""
    if _frame_bytes(dataset, _PIXEL_DATA) * frame_count(dataset) > MAX_DECODED_BYTES:
        raise _too_many()


def _too_many() -> StepwedgeError:
    words = f"the frames are over {MAX_DECODED_BYTES >> 20} MiB decoded: ask for the object as it lies, or for frames"
    return StepwedgeError(ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE, words)


def _frame_bytes(dataset: Dataset, tag: int) -> int:
    try:
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        samples = int(dataset.get("SamplesPerPixel") or 1)
        width = {0x7FE00008: 4, 0x7FE00009: 8}.get(tag) or int(dataset.BitsAllocated) // 8
    except (AttributeError, TypeError, ValueError):
        raise StepwedgeError(ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE, "the header does not say the size") from None
    size = rows * columns * samples * width
    if samples == 3 and str(dataset.get("PhotometricInterpretation", "")).startswith("YBR_FULL_422"):
        size = size // 3 * 2
    return size
