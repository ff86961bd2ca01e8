"""What the judgement of a chest radiograph owes to how its vendor wrote it.

    python -m benchmarks.encodings [--images 40] [--only WORD ...] [--data FOLDER] [--model FOLDER] [--json]

Real radiographs (8 bits, ready for display) are written as DICOM objects in many ways: depths and places of the bits,
signs and polarities, lookup tables, borders and shutters, spacings, transfer syntaxes, SOP classes, headers. Each is
assessed and held against the plain object of 8 bits of what it shows. A way marked `same` means the same picture by the
standard, so that nothing should change; the others (`told`) show another picture, and are told, not judged. Of each
way: images of which a finding (header findings left out) has another outcome, and which; images with another verdict;
least Dice of lungs and heart; greatest change of the cardiothoracic ratio and of a margin in mm. Needs the project's
radiographs; only the split `val` is read. Ways that need an encoder that is not installed (DCMTK's) are left out, and
said to be.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from distillation.data import read_image, read_index
from services.inference.assess import AssessmentResult, Assessor
from services.inference.findings import name
from shared import paths
from shared.policy import Policy
from stepwedge.common.v1.common_pb2 import Outcome
from tests.shared_material import SHARED

Grey = NDArray[np.uint8]
Mask = NDArray[np.uint8]

FIELD_MM: Final = {"kermany": 300.0}
"""Longer side that the images of a source are said to have; of others 430 mm."""
OF_THE_HEADER: Final = frozenset(
    ["EXPOSURE", "SPACING", "LATERALITY", "VIEW", "DATES", "ATTRIBUTES_ABSENT", "FRAMES", "SLICES", "UNUSED_DEPTH"]
)
"""Findings that speak of the header or of the depth, which is what is changed."""
DX, CR, SC = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.7"
DX_FOR_PROCESSING: Final = "1.2.840.10008.5.1.4.1.1.1.1.1"
ENHANCED_XA: Final = "1.2.840.10008.5.1.4.1.1.12.1.1"
MULTI_FRAME_GREY_SC: Final = "1.2.840.10008.5.1.4.1.1.7.3"


@dataclass(frozen=True)
class Subject:
    """A radiograph and what it is said to measure. grey: [rows, columns]. mm: distance of its pixels."""

    grey: Grey
    mm: float

    def deep(self, bits: int) -> NDArray[np.uint16]:
        """In more bits; below the eighth is noise, the same each time."""
        more = bits - 8
        noise = np.random.default_rng(8).integers(0, 1 << max(0, more), self.grey.shape, dtype=np.uint16)
        return np.asarray((self.grey.astype(np.uint16) << max(0, more)) + (noise if more > 0 else 0), np.uint16)


@dataclass(frozen=True)
class Made:
    """An object, and how a mask of it lies on the radiograph that it was made of."""

    data: bytes
    back: Callable[[Mask], Mask] = field(default=lambda mask: mask)
    against: bytes | None = None
    """The plain object of what it shows by the standard, where that is not the radiograph itself."""
    apart: str = ""
    """A finding that differs with reason: COLLIMATION of a border."""


Way = Callable[[Subject], Made]
WAYS: Final[dict[str, tuple[bool, Way]]] = {}
"""Name -> whether it means the same picture, and what makes it."""


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """An item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def written(
    stored: NDArray[Any], mm: float | None, /, *, syntax: str = ExplicitVRLittleEndian, **attributes: Any
) -> bytes:
    """A DX image of `stored` [rows, columns], [frames, rows, columns] or [rows, columns, 3]; None takes away."""
    data_set = Dataset()
    data_set.file_meta = FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = UID(syntax)
    colour = stored.ndim == 3 and stored.shape[2] == 3
    rows, columns = stored.shape[:2] if colour else stored.shape[-2:]
    said: dict[str, Any] = {
        "SOPClassUID": DX,
        "SOPInstanceUID": "2.25.3",
        "StudyInstanceUID": "2.25.1",
        "SeriesInstanceUID": "2.25.2",
        "Modality": "DX",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "PatientOrientation": ["L", "F"],
        "PresentationIntentType": "FOR PRESENTATION",
        "Rows": rows,
        "Columns": columns,
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "PlanarConfiguration": 0 if colour else None,
        "BitsAllocated": 8 * stored.dtype.itemsize,
        "BitsStored": 8 * stored.dtype.itemsize,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "PresentationLUTShape": "IDENTITY",
        "RescaleSlope": "1",
        "RescaleIntercept": "0",
        "ImagerPixelSpacing": None if mm is None else [f"{mm:.6g}"] * 2,
        **attributes,
    }
    said.setdefault("HighBit", said["BitsStored"] - 1)
    raw = said.pop("PixelData", None)
    for keyword, value in said.items():
        if value is not None:
            setattr(data_set, keyword, value)
    data_set.file_meta.MediaStorageSOPClassUID = data_set.SOPClassUID
    data_set.file_meta.MediaStorageSOPInstanceUID = data_set.SOPInstanceUID
    big = syntax == ExplicitVRBigEndian
    plain = np.ascontiguousarray(stored).astype(stored.dtype.newbyteorder(">" if big else "<")).tobytes()
    data_set.PixelData = plain + b"\0" * (len(plain) % 2) if raw is None else raw
    data_set["PixelData"].VR = "OB" if stored.dtype.itemsize == 1 else "OW"
    if raw is not None and UID(syntax).is_encapsulated:
        data_set["PixelData"].is_undefined_length = True
    return _file(data_set)


