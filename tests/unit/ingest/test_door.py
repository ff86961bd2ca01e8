"""What is checked at the door, on files."""

from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from services.ingest.door import Announced, Incoming, data_set_offset, examine
from services.ingest.wrapping import file_meta
from shared.directory_store import DirectoryStore
from shared.errors import StepwedgeError
from shared.objects import Zone
from tests.wire.ingest_house import DX, data_set, dx, part10

EXPLICIT = str(ExplicitVRLittleEndian)


def code_of(path: Path, announced: Announced | None = None) -> str:
    with pytest.raises(StepwedgeError) as caught:
        examine(path, announced)
    return caught.value.name


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "object"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_bigendian.dcm", "image_dfl.dcm", "JPEG2000.dcm"])
def test_the_data_set_begins_where_the_file_meta_information_ends(name: str):
    path = Path(str(get_testdata_file(name)))
    data = path.read_bytes()
    meta = dcmread(path, stop_before_pixels=True).file_meta
    assert data_set_offset(data) == 144 + meta.FileMetaInformationGroupLength


def test_the_same_data_set_in_other_wrappings_is_the_same_content(tmp_path: Path):
    ds = dx()
    uids, ours, _ = examine(written(tmp_path, file_meta(DX, ds.SOPInstanceUID, EXPLICIT) + data_set(ds)), None)
    again, theirs, _ = examine(written(tmp_path, part10(ds)), None)
    assert (uids, ours) == (again, theirs)


def test_the_same_data_set_under_another_transfer_syntax_is_other_content(tmp_path: Path):
    ds = dx()
    explicit = examine(written(tmp_path, part10(ds)), None)[1]
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    assert examine(written(tmp_path, buffer.getvalue()), None)[1] != explicit


def test_what_pydicom_reads_of_a_stored_object_is_what_was_sent(tmp_path: Path):
    ds = dx()
    path = written(tmp_path, file_meta(DX, ds.SOPInstanceUID, EXPLICIT) + data_set(ds))
    read = dcmread(path)
    assert read.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert read.file_meta.FileMetaInformationGroupLength == data_set_offset(path.read_bytes()) - 144
    assert read.PixelData == ds.PixelData


@pytest.mark.parametrize(
    ("sop_class", "modality", "fits"),
    [
        (DX, "DX", True),
        (DX, "CR", True),
        (DX, "MR", False),
        ("1.2.840.10008.5.1.4.1.1.2", "CT", True),
        ("1.2.840.10008.5.1.4.1.1.2", "PT", True),
        ("1.2.840.10008.5.1.4.1.1.2", "US", False),
        ("1.2.840.10008.5.1.4.1.1.4", "MR", True),
        ("1.2.840.10008.5.1.4.1.1.4", "CT", False),
        ("1.2.840.10008.5.1.4.1.1.4", "ZZ", True),
        ("1.2.840.10008.5.1.4.1.1.4", "", True),
        ("1.2.840.10008.5.1.4.1.1.7", "CT", True),
    ],
)
def test_a_modality_that_another_sop_class_stands_for_is_a_lie(
    tmp_path: Path, sop_class: str, modality: str, fits: bool
):
    ds = dx()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.Modality = modality
    path = written(tmp_path, part10(ds))
    if fits:
        assert examine(path, None)[0].modality == modality
    else:
        assert code_of(path) == "SOP_CLASS_MISMATCH"


def test_a_report_with_pixels_is_a_lie_and_an_image_without_them_is_merely_incomplete(tmp_path: Path):
    ds = dx()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    ds.Modality = "SR"
    assert code_of(written(tmp_path, part10(ds))) == "SOP_CLASS_MISMATCH"
    ds = dx()
    del ds.PixelData
    examine(written(tmp_path, part10(ds)), None)


def test_a_large_object_is_examined_without_being_read_into_memory(tmp_path: Path):
    import resource

    ds = dx()
    ds.Rows = ds.Columns = 8192
    ds.PixelData = bytes(2 * 8192 * 8192)
    path = written(tmp_path, part10(ds))
    del ds
    # What is mapped counts as resident while it is looked at, but is the page cache's and not ours.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    examine(path, None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_what_is_too_large_is_refused_as_it_comes_and_leaves_no_file(tmp_path: Path):
    objects = DirectoryStore({Zone.ORIGINAL: tmp_path})
    incoming = Incoming(objects, max_bytes=1000)
    incoming.write(bytes(1000))
    with pytest.raises(StepwedgeError) as caught:
        incoming.write(b"x")
    assert caught.value.name == "OBJECT_TOO_LARGE"
    incoming.discard()
    assert list((tmp_path / "incoming").iterdir()) == []
    incoming.discard()
