"""WADO-RS and QIDO-RS: what is held comes out as it came in, or in the form that was asked for."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

from tests.wire.cluster import eventually
from tests.wire.dicomweb_house import JSON, Answer, Web, dicomweb_house, parts_of
from tests.wire.ingest_house import dx, part10
from tests.wire.ports import port

NATIVE = 'multipart/related; type="application/octet-stream"'
OBJECTS = 'multipart/related; type="application/dicom"'
AS_IT_LIES = f"{OBJECTS}; transfer-syntax=*"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with dicomweb_house(tmp_path_factory.mktemp("wado"), port) as made:
        yield made


def client(web: Web) -> DICOMwebClient:
    session = create_session()
    session.trust_env = False
    session.verify = str(web.house.settings.cluster.pki / "ca.crt")
    return DICOMwebClient(web.root, session=session, headers={"Authorization": f"Bearer {web.token}"})


def address(ds: Dataset) -> str:
    return f"/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"


def stored(web: Web, *objects: Dataset) -> None:
    answer = web.stow([part10(ds) for ds in objects])
    assert answer.status == 200, answer.body


def encoded(ds: Dataset, syntax: str) -> bytes:
    """The object as a Part 10 file in this transfer syntax."""
    made = pydicom.dcmread(io.BytesIO(part10(ds)))
    if syntax in (RLELossless, JPEG2000Lossless):
        made.compress(syntax, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        made.PixelData = np.frombuffer(made.PixelData, "<u2").astype(">u2").tobytes()
    made.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    pydicom.dcmwrite(buffer, made, enforce_file_format=True, implicit_vr=implicit, little_endian=little)
    return buffer.getvalue()


def signed() -> Dataset:
    """A larger image with values below zero."""
    ds = dx()
    ds.Rows = ds.Columns = 64
    ds.PixelRepresentation = 1
    ds.PixelData = np.random.default_rng(3).integers(-2048, 2048, (64, 64), dtype=np.int16).tobytes()
    ds.add_new("SmallestImagePixelValue", "SS", -5)
    return ds


def test_what_is_retrieved_as_it_lies_is_what_was_stored_byte_for_byte(web: Web):
    study = generate_uid(None)
    objects = [dx(study=study, seed=number) for number in range(3)]
    stored(web, *objects)
    answer = web.get(f"/studies/{study}", AS_IT_LIES)
    assert answer.status == 200
    assert {content for _, content in parts_of(answer)} == {part10(ds) for ds in objects}
    assert parts_of(answer)[0][0]["content-type"] == f"application/dicom;transfer-syntax={ExplicitVRLittleEndian}"
    series = web.get(f"/studies/{study}/series/{objects[1].SeriesInstanceUID}", AS_IT_LIES)
    assert [content for _, content in parts_of(series)] == [part10(objects[1])]
    alone = web.get(address(objects[2]), "application/dicom; transfer-syntax=*")
    assert (alone.headers["content-type"], alone.body) == ("application/dicom", part10(objects[2]))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless])
def test_without_a_transfer_syntax_an_object_comes_as_explicit_little_endian_with_its_pixels(web: Web, syntax: str):
    ds = signed()
    data = encoded(ds, syntax)
    assert web.stow([data]).status == 200
    answer = web.get(address(ds), OBJECTS)
    ((headers, content),) = parts_of(answer)
    assert headers["content-type"].endswith(str(ExplicitVRLittleEndian))
    found = pydicom.dcmread(io.BytesIO(content))
    assert found.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert found.file_meta.FileMetaInformationGroupLength == len(content[: content.index(b"\x08\x00\x16\x00")]) - 144
    assert np.array_equal(found.pixel_array, ds.pixel_array)
    assert found.SmallestImagePixelValue == -5
    assert (found.PatientName, found.AccessionNumber) == (ds.PatientName, ds.AccessionNumber)
    ((_, original),) = parts_of(web.get(address(ds), AS_IT_LIES))
    assert original == data
    ((_, frame),) = parts_of(web.get(f"{address(ds)}/frames/1", NATIVE))
    assert frame == ds.PixelData


def test_what_came_without_a_preamble_or_without_file_meta_information_leaves_as_a_whole_file(web: Web):
    for cut in (132, None):
        ds = dx()
        data = part10(ds)
        begins = data.index(b"\x08\x00\x16\x00") if cut is None else cut
        assert web.stow([data[begins:]]).status == 200
        for accept in (AS_IT_LIES, OBJECTS):
            ((_, content),) = parts_of(web.get(address(ds), accept))
            found = pydicom.dcmread(io.BytesIO(content))
            assert (found.file_meta.TransferSyntaxUID, found.PixelData) == (ExplicitVRLittleEndian, ds.PixelData)


def test_compressed_frames_come_as_they_lie_where_that_is_taken(web: Web):
    ds = signed()
    assert web.stow([encoded(ds, JPEG2000Lossless)]).status == 200
    for accept in ('multipart/related; type="image/jp2"', f"*/*; transfer-syntax={JPEG2000Lossless}"):
        ((headers, frame),) = parts_of(web.get(f"{address(ds)}/frames/1", accept))
        assert headers["content-type"] == f"image/jp2;transfer-syntax={JPEG2000Lossless}"
        assert frame[:4] == b"\xff\x4f\xff\x51"
    single = web.get(f"{address(ds)}/frames/1", "image/jp2")
    assert (single.headers["content-type"], single.body[:2]) == ("image/jp2", b"\xff\x4f")
    assert web.get(f"{address(ds)}/frames/1", "image/jls").status == 406
    assert web.get(address(ds), f"{OBJECTS}; transfer-syntax=1.2.840.10008.1.2.4.80").status == 406
    preferred = (
        f'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.80, {AS_IT_LIES}; q=0.5'
    )
    assert web.get(address(ds), preferred).status == 200


def multiframe() -> Dataset:
    ds = dx()
    ds.NumberOfFrames = 5
    ds.PixelData = np.random.default_rng(7).integers(0, 4096, (5, 16, 16), dtype=np.uint16).tobytes()
    return ds


def test_frames_are_chosen_by_number(web: Web):
    ds = multiframe()
    stored(web, ds)
    frames = [ds.PixelData[at : at + 512] for at in range(0, 2560, 512)]
    answer = web.get(f"{address(ds)}/frames/4,1", NATIVE)
    assert [content for _, content in parts_of(answer)] == [frames[3], frames[0]]
    assert web.get(f"{address(ds)}/frames/2", "application/octet-stream").body == frames[1]
    assert web.get(f"{address(ds)}/frames/6", NATIVE).status == 404
    for wrong in ("0", "a", "1,,2", "-1", "1.5", "1,"):
        assert web.get(f"{address(ds)}/frames/{wrong}", NATIVE).status == 400, wrong


def test_single_bit_frames_are_padded_to_bytes(web: Web):
    ds = dx()
    ds.Rows, ds.Columns, ds.NumberOfFrames = 3, 3, 2
    ds.BitsAllocated = ds.BitsStored = 1
    ds.HighBit = 0
    bits = np.random.default_rng(1).integers(0, 2, 18).astype(np.uint8)
    ds.PixelData = np.packbits(bits, bitorder="little").tobytes() + b"\0"
    stored(web, ds)
    answer = web.get(f"{address(ds)}/frames/2", NATIVE)
    ((_, content),) = parts_of(answer)
    assert content == np.packbits(bits[9:], bitorder="little").tobytes()


def test_metadata_names_every_attribute_and_leaves_bulk_data_to_be_fetched(web: Web):
    ds = dx()
    ds.add_new(0x00280030, "DS", ["0.1", "0.25"])
    ds.add_new(0x00091001, "OB", b"\1" * 2000)
    ds.add_new(0x00090010, "LO", "STEPWEDGE TEST")
    ds.ReferencedImageSequence = [Dataset()]
    ds.ReferencedImageSequence[0].add_new(0x00091002, "UN", b"\2" * 3000)
    stored(web, ds)
    (found,) = web.get(f"{address(ds)}/metadata").json
    assert found["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "CANARY^PATIENT"}]}
    assert found["00280030"] == {"vr": "DS", "Value": [0.1, 0.25]}
    assert found["00400275"]["Value"][0]["00321060"]["Value"] == ["KANARIENVOGEL in CANARYSTREET"]
    assert found["00080050"] == {"vr": "SH", "Value": ["KANARIENVOGEL"]}
    assert found["00083002"]["Value"] == [str(ExplicitVRLittleEndian)]
    assert not [tag for tag in found if tag.startswith("0002")]
    base = f"{web.root}{address(ds)}/bulkdata"
    assert found["7FE00010"] == {"vr": "OW", "BulkDataURI": f"{base}/7FE00010"}
    for uri, content in (
        (found["7FE00010"]["BulkDataURI"], ds.PixelData),
        (found["00091001"]["BulkDataURI"], b"\1" * 2000),
        (found["00081140"]["Value"][0]["00091002"]["BulkDataURI"], b"\2" * 3000),
    ):
        path = uri.removeprefix(web.root)
        assert web.get(path, "application/octet-stream").body == content
        ((_, part),) = parts_of(web.get(path, NATIVE))
        assert part == content
    assert web.get(f"{address(ds)}/bulkdata/00100010").status == 406
    assert web.get(f"{address(ds)}/bulkdata/00100010", NATIVE).status == 404
    assert web.get(f"{address(ds)}/bulkdata/..%2F..", NATIVE).status == 400


def test_metadata_comes_as_xml_where_that_alone_is_taken(web: Web):
    ds = dx()
    ds.PatientName = "Ähre^Zoë"
    ds.SpecificCharacterSet = "ISO_IR 192"
    stored(web, ds)
    answer = web.get(f"/studies/{ds.StudyInstanceUID}/metadata", 'multipart/related; type="application/dicom+xml"')
    ((headers, content),) = parts_of(answer)
    assert headers["content-type"] == "application/dicom+xml"
    names = [node.text for node in ElementTree.fromstring(content).iter() if node.tag.endswith("FamilyName")]
    assert names == ["Ähre"]
    assert web.get(f"/studies/{ds.StudyInstanceUID}/metadata", "text/html").status == 406


def picture(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    return np.asarray(Image.open(io.BytesIO(answer.body)))


def test_a_rendered_picture_has_the_window_and_the_size_that_were_asked_for(web: Web):
    ds = dx()
    ds.PixelData = np.linspace(0, 4095, 256).astype(np.uint16).tobytes()
    ds.WindowCenter, ds.WindowWidth = 2048, 4096
    stored(web, ds)
    whole = picture(web.get(f"{address(ds)}/rendered", "image/png"))
    assert (whole.shape, whole[0, 0], whole[-1, -1]) == ((16, 16), 0, 255)
    assert np.all(np.diff(whole.ravel().astype(int)) >= 0)
    narrow = picture(web.get(f"{address(ds)}/rendered?window=1000,100,linear", "image/png"))
    assert set(np.unique(narrow[:2])) == {0}
    assert set(np.unique(narrow[8:])) == {255}
    small = web.get(f"{address(ds)}/thumbnail?viewport=8,8")
    assert small.status == 406, "a picture is no JSON"
    assert picture(web.get(f"{address(ds)}/thumbnail?viewport=8,8", "image/*")).shape == (8, 8)
    assert web.get(f"{address(ds)}/rendered", "image/jpeg").headers["content-type"] == "image/jpeg"
    assert picture(web.get(f"{address(ds)}/frames/1/rendered", "*/*")).shape == (16, 16)
    assert picture(web.get(f"/studies/{ds.StudyInstanceUID}/rendered", None)).shape == (16, 16)
    for wrong in ("window=1,0,linear", "window=1", "window=1,2,cubic", "viewport=0,1", "quality=0", "viewport=1"):
        assert web.get(f"{address(ds)}/rendered?{wrong}", "image/png").status == 400, wrong
    inverse = dx()
    inverse.PixelData, inverse.PhotometricInterpretation = ds.PixelData, "MONOCHROME1"
    stored(web, inverse)
    assert picture(web.get(f"{address(inverse)}/rendered", "image/png"))[0, 0] == 255


@pytest.mark.parametrize(
    "name", ["SC_rgb_jpeg_dcmtk.dcm", "examples_palette.dcm", "JPEG2000.dcm", "SC_rgb_rle_2frame.dcm"]
)
def test_real_objects_of_other_vendors_are_served_in_every_form(web: Web, name: str):
    data = Path(str(get_testdata_file(name))).read_bytes()
    ds = pydicom.dcmread(io.BytesIO(data))
    answer = web.stow([data])
    assert answer.status == 200, answer.body
    ((_, same),) = parts_of(web.get(address(ds), AS_IT_LIES))
    assert same == data
    ((_, plain),) = parts_of(web.get(address(ds), OBJECTS))
    found = pydicom.dcmread(io.BytesIO(plain))
    assert found.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert found.pixel_array.shape == ds.pixel_array.shape
    difference = np.abs(found.pixel_array.astype(int) - ds.pixel_array.astype(int))
    assert np.percentile(difference, 99) <= 3  # lossy decoders may round otherwise
    ((_, frame),) = parts_of(web.get(f"{address(ds)}/frames/1", NATIVE))
    assert len(frame) == ds.Rows * ds.Columns * ds.SamplesPerPixel * ds.BitsAllocated // 8
    assert picture(web.get(f"{address(ds)}/rendered", "image/png")).shape[:2] == (ds.Rows, ds.Columns)
    assert web.get(f"{address(ds)}/metadata").status == 200


def test_what_is_not_there_or_not_meant_for_the_client_says_so(web: Web):
    ds = dx()
    stored(web, ds)
    assert web.get(f"/studies/{generate_uid(None)}", OBJECTS).status == 404
    assert web.get(f"{address(ds)[:-1]}x", OBJECTS).status == 400
    assert web.get(address(ds), "image/png").status == 406
    assert web.get(address(ds), "nonsense").status == 400
    assert web.call("DELETE", f"/studies/{ds.StudyInstanceUID}").status == 405
    assert web.get("/nowhere").status == 404
    store_only = web.mint("store", client="modality").bearer
    for path in (address(ds), "/studies", f"{address(ds)}/metadata", f"{address(ds)}/rendered"):
        assert web.get(path, None, Authorization=f"Bearer {store_only}").status == 403
        assert web.get(path, None, Authorization=None).status == 401


def test_every_read_is_a_record_before_anything_is_sent(web: Web):
    ds = dx()
    stored(web, ds)
    pseudonym = web.house.study(ds.StudyInstanceUID).pseudonym
    before = len(web.house.entries())
    web.get(address(ds), AS_IT_LIES)
    web.get(f"{address(ds)}/metadata")
    web.get(f"{address(ds)}/rendered", "image/png")
    seen = [one for one in web.house.entries()[before:] if one.HasField("viewed")]
    assert [(one.viewed.what, one.study) for one in seen] == [
        (what, pseudonym) for what in ("objects", "metadata", "rendered")
    ]
    assert {(one.viewed.person, one.viewed.role) for one in seen} == {("pacs-1", "client")}


def test_a_read_of_a_study_that_mixes_patients_is_a_record_under_each_of_them(web: Web):
    one = dx()
    other = dx(study=one.StudyInstanceUID)
    other.PatientID, other.PatientName = "4711-0816", "ANDERS^Cleo"
    stored(web, one, other)
    received = [entry for entry in web.house.entries() if entry.HasField("received")]
    pseudonym = web.house.study(one.StudyInstanceUID).pseudonym
    people = {entry.subject for entry in received if entry.study == pseudonym}
    assert len(people) == 2
    before = len(web.house.entries())
    assert web.get(f"/studies/{one.StudyInstanceUID}", AS_IT_LIES).status == 200
    seen = [entry for entry in web.house.entries()[before:] if entry.HasField("viewed")]
    assert {entry.subject for entry in seen} == people


def test_the_client_library_of_the_field_stores_retrieves_and_reads(web: Web):
    one = client(web)
    ds = multiframe()
    answer = one.store_instances([ds])
    assert [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence] == [ds.SOPInstanceUID]
    assert one.retrieve_instance(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID).PixelData == ds.PixelData
    assert [found.SOPInstanceUID for found in one.retrieve_study(ds.StudyInstanceUID)] == [ds.SOPInstanceUID]
    assert [found.SOPInstanceUID for found in one.iter_series(ds.StudyInstanceUID, ds.SeriesInstanceUID)] == [
        ds.SOPInstanceUID
    ]
    (metadata,) = one.retrieve_study_metadata(ds.StudyInstanceUID)
    found = Dataset.from_json(metadata, bulk_data_uri_handler=lambda tag, vr, uri: bytes(one.retrieve_bulkdata(uri)[0]))
    assert (found.PatientName, found.Rows, found.PixelData) == (ds.PatientName, 16, ds.PixelData)
    frames = one.retrieve_instance_frames(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID, [2, 5])
    assert frames == [ds.PixelData[512:1024], ds.PixelData[2048:]]
    rendered = one.retrieve_instance_rendered(
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID, media_types=("image/png",)
    )
    assert rendered[:4] == b"\x89PNG"


def test_nothing_is_shown_while_the_log_is_away(web: Web):
    # Last: the log goes away and comes back.
    ds = dx()
    stored(web, ds)
    web.house.stop("audit")
    answer = web.get(address(ds), AS_IT_LIES)
    assert answer.status == 503
    assert "retry-after" in answer.headers
    web.house.start("audit")
    eventually(lambda: web.get(address(ds), AS_IT_LIES).status == 200, 30, what="an answer")
    assert JSON
