"""What is told of an image so that it can be judged beside others."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless

from services.inference import facts, pixels
from shared import dicom
from stepwedge.inference.v1 import inference_pb2
from tests.unit.inference.test_header import an_object


def facts_of(dataset: Dataset) -> inference_pb2.ImageFacts:
    written = BytesIO()
    dataset.save_as(written, enforce_file_format=True)
    read: Dataset = dicom.read(written.getvalue())
    return facts.facts_of(read, pixels.frame_of(read, middle=False))


def a_slice(**attributes: Any) -> Dataset:
    given: dict[str, Any] = {"ImagePositionPatient": [0, 0, 12.5], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    return an_object(
        **{**given, "PixelSpacing": [0.5, 0.5], "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], **attributes}
    )


def test_position_orientation_spacing_and_number_are_told() -> None:
    told = facts_of(a_slice(InstanceNumber="7", FrameOfReferenceUID="2.25.5"))
    assert list(told.position) == [0, 0, 12.5]
    assert list(told.orientation) == [1, 0, 0, 0, 1, 0]
    assert list(told.spacing) == [0.5, 0.5]
    assert (told.instance_number, told.frame_of_reference, told.frames, told.view) == (7, "2.25.5", 1, "PA")
    assert told.stack


@pytest.mark.parametrize(
    "orientation", [[1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 5, 0], [1, 0, 0], ["nan", 0, 0, 0, 1, 0]]
)
def test_directions_that_are_none_are_not_told(orientation: list[Any]) -> None:
    told = facts_of(a_slice(ImageOrientationPatient=orientation))
    assert not told.orientation
    assert not told.position
    assert not told.stack


def test_an_overview_is_of_no_stack_and_echoes_are_of_different_ones() -> None:
    assert not facts_of(a_slice(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])).stack
    assert facts_of(a_slice(EchoTime="20")).stack != facts_of(a_slice(EchoTime="80")).stack
    assert facts_of(a_slice(InstanceNumber="1")).stack == facts_of(a_slice(InstanceNumber="2")).stack


def test_the_same_pixels_are_the_same_in_another_transfer_syntax_and_under_another_uid() -> None:
    first, second = an_object(), an_object(SOPInstanceUID="2.25.2", PatientID="another")
    second.compress(JPEG2000Lossless)
    assert facts_of(first).pixels_sha256 == facts_of(second).pixels_sha256 != ""


@pytest.mark.parametrize("kind", [">u2", "<i2", ">i2", "<i4", "<u4"])
def test_the_same_values_are_the_same_pixels_in_whatever_type_they_are_held(kind: str) -> None:
    values = np.arange(600, dtype="<u2").reshape(20, 30)
    one, other = (pixels.Frame(held, inverted=False) for held in (values, values.astype(kind)))
    assert facts.pixels_sha256(Dataset(), one) == facts.pixels_sha256(Dataset(), other)


def test_one_pixel_more_is_another_image_and_an_empty_one_is_like_none() -> None:
    first, second, empty = an_object(), an_object(), an_object()
    values = np.frombuffer(second.PixelData, np.uint16).copy()
    values[100] += 1
    second.PixelData = values.tobytes()
    empty.PixelData = bytes(len(empty.PixelData))
    assert facts_of(first).pixels_sha256 != facts_of(second).pixels_sha256
    assert facts_of(empty).pixels_sha256 == ""


def test_no_fact_names_the_patient() -> None:
    named = an_object(PatientName="CANARY^NAME", PatientID="CANARYID", InstitutionName="CANARY", StationName="CANARY")
    assert b"CANARY" not in facts_of(named).SerializeToString()
