"""Lookup tables and windows of the grey scale, and when they are heeded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from services.inference.lookup_tables import as_shown, shown_of, table_of


def _item(data: bytes | list[int], descriptor: list[int]) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", descriptor)
    item.add_new("LUTData", "OW" if isinstance(data, bytes) else "US", data)
    return item


def _said(**attributes: Any) -> Dataset:
    said = Dataset()
    for keyword, value in attributes.items():
        setattr(said, keyword, value)
    return said


def _body(*, at_the_sides: int = 15000) -> NDArray[np.uint16]:
    """Values from 2000 to 5999 in the middle, and something far beyond at both sides."""
    ramp = np.tile(np.linspace(2000, 5999, 100).astype(np.uint16), (100, 1)).T
    return np.pad(ramp, ((0, 0), (10, 10)), constant_values=at_the_sides)


def _as_shown(values: NDArray[Any], said: Dataset, *, looked_up: bool = False) -> NDArray[Any]:
    shown = shown_of(said, signed=values.dtype.kind == "i", big_endian=False, looked_up=looked_up)
    assert shown is not None
    return as_shown(values, shown)


@pytest.mark.parametrize(
    ("data", "descriptor", "big_endian"),
    [
        (np.arange(10, 14, dtype="<u2").tobytes(), [4, 5, 16], False),
        (np.arange(10, 14, dtype=">u2").tobytes(), [4, 5, 16], True),
        ([10, 11, 12, 13], [4, 5, 16], False),
        (bytes([10, 11, 12, 13]), [4, 5, 8], False),
    ],
)
def test_a_table_is_read_however_its_words_lie(
    data: bytes | list[int], descriptor: list[int], big_endian: bool
) -> None:
    table = table_of(_item(data, descriptor), signed=False, big_endian=big_endian)
    assert table.of(np.array([0, 5, 6, 8, 99])).tolist() == [10, 10, 11, 13, 13]


def test_an_object_that_says_nothing_is_shown_as_it_is() -> None:
    assert shown_of(_said(), signed=False, big_endian=False, looked_up=False) is None


def test_what_lies_beyond_the_window_of_the_picture_becomes_its_end() -> None:
    values = _body()
    found = _as_shown(values, _said(WindowCenter="4000", WindowWidth="4001"))
    assert found.dtype == values.dtype
    assert found.max() == 6000
    assert (found[:, 10:-10] == values[:, 10:-10]).all()


def test_a_window_is_in_the_units_behind_the_rescaling() -> None:
    said = _said(WindowCenter="-400", WindowWidth="400", RescaleSlope="0.1", RescaleIntercept="-800")
    said.VOILUTFunction = "LINEAR_EXACT"
    assert _as_shown(_body(), said).max() == 6000


@pytest.mark.parametrize(
    "said",
    [
        _said(WindowCenter="2500", WindowWidth="500"),  # clips most of the body
        _said(WindowCenter="30000", WindowWidth="100"),
        _said(WindowCenter="40", WindowWidth="400"),  # of another modality
    ],
)
def test_a_window_that_does_not_show_the_whole_picture_is_not_heeded(said: Dataset) -> None:
    assert (_as_shown(_body(), said) == _body()).all()


def test_the_first_window_that_shows_the_picture_counts() -> None:
    said = _said(WindowCenter=["2500", "4000", "9000"], WindowWidth=["500", "4001", "20000"])
    assert _as_shown(_body(), said).max() == 6000


@pytest.mark.parametrize(
    "said",
    [
        _said(WindowCenter="4000", WindowWidth="0"),
        _said(WindowCenter="4000"),
        _said(WindowWidth="4000"),
        _said(VOILUTSequence=Sequence([Dataset()])),
        _said(VOILUTSequence=Sequence([_item(b"", [16, 0, 16])])),
    ],
)
def test_a_way_of_showing_that_cannot_be_is_none(said: Dataset) -> None:
    assert shown_of(said, signed=False, big_endian=False, looked_up=False) is None


def test_a_sigmoid_bends_the_grey_scale_as_the_standard_says() -> None:
    values = _body(at_the_sides=0)
    said = _said(WindowCenter="4000", WindowWidth="3000", VOILUTFunction="SIGMOID")
    found = _as_shown(values, said).astype(np.float64) / 65535
    expected = 1 / (1 + np.exp(-4 * (values.astype(np.float64) - 4000) / 3000))
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.float32])
def test_a_falling_table_turns_black_and_white(kind: type[Any]) -> None:
    values = _body(at_the_sides=3000).astype(kind)
    falling = _item(np.arange(65536, dtype="<u2")[2000:6000][::-1].tobytes(), [4000, 2000, 16])
    found = _as_shown(values, _said(VOILUTSequence=Sequence([falling])))
    assert (np.diff(found[:, 50].astype(np.int64)) < 0).all()


def test_values_behind_a_modality_table_are_not_rescaled_once_more() -> None:
    said = _said(WindowCenter="4000", WindowWidth="4001", RescaleSlope="10", RescaleIntercept="5")
    assert _as_shown(_body(), said, looked_up=True).max() == 6000


def test_raw_values_proportional_to_the_dose_are_taken_by_their_logarithm() -> None:
    raw = {"PresentationIntentType": "FOR PROCESSING", "PixelIntensityRelationship": "LIN"}
    dose = np.rint(16000 * 10 ** -np.tile(np.linspace(0, 2, 100), (100, 1))).astype(np.uint16)
    found = _as_shown(dose, _said(**raw, PixelIntensityRelationshipSign=1)).astype(np.float64)
    assert np.ptp(np.diff(found[0])) < 0.02 * 65535 / 3  # a straight line again
    for other in ({"PresentationIntentType": "FOR PRESENTATION"}, {"PixelIntensityRelationship": "LOG"}):
        said = _said(**{**raw, **other}, PixelIntensityRelationshipSign=1)
        assert shown_of(said, signed=False, big_endian=False, looked_up=False) is None


@pytest.mark.parametrize("slope", ["1", "1e-300", "-1e300", "nan", "1e999"])
@pytest.mark.parametrize("center", ["0", "1e308", "-1e308"])
@pytest.mark.parametrize("width", ["1e-300", "2", "1e308"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", "ODD"])
def test_numbers_without_bounds_leave_the_picture_as_it_is(slope: str, center: str, width: str, function: str) -> None:
    said = {"WindowCenter": float(center), "WindowWidth": float(width), "VOILUTFunction": function}
    said["RescaleSlope"] = float(slope)
    shown = shown_of(said, signed=False, big_endian=False, looked_up=False)  # type: ignore[arg-type]
    assert shown is None or (as_shown(_body(), shown) == _body()).all()