def _file(data_set: Dataset) -> bytes:
    target = BytesIO()
    data_set.save_as(target, enforce_file_format=True)
    return target.getvalue()


def way(title: str, *, same: bool = True) -> Callable[[Way], Way]:
    """Enter a way into the table."""

    def entered(made: Way) -> Way:
        WAYS[title] = (same, made)
        return made

    return entered


def header(title: str, same: bool = True, **attributes: Any) -> None:
    """A way that only says something else of the plain picture of 8 bits."""
    WAYS[title] = (same, lambda one: Made(written(one.grey, one.mm, **attributes)))


def plain(one: Subject) -> Made:
    """What everything is held against."""
    return Made(written(one.grey, one.mm))


# --- depth and place of the bits (PS3.5 8.1.1) -------------------------------------------------------------------


def _deep(bits: int, shift: int, junk: bool, one: Subject) -> Made:
    stored = np.asarray(one.deep(bits) << shift, np.uint16)
    used = ((1 << bits) - 1) << shift
    if junk:
        noise = np.random.default_rng(1).integers(0, 1 << 16, stored.shape, dtype=np.uint16)
        stored |= noise & np.uint16(0xFFFF & ~used)
    return Made(written(stored, one.mm, BitsStored=bits, HighBit=bits - 1 + shift))


for _bits in (8, 10, 12, 14, 16):
    WAYS[f"{_bits} bits stored of 16"] = (True, partial(_deep, _bits, 0, False))
WAYS["12 bits, junk above"] = (True, partial(_deep, 12, 0, True))
WAYS["12 bits, High Bit 15"] = (True, partial(_deep, 12, 4, False))
WAYS["12 bits, High Bit 15, junk below"] = (True, partial(_deep, 12, 4, True))


@way("12 bits, overlay in bit 12 (60xx)")
def _embedded(one: Subject) -> Made:
    stored = one.deep(12)
    stored[20:80, 20:80] |= 1 << 12
    overlay = {
        "OverlayRows": stored.shape[0], "OverlayColumns": stored.shape[1], "OverlayType": "G",
        "OverlayOrigin": [1, 1], "OverlayBitsAllocated": 16, "OverlayBitPosition": 12,
    }  # fmt: skip
    whole = Dataset.from_json({})
    for keyword, (element, vr) in {
        "OverlayRows": (0x0010, "US"), "OverlayColumns": (0x0011, "US"), "OverlayType": (0x0040, "CS"),
        "OverlayOrigin": (0x0050, "SS"), "OverlayBitsAllocated": (0x0100, "US"), "OverlayBitPosition": (0x0102, "US"),
    }.items():  # fmt: skip
        whole.add_new((0x6000, element), vr, overlay[keyword])
    import pydicom

    read = pydicom.dcmread(BytesIO(written(stored, one.mm, BitsStored=12)))
    read.update(whole)
    return Made(_file(read))


@way("12 bits, overlay plane of its own (60xx,3000)")
def _overlay(one: Subject) -> Made:
    import pydicom

    stored = one.deep(12)
    read = pydicom.dcmread(BytesIO(written(stored, one.mm, BitsStored=12)))
    plane = np.zeros(stored.shape, np.uint8)
    plane[20:80, 20:80] = 1
    for element, vr, value in (
        (0x0010, "US", stored.shape[0]), (0x0011, "US", stored.shape[1]), (0x0040, "CS", "G"),
        (0x0050, "SS", [1, 1]), (0x0100, "US", 1), (0x0102, "US", 0),
    ):  # fmt: skip
        read.add_new((0x6000, element), vr, value)
    bits = np.packbits(plane.ravel(), bitorder="little").tobytes()
    read.add_new((0x6000, 0x3000), "OW", bits + b"\0" * (len(bits) % 2))
    return Made(_file(read))


@way("12 bits signed, offset -2048, intercept 2048")
def _signed(one: Subject) -> Made:
    stored = one.deep(12).astype(np.int16) - np.int16(2048)
    return Made(written(stored, one.mm, BitsStored=12, RescaleIntercept="2048"))


@way("12 bits signed, sign not extended")
def _unextended(one: Subject) -> Made:
    stored = (one.deep(12).astype(np.int16) - np.int16(2048)).view(np.uint16) & np.uint16(0x0FFF)
    return Made(written(stored.view(np.int16), one.mm, BitsStored=12, RescaleIntercept="2048"))


@way("32 bits allocated, 12 stored")
def _wide(one: Subject) -> Made:
    return Made(written(one.deep(12).astype(np.uint32), one.mm, BitsStored=12))


@way("a quarter of the depth, no window")
def _fraction(one: Subject) -> Made:
    return Made(written(one.deep(12) + np.uint16(3000), one.mm, BitsStored=14))


# --- polarity and the modality's transformation (PS3.3 C.7.6.3.1.2, C.11.1) --------------------------------------


@way("MONOCHROME1, values inverted")
def _monochrome1(one: Subject) -> Made:
    return Made(written(255 - one.grey, one.mm, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape=None))


@way("MONOCHROME1, 12 bits, Presentation LUT Shape INVERSE")
def _inverse(one: Subject) -> Made:
    stored = np.uint16(4095) - one.deep(12)
    inverse = {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}
    return Made(written(stored, one.mm, BitsStored=12, **inverse))


@way("MONOCHROME2, inverted, Presentation LUT Shape INVERSE")
def _inverse_2(one: Subject) -> Made:
    return Made(written(255 - one.grey, one.mm, PresentationLUTShape="INVERSE"))


header("rescale 0.5, -1024", RescaleSlope="0.5", RescaleIntercept="-1024", RescaleType="US")
header("rescale 0 (no slope at all)", RescaleSlope="0")


