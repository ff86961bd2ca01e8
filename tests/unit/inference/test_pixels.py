"""Pixels of DICOM objects and of plain pictures, as they are assessed."""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from services.inference import pixels
from shared import dicom
from shared.errors import ErrorCode, StepwedgeError

UNDECODABLE, NOT_DICOM = ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE, ErrorCode.ERROR_CODE_NOT_DICOM


def _object(values: NDArray[Any], **attributes: Any) -> Dataset:
    """An uncompressed data set with the frames [rows, columns], [frames, rows, columns] or colour of `values`."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.Rows, ds.Columns = values.shape[-2:]
    ds.BitsAllocated = ds.BitsStored = values.dtype.itemsize * 8
    ds.HighBit = ds.BitsStored - 1
    ds.SamplesPerPixel = 1
    ds.PixelRepresentation = int(values.dtype.kind == "i")
    ds.PhotometricInterpretation = "MONOCHROME2"
    if values.ndim == 3:
        ds.NumberOfFrames = len(values)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    ds.PixelData = values.tobytes()
    return ds


def _ramp(dtype: type = np.uint16) -> NDArray[Any]:
    return np.arange(64, dtype=dtype).reshape(8, 8)


def _ending(data: bytes) -> str:
    try:
        pixels.picture(data)
    except StepwedgeError as error:
        return error.name
    return "decoded"


def test_values_stay_as_they_are_stored() -> None:
    frame = pixels.frame_of(_object(_ramp()), middle=False)
    assert (frame.values == _ramp()).all()
    assert not frame.inverted
    assert frame.padding is None


@pytest.mark.parametrize(
    ("attributes", "inverted"),
    [
        ({"PhotometricInterpretation": "MONOCHROME1"}, True),
        ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}, True),
        ({"PresentationLUTShape": "INVERSE"}, True),
        ({"PresentationLUTShape": "IDENTITY"}, False),
        ({"RescaleSlope": "-1", "RescaleIntercept": "4095"}, True),
        ({"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": "-2"}, False),
        ({"RescaleSlope": "0.5"}, False),
        ({"PresentationIntentType": "FOR PROCESSING", "PixelIntensityRelationshipSign": 1}, True),
        ({"PresentationIntentType": "FOR PROCESSING", "PixelIntensityRelationshipSign": -1}, False),
        ({"PresentationIntentType": "FOR PROCESSING"}, False),
        ({"PresentationIntentType": "FOR PRESENTATION", "PixelIntensityRelationshipSign": 1}, False),
        ({"RescaleSlope": None}, False),
    ],
)
def test_the_header_says_which_end_is_white(attributes: dict[str, Any], inverted: bool) -> None:
    assert pixels.frame_of(_object(_ramp(), **attributes), middle=False).inverted is inverted


def test_padding_becomes_as_dark_as_the_darkest_pixel() -> None:
    values = _ramp() + np.uint16(100)
    values[:2] = 0
    dark = pixels.frame_of(_object(values, PixelPaddingValue=0), middle=False)
    assert dark.padding is not None
    assert dark.padding.sum() == 16
    assert (dark.values[:2] == values[2:].min()).all()
    white = _object(values, PixelPaddingValue=0, PhotometricInterpretation="MONOCHROME1")
    assert (pixels.frame_of(white, middle=False).values[:2] == values[2:].max()).all()


def test_a_range_of_padding_is_padding() -> None:
    values = _ramp()
    found = pixels.frame_of(_object(values, PixelPaddingValue=0, PixelPaddingRangeLimit=9), middle=False)
    assert found.padding is not None
    assert found.padding.sum() == 10


def test_padding_of_signed_pixels_may_be_written_unsigned() -> None:
    values = _ramp(np.int16)
    values[0, 0] = -2000
    found = pixels.frame_of(_object(values, PixelPaddingValue=65536 - 2000), middle=False)
    assert found.padding is not None
    assert found.padding.sum() == 1


def test_all_padding_is_no_padding_but_an_empty_image() -> None:
    assert pixels.frame_of(_object(np.zeros((8, 8), np.uint16), PixelPaddingValue=0), middle=False).padding is None


def test_a_modality_lut_is_applied() -> None:
    item = Dataset()
    item.LUTDescriptor = [64, 0, 16]
    item.LUTData = np.arange(64, dtype="<u2")[::-1].tobytes()
    item.ModalityLUTType = "US"
    frame = pixels.frame_of(_object(_ramp(), ModalityLUTSequence=Sequence([item])), middle=False)
    assert (frame.values == _ramp()[::-1, ::-1]).all()


def test_a_broken_modality_lut_is_a_code() -> None:
    item = Dataset()
    item.LUTDescriptor = [64, 0, 16]
    with pytest.raises(StepwedgeError) as caught:
        pixels.frame_of(_object(_ramp(), ModalityLUTSequence=Sequence([item])), middle=False)
    assert caught.value.code == UNDECODABLE


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint8, np.uint16, np.int32, np.uint32])
def test_every_width_and_sign_of_pixel_keeps_its_order(dtype: type) -> None:
    values = _ramp(dtype)
    if values.dtype.kind == "i":
        values = values - dtype(32)
    frame = pixels.frame_of(_object(values), middle=False)
    assert (np.argsort(frame.values.ravel()) == np.arange(64)).all()
    assert frame.values.min() == values.min()


def test_floating_pixels_without_end_are_held() -> None:
    values = _ramp(np.float32)
    values[0, 0], values[0, 1], values[0, 2], values[0, 3] = np.nan, np.inf, -np.inf, 3e38
    ds = _object(_ramp(np.uint32), BitsAllocated=32)
    del ds.PixelData
    ds.FloatPixelData = values.tobytes()
    frame = pixels.frame_of(ds, middle=False)
    assert np.isfinite(frame.values).all()
    assert (frame.values.min(), frame.values.max()) == (4, 63)


def test_one_bit_is_read() -> None:
    ds = _object(np.zeros((8, 8), np.uint8), BitsAllocated=1, BitsStored=1, HighBit=0)
    ds.PixelData = bytes([0b00001111] * 8)
    frame = pixels.frame_of(ds, middle=False)
    assert frame.bits == 1
    assert (frame.values[:, :4] == 1).all()
    assert (frame.values[:, 4:] == 0).all()


def test_colour_and_palette_become_luminance() -> None:
    rgb = np.zeros((8, 8, 3), np.uint8)
    rgb[..., 1] = 200
    ds = _object(np.zeros((8, 8), np.uint8), SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation="RGB")
    ds.PixelData = rgb.tobytes()
    frame = pixels.frame_of(ds, middle=False)
    assert frame.colour
    assert (frame.values == 117).all()  # 0.587 of 200

    table = (np.arange(256) * 257).astype("<u2").tobytes()
    palette = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        palette |= {f"{colour}PaletteColorLookupTableDescriptor": [256, 0, 16]}
        palette |= {f"{colour}PaletteColorLookupTableData": table}
    frame = pixels.frame_of(_object(_ramp(np.uint8), **palette), middle=False)
    assert frame.colour
    assert (np.diff(frame.values.ravel().astype(int)) >= 250).all()
    del palette["RedPaletteColorLookupTableData"]
    with pytest.raises(StepwedgeError) as caught:
        pixels.frame_of(_object(_ramp(np.uint8), **palette), middle=False)
    assert caught.value.code == UNDECODABLE


def test_of_several_frames_the_first_or_the_middle_one_is_taken() -> None:
    values = np.stack([np.full((8, 8), index, np.uint16) for index in range(5)])
    assert pixels.frame_of(_object(values), middle=False).values[0, 0] == 0
    middle = pixels.frame_of(_object(values), middle=True)
    assert (middle.values[0, 0], middle.index, middle.count) == (2, 2, 5)


@pytest.mark.parametrize("bits", [8, 12, 15, 16])
@pytest.mark.parametrize("kind", [np.uint16, np.int16])
@pytest.mark.parametrize("beyond", [False, True])
def test_what_is_taken_as_it_lies_is_what_decoding_gives(bits: int, kind: type[Any], beyond: bool) -> None:
    used = 16 if beyond else bits
    ends = (-(1 << used - 1), 1 << used - 1) if kind is np.int16 else (0, 1 << used)
    ds = _object(np.random.default_rng(bits).integers(*ends, (50, 40)).astype(kind), BitsStored=bits, HighBit=bits - 1)
    (decoded,) = dicom.frames(ds)
    lying = pixels._as_it_lies(ds)
    assert (lying is None) == (beyond and bits < 16)
    frame = pixels.frame_of(ds, middle=False)
    assert np.array_equal(frame.values, decoded)
    assert frame.values.dtype == decoded.dtype


@pytest.mark.parametrize(
    "attributes",
    [
        {"NumberOfFrames": 2},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"BitsAllocated": 8},
        {"BitsStored": 0},
        {"BitsStored": None},
        {"PixelRepresentation": 2},
        {"Rows": 9},
        {"Rows": 0},
        {"Rows": "8"},
    ],
)
def test_what_is_not_plainly_a_grey_image_is_decoded(attributes: dict[str, Any]) -> None:
    ds = _object(_ramp())
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    assert pixels._as_it_lies(ds) is None


def test_bits_of_an_embedded_overlay_are_taken_out() -> None:
    values = _ramp() | np.uint16(0x1000)
    ds = _object(values, BitsStored=12, HighBit=11)
    ds.add_new(0x60000102, "US", 12)
    assert (pixels.frame_of(ds, middle=False).values == _ramp()).all()


@pytest.mark.parametrize(
    ("attributes", "spacing"),
    [
        ({"PixelSpacing": ["0.2", "0.1"]}, (0.2, 0.1)),
        ({"PixelSpacing": ["0", "0"], "ImagerPixelSpacing": ["0.143", "0.143"]}, (0.143, 0.143)),
        ({"PixelSpacing": ["0", "0"]}, None),
        ({"PixelSpacing": ["-1", "1"]}, None),
        ({"PixelSpacing": ["1e9", "1e9"]}, None),
        ({"PixelSpacing": "0.2"}, None),
        ({"NominalScannedPixelSpacing": ["0.1", "0.1"]}, (0.1, 0.1)),
        ({}, None),
    ],
)
def test_an_absurd_spacing_is_none(attributes: dict[str, Any], spacing: tuple[float, float] | None) -> None:
    assert pixels.frame_of(_object(_ramp(), **attributes), middle=False).spacing_mm == spacing


@pytest.mark.parametrize(
    "attributes",
    [
        {"Rows": 0},
        {"Rows": 60000, "Columns": 60000},
        {"BitsAllocated": 12},
        {"SamplesPerPixel": 7},
        {"NumberOfFrames": 900},
        {"Rows": None},
    ],
)
def test_a_header_that_contradicts_the_pixels_is_a_code(attributes: dict[str, Any]) -> None:
    with pytest.raises(StepwedgeError) as caught:
        pixels.frame_of(_object(_ramp(), **attributes), middle=False)
    assert caught.value.code == UNDECODABLE


def test_truncated_pixels_are_a_code() -> None:
    ds = _object(_ramp())
    ds.PixelData = ds.PixelData[:-10]
    with pytest.raises(StepwedgeError) as caught:
        pixels.frame_of(ds, middle=False)
    assert caught.value.code == UNDECODABLE


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_pixel_data_that_is_there_and_empty_is_a_code(kind: type) -> None:
    ds = _object(_ramp(kind))
    ds.PixelData = None
    with pytest.raises(StepwedgeError) as caught:
        pixels.frame_of(ds, middle=False)
    assert caught.value.code == UNDECODABLE


@pytest.mark.parametrize("form", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("colour", [False, True])
def test_pictures_are_read(form: str, colour: bool) -> None:
    grey = np.tile(np.arange(0, 250, 2, dtype=np.uint8), (50, 1))
    image = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR) if colour else grey
    data = bytes(cv2.imencode(form, image)[1])
    assert pixels.picture_size(data) == (125, 50, 3 if colour else 1) or (form == ".tif" and colour)
    frame = pixels.picture(data)
    assert not frame.colour or form == ".jpg"
    assert np.abs(frame.values.astype(int) - grey).max() <= 4


def test_an_array_whose_pixels_are_not_square_is_looked_at_in_proportion_as_an_object_is() -> None:
    ds = _object(_ramp(), PixelSpacing=[0.4, 0.2])
    array = pixels.plain(_ramp(), inverted=False, spacing=(0.4, 0.2))
    assert array.aspect == pixels.frame_of(ds, middle=False).aspect == 2.0


def test_sixteen_bits_of_a_picture_are_kept() -> None:
    values = np.tile(np.arange(0, 60000, 600, dtype=np.uint16), (50, 1))
    assert (pixels.picture(bytes(cv2.imencode(".png", values)[1])).values == values).all()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", NOT_DICOM),
        (b"GIF89a" + bytes(100), NOT_DICOM),
        (b"\x89PNG\r\n\x1a\n", UNDECODABLE),
        (b"\x89PNG\r\n\x1a\n" + bytes(8) + struct.pack(">IIBB", 100_000, 100_000, 16, 0) + bytes(50), UNDECODABLE),
        (b"\x89PNG\r\n\x1a\n" + bytes(8) + struct.pack(">IIBB", 10, 10, 8, 0) + bytes(50), UNDECODABLE),
        (b"\xff\xd8\xff" + bytes(40), UNDECODABLE),
        (b"II*\0" + struct.pack("<I", 8) + bytes(40), UNDECODABLE),
        (b"MM\0*" + struct.pack(">I", 4_000_000_000), UNDECODABLE),
    ],
)
def test_what_is_no_picture_or_a_damaged_one_is_a_code(data: bytes, code: int) -> None:
    with pytest.raises(StepwedgeError) as caught:
        pixels.picture(data)
    assert caught.value.code == code


def test_a_truncated_picture_is_a_code_or_a_picture_but_nothing_else() -> None:
    whole = bytes(cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8))[1])
    for length in range(0, len(whole), 37):
        assert _ending(whole[:length]) in ("decoded", "PIXELS_UNDECODABLE", "NOT_DICOM")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_samples_at_the_top_of_their_words_are_moved_down(kind: type[Any], syntax: str) -> None:
    values = _ramp(kind) * kind(30) - kind(900 if kind is np.int16 else 0)
    high = ((values.astype(np.int32) << 4 | 0x5) & 0xFFFF).astype(np.uint16)  # and junk below them
    ds = _object(high.view(kind), BitsStored=12, HighBit=15)
    ds.PixelData = high.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()
    ds.file_meta.TransferSyntaxUID = syntax
    assert (pixels.frame_of(ds, middle=False).values == values).all()


@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_samples_that_lie_as_they_should_stay_there_whatever_high_bit_says(kind: type[Any]) -> None:
    values = _ramp(kind) * kind(30) - kind(900 if kind is np.int16 else 0)
    assert (pixels.frame_of(_object(values, BitsStored=12, HighBit=15), middle=False).values == values).all()


@pytest.mark.parametrize(
    ("attributes", "aspect"),
    [
        ({"ImagerPixelSpacing": ["0.2", "0.1"]}, 2.0),
        ({"PixelSpacing": ["0.1", "0.1"], "ImagerPixelSpacing": ["0.2", "0.1"]}, 1.0),
        ({"ImagerPixelSpacing": ["0.2", "0.201"]}, 1.0),
        ({"PixelAspectRatio": ["3", "2"]}, 1.5),
        ({"PixelAspectRatio": ["3", "0"]}, 1.0),
        ({"PixelAspectRatio": ["300", "1"]}, 1.0),
        ({}, 1.0),
    ],
)
def test_the_height_of_a_pixel_over_its_width_is_what_the_object_says(
    attributes: dict[str, Any], aspect: float
) -> None:
    assert pixels.frame_of(_object(_ramp(), **attributes), middle=False).aspect == pytest.approx(aspect)


@pytest.mark.parametrize(
    ("attributes", "open_pixels"),
    [
        (
            {
                "ShutterShape": "RECTANGULAR",
                "ShutterUpperHorizontalEdge": 1,
                "ShutterLowerHorizontalEdge": 8,
                "ShutterLeftVerticalEdge": 0,
                "ShutterRightVerticalEdge": 7,
            },
            36,
        ),
        ({"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [5, 5], "RadiusOfCircularShutter": 3}, 29),
        ({"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 1, 1, 8, 8, 8]}, 36),
        ({"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [5, 5], "RadiusOfCircularShutter": 1}, 64),
        ({"ShutterShape": "RECTANGULAR"}, 64),
        ({"ShutterShape": "ODD"}, 64),
        ({"ShutterShape": "CIRCULAR"}, 64),
        (
            {
                "ShutterShape": "CIRCULAR",
                "CenterOfCircularShutter": [5, 5],
                "RadiusOfCircularShutter": 2_000_000_000,
            },
            64,
        ),
        ({"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 1, 1, 8, 8]}, 64),
        ({"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": 7}, 64),
    ],
)
def test_what_a_shutter_hides_is_dark(attributes: dict[str, Any], open_pixels: int) -> None:
    values = _ramp() + np.uint16(100)
    frame = pixels.frame_of(_object(values, **attributes), middle=False)
    hidden = np.zeros(values.shape, np.bool_) if frame.padding is None else frame.padding
    assert np.count_nonzero(~hidden) == open_pixels
    assert (frame.values[~hidden] == values[~hidden]).all()
    assert (frame.values[hidden] == values[~hidden].min()).all()


def test_functional_groups_say_polarity_and_spacing_of_the_frame() -> None:
    shared_groups, own_groups, turned, measures = Dataset(), Dataset(), Dataset(), Dataset()
    turned.RescaleSlope, turned.RescaleIntercept = "-1", "4095"
    measures.PixelSpacing = ["0.15", "0.15"]
    shared_groups.PixelMeasuresSequence = Sequence([measures])
    own_groups.PixelValueTransformationSequence = Sequence([turned])
    ds = _object(
        np.stack([_ramp(), _ramp()]),
        SharedFunctionalGroupsSequence=Sequence([shared_groups]),
        PerFrameFunctionalGroupsSequence=Sequence([own_groups, Dataset()]),
    )
    first = pixels.frame_of(ds, middle=False)
    assert (first.inverted, first.spacing_mm) == (True, (0.15, 0.15))
    assert not pixels.frame_of(ds, middle=True).inverted


@pytest.mark.parametrize(("modality", "colour"), [("DX", False), ("US", True)])
def test_a_screenshot_of_a_radiograph_is_grey(modality: str, colour: bool) -> None:
    grey = _ramp(np.uint8)
    copied = np.repeat(grey[..., None], 3, axis=2)
    ds = _object(grey, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, Modality=modality)
    ds.PixelData = copied.tobytes()
    frame = pixels.frame_of(ds, middle=False)
    assert frame.colour is colour
    assert (frame.values == grey).all()
