"""The grey scale by what an object says of it: lookup tables, windows, and what its values have to do with the dose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian

_MAX_ENTRIES: Final = 1 << 16  # PS3.3 C.11.1.1.1: the number of entries fits 16 bits
_MOST_WAYS: Final = 8
"""Windows or tables of an object that are tried; objects offer two or three."""
_CENTRE: Final = 0.6
"""Share of each side of the central box, by which it is judged whether a way shows the picture."""
_MOST_CLIPPED: Final = 0.10
"""Share of the central box at one end of a way from which on it shows something else than the whole chest."""
_LEAST_SPAN: Final = 0.05
"""Share of what can be shown that the central box spans at least."""


class Table(NamedTuple):
    """A table for values from `first` on (PS3.3 C.11.1.1.1, C.11.2.1.1). entries: uint16 [n]."""

    first: int
    entries: NDArray[np.uint16]

    def of(self, values: NDArray[Any]) -> NDArray[np.uint16]:
        """The entries of whole numbers; what lies before or beyond the table has its first or last."""
        return self.entries[np.clip(values.astype(np.int32) - self.first, 0, len(self.entries) - 1)]

    def share(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """What is shown of values, from 0 to 1."""
        low, high = float(self.entries.min()), float(self.entries.max())
        found = self.of(np.rint(np.clip(values, -(2**30), 2**30))).astype(np.float64)
        return np.asarray((found - low) / max(1.0, high - low), np.float64)


class Window(NamedTuple):
    """Center and width with their function (PS3.3 C.11.2.1.2, C.11.2.1.3)."""

    center: float
    width: float
    sigmoid: bool

    @property
    def ends(self) -> tuple[float, float]:
        """Between which values a linear window shows something."""
        return self.center - self.width / 2, self.center + self.width / 2

    def share(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """What is shown of values, from 0 to 1."""
        if self.sigmoid:
            falling = np.exp(np.clip(-4 * (values - self.center) / self.width, -60, 60))
            return np.asarray(1 / (1 + falling), np.float64)
        return np.asarray(np.clip((values - self.ends[0]) / self.width, 0, 1), np.float64)


class Logarithm(NamedTuple):
    """What the first step of every processing makes of raw values that are proportional to the dose. top: the greatest
    of them."""

    top: float

    def share(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """From 0 to 1 over `_DECADES` under the greatest."""
        return np.asarray(1 + np.log10(np.clip(values / self.top, 10**-_DECADES, 1)) / _DECADES, np.float64)


_Way = Table | Window | Logarithm
_DECADES: Final = 3.0
"""Of dose behind a chest, and beside it; what is less is noise."""


class Shown(NamedTuple):
    """How an object wants to be shown. ways: the first is the one that it opens with. slope, intercept: from the values
    of a frame to those that the ways are for. linear: the values are raw, and proportional to the dose."""

    ways: tuple[Table | Window, ...]
    slope: float = 1.0
    intercept: float = 0.0
    linear: bool = False


def is_raw(dataset: Dataset) -> bool:
    """Whether the image is to be processed before anybody looks at it (PS3.3 C.8.11.1.1.1)."""
    intent = str(dataset.get("PresentationIntentType", "")).strip().upper()
    return intent == "FOR PROCESSING" or dataset.get("SOPClassUID") == _DX_FOR_PROCESSING


def more_is_more_dose(dataset: Dataset) -> bool | None:
    """Whether higher stored values are those of more dose: Pixel Intensity Relationship Sign (PS3.3 C.8.11.3.1.2);
    None where the object does not say."""
    return {"1": True, "-1": False}.get(str(dataset.get("PixelIntensityRelationshipSign", "")).strip())


_DX_FOR_PROCESSING: Final = "1.2.840.10008.5.1.4.1.1.1.1.1"


def table_of(item: Dataset, *, signed: bool, big_endian: bool) -> Table:
    """A table as an item of a sequence has it. Raises whatever a broken one makes Python raise."""
    length, first, bits = (int(value) for value in item.LUTDescriptor)
    length = length or _MAX_ENTRIES
    if first > 0x7FFF and signed:
        first -= 0x10000  # the descriptor's VR may be US although the pixels are signed
    data = item.LUTData
    if isinstance(data, bytes):
        # Entries of 8 bits may lie two in a word (PS3.3 C.11.1.1.1).
        packed = bits <= 8 and len(data) in (length, length + 1)
        entries = np.frombuffer(data, np.uint8 if packed else ">u2" if big_endian else "<u2")
    else:
        entries = np.asarray(data)
    entries = entries[:length].astype(np.uint16)
    if entries.size == 0:
        raise ValueError("a table without entries")
    return Table(first, entries)


def is_big_endian(dataset: Dataset) -> bool:
    """Whether words stand in the data set with their high byte first (PS3.5 7.3, retired)."""
    meta = getattr(dataset, "file_meta", None)
    return meta is not None and meta.get("TransferSyntaxUID") == ExplicitVRBigEndian


def shown_of(dataset: Dataset, *, signed: bool, big_endian: bool, looked_up: bool) -> Shown | None:
    """How the object wants to be shown: by its VOI LUT Sequence, else by its windows (PS3.3 C.11.2); None where it says
    nothing, or nothing that can be. looked_up: the values of the frame are those behind a Modality LUT."""
    try:
        slope = 1.0 if looked_up else float(dataset.get("RescaleSlope", 1) or 1)
        intercept = 0.0 if looked_up else float(dataset.get("RescaleIntercept", 0) or 0)
    except (TypeError, ValueError):
        return None
    ways: list[Table | Window] = [*_tables(dataset, signed=signed, big_endian=big_endian), *_windows(dataset)]
    linear = (
        is_raw(dataset)
        and str(dataset.get("PixelIntensityRelationship", "")).strip().upper() == "LIN"
        and more_is_more_dose(dataset) is True
        and (slope, intercept, looked_up) == (1.0, 0.0, False)
    )
    if not (ways or linear) or not np.isfinite((slope, intercept)).all():
        return None
    return Shown(tuple(ways[:_MOST_WAYS]), slope, intercept, linear)


def _tables(dataset: Dataset, *, signed: bool, big_endian: bool) -> Iterator[Table]:
    items = dataset.get("VOILUTSequence")
    for item in items[:_MOST_WAYS] if isinstance(items, Sequence) else ():
        with suppress(Exception):  # a way of showing that does not read is none; the picture is there without it
            yield table_of(item, signed=signed, big_endian=big_endian)


def _windows(dataset: Dataset) -> Iterator[Window]:
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    centers, widths = (_numbers(dataset.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    for center, width in zip(centers, widths, strict=False):
        if function == "LINEAR":  # C.11.2.1.2.1: of whole numbers
            center, width = center - 0.5, width - 1
        if width > 0 and np.isfinite((center, width)).all():
            yield Window(center, width, function == "SIGMOID")


def _numbers(value: Any) -> list[float]:
    try:
        return [float(one) for one in (value if isinstance(value, MultiValue | list | tuple) else [value])]
    except (TypeError, ValueError, OverflowError):
        return []


def as_shown(values: NDArray[Any], shown: Shown) -> NDArray[Any]:
    """Values [rows, columns] in the first of the ways that shows the whole picture; as they are where none does.

    A window is an operator's choice, and many are meant for a part of the picture: what clips much of the central box
    is not heeded. Of a straight window only the ends are: values beyond them become its ends, in their own units. What
    a curve makes of values becomes uint16.
    """
    way = _way_of(values, shown)
    if way is None:
        return values
    return _straight(values, way, shown) if _is_straight(way) else _curved(values, way, shown)


def as_curved(values: NDArray[Any], shown: Shown) -> NDArray[np.uint16] | None:
    """What the first of the ways that shows the whole picture makes of values [rows, columns], from 0 to 65535, where
    that is a table, a sigmoid or a logarithm; None where it is a straight window, or there is none."""
    way = _way_of(values, shown)
    return None if way is None or _is_straight(way) else _curved(values, way, shown)


def _way_of(values: NDArray[Any], shown: Shown) -> _Way | None:
    most = float(values.max())
    ways = (Logarithm(most), *shown.ways) if shown.linear and most > 0 else shown.ways
    return next((way for way in ways if _shows_the_whole(values, way, shown)), None)


def _is_straight(way: _Way) -> bool:
    return isinstance(way, Window) and not way.sigmoid


def _shows_the_whole(values: NDArray[Any], way: _Way, shown: Shown) -> bool:
    rows, columns = (
        slice(round(length * (1 - _CENTRE) / 2), max(1, round(length * (1 + _CENTRE) / 2)), max(1, length // 256))
        for length in values.shape
    )
    with np.errstate(all="ignore"):  # what overflows shows nothing
        share = way.share(values[rows, columns].astype(np.float64) * shown.slope + shown.intercept)
    if not share.size or not np.isfinite(share).all():
        return False
    clipped = max(float((share <= 1 / 256).mean()), float((share >= 255 / 256).mean()))
    low, high = np.percentile(share, (1, 99))
    return clipped <= _MOST_CLIPPED and float(high - low) >= _LEAST_SPAN


def _straight(values: NDArray[Any], way: _Way, shown: Shown) -> NDArray[Any]:
    assert isinstance(way, Window)
    low, high = sorted((end - shown.intercept) / shown.slope for end in way.ends)
    if values.dtype.kind in "iu":
        kind = np.iinfo(values.dtype)
        low, high = (min(max(round(end), kind.min), kind.max) for end in (low, high))
    if low <= values.min() and values.max() <= high:
        return values
    clipped: NDArray[Any] = np.clip(values, values.dtype.type(low), values.dtype.type(high))
    return clipped


def _curved(values: NDArray[Any], way: _Way, shown: Shown) -> NDArray[np.uint16]:
    if values.dtype.kind not in "iu":
        wide = values.astype(np.float64) * shown.slope + shown.intercept
        return np.rint(way.share(wide) * 65535).astype(np.uint16)
    least, most = int(values.min()), int(values.max())
    each = np.arange(least, most + 1, dtype=np.float64) * shown.slope + shown.intercept
    steps = np.rint(way.share(each) * 65535).astype(np.uint16)
    return steps[values.astype(np.int32) - least]