@way("rescale -1, 4095")
def _negative(one: Subject) -> Made:
    stored = np.uint16(4095) - one.deep(12)
    return Made(written(stored, one.mm, BitsStored=12, RescaleSlope="-1", RescaleIntercept="4095"))


def lut(table: NDArray[np.uint16], first: int, bits: int, **more: Any) -> Dataset:
    """An item of a Modality or VOI LUT Sequence (PS3.3 C.11.1.1, C.11.2.1.1)."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(table) % (1 << 16), first, bits])
    item.add_new("LUTData", "OW", table.astype("<u2").tobytes())
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return item


def _curved(one: Subject) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Values of 12 bits that a steep curve was taken out of, and the table that puts it back: an S over the middle."""
    entries = np.arange(4096)
    curve = 1 / (1 + np.exp(-(entries - 1500.0) / 260.0))
    table = np.rint(4095 * (curve - curve[0]) / (curve[-1] - curve[0])).astype(np.uint16)
    return np.searchsorted(table, one.deep(12)).clip(0, 4095).astype(np.uint16), table


@way("Modality LUT Sequence, a curve")
def _modality_lut(one: Subject) -> Made:
    stored, table = _curved(one)
    items = Items([lut(table, 0, 12, ModalityLUTType="US")])
    return Made(
        written(stored, one.mm, BitsStored=12, ModalityLUTSequence=items, RescaleSlope=None, RescaleIntercept=None)
    )


@way("Modality LUT Sequence, turning black and white")
def _turning_lut(one: Subject) -> Made:
    items = Items([lut(np.arange(4096, dtype=np.uint16)[::-1], 0, 12, ModalityLUTType="US")])
    stored = np.uint16(4095) - one.deep(12)
    return Made(
        written(stored, one.mm, BitsStored=12, ModalityLUTSequence=items, RescaleSlope=None, RescaleIntercept=None)
    )


# --- values of interest (PS3.3 C.11.2) ---------------------------------------------------------------------------


@way("window over the depth, LINEAR")
def _window(one: Subject) -> Made:
    return Made(written(one.deep(12), one.mm, BitsStored=12, WindowCenter="2048", WindowWidth="4096"))


@way("windows, three with explanations")
def _windows(one: Subject) -> Made:
    three: dict[str, Any] = {
        "WindowCenter": ["2048", "1800", "2400"],
        "WindowWidth": ["4096", "3000", "3500"],
        "WindowCenterWidthExplanation": ["NORMAL", "HARDER", "SOFTER"],
    }
    return Made(written(one.deep(12), one.mm, BitsStored=12, **three))


def _windowed(shape: str, one: Subject) -> Made:
    """The picture in 2048 of 14 bits, in which a window of that width finds it."""
    stored = np.asarray((one.deep(12) >> 1) + 5000, np.uint16)
    window = {"WindowCenter": "6024", "WindowWidth": "2048", "VOILUTFunction": shape}
    return Made(written(stored, one.mm, BitsStored=14, **window))


for _shape in ("LINEAR", "LINEAR_EXACT"):
    WAYS[f"narrow window in 14 bits, {_shape}"] = (True, partial(_windowed, _shape))


@way("narrow window, border of the field beyond it")
def _beyond(one: Subject) -> Made:
    """Bare beam beside the body, 5 % of the width at both sides: black by the window, far beyond it as stored."""
    stored = one.deep(12).astype(np.int32) + 8000
    width = stored.shape[1] // 20
    shown = one.grey.copy()
    shown[:, :width] = shown[:, -width:] = 0
    stored[:, :width] = stored[:, -width:] = 200
    data = written(stored.astype(np.uint16), one.mm, BitsStored=14, WindowCenter="10048", WindowWidth="4096")
    return Made(data, against=written(shown, one.mm))


def _harder(width: int, one: Subject) -> Made:
    """A window about the middle that clips more or less of the body: an operator's choice, or another reader's."""
    return Made(written(one.deep(12), one.mm, BitsStored=12, WindowCenter="2048", WindowWidth=str(width)))


for _width in (3600, 3000, 2400, 1600, 400):
    WAYS[f"window of {_width} of 4096"] = (False, partial(_harder, _width))


@way("VOI LUT Function SIGMOID")
def _sigmoid(one: Subject) -> Made:
    """Stored so that the sigmoid of PS3.3 C.11.2.1.3.1 shows the picture."""
    shown = np.clip((one.deep(12) + 0.5) / 4096, 0.01, 0.99)
    stored = np.rint(2048 + 900 / 4 * np.log(shown / (1 - shown))).clip(0, 4095).astype(np.uint16)
    window = {"WindowCenter": "2048", "WindowWidth": "900", "VOILUTFunction": "SIGMOID"}
    return Made(written(stored, one.mm, BitsStored=12, **window))


@way("VOI LUT Sequence, a curve")
def _voi_lut(one: Subject) -> Made:
    stored, table = _curved(one)
    items = Items([lut(table, 0, 12, LUTExplanation="NORMAL"), lut(table, 0, 12, LUTExplanation="HARDER")])
    return Made(written(stored, one.mm, BitsStored=12, VOILUTSequence=items))


@way("VOI LUT Sequence, straight and of a part")
def _straight_lut(one: Subject) -> Made:
    stored = np.asarray((one.deep(12) >> 1) + 5000, np.uint16)
    items = Items([lut(np.arange(2048, dtype=np.uint16), 5000, 11, LUTExplanation="NORMAL")])
    return Made(written(stored, one.mm, BitsStored=14, VOILUTSequence=items))


