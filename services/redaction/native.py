"""Native pixel data as numbers that can be looked at and blanked in place, cell for cell (PS3.5 8.1, 8.2; PS3.3
C.7.6.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from services.redaction import values
from services.redaction.regions import Rectangle
from shared.dicom_encoding import Element, Encoded
from shared.errors import ErrorCode, StepwedgeError

MAX_PIXELS: Final = 1 << 28
"""Most pixels of one frame."""

_FLOATS: Final = {0x7FE00008: 32, 0x7FE00009: 64}
_HALVED: Final = frozenset({"YBR_FULL_422", "YBR_PARTIAL_422"})
_KNOWN: Final = frozenset({
    "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_ICT",
    "YBR_RCT",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layout:
    """What the header says of the pixels; bits: allocated to a sample. real: floating point."""

    rows: int
    columns: int
    samples: int
    frames: int
    bits: int
    signed: bool
    planar: bool
    photometric: str
    real: bool

    @classmethod
    def of(cls, original: Encoded, pixel: Element) -> Layout:
        """Raises PIXELS_UNDECODABLE where the description is not one that we can handle."""

        def number(tag: int, default: int = 0) -> int:
            return values.number(original.data_set, tag, default, little=original.little)

        layout = cls(
            rows=number(0x00280010),
            columns=number(0x00280011),
            samples=number(0x00280002, 1),
            frames=max(1, number(0x00280008, 1)),
            bits=_FLOATS.get(pixel.tag) or number(0x00280100),
            signed=number(0x00280103) == 1,
            planar=number(0x00280006) == 1,
            photometric=values.first(original.data_set, 0x00280004) or "MONOCHROME2",
            real=pixel.tag in _FLOATS,
        )
        if not (layout.rows > 0 and layout.columns > 0 and layout.rows * layout.columns <= MAX_PIXELS):
            raise _undecodable("rows and columns are absent or too many")
        if layout.bits not in (1, 8, 16, 32, 64) or layout.samples not in (1, 3):
            raise _undecodable("so many bits or samples a pixel are not handled")
        if layout.photometric not in _KNOWN or (layout.bits == 1 and layout.samples > 1):
            raise _undecodable("the photometric interpretation is not one that can be blanked")
        return layout

    @property
    def dtype(self) -> str:
        """Of a sample, without byte order."""
        return f"{'f' if self.real else 'i' if self.signed else 'u'}{max(8, self.bits) // 8}"


class Planes:
    """The cells of native pixel data, changed in place."""

    def __init__(self, layout: Layout, cells: NDArray[Any], tail: bytes, swap: bool) -> None:
        self._layout, self._cells, self._tail, self._swap = layout, cells, tail, swap

    @classmethod
    def of(cls, layout: Layout, pixel: Element, *, little: bool) -> Planes:
        """A copy of the element's cells. Raises PIXELS_UNDECODABLE where there are fewer than the frames need."""
        data = np.frombuffer(bytearray(pixel.value), np.uint8)
        # Cells of 8 bits in 16-bit words stand in the words' order (PS3.5 8.1.1, 8.2).
        swap = layout.bits <= 8 and not little and pixel.vr == "OW" and len(data) % 2 == 0
        if swap:
            data = data.reshape(-1, 2)[:, ::-1].reshape(-1).copy()
        if layout.bits == 1:
            wanted = layout.frames * layout.rows * layout.columns
            if len(data) * 8 < wanted:
                raise _undecodable("the pixel data is shorter than its frames")
            cells = np.unpackbits(data, bitorder="little")
            return cls(
                layout,
                cells[:wanted].reshape(layout.frames, layout.rows, layout.columns, 1),
                cells[wanted:].tobytes(),
                swap,
            )
        shape, width = cls._shape(layout, len(data))
        size = int(np.prod(shape)) * width
        if len(data) < size:
            raise _undecodable("the pixel data is shorter than its frames")
        kind = np.dtype(layout.dtype).newbyteorder("<" if little else ">")
        return cls(layout, data[:size].view(kind).reshape(shape), data[size:].tobytes(), swap)

    @staticmethod
    def _shape(layout: Layout, available: int) -> tuple[tuple[int, ...], int]:
        width = layout.bits // 8
        whole = layout.frames * layout.rows * layout.columns * layout.samples * width
        if layout.photometric in _HALVED and available < whole:  # some say so and are not
            if layout.columns % 2:
                raise _undecodable("subsampled pixels in an odd number of columns")
            return (layout.frames, layout.rows, layout.columns // 2, 4), width
        if layout.planar and layout.samples > 1:
            return (layout.frames, layout.samples, layout.rows, layout.columns), width
        return (layout.frames, layout.rows, layout.columns, layout.samples), width

    @property
    def _paired(self) -> bool:
        return (
            self._layout.samples == 3
            and self._cells.shape[-1] == 4
            and self._cells.shape[2] * 2 == self._layout.columns
        )

    @property
    def _by_plane(self) -> bool:
        return self._layout.planar and self._layout.samples > 1 and not self._paired

    def frame(self, index: int) -> NDArray[Any]:
        """[rows, columns] or [rows, columns, samples]; of subsampled colours the lightness alone."""
        cells = self._cells[index]
        if self._paired:
            return np.ascontiguousarray(cells[..., :2].reshape(self._layout.rows, self._layout.columns))
        if self._by_plane:
            return np.moveaxis(cells, 0, 2)
        return np.asarray(cells[..., 0] if self._layout.samples == 1 else cells)

    def blank(self, index: int, places: list[Rectangle], darkest: int) -> None:
        """Make the rectangles of one frame black."""
        cells = self._cells[index]
        if self._paired:
            fill: Any = black(np.zeros((1, 1, 3), cells.dtype), self._layout.photometric, darkest)
            for left, top, width, height in places:
                cells[top : top + height, left // 2 : (left + width + 1) // 2] = [fill[0], fill[0], fill[1], fill[2]]
            return
        frame = self.frame(index)  # a view
        fill = black(frame, self._layout.photometric, darkest)
        for left, top, width, height in places:
            frame[top : top + height, left : left + width] = fill

    def bytes(self) -> bytes:
        """The element's value again."""
        if self._layout.bits == 1:
            tail = np.frombuffer(self._tail, np.uint8)
            data = np.packbits(np.concatenate([self._cells.reshape(-1), tail]), bitorder="little")
        else:
            data = np.frombuffer(self._cells.tobytes() + self._tail, np.uint8)
        if self._swap:
            data = data.reshape(-1, 2)[:, ::-1]
        return data.tobytes()


def black(frame: NDArray[Any], photometric: str, darkest: int) -> Any:
    """The value, or the three, that show black: of monochrome the frame's own darkest, which changes no window."""
    if photometric == "PALETTE COLOR":
        return darkest
    if frame.ndim == 2:
        if frame.dtype.kind == "f":
            finite = frame[np.isfinite(frame)]
            return 0.0 if not finite.size else finite.max() if photometric == "MONOCHROME1" else finite.min()
        return frame.max() if photometric == "MONOCHROME1" else frame.min()
    if photometric == "RGB":
        return np.zeros(frame.shape[2], frame.dtype)
    middle = 1 << (8 * frame.dtype.itemsize - 1)
    return np.array([16 if "PARTIAL" in photometric else 0, middle, middle], frame.dtype)


def grey_for_detection(frame: NDArray[Any], photometric: str) -> NDArray[Any]:
    """A frame as the detector is to see it: of YBR the lightness, of RGB the colours."""
    return frame[..., 0] if frame.ndim == 3 and photometric.startswith("YBR") else frame


def _undecodable(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE, words)
