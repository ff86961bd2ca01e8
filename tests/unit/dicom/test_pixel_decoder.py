"""The helper process that decodes: it may die, and nothing else does."""

import contextlib
import json
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydicom.data import get_testdata_file
from pydicom.encaps import generate_frames

from shared import dicom, pixel_decoder
from shared.errors import ErrorCode, StepwedgeError
from tests.unit.redaction.mutations import mutated


def helpers() -> list[psutil.Process]:
    """The helper of this process."""
    return [child for child in psutil.Process().children() if "pixel_decoder.py" in " ".join(child.cmdline())]


def _object(name: str = "SC_rgb_jpeg_dcmtk.dcm") -> bytes:
    return Path(get_testdata_file(name)).read_bytes()


def test_frames_survive_the_death_of_the_helper() -> None:
    ds = dicom.read(_object())
    first = next(dicom.frames(ds))
    for helper in helpers():
        helper.kill()
        helper.wait(10)
    assert np.array_equal(next(dicom.frames(ds)), first)
    assert len(helpers()) == 1


def test_a_codestream_that_kills_its_decoder_kills_only_the_helper() -> None:
    """GDCM 3.2 aborts its process on some of these."""
    ds = dicom.read(_object())
    whole = next(dicom.frames(ds))
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    image = {keyword: ds.get(keyword) for keyword in pixel_decoder.ATTRIBUTES if ds.get(keyword) is not None}
    for seed in range(60):
        with contextlib.suppress(pixel_decoder.DecodingError):
            pixel_decoder.decode(
                str(ds.file_meta.TransferSyntaxUID), image, mutated(frame, seed), rgb=False, most=1 << 24
            )
    assert np.array_equal(next(dicom.frames(ds)), whole)


def test_a_frame_that_decodes_to_more_than_is_allowed_is_not_taken() -> None:
    ds = dicom.read(_object())
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    image = {keyword: ds.get(keyword) for keyword in pixel_decoder.ATTRIBUTES if ds.get(keyword) is not None}
    with pytest.raises(pixel_decoder.DecodingError):
        pixel_decoder.decode(str(ds.file_meta.TransferSyntaxUID), image, frame, rgb=False, most=100)


def test_the_helper_ends_with_its_owner() -> None:
    code = (
        "import os, psutil\nfrom shared import pixel_decoder\npixel_decoder.start()\n"
        "print(psutil.Process().children()[0].pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path.cwd())
    helper = int(result.stdout)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(helper).wait(10)
    assert not psutil.pid_exists(helper) or psutil.Process(helper).status() == "zombie"


def test_frames_of_a_damaged_object_are_a_code() -> None:
    ds = dicom.read(_object())
    ds.PixelData = ds.PixelData[:-40]
    with pytest.raises(StepwedgeError) as caught:
        list(dicom.frames(ds))
    assert caught.value.code == ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE


def test_only_the_frames_that_are_asked_for_are_decoded() -> None:
    ds = dicom.read(_object("SC_rgb_jpeg_dcmtk.dcm"))
    assert len(list(dicom.frames(ds, only=[0]))) == 1
    with pytest.raises(StepwedgeError):
        list(dicom.frames(ds, only=[1]))


def _jpeg2000() -> tuple[dict[str, object], bytes, str]:
    ds = dicom.read(_object("JPEG2000.dcm"))
    image = {keyword: ds.get(keyword) for keyword in pixel_decoder.ATTRIBUTES if ds.get(keyword) is not None}
    return image, next(generate_frames(ds.PixelData, number_of_frames=1)), str(ds.file_meta.TransferSyntaxUID)


SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
"""The first box of a JP2 file (ISO/IEC 15444-1 I.5.1)."""


def _box(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    return struct.pack(">I4s", len(content) + 8 if length is None else length, kind) + content


def test_the_codestream_in_a_jp2_file_is_found_and_held_to_the_header() -> None:
    _, frame, _ = _jpeg2000()
    file = SIGNATURE + _box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    for wrapped in (_box(b"jp2c", frame), _box(b"jp2c", frame, 0), _box(b"jp2c", bytes(8) + frame, 1)):
        assert dicom.codestream_size(file + wrapped) == dicom.codestream_size(frame)


@pytest.mark.parametrize("length", [0, 1, 7, 0xFFFFFFFF])
def test_boxes_that_lead_nowhere_do_not_decode_and_hold_nobody_up(length: int) -> None:
    """pydicom 3.0 follows a box of length 0 for ever."""
    image, frame, syntax = _jpeg2000()
    file = SIGNATURE + _box(b"ftyp", b"jp2 \0\0\0\0jp2 ", length) + _box(b"jp2c", frame)
    begun = time.monotonic()
    with pytest.raises(pixel_decoder.DecodingError):
        pixel_decoder.decode(syntax, image, file, rgb=False, most=1 << 24)
    assert time.monotonic() - begun < pixel_decoder.CPU_SECONDS


def test_a_decoder_that_loops_is_ended_by_the_kernel_even_without_an_owner(tmp_path: Path) -> None:
    code = (
        Path(pixel_decoder.__file__)
        .read_text()
        .replace("    codestream_start(frame)\n", "    while True:\n        pass\n")
    )
    assert "while True:\n        pass" in code
    looping = tmp_path / "pixel_decoder.py"
    looping.write_text(code.replace("CPU_SECONDS: Final = 5.0", "CPU_SECONDS: Final = 0.2"))
    head = json.dumps({"syntax": "1.2.840.10008.1.2.4.90", "image": {"Rows": 1, "Columns": 1}, "rgb": False}).encode()
    process = subprocess.Popen([sys.executable, "-I", str(looping)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(struct.pack("<II", len(head), 0) + head)
    process.stdin.flush()
    assert process.wait(60) == -signal.SIGXCPU