@way("VOI LUT Sequence turning black and white, MONOCHROME2")
def _turning_voi(one: Subject) -> Made:
    items = Items([lut(np.arange(4096, dtype=np.uint16)[::-1], 0, 12, LUTExplanation="NORMAL")])
    return Made(written(np.uint16(4095) - one.deep(12), one.mm, BitsStored=12, VOILUTSequence=items))


# --- raw values (PS3.3 C.8.11.3.1.2 Pixel Intensity Relationship) ------------------------------------------------


def _raw(one: Subject, decades: float) -> NDArray[np.float64]:
    """What the detector saw: bright is little dose, over so many decades; 1 where it saw most."""
    return np.asarray(10 ** (-decades * one.deep(12) / 4095))


def _for_processing(decades: float, said: bool, one: Subject) -> Made:
    stored = np.rint(16000 * _raw(one, decades)).astype(np.uint16)
    raw: dict[str, Any] = {
        "SOPClassUID": DX_FOR_PROCESSING, "PresentationIntentType": "FOR PROCESSING",
        "PhotometricInterpretation": "MONOCHROME1" if said else "MONOCHROME2", "PresentationLUTShape": None,
        "PixelIntensityRelationship": "LIN", "PixelIntensityRelationshipSign": 1,
    }  # fmt: skip
    return Made(written(stored, one.mm, BitsStored=14, **raw))


WAYS["FOR PROCESSING, linear to dose, 1.3 decades, MONOCHROME1"] = (True, partial(_for_processing, 1.3, True))
WAYS["FOR PROCESSING, linear to dose, 2 decades, MONOCHROME1"] = (True, partial(_for_processing, 2.0, True))
WAYS["FOR PROCESSING, linear to dose, 2.7 decades, MONOCHROME1"] = (True, partial(_for_processing, 2.7, True))
WAYS["FOR PROCESSING, linear to dose, MONOCHROME2, sign 1"] = (True, partial(_for_processing, 1.3, False))


@way("FOR PROCESSING, log of the dose, MONOCHROME1", same=True)
def _log(one: Subject) -> Made:
    stored = np.rint(16000 + 7000 * np.log10(_raw(one, 2.0))).astype(np.uint16)
    raw: dict[str, Any] = {
        "SOPClassUID": DX_FOR_PROCESSING, "PresentationIntentType": "FOR PROCESSING",
        "PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": None,
        "PixelIntensityRelationship": "LOG", "PixelIntensityRelationshipSign": 1,
    }  # fmt: skip
    return Made(written(stored, one.mm, BitsStored=14, **raw))


# --- borders, shutters, sizes ------------------------------------------------------------------------------------


def _bordered(grey: Grey, value: int, top: int, bottom: int, left: int, right: int) -> tuple[Grey, Any]:
    wide = np.asarray(cv2.copyMakeBorder(grey, top, bottom, left, right, cv2.BORDER_CONSTANT, value=value), np.uint8)
    rows, columns = grey.shape
    return wide, lambda mask: mask[top : top + rows, left : left + columns]


def _padded(value: int, share: float, one: Subject) -> Made:
    down, across = (round(share * length) for length in one.grey.shape)
    least = np.maximum(one.grey, 1) if value == 0 else np.minimum(one.grey, 254)
    wide, back = _bordered(least, value, down, down, across, across)
    return Made(written(wide, one.mm, PixelPaddingValue=value), back, apart="COLLIMATION")


def _collimated(value: int, share: float, one: Subject) -> Made:
    down, across = (round(share * length) for length in one.grey.shape)
    wide, back = _bordered(one.grey, value, down, down, across, across)
    return Made(written(wide, one.mm), back, apart="COLLIMATION")


def _shuttered(one: Subject) -> Made:
    down, across = (round(0.05 * length) for length in one.grey.shape)
    wide, back = _bordered(one.grey, 255, down, down, across, across)
    rows, columns = one.grey.shape
    shutter = {
        "ShutterShape": "RECTANGULAR",
        "ShutterUpperHorizontalEdge": down, "ShutterLowerHorizontalEdge": down + rows + 1,
        "ShutterLeftVerticalEdge": across, "ShutterRightVerticalEdge": across + columns + 1,
        "ShutterPresentationValue": 0,
    }  # fmt: skip
    return Made(written(wide, one.mm, **shutter), back, apart="COLLIMATION")


def _askew(value: int, one: Subject) -> Made:
    """Blades that stand askew by four degrees, round the middle of a border that keeps the whole radiograph open."""
    rows, columns = one.grey.shape
    by = math.ceil(0.06 * max(rows, columns))
    wide, back = _bordered(one.grey, value, by, by, by, by)
    middle = ((columns + 2 * by) / 2, (rows + 2 * by) / 2)
    turned = cv2.boxPoints((middle, (columns + by, rows + by), 4.0)).astype(np.int32)
    field = cv2.fillConvexPoly(np.zeros(wide.shape, np.uint8), turned, 1)
    air, _ = _bordered(one.grey, int(np.median(one.grey)), by, by, by, by)
    return Made(written(np.where(field > 0, air, value).astype(np.uint8), one.mm), back)


WAYS["black blades, askew"] = (False, partial(_askew, 0))
WAYS["white blades, askew"] = (False, partial(_askew, 255))
WAYS["padding 0, border of 5 %"] = (True, partial(_padded, 0, 0.05))
WAYS["padding 255, border of 5 %"] = (True, partial(_padded, 255, 0.05))
WAYS["padding 255, border of 20 %"] = (True, partial(_padded, 255, 0.20))
WAYS["black border of 5 %"] = (False, partial(_collimated, 0, 0.05))
WAYS["white border of 12 %"] = (False, partial(_collimated, 255, 0.12))
WAYS["white border of 5 %"] = (False, partial(_collimated, 255, 0.05))
WAYS["white border of 5 %, Display Shutter"] = (True, _shuttered)


