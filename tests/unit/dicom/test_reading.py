"""What a stranger may send to shared/dicom.py, and what comes of it."""

import io
import logging
import random
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from shared import dicom, dicom_encoding
from shared.dicom import Uids
from shared.dicom_encoding import Element, Encoded
from shared.errors import ErrorCode, StepwedgeError
from tests.unit.redaction.canaries import minimal

BUNDLE = sorted(Path(pydicom.__file__).parent.joinpath("data").rglob("*.dcm"))
BROKEN = {"MR_truncated.dcm", "rtplan_truncated.dcm", "no_meta.dcm"}
# One object is damaged on purpose, one lacks what an image needs, one has a number of frames that is none.
UNDECODABLE = {
    "JPEG2000-embedded-sequence-delimiter.dcm", "meta_missing_tsyntax.dcm", "nested_priv_SQ.dcm", "badVR.dcm",
}  # fmt: skip
# 12-bit lossy JPEG, for which pydicom knows no decoder but one under the GPL.
OURS_ALONE = {"JPEG-lossy.dcm", "JPGExtended.dcm"}


def written(ds: Dataset) -> bytes:
    """The object as a file."""
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()


def code_of(data: bytes) -> ErrorCode.ValueType:
    """The code with which the bytes are refused."""
    with pytest.raises(StepwedgeError) as caught:
        dicom.read(data)
    return caught.value.code


@pytest.mark.parametrize("path", [p for p in BUNDLE if p.name not in BROKEN], ids=lambda p: p.name)
def test_an_object_reads_as_pydicom_reads_it(path: Path) -> None:
    ours = dicom.read(path.read_bytes())
    theirs = pydicom.dcmread(path, force=True)
    for element in theirs:
        if element.VR == "SQ" or element.tag.group == 0x7FE0:
            continue
        if element.VR == "PN":
            assert str(ours[element.tag].value or "") == str(element.value or ""), element.tag
            continue
        assert ours[element.tag].value == element.value, element.tag
        assert ours[element.tag].VR == element.VR, element.tag


def named(data: bytes, how: Callable[[Encoded], Uids]) -> Uids | str:
    """What names the object, or the code of why nothing does."""
    try:
        return how(dicom_encoding.parse(data))
    except StepwedgeError as error:
        return error.message


def by_pydicom(encoded: Encoded) -> Uids:
    """Through a pydicom data set of the whole header."""
    return dicom.uids(dicom.dataset_of(encoded, pixels=False))


@pytest.mark.parametrize("path", BUNDLE, ids=lambda p: p.name)
def test_what_names_an_object_is_the_same_with_and_without_pydicom(path: Path) -> None:
    data = path.read_bytes()
    assert named(data, dicom.uids_of) == named(data, by_pydicom)


@pytest.mark.parametrize("seed", range(4))
def test_what_names_an_object_is_the_same_whatever_stands_in_its_elements(seed: int) -> None:
    chance = random.Random(seed)

    def value(vr: str) -> bytes:
        letters = chance.choice((b"ABxyz019 ^=.", bytes(range(128)), bytes(range(256))))
        inner = (
            b"1.2.%d" % chance.getrandbits(30) if vr == "UI" else bytes(chance.choices(letters, k=chance.randrange(9)))
        )
        ends = (b"", b"", b" ", b"\0", b"\n", b"=", b"\\")
        return chance.choice(ends) + inner + chance.choice(ends)

    found = 0
    for number in range(300):
        elements = [Element(0x00080005, "CS", chance.choice((b"", b"ISO_IR 192", b"ISO_IR 13", b"\\ISO 2022 IR 87")))]
        for tag in sorted(dicom.NAMING_TAGS):
            vr = dicom_encoding.dictionary_vr(tag)
            if vr == "UI" and chance.random() < 0.9:
                elements.append(Element(tag, vr, b"1.2.3"))
            elif chance.random() < 0.9:
                odd = number % 2 and chance.random() < 0.05
                vr = chance.choice(sorted(dicom_encoding.SHORT_VRS)) if odd else vr
                elements.append(Element(tag, vr, value(vr)))
        syntax = dicom_encoding.EXPLICIT_LITTLE if number % 2 else dicom_encoding.IMPLICIT_LITTLE
        meta = dicom_encoding.encode([Element(0x00020010, "UI", syntax.encode())], implicit=False, little=True)
        body = dicom_encoding.encode(elements, implicit=number % 2 == 0, little=True)
        data = bytes(128) + b"DICM" + b"".join(map(bytes, [*meta, *body]))
        mine = named(data, dicom.uids_of)
        assert mine == named(data, by_pydicom)
        found += isinstance(mine, Uids)
    assert found > 100


