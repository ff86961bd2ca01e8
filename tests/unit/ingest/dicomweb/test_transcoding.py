"""What is decoded for a client is bounded, whatever a small object says or holds."""

import io

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import RLELossless

from services.ingest.dicomweb import rendering, transcoding
from shared.errors import ErrorCode, StepwedgeError
from tests.unit.redaction.canaries import minimal


def compressed(rows: int, columns: int, frames: int) -> bytes:
    """Black frames of 8 bits, each a hundredth of what it decodes to."""
    ds: Dataset = minimal()
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = rows, columns, 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = bytes(rows * columns)
    ds.compress(RLELossless, generate_instance_uid=False)
    ds.PixelData = encapsulate([get_frame(ds.PixelData, 0, number_of_frames=1)] * frames)
    ds["PixelData"].is_undefined_length = True
    ds.NumberOfFrames = frames
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()


def refused(data: bytes) -> str:
    with pytest.raises(StepwedgeError) as caught:
        transcoding.transcoded(data, RLELossless, "")
    assert caught.value.code == ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE
    return caught.value.message


def test_a_small_object_of_many_frames_is_not_decoded_as_a_whole_but_given_as_it_lies():
    data = compressed(4096, 4096, 65)
    assert len(data) < 1 << 26
    assert "over 1024 MiB decoded" in refused(data)
    assert transcoding.transcoded(data, RLELossless, transcoding.AS_IT_LIES) == [data]


def test_frames_beyond_those_that_the_header_tells_of_count_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transcoding, "MAX_DECODED_BYTES", 2 * 64 * 64)
    assert len(b"".join(transcoding.transcoded(compressed(64, 64, 2), RLELossless, ""))) > 2 * 64 * 64
    monkeypatch.setattr(transcoding, "refuse_many", lambda _: None)
    assert "decoded" in refused(compressed(64, 64, 3))


def test_a_frame_too_large_for_a_picture_is_refused():
    with pytest.raises(StepwedgeError) as caught:
        rendering.rendered(compressed(8200, 8200, 1), 1, rendering.PNG, rendering.Wish(viewport=(64, 64)))
    assert caught.value.code == ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE
    assert caught.value.message == "the frame is too large to be made a picture"