@way("black border of 30 % at one side", same=False)
def _one_side(one: Subject) -> Made:
    wide, back = _bordered(one.grey, 0, 0, 0, round(0.3 * one.grey.shape[1]), 0)
    return Made(written(wide, one.mm), back, apart="COLLIMATION")


@way("43 x 35 landscape, black at both sides", same=False)
def _landscape(one: Subject) -> Made:
    rows, columns = one.grey.shape
    across = max(0, round((rows * 43 / 35 - columns) / 2))
    wide, back = _bordered(one.grey, 0, 0, 0, across, across)
    return Made(written(wide, one.mm), back, apart="COLLIMATION")


def _burned_frame(one: Subject) -> Made:
    grey = one.grey.copy()
    cv2.rectangle(grey, (2, 2), (grey.shape[1] - 3, grey.shape[0] - 3), 255, 2)
    return Made(written(grey, one.mm))


WAYS["white frame burned in"] = (False, _burned_frame)


def _resized(longest: int, odd: bool, one: Subject) -> Made:
    rows, columns = one.grey.shape
    share = longest / max(rows, columns)
    size = [round(length * share) for length in (columns, rows)]
    if odd:
        size = [length | 1 for length in size]
    large = cv2.resize(one.grey, tuple(size), interpolation=cv2.INTER_LINEAR if share > 1 else cv2.INTER_AREA)
    return Made(
        written(np.asarray(large, np.uint8), one.mm / share),
        lambda mask: np.asarray(cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_LINEAR), np.uint8),
    )


WAYS["800 pixels"] = (True, partial(_resized, 800, False))
WAYS["5000 pixels"] = (True, partial(_resized, 5000, False))
WAYS["odd rows and columns"] = (True, partial(_resized, 1001, True))


def _stretched(down: float, said: str, one: Subject) -> Made:
    rows, columns = one.grey.shape
    tall = cv2.resize(one.grey, (columns, round(rows * down)), interpolation=cv2.INTER_LINEAR)
    mm = one.mm
    either: dict[str, dict[str, Any]] = {
        "ImagerPixelSpacing": {"ImagerPixelSpacing": [f"{mm / down:.6g}", f"{mm:.6g}"]},
        "PixelAspectRatio": {"PixelAspectRatio": ["100", f"{round(100 * down)}"], "ImagerPixelSpacing": None},
    }
    data = written(np.asarray(tall, np.uint8), mm, **either[said])
    return Made(
        data,
        lambda mask: np.asarray(cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_LINEAR), np.uint8),
        written(one.grey, None) if said == "PixelAspectRatio" else None,
    )


WAYS["pixels 2 to 1, by Imager Pixel Spacing"] = (True, partial(_stretched, 2.0, "ImagerPixelSpacing"))
WAYS["pixels 1 to 2, by Imager Pixel Spacing"] = (True, partial(_stretched, 0.5, "ImagerPixelSpacing"))
WAYS["pixels 5 to 4, by Imager Pixel Spacing"] = (True, partial(_stretched, 1.25, "ImagerPixelSpacing"))
WAYS["pixels 2 to 1, by Pixel Aspect Ratio"] = (True, partial(_stretched, 2.0, "PixelAspectRatio"))


@way("Pixel Spacing, calibrated")
def _calibrated(one: Subject) -> Made:
    return Made(written(one.grey, one.mm * 1.05, PixelSpacing=[f"{one.mm:.6g}"] * 2))


# --- transfer syntaxes (PS3.5 A) ---------------------------------------------------------------------------------


def _native(syntax: str, one: Subject) -> Made:
    return Made(written(one.deep(12), one.mm, BitsStored=12, syntax=syntax))


WAYS["implicit VR, 12 bits"] = (True, partial(_native, ImplicitVRLittleEndian))
WAYS["explicit VR big endian, 12 bits"] = (True, partial(_native, ExplicitVRBigEndian))
WAYS["deflated, 12 bits"] = (True, partial(_native, DeflatedExplicitVRLittleEndian))


def _compressed(syntax: str, options: dict[str, Any], one: Subject) -> Made:
    import pydicom

    read = pydicom.dcmread(BytesIO(written(one.deep(12), one.mm, BitsStored=12)))
    read.compress(UID(syntax), generate_instance_uid=False, **options)
    return Made(_file(read))


WAYS["RLE, 12 bits"] = (True, partial(_compressed, RLELossless, {}))
WAYS["JPEG-LS lossless, 12 bits"] = (True, partial(_compressed, JPEGLSLossless, {}))
WAYS["JPEG-LS near 4, 12 bits"] = (True, partial(_compressed, JPEGLSNearLossless, {"jls_error": 4}))
WAYS["JPEG 2000 lossless, 12 bits"] = (True, partial(_compressed, JPEG2000Lossless, {}))
WAYS["JPEG 2000 at 20 to 1, 12 bits"] = (True, partial(_compressed, JPEG2000, {"j2k_cr": [20]}))


def _baseline(quality: int, offsets: bool, pieces: int, one: Subject) -> Made:
    _, encoded = cv2.imencode(".jpg", one.grey, [cv2.IMWRITE_JPEG_QUALITY, quality])
    frame = encoded.tobytes()
    packed = encapsulate([frame + b"\0" * (len(frame) % 2)], fragments_per_frame=pieces, has_bot=offsets)
    return Made(written(one.grey, one.mm, syntax=JPEGBaseline8Bit, PixelData=packed, LossyImageCompression="01"))


