"""What makes a result one of this decision and of this study: derived UIDs, and the patient and study as received.

Nothing in a result comes from chance or from the clock: the same decision makes the same objects, byte for byte, so a
result that is made again after a crash is the one that may have been sent already.
"""

import hashlib
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO
from typing import Any, Final

from pydicom import dcmwrite
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian

from services.ingest.results.codes import MANUFACTURER, MODEL, SCHEME, SCHEME_NAME, SCHEME_VERSION
from services.ingest.results.material import Decided, Image
from shared.build import VERSION

IMPLEMENTATION_CLASS_UID: Final = "2.25.302031113110906338853178903370281403101"
"""Ours, as the maker of the file (PS3.10 7.1)."""
UID_ROOT: Final = "2.25."
TRANSFER_SYNTAX: Final = str(ExplicitVRLittleEndian)

INHERITED: Final[tuple[str, ...]] = (
    # Patient (PS3.3 C.7.1.1)
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "TypeOfPatientID",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientSex",
    "OtherPatientIDsSequence",
    "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence",
    "PatientBreedDescription",
    "PatientBreedCodeSequence",
    "BreedRegistrationSequence",
    "ResponsiblePerson",
    "ResponsiblePersonRole",
    "ResponsibleOrganization",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    # General Study (C.7.2.1)
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "StudyDescription",
    # Patient Study (C.7.2.2)
    "PatientAge",
    "PatientSize",
    "PatientWeight",
)
"""Attributes of the patient and the study, by which a PACS puts a result where it belongs. As received, byte for byte
where the character set allows: what of it is wrong was wrong before."""
_TYPE_2: Final = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
_OFFSET: Final = re.compile(r"([+-])([0-9]{2})([0-9]{2})")


def uid(decided: Decided, *of: object) -> str:
    """A UID under 2.25 (PS3.5 B.2) that this decision and no other gives to `of`."""
    about = (decided.study_instance_uid, decided.pseudonym, decided.log, decided.revision, decided.record_index)
    return _derived(*about, *of)


def lasting_uid(decided: Decided, *of: object) -> str:
    """A UID that every revision of the study gives to `of`: what is tracked over time bears it."""
    return _derived(decided.study_instance_uid, decided.pseudonym, decided.log, *of)


def device_uid(decided: Decided) -> str:
    """The UID of this installation as an observer (PS3.16 TID 1004)."""
    return _derived("device", decided.log)


def _derived(*of: object) -> str:
    digest = hashlib.sha256("\0".join(map(str, ("stepwedge result", *of))).encode()).digest()
    return f"{UID_ROOT}{uuid.UUID(bytes=digest[:16], version=5).int}"


def local_time(moment: datetime, header: Dataset) -> datetime:
    """The moment in the time zone of the study where it says which (0008,0201), else in that of this machine, as every
    other device of the house writes it."""
    offset = _OFFSET.fullmatch(str(header.get("TimezoneOffsetFromUTC", "")).strip())
    if offset is None:
        return moment.astimezone()
    span = timedelta(hours=int(offset[2]), minutes=int(offset[3]))
    return moment.astimezone(timezone(-span if offset[1] == "-" else span)) if span < timedelta(hours=24) else moment


def stand_in(decided: Decided, image: Image, header: Dataset | None = None) -> Dataset:
    """An image as highdicom needs to see one: its UIDs and its geometry, and of the person nothing.

    highdicom refuses, and quotes in its log, values that vendors write every day; patient and study are put in
    afterwards, as received, by `dress`.
    """
    source = Dataset()
    source.SOPClassUID = image.sop_class_uid
    source.SOPInstanceUID = image.sop_instance_uid
    source.SeriesInstanceUID = image.series_instance_uid
    source.StudyInstanceUID = decided.study_instance_uid
    source.Modality = image.modality or "OT"
    for keyword in _TYPE_2:
        setattr(source, keyword, None)
    if header is not None:
        source.Rows, source.Columns = int(header.Rows), int(header.Columns)
        source.SamplesPerPixel = 1
        source.PhotometricInterpretation = "MONOCHROME2"
        source.BitsAllocated = source.BitsStored = 16
    return source