@pytest.mark.parametrize("path", [p for p in BUNDLE if p.name not in BROKEN], ids=lambda p: p.name)
def test_frames_are_those_of_pydicom_or_a_code(path: Path) -> None:
    ds = dicom.read(path.read_bytes())
    if "PixelData" not in ds:
        pytest.skip("no pixel data")
    if path.name in UNDECODABLE:
        with pytest.raises(StepwedgeError) as caught:
            list(dicom.frames(ds))
        assert caught.value.code == ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE
        return
    if path.name in OURS_ALONE:
        (frame,) = dicom.frames(ds)
        assert (frame.shape, frame.dtype, int(frame.max())) == ((1024, 256), np.dtype("u2"), 264)
        return
    reference = pydicom.pixels.pixel_array(pydicom.dcmread(path, force=True), raw=True)
    frames = list(dicom.frames(ds))
    assert np.array_equal(np.squeeze(np.stack(frames)), np.squeeze(reference))


def test_a_header_has_everything_but_the_pixels() -> None:
    data = Path(get_testdata_file("CT_small.dcm")).read_bytes()
    header, whole = dicom.read_header(data), dicom.read(data)
    assert "PixelData" not in header
    assert set(whole.keys()) - set(header.keys()) == {0x7FE00010}


def test_an_object_cut_at_any_byte_is_refused_with_a_code_or_still_whole() -> None:
    data = written(minimal())
    codes = set()
    for length in range(len(data)):
        try:
            ds = dicom.read(data[:length])
            assert "PixelData" not in ds, "cut inside the pixel data, yet read"
        except StepwedgeError as error:
            codes.add(error.code)
    assert codes == {ErrorCode.ERROR_CODE_NOT_DICOM, ErrorCode.ERROR_CODE_MALFORMED_DICOM}


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"DICM", b"\0" * 128, b"%PDF-1.7 " * 40, b"\xff" * 300, b"\x08\0", b"GIF89a" + b"\0" * 200],
    ids=["nothing", "one zero", "four letters", "zeros", "a PDF", "ones", "two bytes", "a GIF"],
)
def test_other_bytes_are_not_dicom(data: bytes) -> None:
    assert code_of(data) == ErrorCode.ERROR_CODE_NOT_DICOM


def test_a_preamble_alone_is_malformed() -> None:
    assert code_of(b"\0" * 128 + b"DICM") == ErrorCode.ERROR_CODE_MALFORMED_DICOM


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
def test_a_data_set_without_preamble_and_meta_information_is_read(implicit: bool) -> None:
    out = io.BytesIO()
    ds = minimal(implicit=implicit)
    del ds.file_meta
    pydicom.dcmwrite(out, ds, implicit_vr=implicit, little_endian=True)
    read = dicom.read(out.getvalue())
    assert dicom.uids(read).study == ds.StudyInstanceUID
    assert read.file_meta.TransferSyntaxUID.is_implicit_VR == implicit


def test_ten_thousand_nested_sequences_are_refused_at_once() -> None:
    opened = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    begun = time.monotonic()
    assert code_of(written(minimal()) + opened * 10_000) == ErrorCode.ERROR_CODE_MALFORMED_DICOM
    assert time.monotonic() - begun < 2