WAYS["JPEG baseline, quality 90"] = (True, partial(_baseline, 90, True, 1))
WAYS["JPEG baseline, quality 50"] = (False, partial(_baseline, 50, True, 1))
WAYS["JPEG baseline, five fragments, empty offset table"] = (True, partial(_baseline, 90, False, 5))
WAYS["JPEG baseline, five fragments, offset table"] = (True, partial(_baseline, 90, True, 5))


def _dcmtk(command: Sequence[str], bits: int, signed: bool, one: Subject) -> Made:
    stored: NDArray[Any] = one.deep(bits)
    attributes: dict[str, Any] = {"BitsStored": bits}
    if signed:
        stored = stored.astype(np.int16) - np.int16(1 << bits - 1)
        attributes["RescaleIntercept"] = str(1 << bits - 1)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "a.dcm"), Path(folder, "b.dcm")
        source.write_bytes(written(stored, one.mm, **attributes))
        subprocess.run([*command, str(source), str(target)], check=True, capture_output=True)
        return Made(target.read_bytes())


for _title, _bits, _signed_too, _command in (
    ("JPEG lossless SV1 (.70)", 12, False, ["dcmcjpeg", "+e1"]),
    ("JPEG lossless SV1 (.70), 16 bits", 16, False, ["dcmcjpeg", "+e1"]),
    ("JPEG lossless SV1 (.70), signed", 12, True, ["dcmcjpeg", "+e1"]),
    ("JPEG lossless (.57)", 12, False, ["dcmcjpeg", "+el", "+sv", "6"]),
    ("JPEG extended, 12 bits (.51)", 12, False, ["dcmcjpeg", "+ee", "+bt"]),
    ("JPEG-LS lossless, signed", 12, True, ["dcmcjpls"]),
    ("RLE of DCMTK", 12, False, ["dcmcrle"]),
    ("JPEG lossless, fragments of 16 kB, offset table", 12, False, ["dcmcjpeg", "+e1", "+fs", "16", "+ot"]),
    ("JPEG lossless, fragments of 16 kB, empty offset table", 12, False, ["dcmcjpeg", "+e1", "+fs", "16", "-ot"]),
):
    if shutil.which(_command[0]):
        WAYS[_title] = (True, partial(_dcmtk, _command, _bits, _signed_too))
    else:
        print(f"left out, no {_command[0]}: {_title}", file=sys.stderr)


# --- classes, frames, colours (PS3.3 A, C.7.6.3.1.2) -------------------------------------------------------------

header("Computed Radiography", SOPClassUID=CR, Modality="CR", PresentationIntentType=None)
header("Secondary Capture, modality CR", SOPClassUID=SC, Modality="CR", ConversionType="WSD")
header("Secondary Capture, modality OT", SOPClassUID=SC, Modality="OT", ConversionType="WSD")
header("modality RG (digitized film)", SOPClassUID=SC, Modality="RG", ConversionType="DF")
header("no modality", Modality=None)
header("one frame, said", NumberOfFrames="1")
header("multi-frame grey SC, one frame", SOPClassUID=MULTI_FRAME_GREY_SC, Modality="DX", NumberOfFrames="1")
header("Enhanced XA class, modality DX", SOPClassUID=ENHANCED_XA, NumberOfFrames="1")


@way("Enhanced X-Ray, spacing and LUT in functional groups")
def _enhanced(one: Subject) -> Made:
    shared_groups, transformed, measures = Dataset(), Dataset(), Dataset()
    transformed.RescaleSlope, transformed.RescaleIntercept, transformed.RescaleType = "-1", "4095", "US"
    measures.ImagerPixelSpacing = [f"{one.mm:.6g}"] * 2
    measures.PixelSpacing = [f"{one.mm:.6g}"] * 2
    shared_groups.PixelValueTransformationSequence = Items([transformed])
    shared_groups.PixelMeasuresSequence = Items([measures])
    groups: dict[str, Any] = {"SharedFunctionalGroupsSequence": Items([shared_groups]), "NumberOfFrames": "1"}
    stored = np.uint16(4095) - one.deep(12)
    return Made(
        written(
            stored, None, BitsStored=12, SOPClassUID=ENHANCED_XA, RescaleSlope=None, RescaleIntercept=None, **groups
        )
    )


def _rgb(one: Subject) -> NDArray[np.uint8]:
    return np.repeat(one.grey[..., None], 3, axis=2)


@way("RGB copy of the grey picture")
def _screenshot(one: Subject) -> Made:
    return Made(written(_rgb(one), one.mm, SOPClassUID=SC, Modality="DX", PresentationLUTShape=None))


@way("RGB copy, planes one after another")
def _planar(one: Subject) -> Made:
    planes = np.ascontiguousarray(_rgb(one).transpose(2, 0, 1)).tobytes()
    more: dict[str, Any] = {
        "PlanarConfiguration": 1,
        "SOPClassUID": SC,
        "PixelData": planes + b"\0" * (len(planes) % 2),
    }
    return Made(written(_rgb(one), one.mm, **more))


