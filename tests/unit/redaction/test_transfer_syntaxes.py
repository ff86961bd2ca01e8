"""Which transfer syntaxes' pixels can be looked at: all of the table, and nothing of the others."""

import io

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom._uid_dict import UID_dictionary
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from services.redaction.engine import redact
from services.redaction.profile import Profile
from shared import dicom
from shared.errors import ErrorCode, StepwedgeError
from shared.pixel_decoder import DECODED
from shared.pseudonyms import Pseudonyms
from tests.shared_material import SHARED

PREFIX = "1.2.840.10008.1.2"
OF_BUNDLE = {
    "": "MR_small_implicit.dcm", ".1": "CT_small.dcm", ".2": "MR_small_bigendian.dcm",
    ".4.50": "SC_rgb_jpeg_dcmtk.dcm", ".4.51": "JPGExtended.dcm", ".4.70": "SC_rgb_jpeg_gdcm.dcm",
    ".4.80": "MR_small_jpeg_ls_lossless.dcm", ".4.81": "JPEGLSNearLossless_16.dcm",
    ".4.90": "MR_small_jp2klossless.dcm", ".4.91": "JPEG2000.dcm", ".5": "MR_small_RLE.dcm",
}  # fmt: skip
HIGH_THROUGHPUT = "HTJ2KLossless_08_RGB.dcm"
CLEANING = Profile.parse(b'name = "pixels"\nedition = "2026c"\noptions = ["clean-pixels"]\n')
KEY = Pseudonyms(bytes(range(32)))


def sample(ending: str) -> Dataset:
    """An object of the transfer syntax: of pydicom's, of a data set beside the checkout, or made here."""
    if ending in OF_BUNDLE:
        path = get_testdata_file(OF_BUNDLE[ending], download=False)
        return pydicom.dcmread(str(path))
    if ending == ".4.55":
        return encoded(ending, progressive())
    if ending == ".1.98":
        dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        return encoded(ending, bytes(dataset.PixelData), dataset)
    if ending == ".1.99":
        dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    elif ending == ".4.57":  # whose selection value is not held to 1, but may be
        dataset = pydicom.dcmread(str(get_testdata_file("SC_rgb_jpeg_gdcm.dcm")))
    else:
        if SHARED is None or not (SHARED / "data" / "dicom" / HIGH_THROUGHPUT).exists():
            pytest.skip("there is no object of high-throughput JPEG 2000 here")
        dataset = pydicom.dcmread(SHARED / "data" / "dicom" / HIGH_THROUGHPUT)
    dataset.file_meta.TransferSyntaxUID = UID(PREFIX + ending)
    return dataset


def encoded(ending: str, frame: bytes, dataset: Dataset | None = None) -> Dataset:
    """An object whose only frame is these bytes."""
    if dataset is None:
        dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        dataset.Rows, dataset.Columns, dataset.PixelRepresentation = 96, 128, 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = UID(PREFIX + ending)
    return dataset


def picture() -> NDArray[np.uint8]:
    """Grey, 96 by 128, without any writing."""
    return np.add.outer(np.arange(96), np.arange(128)).astype(np.uint8)


def progressive() -> bytes:
    """A JPEG codestream of full progression."""
    done, data = cv2.imencode(".jpg", picture(), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_QUALITY, 95])
    assert done
    assert b"\xff\xc2" in data.tobytes()
    return data.tobytes()


def written(dataset: Dataset) -> bytes:
    """As a file."""
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()


def relabelled(uid: str) -> bytes:
    """A JPEG in an object that says that it is of another transfer syntax."""
    data = written(encoded(".4.55", progressive()))
    head = 128 + 4 + 12
    body = data[head + int.from_bytes(data[head - 4 : head], "little") :]
    meta = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True).file_meta
    meta.TransferSyntaxUID = UID(uid)
    out = io.BytesIO()
    write_file_meta_info(DicomIO(out), meta)
    return b"\0" * 128 + b"DICM" + out.getvalue() + body


@pytest.mark.parametrize("uid", DECODED)
def test_pixels_of_a_listed_transfer_syntax_decode_and_are_cleaned(uid: str) -> None:
    data = written(sample(uid.removeprefix(PREFIX)))
    frames = list(dicom.frames(dicom.read(data)))
    assert frames[0].max() > frames[0].min()
    redacted = redact(data, KEY, CLEANING)
    assert dicom.read(redacted.data).BurnedInAnnotation == "NO"


@pytest.mark.parametrize(
    "uid", [uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax" and uid not in DECODED]
)
def test_pixels_of_any_other_transfer_syntax_are_refused_with_a_code(uid: str) -> None:
    with pytest.raises(StepwedgeError) as caught:
        redact(relabelled(uid), KEY, CLEANING)
    assert caught.value.code in (
        ErrorCode.ERROR_CODE_NOT_REDACTABLE,
        ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE,
        ErrorCode.ERROR_CODE_MALFORMED_DICOM,  # those that say that the data set is deflated
    )


@pytest.mark.parametrize("uid", [f"{PREFIX}.4.{n}" for n in (110, 111, 112)])
def test_jpeg_xl_is_refused_with_a_code(uid: str) -> None:
    with pytest.raises(StepwedgeError) as caught:
        redact(relabelled(uid), KEY, CLEANING)
    assert caught.value.code == ErrorCode.ERROR_CODE_NOT_REDACTABLE