def test_a_deflated_bomb_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_encoding.inflate, "__defaults__", (1 << 20,))
    ds = minimal()
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    head = written(minimal())
    start = head.index(b"\x08\x00\x16\x00UI")
    meta = head[:start].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    meta = meta.replace(b"\x02\x00\x10\x00UI\x14\x00", b"\x02\x00\x10\x00UI\x16\x00")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(b"\0" * (50 << 20)) + packer.flush()
    assert code_of(meta + bomb) == ErrorCode.ERROR_CODE_MALFORMED_DICOM
    assert code_of(meta + bomb[:1000]) == ErrorCode.ERROR_CODE_MALFORMED_DICOM
    assert code_of(meta + b"\xff" * 100) == ErrorCode.ERROR_CODE_MALFORMED_DICOM


def test_a_claim_of_two_gigabytes_is_refused_without_allocating_them() -> None:
    data = bytearray(written(minimal()))
    at = data.index(b"\xe0\x7f\x10\x00OW\0\0")
    data[at + 8 : at + 12] = (2 << 30).to_bytes(4, "little")
    assert code_of(bytes(data)) == ErrorCode.ERROR_CODE_MALFORMED_DICOM


def test_group_2_may_lie_about_its_length() -> None:
    data = bytearray(written(minimal()))
    at = data.index(b"\x02\x00\x00\x00UL\x04\x00") + 8
    data[at : at + 4] = (9999).to_bytes(4, "little")
    assert dicom.uids(dicom.read(bytes(data))).modality == "CT"


@pytest.mark.parametrize("value", ["", "1..2", "../../etc/passwd", "1.2/3", "1" * 65, "1.2.3\\1.2.4", ".1.2"])
def test_a_uid_that_is_none_is_refused(value: str) -> None:
    ds = minimal()
    ds.StudyInstanceUID = value
    with pytest.raises(StepwedgeError) as caught:
        dicom.uids(dicom.read(written(ds)))
    assert caught.value.code == ErrorCode.ERROR_CODE_INVALID_UID
    assert "etc" not in caught.value.message


def test_a_frame_larger_than_allowed_is_refused_before_it_is_decoded() -> None:
    ds = dicom.read(Path(get_testdata_file("CT_small.dcm")).read_bytes())
    with pytest.raises(StepwedgeError) as caught:
        next(dicom.frames(ds, max_bytes=1000))
    assert caught.value.code == ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE


def test_a_compressed_frame_that_says_it_is_larger_than_the_header_is_refused() -> None:
    ds = dicom.read(Path(get_testdata_file("JPEG2000.dcm")).read_bytes())
    pixels = bytearray(ds.PixelData)
    at = pixels.index(b"\xff\x4f\xff\x51") + 8
    pixels[at : at + 8] = (60000).to_bytes(4, "big") * 2
    ds.PixelData = bytes(pixels)
    with pytest.raises(StepwedgeError) as caught:
        next(dicom.frames(ds))
    assert caught.value.code == ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE


def test_a_value_that_does_not_convert_is_told_of_by_nobody(caplog: pytest.LogCaptureFixture) -> None:
    data = written(minimal()).replace(b"Cnryson^Aurelia", b"Cnryson\xff\x1b$Aurel")
    data = data.replace(b"\x28\0\x10\0US\2\0\4\0", b"\x28\0\x10\0IS\2\0Q7")  # Rows
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        read = dicom.read(data)
        str(read)
    assert "Cnryson" not in caplog.text
    assert not [w for w in caught if "Cnryson" in str(w.message)]
    with pytest.raises(StepwedgeError) as refused:
        next(dicom.frames(read))
    assert refused.value.code == ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE
    assert "Q7" not in refused.value.message


def test_ybr_becomes_rgb_only_when_asked() -> None:
    ds = dicom.read(Path(get_testdata_file("SC_rgb_jpeg_dcmtk.dcm")).read_bytes())
    raw, rgb = next(dicom.frames(ds)), next(dicom.frames(ds, rgb=True))
    assert raw.shape == rgb.shape
    assert ds.PhotometricInterpretation.startswith("YBR")
    assert not np.array_equal(raw, rgb)