@way("YBR_FULL_422, uncompressed")
def _ybr(one: Subject) -> Made:
    grey = one.grey[:, : one.grey.shape[1] // 2 * 2]
    pairs = grey.reshape(grey.shape[0], -1, 2)
    neutral = np.full((*pairs.shape[:2], 2), 128, np.uint8)
    mixed = np.concatenate([pairs, neutral], axis=2).tobytes()
    more: dict[str, Any] = {"PhotometricInterpretation": "YBR_FULL_422", "SOPClassUID": SC, "PixelData": mixed}
    whole = np.repeat(grey[..., None], 3, axis=2)
    width = one.grey.shape[1]
    return Made(
        written(whole, one.mm, **more),
        lambda mask: np.pad(mask, ((0, 0), (0, width - mask.shape[1])), mode="edge"),
    )


@way("YBR_FULL_422, JPEG baseline in colour")
def _ybr_jpeg(one: Subject) -> Made:
    _, encoded = cv2.imencode(".jpg", _rgb(one), [cv2.IMWRITE_JPEG_QUALITY, 95])
    frame = encoded.tobytes()
    more: dict[str, Any] = {
        "PhotometricInterpretation": "YBR_FULL_422",
        "SOPClassUID": SC,
        "PixelData": encapsulate([frame + b"\0" * (len(frame) % 2)]),
    }
    return Made(written(_rgb(one), one.mm, syntax=JPEGBaseline8Bit, **more))


def _palette(turned: bool, one: Subject) -> Made:
    ramp = np.arange(256, dtype=np.uint16) * 257
    table = (ramp[::-1] if turned else ramp).astype("<u2").tobytes()
    more: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR", "SOPClassUID": SC}
    for colour in ("Red", "Green", "Blue"):
        more[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        more[f"{colour}PaletteColorLookupTableData"] = table
    return Made(written(255 - one.grey if turned else one.grey, one.mm, PresentationLUTShape=None, **more))


WAYS["PALETTE COLOR, grey ramp"] = (True, partial(_palette, False))
WAYS["PALETTE COLOR, falling grey ramp"] = (True, partial(_palette, True))

# --- header: view, body part, orientation ------------------------------------------------------------------------

header("view AP", ViewPosition="AP")
header("no view", ViewPosition=None)
header("view in words ('PA ERECT')", ViewPosition="PA ERECT")
header("view unknown ('FRONT')", ViewPosition="FRONT")
header(
    "view by code only, PA",
    ViewPosition=None,
    ViewCodeSequence=Items([code("R-10214", "SNM3", "postero-anterior")]),
)
header(
    "view by code only, SNOMED CT",
    ViewPosition=None,
    ViewCodeSequence=Items([code("272479007", "SCT", "postero-anterior")]),
)
for _part in ("THORAX", "CHEST_PA", "Thorax pa", "LUNGS"):
    header(f"body part '{_part}'", BodyPartExamined=_part)
header("no body part", BodyPartExamined=None)
header("no body part, no view, no orientation", BodyPartExamined=None, ViewPosition=None, PatientOrientation=None)
header("no orientation", PatientOrientation=None)
header("no spacing (limits are shares then)", same=False, ImagerPixelSpacing=None)
header("orientation P\\F (said wrongly)", same=False, PatientOrientation=["P", "F"])
header("orientation P\\F, no view", same=False, PatientOrientation=["P", "F"], ViewPosition=None)
header("orientation of an erect quadruped", PatientOrientation=["LE", "CD"])


@way("orientation R\\F, picture mirrored with it", same=False)
def _mirrored(one: Subject) -> Made:
    data = written(np.ascontiguousarray(one.grey[:, ::-1]), one.mm, PatientOrientation=["R", "F"])
    return Made(data, lambda mask: np.ascontiguousarray(mask[:, ::-1]))


# --- tone (another picture) --------------------------------------------------------------------------------------


def _gamma(power: float, one: Subject) -> Made:
    return Made(written(np.rint(255 * (one.grey / 255) ** power).astype(np.uint8), one.mm))


WAYS["gamma 0.7"] = (False, partial(_gamma, 0.7))
WAYS["gamma 1.4"] = (False, partial(_gamma, 1.4))
WAYS["histogram equalised"] = (False, lambda one: Made(written(np.asarray(cv2.equalizeHist(one.grey)), one.mm)))


@way("edges enhanced", same=False)
def _sharpened(one: Subject) -> Made:
    wide = one.grey.astype(np.float32)
    soft = cv2.GaussianBlur(wide, (0, 0), max(one.grey.shape) / 100)
    return Made(written(np.clip(wide + 1.0 * (wide - soft), 0, 255).astype(np.uint8), one.mm))


# --- several at once ---------------------------------------------------------------------------------------------


@way("MONOCHROME1, signed, slope -0.25, window, JPEG 2000")
def _several(one: Subject) -> Made:
    """Polarity turned twice, by the photometric interpretation and by the slope."""
    import pydicom

    stored = one.deep(12).astype(np.int16) - np.int16(2048)
    said: dict[str, Any] = {
        "PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE", "RescaleSlope": "-0.25",
        "RescaleIntercept": "100", "WindowCenter": "100", "WindowWidth": "1024",
    }  # fmt: skip
    read = pydicom.dcmread(BytesIO(written(stored, one.mm, BitsStored=12, **said)))
    read.compress(JPEG2000Lossless, generate_instance_uid=False)
    return Made(_file(read))


@way("MONOCHROME1 with padding 4095, JPEG-LS")
def _padded_lossless(one: Subject) -> Made:
    import pydicom

    wide, back = _bordered(one.grey, 0, 20, 20, 20, 20)
    stored = np.uint16(4095) - (wide.astype(np.uint16) << 4)
    stored[wide == 0] = 4095
    read = pydicom.dcmread(
        BytesIO(written(stored, one.mm, BitsStored=12, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=4095))
    )
    read.compress(JPEGLSLossless, generate_instance_uid=False)
    return Made(_file(read), back, apart="COLLIMATION")


# --- comparing ---------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What a way changed, of all images."""

    same: bool
    images: int = 0
    changed: int = 0
    verdicts: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    lungs: list[float] = field(default_factory=list)
    heart: list[float] = field(default_factory=list)
    ratio: list[float] = field(default_factory=list)
    margin: list[float] = field(default_factory=list)

    def enter(
        self, before: AssessmentResult, after: AssessmentResult, back: Callable[[Mask], Mask], apart: str = ""
    ) -> None:
        """Hold one image against its plain object."""
        policy = Policy.load(paths.POLICY)
        self.images += 1
        old, new = (_outcomes(one) for one in (before, after))
        differing = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)} - {apart}
        self.changed += bool(differing)
        self.codes.update(f"{key} {_word(old.get(key))}>{_word(new.get(key))}" for key in differing)
        judged = ([found for found in _judged(one) if name(found.code) != apart] for one in (before, after))
        verdicts = [policy.instance_verdict(found, modality="DX")[0] for found in judged]
        self.verdicts += verdicts[0] != verdicts[1]
        first, second = before.masks, after.masks
        for channel, kept in (("lungs_full", self.lungs), ("heart", self.heart)):
            if channel in first:
                kept.append(_dice(first[channel], back(second[channel])) if channel in second else 0.0)
        was, now = ({one.name: one for one in result.measurements} for result in (before, after))
        for key in was.keys() & now.keys():
            if was[key].unit != now[key].unit:
                continue
            difference = abs(was[key].value - now[key].value)
            if key == "cardiothoracic_ratio":
                self.ratio.append(difference)
            elif key.startswith("lung_margin"):
                self.margin.append(difference)

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "same_picture": self.same,
            "images": self.images,
            "images_with_other_outcomes": self.changed,
            "other_verdicts": self.verdicts,
            "outcomes": dict(self.codes.most_common()),
            "least_dice_lungs": min(self.lungs, default=None),
            "least_dice_heart": min(self.heart, default=None),
            "most_ratio": max(self.ratio, default=None),
            "most_margin_mm": max(self.margin, default=None),
        }


