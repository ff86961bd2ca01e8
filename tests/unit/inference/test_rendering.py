"""Pictures for a screen: of the right size, the right way round, and never of more than may be decoded."""

from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from services.inference.rendering import Window, render
from shared import phantom
from shared.errors import ErrorCode, StepwedgeError


def file(name: str) -> bytes:
    path = get_testdata_file(name)
    assert path is not None
    return Path(path).read_bytes()


def dicom_file(of: phantom.Phantom) -> bytes:
    uids = {"study_uid": "2.25.1", "series_uid": "2.25.2", "sop_instance_uid": "2.25.3"}
    dataset: Any = phantom.to_dicom(of, patient_name="A^B", patient_id="1", **uids)
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def decoded(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def test_an_image_is_made_smaller_and_never_larger():
    small = render(file("CT_small.dcm"))
    assert decoded(small.png).shape == (128, 128)
    assert (small.rows, small.columns, small.frames) == (128, 128, 1)
    assert decoded(render(file("CT_small.dcm"), longest_side=64).png).shape == (64, 64)


def test_colour_keeps_its_channels_and_frames_are_chosen():
    rgb = decoded(render(file("SC_rgb_rle_2frame.dcm"), frame=1).png)
    assert rgb.ndim == 3
    with pytest.raises(StepwedgeError) as caught:
        render(file("SC_rgb_rle_2frame.dcm"), frame=2)
    assert caught.value.code == ErrorCode.ERROR_CODE_INVALID_REQUEST


def test_a_palette_is_shown_in_colour():
    assert decoded(render(file("examples_palette.dcm")).png).ndim == 3


def test_a_window_over_all_grey_values_shows_less_contrast_than_a_narrow_one():
    wide = decoded(render(file("CT_small.dcm"), window=Window(0.5, 1.0)).png)
    narrow = decoded(render(file("CT_small.dcm"), window=Window(0.5, 0.1)).png)
    assert np.count_nonzero((narrow == 0) | (narrow == 255)) > np.count_nonzero((wide == 0) | (wide == 255))


@pytest.mark.parametrize(("window", "side"), [(Window(2, 1), 0), (Window(0.5, 0), 0), (None, 8), (None, 5000)])
def test_an_absurd_request_is_refused(window: Window | None, side: int):
    with pytest.raises(StepwedgeError) as caught:
        render(file("CT_small.dcm"), window=window, longest_side=side)
    assert caught.value.code == ErrorCode.ERROR_CODE_INVALID_REQUEST


def test_what_is_white_in_monochrome1_is_white_on_the_screen():
    one = phantom.chest(1)
    plain, turned_over = (decoded(render(dicom_file(of)).png) for of in (one, phantom.monochrome1(one)))
    assert np.abs(plain.astype(int) - turned_over.astype(int)).mean() < 3


def test_a_mask_is_shown_as_it_is():
    mask = np.zeros((64, 32), np.uint8)
    mask[8:16, 8:16] = 255
    png = cv2.imencode(".png", mask)[1].tobytes()
    shown = render(png)
    assert (decoded(shown.png) == mask).all()
    assert (shown.rows, shown.columns) == (64, 32)


def as_shown_by(**attributes: Any) -> np.ndarray:
    """What is shown of a phantom with attributes set, 256 pixels high."""
    dataset = pydicom.dcmread(BytesIO(dicom_file(phantom.chest(2, columns=205, rows=256))))
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    buffer = BytesIO()
    dataset.save_as(buffer)
    return decoded(render(buffer.getvalue()).png).astype(int)


def table(entries: np.ndarray) -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(entries), 0, 16]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = entries.astype("<u2").tobytes()
    item["LUTData"].VR = "OW"
    return Sequence([item])


def test_a_picture_behind_a_falling_table_is_shown_the_right_way_round() -> None:
    image = phantom.chest(2, columns=205, rows=256).image
    rising = np.linspace(0, 65535, 4096)
    plain = as_shown_by(VOILUTSequence=table(rising))
    falling = as_shown_by(PixelData=(4095 - image).astype("<u2").tobytes(), VOILUTSequence=table(rising[::-1]))
    assert np.abs(falling - plain).max() <= 1
    assert np.corrcoef(plain.ravel(), image.ravel())[0, 1] > 0.99


def test_a_sigmoid_and_a_straight_window_of_one_middle_differ_beyond_it() -> None:
    window = {"WindowCenter": "2000", "WindowWidth": "3000"}
    straight, bent = as_shown_by(**window), as_shown_by(VOILUTFunction="SIGMOID", **window)
    assert np.corrcoef(straight.ravel(), bent.ravel())[0, 1] > 0.95
    assert not np.array_equal(straight, bent)


def test_raw_values_that_follow_the_dose_are_shown_as_people_see_them() -> None:
    image = phantom.chest(2, columns=205, rows=256).image
    dose = np.rint(65535 * 10 ** (-2 * (image / 4095.0))).astype("<u2")
    raw = as_shown_by(
        PixelData=dose.tobytes(),
        BitsStored=16,
        HighBit=15,
        PresentationIntentType="FOR PROCESSING",
        PixelIntensityRelationship="LIN",
        PixelIntensityRelationshipSign=1,
    )
    assert np.corrcoef(raw.ravel(), image.ravel())[0, 1] > 0.99


def test_what_a_shutter_covers_is_black() -> None:
    edges = {"ShutterUpperHorizontalEdge": 20, "ShutterLowerHorizontalEdge": 240}
    edges |= {"ShutterLeftVerticalEdge": 30, "ShutterRightVerticalEdge": 190}
    shown = as_shown_by(ShutterShape="RECTANGULAR", **edges)
    assert (shown[:19] == shown.min()).all()
    assert shown[30:230, 40:180].mean() > 2 * shown.min()
