"""A patient who must be nowhere: names, numbers and dates that are planted in objects and then looked for."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.sequence import Sequence

from shared.phantom import chest, to_dicom

FAMILY, GIVEN = "Kanarienvogel", "Zacharias"
NAME = f"{FAMILY}^{GIVEN}"
NUMBER = "QX4711Z90817"
ACCESSION = "ACQJ9931704"
BORN, TAKEN = "19370411", "20310917"
TIME = "194417.731905"
PLACE = "Zwitscherheim"
PHONE = "0815477199"
STATION = "ROENTGENPULT7"
"""Of the device: ingest keeps it in its database, for charts by room and device; it is nowhere else past the door."""
WORDS = (FAMILY, GIVEN, NUMBER, ACCESSION, BORN, TAKEN, TIME, PLACE, PHONE, "1937-04-11", "2031-09-17")
"""What may be nowhere past the door, in whatever case."""
ROOT = "1.2.826.0.1.3680043.10.7741903"
"""Of the UIDs as received: in the operator's answers and in ingest's database, and nowhere else."""


def planted(source: str, number: int) -> Dataset:
    """An object with the canary in its header, in sequences, in private elements and in its UIDs.

    `source` is the name of a file of pydicom's wheel; "phantom" means a radiograph of the digital chest phantom.
    """
    ds = _radiograph() if source == "phantom" else dcmread(get_testdata_file(source))
    ds.PatientName, ds.PatientID, ds.AccessionNumber = NAME, NUMBER, ACCESSION
    ds.PatientBirthDate = BORN
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = ds.AcquisitionDate = TAKEN
    ds.StudyTime = ds.ContentTime = TIME
    ds.ReferringPhysicianName = ds.OperatorsName = f"{GIVEN}^{FAMILY}"
    ds.InstitutionName, ds.StationName = PLACE, STATION
    ds.StudyDescription = f"Chest of {GIVEN} {FAMILY.upper()}"
    ds.ImageComments = f"{NAME} born {BORN}, phone {PHONE}"
    ds.ProtocolName = f"{FAMILY}_{NUMBER}"
    ds.PatientTelephoneNumbers = PHONE
    ds.StudyInstanceUID = f"{ROOT}.{number}"
    ds.SeriesInstanceUID = f"{ROOT}.{number}.1"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{ROOT}.{number}.1.1"
    ds.RequestAttributesSequence = Sequence([_request(2)])
    block = ds.private_block(0x0099, f"{PLACE} PRIVATE", create=True)
    block.add_new(0x01, "LO", NAME)
    block.add_new(0x02, "UN", f"{NUMBER} {BORN}".encode())
    ds.file_meta.PrivateInformationCreatorUID = f"{ROOT}.9"
    ds.file_meta.PrivateInformation = NAME.encode() + b"\0"
    ds.preamble = f"{NAME} {NUMBER}".encode().ljust(128, b"\0")
    return ds


def _radiograph() -> Dataset:
    names = {"patient_name": NAME, "patient_id": NUMBER, "study_uid": ROOT, "series_uid": ROOT}
    ds: Dataset = to_dicom(chest(7, columns=512, rows=640), **names, sop_instance_uid=ROOT)
    return ds


def _request(depth: int) -> Dataset:
    item = Dataset()
    item.RequestedProcedureDescription = f"{FAMILY} {TAKEN}"
    item.RequestedProcedureID = NUMBER
    item.ReasonForTheRequestedProcedure = f"{GIVEN} coughs"
    other = Dataset()
    other.PatientID = NUMBER
    item.OtherPatientIDsSequence = Sequence([other])
    if depth:
        item.ReferencedRequestSequence = Sequence([_request(depth - 1)])
    return item


def write(ds: Dataset, file: Path) -> Path:
    """Write an object as a Part 10 file, file meta information and preamble as they stand."""
    ds.save_as(file, enforce_file_format=True)
    return file


def with_other_content(ds: Dataset) -> Dataset:
    """The same SOP Instance UID over another data set."""
    other = copy.deepcopy(ds)
    other.PatientComments = f"{NAME}, another content"
    return other


def found(haystack: bytes, words: Iterable[str]) -> list[str]:
    """Which of the words stand in the bytes, in any case, as ASCII or UTF-16."""
    low = haystack.lower()
    wide = low.replace(b"\0", b"")
    return [word for word in words if word.lower().encode() in low or word.lower().encode() in wide]


def contents(file: Path) -> Iterator[tuple[str, bytes]]:
    """A file's bytes; of an archive, those of its members too."""
    data = file.read_bytes()
    yield file.name, data
    if data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            yield from ((f"{file.name}/{name}", archive.read(name)) for name in archive.namelist())
