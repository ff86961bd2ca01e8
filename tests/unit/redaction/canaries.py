"""Plants a value that exists nowhere else into every place where identity can hide, and looks for it in the result."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import pydicom
from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from services.redaction.facts import TABLES
from services.redaction.facts import rows as profile_rows

ROOT = "1.2.826.0.1.3680043.10.5551"
# Of table attributes whose VR holds text or bytes; a number cannot hold a canary, a date or an age one of its own form.
_TEXT = {"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT", "UR"}
_STRUCTURE = {0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00080005, 0x00420011, 0x00880200}


def table() -> list[tuple[int, str, str]]:
    """Tag, VR and action of every row of Table E.1-1 that the data dictionary knows; `LO` for what it does not."""
    found = []
    with (TABLES / "attributes_2026c.csv").open() as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            if "x" in row["tag"] or row["tag"] == "odd":
                continue
            tag = int(row["tag"], 16)
            try:
                vr = dictionary_VR(tag)
            except KeyError:
                vr = "LO"
            found.append((tag, "OB" if vr == "UN" else vr, row["basic"]))
    return found


@dataclass
class Planter:
    """Makes canaries and keeps where each was put."""

    planted: dict[bytes, str] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(100_001))

    def value(self, vr: str, where: str) -> str | bytes | None:
        """A canary of the VR, noted under `where`; None for a VR that cannot hold one."""
        number = next(self._numbers)
        dates = f"{1700 + number % 200}{1 + number % 12:02d}{1 + number % 28:02d}"
        value: str | bytes
        if vr in _TEXT:
            value = f"CNRY{number}Q"
        elif vr == "UI":
            value = f"{ROOT}.{number}"
        elif vr == "OB":
            value = f"CNRY{number}Q.".encode()
        elif vr == "CS":
            value = f"CNRY{number}Q"
        elif vr == "DA":
            value = dates
        elif vr == "DT":
            value = f"{dates}{number % 24:02d}1531.{number}"
        elif vr == "TM":
            value = f"{number % 24:02d}1531.{number}"
        elif vr == "DS":
            value = f"{number}.715533"
        elif vr == "IS":
            value = f"77{number}7"
        elif vr == "AS":
            value = f"{number % 90 + 9:03d}W"
        else:
            return None
        raw = value if isinstance(value, bytes) else value.encode()
        if vr not in ("DA", "AS"):  # too short to be unique among the bytes of an object; asked for by value elsewhere
            self.planted[raw] = where
        return value

    def put(self, ds: Dataset, tag: int, vr: str, where: str) -> None:
        """Set the attribute to a canary."""
        if vr == "SQ":
            item = Dataset()
            for inner in ("LO", "PN", "UI"):
                keyword = {"LO": "PatientComments", "PN": "PersonName", "UI": "ReferencedSOPInstanceUID"}[inner]
                inner_vr = "LT" if inner == "LO" else inner
                self.put(item, tag_for_keyword(keyword), inner_vr, f"{where} > {keyword}")
            ds[tag] = DataElement(tag, "SQ", Sequence([item]))
            return
        value = self.value(vr, where)
        if value is not None:
            ds[tag] = DataElement(Tag(tag), vr, value)

    def every_attribute(self, ds: Dataset, where: str) -> None:
        """Every attribute of the table, but for those that say what the object is."""
        for tag, vr, _ in table():
            if tag not in _STRUCTURE and tag >> 16 > 4:  # a stored object has no commands; see `_meta` for group 0002
                self.put(ds, tag, vr, f"{where} ({tag:08X})")


def minimal(sop_class: str = "1.2.840.10008.5.1.4.1.1.2.1", *, implicit: bool = False) -> Dataset:
    """An object with names and a small image, nothing else."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{ROOT}.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{ROOT}.2", f"{ROOT}.3"
    ds.PatientID, ds.PatientName, ds.Modality = "CNRYPATIENT77", "Cnryson^Aurelia", "CT"
    ds.Rows = ds.Columns = 4
    ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 1, 16, 16, 15, 0
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.PixelData = bytes(range(32))
    return ds


def everything(*, implicit: bool = False) -> tuple[bytes, dict[bytes, str]]:
    """One object with a canary in every place, and the canaries with their places."""
    planter = Planter()
    ds = minimal(implicit=implicit)
    planter.every_attribute(ds, "root")
    ds.PatientID, ds.PatientName = "CNRYPATIENT77", "Cnryson^Aurelia"
    shared, deep = Dataset(), Dataset()
    planter.every_attribute(shared, "depth 1")
    planter.every_attribute(deep, "depth 3")
    second, first = Dataset(), Dataset()
    second.AnatomicRegionSequence = Sequence([deep])
    first.FrameContentSequence = Sequence([second])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    ds.PerFrameFunctionalGroupsSequence = Sequence([first])
    _private(planter, ds)
    _planes(planter, ds)
    _report(planter, ds)
    _unknown(planter, ds)
    _outside_the_table(planter, ds)
    _concepts(planter, ds)
    _graphics(planter, ds)
    _inside_functional_groups(planter, ds)
    _echoes(ds, planter)
    data = _meta(planter, ds)
    planter.planted[b"CNRYPATIENT77"] = "PatientID"
    planter.planted[b"Cnryson"] = planter.planted[b"Aurelia"] = "PatientName"
    # Three places were planted twice (the patient's names, trailing padding); the last canary counts.
    return data, {value: where for value, where in planter.planted.items() if value.lower() in data.lower()}