def _judged(result: AssessmentResult) -> list[Any]:
    return [one for one in result.findings if name(one.code) not in OF_THE_HEADER]


def _outcomes(result: AssessmentResult) -> dict[str, int]:
    return {name(one.code): int(one.outcome) for one in _judged(result)}


def _word(outcome: int | None) -> str:
    return "none" if outcome is None else Outcome.Name(outcome).removeprefix("OUTCOME_").lower()  # type: ignore[arg-type]


def _dice(one: Mask, other: Mask) -> float:
    first, second = one > 127, other > 127
    both = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / both if both else 1.0


def subjects(data: Path, most: int) -> Iterator[Subject]:
    """Radiographs of the split `val`: all of adults, then children's."""
    items = [item for item in read_index(data) if item.split == "val"]
    adults = [item for item in items if item.source != "kermany"]
    children = [item for item in items if item.source == "kermany"]
    picked = [children[place] for place in np.random.default_rng(4).permutation(len(children))]
    for item in [*adults, *picked][:most]:
        grey = np.asarray(read_image(data, item), np.uint8)
        yield Subject(grey, FIELD_MM.get(item.source, 430.0) / max(grey.shape))


def measure(model: Path, data: Path, most: int, words: Sequence[str]) -> dict[str, Row]:
    """Every way on every radiograph."""
    assessor = Assessor(model, threads=1)
    chosen = {title: kept for title, kept in WAYS.items() if not words or any(word in title for word in words)}
    rows = {title: Row(same) for title, (same, _) in chosen.items()}
    for one in subjects(data, most):
        before = assessor.assess_dicom(plain(one).data)
        for title, (_, made) in chosen.items():
            found = made(one)
            after, back = assessor.assess_dicom(found.data), found.back
            if found.against is None:
                rows[title].enter(before, after, back, found.apart)
            else:
                other = assessor.assess_dicom(found.against)
                alike = (other.rows, other.columns) == (after.rows, after.columns)
                rows[title].enter(other, after, (lambda mask: mask) if alike else back, found.apart)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--only", nargs="*", default=[], help="ways whose title contains one of these words")
    parser.add_argument("--data", type=Path, default=None if SHARED is None else SHARED / "data" / "cxr")
    parser.add_argument("--model", type=Path, default=paths.MODEL)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.data is None:
        sys.exit("needs the project's radiographs: --data FOLDER")
    cv2.setNumThreads(1)
    rows = measure(asked.model, asked.data, asked.images, asked.only)
    if asked.json:
        print(json.dumps({title: row.as_json() for title, row in rows.items()}, indent=1))
        return
    print("| way | | outcomes | verdicts | lungs | heart | ratio | margin, mm | what changed |")
    print("|---|---|---|---|---|---|---|---|---|")
    for title, row in rows.items():
        ends = [f"{min(kept):.4f}" if kept else "" for kept in (row.lungs, row.heart)]
        ends += [f"{max(kept):.{digits}f}" if kept else "" for kept, digits in ((row.ratio, 4), (row.margin, 1))]
        changed = ", ".join(f"{words} ({count})" for words, count in row.codes.most_common(4))
        kind = "same" if row.same else "told"
        print(f"| {title} | {kind} | {row.changed} of {row.images} | {row.verdicts} | {' | '.join(ends)} | {changed} |")


if __name__ == "__main__":
    main()