def dress(result: Dataset, decided: Decided, header: Dataset) -> None:
    """Put patient and study into a result, and its times and its maker."""
    charset = header.get("SpecificCharacterSet")
    keep = not charset or _known(charset)
    for keyword in ("SpecificCharacterSet", "TimezoneOffsetFromUTC", "ContributingEquipmentSequence"):
        if keyword in result:
            del result[keyword]
    if charset:
        result.SpecificCharacterSet = charset if keep else "ISO_IR 192"
    if _OFFSET.fullmatch(str(header.get("TimezoneOffsetFromUTC", "")).strip()):
        result.TimezoneOffsetFromUTC = header.TimezoneOffsetFromUTC
    for keyword in INHERITED:
        tag = Tag(keyword)
        if tag in result:
            del result[tag]
        element = header.get(tag)
        if element is not None and dictionary_VR(tag) == element.VR:
            result[tag] = element
        elif keyword in _TYPE_2:
            result[tag] = DataElement(tag, dictionary_VR(tag), None)
    result.StudyInstanceUID = decided.study_instance_uid
    at = local_time(decided.decided_at, header)
    day, time = at.strftime("%Y%m%d"), at.strftime("%H%M%S.%f")
    for date_of, time_of in (("InstanceCreationDate", "InstanceCreationTime"), ("ContentDate", "ContentTime")):
        setattr(result, date_of, day)
        setattr(result, time_of, time)
    result.SeriesDate, result.SeriesTime = day, time
    result.InstanceCreatorUID = device_uid(decided)
    result.Manufacturer = MANUFACTURER
    result.ManufacturerModelName = MODEL
    result.DeviceSerialNumber = serial_number(decided)
    result.SoftwareVersions = decided.software_build[:64]


def serial_number(decided: Decided) -> str:
    """What tells this installation from others, for a field of 64 characters."""
    return ascii_only(decided.log)[:64] or "1"


def scheme() -> Dataset:
    """Whose the private codes are (PS3.3 C.12.1.1, Coding Scheme Identification Sequence item)."""
    item = Dataset()
    item.CodingSchemeDesignator = SCHEME
    item.CodingSchemeName = SCHEME_NAME
    item.CodingSchemeVersion = SCHEME_VERSION
    item.CodingSchemeResponsibleOrganization = MANUFACTURER
    return item


def part10(result: Dataset) -> bytes:
    """The result as a file (PS3.10), in Explicit VR Little Endian."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = result.SOPClassUID
    meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = f"STEPWEDGE_{VERSION}"[:16]
    plain = Dataset()
    plain.update(result)
    plain.file_meta = meta
    plain.preamble = b"\0" * 128
    buffer = BytesIO()
    dcmwrite(buffer, plain, enforce_file_format=True)
    return buffer.getvalue()


_PLAIN: Final[Mapping[int, str]] = {
    ord(sign): plain for sign, plain in (("–", "-"), ("—", "-"), ("’", "'"), ("“", '"'), ("”", '"'), ("°", " degrees"))
}


def ascii_only(text: str) -> str:
    """Words of ours in the one repertoire that every character set has (PS3.5 6.1.1)."""
    plain = text.translate(_PLAIN).encode("ascii", "replace").decode()
    return "".join(one if one.isprintable() else " " for one in plain).replace("\\", "/").strip()


def _known(charset: Any) -> bool:
    names = [charset] if isinstance(charset, str) else list(charset)
    return all(name in python_encoding for name in names)


def sequence(*items: Dataset) -> Sequence:
    """Items as pydicom keeps them."""
    return Sequence(items)


def utc(moment: datetime) -> str:
    """A moment for a person, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