def _private(planter: Planter, ds: Dataset) -> None:
    block = ds.private_block(0x0029, "CNRY CREATOR", create=True)
    for number, vr in enumerate(("LO", "UN", "PN", "UI", "OB")):
        value = planter.value("OB" if vr == "UN" else vr, f"private {vr}")
        block.add_new(number, vr, value)
    item = Dataset()
    item.PatientName = planter.value("PN", "public inside a private sequence")
    block.add_new(0x10, "SQ", Sequence([item]))
    inside = Dataset()
    inside.private_block(0x0031, "CNRY INNER", create=True).add_new(1, "LT", planter.value("LT", "private, nested"))
    ds.PrimaryAnatomicStructureSequence = Sequence([inside])
    ds.add_new(0x00090001, "LO", planter.value("LO", "private without a creator"))


def _inside_functional_groups(planter: Planter, ds: Dataset) -> None:
    """What is no attribute of the table, at depth 1 and 3: private blocks, planes, unknown tags, private codes."""
    shared = ds.SharedFunctionalGroupsSequence[0]
    deep = ds.PerFrameFunctionalGroupsSequence[0].FrameContentSequence[0].AnatomicRegionSequence[0]
    for depth, item in ((1, shared), (3, deep)):
        block = item.private_block(0x0019, "GEMS_ACQU_01", create=True)  # safe is (0019,xx9E) of it, this is not
        block.add_new(0x77, "LO", planter.value("LO", f"private at depth {depth}"))
        inner = Dataset()
        inner.PatientName = planter.value("PN", f"public in a private sequence at depth {depth}")
        block.add_new(0x78, "SQ", Sequence([inner]))
        item.add_new(0x60021500, "LO", planter.value("LO", f"overlay label at depth {depth}"))
        item.add_new(0x60023000, "OB", planter.value("OB", f"overlay data at depth {depth}"))
        item.add_new(0x50022500, "LO", planter.value("LO", f"curve label at depth {depth}"))
        item.add_new(0x0010FFF3, "LO", planter.value("LO", f"unknown public tag at depth {depth}"))
        item.add_new(0x7FE00010, "OB", planter.value("OB", f"pixel data at depth {depth}"))
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator = "1", "99CNRY"
        code.CodeMeaning = planter.value("LO", f"meaning of a private code at depth {depth}")
        item.ViewCodeSequence = Sequence([code])


def _outside_the_table(planter: Planter, ds: Dataset) -> None:
    """Every attribute of the data dictionary that the table does not list, of the VRs that have a form of their own."""
    listed = {tag for tag, _, _ in table()}
    structure = _STRUCTURE | {0x00080060, 0x00280004, 0x00280301, 0x00280302, 0x00280303, 0x00120062}
    formed = {"CS", "PN", "UI", "AS", "TM", "DT"}
    for tag, (vr, *_) in sorted(DicomDictionary.items()):
        group = tag >> 16
        if vr in formed and tag not in listed | structure and 8 <= group < 0x5000 and not group & 1 and tag not in ds:
            planter.put(ds, tag, vr, f"outside the table ({tag:08X})")


_VALUES = {
    "TEXT": ("TextValue", "UT"),
    "PNAME": ("PersonName", "PN"),
    "UIDREF": ("UID", "UI"),
    "DATE": ("Date", "DA"),
    "TIME": ("Time", "TM"),
    "DATETIME": ("DateTime", "DT"),
}


def _concepts(planter: Planter, ds: Dataset) -> None:
    """A content item for every row of Table E.3.4-1, and one that the table does not list for every value type."""
    rows = [(row["scheme"], row["value"], row["value_type"]) for row in profile_rows("content_items_2026c.csv")]
    items = []
    for scheme, value, kind in rows + [("DCM", "111111", kind) for kind in _VALUES]:
        item, code = Dataset(), Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme[:16], "Concept"
        item.RelationshipType, item.ValueType = "CONTAINS", kind
        item.ConceptNameCodeSequence = Sequence([code])
        where = f"content {scheme} {value} {kind}"
        if kind in _VALUES:
            keyword, vr = _VALUES[kind]
            planter.put(item, tag_for_keyword(keyword), vr, where)
        elif kind in ("IMAGE", "COMPOSITE", "WAVEFORM"):
            reference = Dataset()
            reference.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
            planter.put(reference, tag_for_keyword("ReferencedSOPInstanceUID"), "UI", where)
            item.ReferencedSOPSequence = Sequence([reference])
        items.append(item)
    container = Dataset()
    container.RelationshipType, container.ValueType = "CONTAINS", "CONTAINER"
    container.ContentSequence = Sequence(items)
    ds.ContentSequence = Sequence([*ds.get("ContentSequence", []), container])


