"""Objects of every odd kind: each has a defined outcome, in bounded memory and time."""

from __future__ import annotations

import csv
import struct
import time
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG4HP41, SecondaryCaptureImageStorage

from services.inference.assess import Assessor
from services.inference.pixels import picture
from shared import dicom, paths, phantom
from shared.policy import Policy
from stepwedge.common.v1.common_pb2 import Verdict
from tests.shared_material import SHARED, needs_shared
from tests.unit.inference.conftest import chest
from tests.unit.inference.test_assess import as_bytes, as_object, failures, outcomes

LIMIT_S = 10.0
"""Far above what any takes, so that a busy machine fails no test."""


def as_pixels(stored: NDArray[Any], **attributes: Any) -> bytes:
    """A DX object around stored values [rows, columns], [rows, columns, 3] or, with NumberOfFrames, [frames, ...]."""
    rows, columns = stored.shape[-3:-1] if stored.shape[-1] == 3 else stored.shape[-2:]
    bits = 8 * stored.dtype.itemsize
    said = {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1, "PixelData": stored.tobytes()}
    return as_object(chest(1), **{"Rows": rows, "Columns": columns, **said, **attributes})


IMAGE = phantom.chest(1, columns=512, rows=640).image
EIGHT = (IMAGE >> 4).astype(np.uint8)
KINDS: dict[str, tuple[bytes, set[str]]] = {
    "frames": (as_pixels(np.stack([IMAGE, IMAGE + 1]), NumberOfFrames=2), set()),
    "frames that are not there": (as_pixels(IMAGE, NumberOfFrames=50), {"PIXELS_UNDECODABLE"}),
    "colour": (
        as_pixels(np.stack([EIGHT] * 3, -1), SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation="RGB"),
        set(),
    ),
    "one bit": (
        as_object(
            chest(1),
            Rows=640,
            Columns=512,
            BitsAllocated=1,
            BitsStored=1,
            HighBit=0,
            PixelData=np.packbits(np.median(EIGHT) < EIGHT, bitorder="little").tobytes(),
        ),
        set(),
    ),
    "signed": (as_pixels(IMAGE.astype(np.int16) - 2000, PixelRepresentation=1), set()),
    "a lateral view": (as_pixels(IMAGE, ViewPosition="LL", ViewCodeSequence=None), set()),
    "tiny": (as_pixels(IMAGE[:8, :8].copy()), {"IMAGE_TOO_SMALL"}),
    "spacing of zero": (as_pixels(IMAGE, PixelSpacing=["0", "0"], ImagerPixelSpacing=["0", "0"]), {"SPACING"}),
}
"""Kind -> object, and which findings fail."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_object_has_a_defined_outcome(assessor: Assessor, kind: str) -> None:
    data, expected = KINDS[kind]
    began = time.monotonic()
    result = assessor.assess_dicom(data)
    assert time.monotonic() - began < LIMIT_S
    failed = failures(result)
    assert expected <= failed
    if kind not in ("one bit", "tiny", "frames that are not there"):
        assert failed == expected


NOISE = np.random.default_rng(1).poisson(40.0, (256, 256)).astype(np.uint16)
SLICE = {"Modality": "CT", "ImagePositionPatient": ["0", "0", "5"]}


@pytest.mark.parametrize(
    ("stored", "attributes", "outcome"),
    [
        (NOISE, SLICE, "WARN"),
        (np.zeros_like(NOISE), SLICE, "WARN"),
        (NOISE, {"Modality": "CT"}, "FAIL"),
        (NOISE, {}, "FAIL"),
        (np.stack([NOISE, NOISE + 1]), {"Modality": "NM", "NumberOfFrames": 2}, "WARN"),
        (np.zeros((2, 256, 256), np.uint16), {"Modality": "NM", "NumberOfFrames": 2}, "FAIL"),
    ],
)
def test_a_slice_and_a_frame_may_be_empty_and_an_image_may_not(
    assessor: Assessor, stored: NDArray[np.uint16], attributes: dict[str, Any], outcome: str
) -> None:
    assert outcomes(assessor.assess_dicom(as_pixels(stored, **attributes)))["BLANK_IMAGE"] == outcome


@pytest.mark.parametrize("modality", ["OT", "CT"])
def test_a_document_is_neither_blank_nor_clipped(assessor: Assessor, modality: str) -> None:
    page = np.full((1100, 850), 255, np.uint8)
    for line in range(3):
        cv2.putText(page, "CTDIvol 12.3 mGy", (60, 60 + 25 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 0, 1)
    said = {"Modality": modality, "SOPClassUID": SecondaryCaptureImageStorage, "BodyPartExamined": None}
    for written in (page, 255 - page):
        found = outcomes(assessor.assess_dicom(as_pixels(written, **said, AnatomicRegionSequence=None)))
        assert "FAIL" not in found.values()
        assert "SATURATED" not in found
    empty = assessor.assess_dicom(as_pixels(np.full_like(page, 255), **said, AnatomicRegionSequence=None))
    assert "BLANK_IMAGE" in failures(empty)


def test_what_the_header_shows_is_told_where_the_pixels_do_not_decode(assessor: Assessor) -> None:
    data = as_pixels(IMAGE, NumberOfFrames=50, Laterality="L", ImageLaterality="R")
    assert failures(assessor.assess_dicom(data)) == {"PIXELS_UNDECODABLE", "FRAMES", "LATERALITY"}


def test_a_film_is_not_assessable(assessor: Assessor) -> None:
    film = dicom.read(as_pixels(IMAGE, Modality="ES", NumberOfFrames=2))
    film.PixelData = encapsulate([bytes(64)])
    film["PixelData"].is_undefined_length = True
    film.file_meta.TransferSyntaxUID = MPEG4HP41
    result = assessor.assess_dicom(as_bytes(film))
    assert outcomes(result)["PIXELS_UNDECODABLE"] == "NOT_ASSESSABLE"
    verdict, _ = Policy.load(paths.POLICY).instance_verdict(result.findings, modality="ES")
    assert verdict == Verdict.VERDICT_NOT_ASSESSABLE


def test_floating_pixels_are_assessed(assessor: Assessor) -> None:
    image = IMAGE.astype("<f4") / 7 - 100
    image[:20, :20], image[30, 30] = np.nan, np.inf
    data = as_object(
        chest(1),
        Rows=640,
        Columns=512,
        BitsAllocated=32,
        BitsStored=None,
        HighBit=None,
        PixelRepresentation=None,
        PixelData=None,
        FloatPixelData=image.tobytes(),
    )
    result = assessor.assess_dicom(data)
    assert result.masks
    assert not failures(result)


def test_a_palette_is_looked_up(assessor: Assessor) -> None:
    ramp = np.arange(256, dtype="<u2") * 257
    tables = {f"{colour}PaletteColorLookupTable{part}": value for colour in ("Red", "Green", "Blue") for part, value in
              (("Descriptor", [256, 0, 16]), ("Data", ramp.tobytes()))}  # fmt: skip
    result = assessor.assess_dicom(as_pixels(EIGHT, PhotometricInterpretation="PALETTE COLOR", **tables))
    assert (result.rows, result.columns) == EIGHT.shape
    assert not failures(result)


def hidden(side: str, share: float) -> NDArray[np.uint16]:
    """The phantom with one side of its chest dense, as after a resection or behind an effusion."""
    image = chest(1).image.copy()
    mask = chest(1).masks[f"{side}_lung_field"] > 0
    rows = np.flatnonzero(mask.any(1))
    mask[: rows[0] + round((1 - share) * len(rows))] = False
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 8)
    dense = float(np.percentile(image[chest(1).masks["heart"] > 0], 70))
    return np.asarray(image * (1 - soft) + dense * soft, np.uint16)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_one_lung_is_never_a_reason_to_reject(assessor: Assessor, side: str, share: float) -> None:
    result = assessor.assess_array(hidden(side, share), spacing_mm=(0.35, 0.35))
    assert failures(result) <= {"LOW_CONFIDENCE", "IMPLAUSIBLE_ANATOMY", "NOT_A_CHEST"}
    assert all(np.isfinite(one.value) for one in result.measurements)


def test_the_largest_image_takes_bounded_memory_and_time(assessor: Assessor) -> None:
    image = cv2.resize(chest(1).image, (30_000, 2_000), interpolation=cv2.INTER_LINEAR)
    data = as_object(chest(1), Rows=2_000, Columns=30_000, PixelData=image.tobytes())
    process = psutil.Process()
    before, began = process.memory_info().rss, time.monotonic()
    result = assessor.assess_dicom(data)
    assert time.monotonic() - began < 2 * LIMIT_S
    assert process.memory_info().rss - before < 12 * image.nbytes
    assert (result.rows, result.columns) == image.shape


def exif(data: bytes, orientation: int) -> bytes:
    """A JPEG file with an EXIF orientation (CIPA DC-008 4.6.4)."""
    directory = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + directory
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_the_exif_orientation_of_a_picture_is_heeded(orientation: int, turns: int) -> None:
    plain = bytes(cv2.imencode(".jpg", EIGHT)[1])
    upright = picture(plain).values
    assert np.array_equal(picture(exif(plain, orientation)).values, np.rot90(upright, turns))


def test_depth_that_was_lost_is_found(assessor: Assessor) -> None:
    lost = as_pixels((EIGHT.astype(np.uint16) // 4) << 6, BitsStored=12, HighBit=11)
    assert outcomes(assessor.assess_dicom(lost))["UNUSED_DEPTH"] == "WARN"
    assert outcomes(assessor.assess_dicom(as_pixels(IMAGE, BitsStored=12, HighBit=11)))["UNUSED_DEPTH"] == "PASS"


@pytest.mark.parametrize("size", [0.6, 0.75])
def test_a_child_on_the_field_of_an_adult_is_for_a_person_to_look_at_and_never_rejected(
    assessor: Assessor, size: float
) -> None:
    body = phantom.Anatomy(width=size, height=size, heart=1.1, thickness=190 * size)
    drawn = phantom.chest(5, columns=512, rows=640, anatomy=body)
    result = assessor.assess_array(drawn.image, spacing_mm=(drawn.spacing_mm,) * 2)
    assert failures(result) <= {"NOT_A_CHEST", "IMPLAUSIBLE_ANATOMY", "LOW_CONFIDENCE"}
    assert all(np.isfinite(one.value) for one in result.measurements)


@needs_shared
def test_real_children_are_chests_and_none_is_rejected_unseen(assessor: Assessor) -> None:
    assert SHARED is not None
    with (SHARED / "data" / "cxr" / "index.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["source"], row["split"]) == ("kermany", "val")]
    for row in rows[:8]:
        image = cv2.imread(str(SHARED / "data" / "cxr" / "images" / f"{row['id']}.jpg"), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        assert not failures(assessor.assess_array(image)) & {
            "NOT_A_CHEST",
            "BLANK_IMAGE",
            "INVERTED_POLARITY",
            "TURNED",
        }