def _graphics(planter: Planter, ds: Dataset) -> None:
    """Text drawn on an image, and on a tracing."""
    text, annotation = Dataset(), Dataset()
    planter.put(text, tag_for_keyword("UnformattedTextValue"), "ST", "text of a graphic annotation")
    annotation.TextObjectSequence = Sequence([text])
    planter.put(annotation, tag_for_keyword("GraphicLayer"), "CS", "graphic layer")
    ds.GraphicAnnotationSequence = Sequence([annotation])
    wave = Dataset()
    planter.put(wave, tag_for_keyword("UnformattedTextValue"), "ST", "text of a waveform annotation")
    ds.WaveformAnnotationSequence = Sequence([wave])


def _planes(planter: Planter, ds: Dataset) -> None:
    for group in (0x5000, 0x501E):
        ds.add_new((group, 0x2500), "LO", planter.value("LO", "curve label"))
        ds.add_new((group, 0x3000), "OB", planter.value("OB", "curve data"))
    for group in (0x6000, 0x601E):
        ds.add_new((group, 0x1500), "LO", planter.value("LO", "overlay label"))
        ds.add_new((group, 0x0022), "LO", planter.value("LO", "overlay description"))
        ds.add_new((group, 0x3000), "OB", planter.value("OB", "overlay data"))
        ds.add_new((group, 0x4000), "LT", planter.value("LT", "overlay comments"))


def _report(planter: Planter, ds: Dataset) -> None:
    """Content of a structured report: text, a name, a reference, a private code, a number, a date, nested."""
    items = []
    for kind, keyword, vr in (
        ("TEXT", "TextValue", "UT"),
        ("PNAME", "PersonName", "PN"),
        ("UIDREF", "UID", "UI"),
        ("DATE", "Date", "DA"),
        ("TIME", "Time", "TM"),
        ("DATETIME", "DateTime", "DT"),
    ):
        item = Dataset()
        item.RelationshipType, item.ValueType = "CONTAINS", kind
        planter.put(item, tag_for_keyword(keyword), vr, f"report {kind}")
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator = planter.value("SH", "private code"), "99CNRY"
        code.CodeMeaning = planter.value("LO", "meaning of a private code")
        item.ConceptNameCodeSequence = Sequence([code])
        items.append(item)
    number = Dataset()
    number.RelationshipType, number.ValueType = "CONTAINS", "NUM"
    measured = Dataset()
    measured.NumericValue = planter.value("DS", "report NUM")
    number.MeasuredValueSequence = Sequence([measured])
    items[0].ContentSequence = Sequence([number])
    ds.ContentSequence = Sequence([*ds.get("ContentSequence", []), *items])


def _unknown(planter: Planter, ds: Dataset) -> None:
    """Public tags that no data dictionary has, a directory's group, and a command's."""
    ds.add_new(0x0010FFF1, "LO", planter.value("LO", "unknown public tag"))
    ds.add_new(0x0018FFF2, "UT", planter.value("UT", "unknown public tag"))
    ds.add_new(0x00041130, "CS", planter.value("CS", "group 0004"))
    ds.add_new(0xFFFCFFFC, "OB", planter.value("OB", "trailing padding"))


def _echoes(ds: Dataset, planter: Planter) -> None:
    """Attributes that the profile keeps, whose text repeats who the patient is."""
    ds.ManufacturerModelName = "Scanner of AURELIA CNRYSON"
    ds.SequenceName = "cnrypatient77"
    ds.SoftwareVersions = ["1.0", "Cnryson, Aurélia"]
    ds.KVP = None
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = "1", "99X"
    item.CodeMeaning = "Thorax (Cnryson)"
    ds.ViewCodeSequence = Sequence([item])


def _meta(planter: Planter, ds: Dataset) -> bytes:
    meta = ds.file_meta
    for tag in (0x00020016, 0x00020017, 0x00020018):
        meta.add_new(tag, "AE", planter.value("AE", f"meta ({tag:08X})"))
    meta.PrivateInformationCreatorUID = planter.value("UI", "meta private creator")
    meta.PrivateInformation = planter.value("OB", "meta private information")
    meta.ImplementationVersionName = planter.value("SH", "meta version name")
    meta.ImplementationClassUID = planter.value("UI", "meta implementation")
    preamble = planter.value("OB", "preamble")
    assert isinstance(preamble, bytes)
    ds.preamble = preamble.ljust(128, b"\0")
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()


def survivors(data: bytes, planted: dict[bytes, str]) -> list[str]:
    """Places of the canaries whose value is still somewhere in the bytes, in any case."""
    lower = data.lower()
    return sorted({where for value, where in planted.items() if value.lower() in lower})
