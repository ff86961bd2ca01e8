"""The decision on one page for a person, as an Encapsulated PDF (PS3.3 A.45.1)."""

from io import BytesIO
from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage
from reportlab.lib.pagesizes import A4
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas

from services.ingest.results import codes, identity
from services.ingest.results.material import Decided, Kind
from stepwedge.common.v1.common_pb2 import Outcome
from stepwedge.inference.v1 import inference_pb2

SERIES_NUMBER: Final = 8_803
_LEFT, _TOP, _LINE, _FOOT = 20 * mm, A4[1] - 22 * mm, 4.6 * mm, 30 * mm
_WIDTH: Final = 112
"""Characters in a line of the smaller type."""
_WORDS: Final = {
    Outcome.OUTCOME_PASS: "pass",
    Outcome.OUTCOME_WARN: "WARN",
    Outcome.OUTCOME_FAIL: "FAIL",
    Outcome.OUTCOME_NOT_ASSESSABLE: "not assessable",
}
_PERSON: Final = (
    ("Patient", "PatientName"),
    ("Patient ID", "PatientID"),
    ("Born", "PatientBirthDate"),
    ("Accession number", "AccessionNumber"),
    ("Study date", "StudyDate"),
)


def page(decided: Decided, header: Dataset) -> Dataset:
    """The page on a decision. header: of one image as received."""
    made = Dataset()
    made.SOPClassUID = EncapsulatedPDFStorage
    made.SOPInstanceUID = identity.uid(decided, Kind.PDF)
    made.SeriesInstanceUID = identity.uid(decided, Kind.PDF, "series")
    made.SeriesNumber, made.InstanceNumber = SERIES_NUMBER, decided.revision
    made.SeriesDescription = "Stepwedge image quality page"
    made.Modality = "DOC"
    made.ConversionType = "WSD"
    made.BurnedInAnnotation = "YES"  # the page names the patient
    made.AcquisitionDateTime = None
    made.DocumentTitle = "Image quality"
    made.ConceptNameCodeSequence = identity.sequence(_coded(codes.IMAGE_QUALITY))
    made.MIMETypeOfEncapsulatedDocument = "application/pdf"
    written = pdf(decided, header)
    made.EncapsulatedDocumentLength = len(written)
    made.EncapsulatedDocument = written + b"\0" * (len(written) % 2)
    made.SourceInstanceSequence = identity.sequence(*_sources(decided))
    identity.dress(made, decided, header)
    return made


def _coded(concept: codes.Concept) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = concept
    return item


def _sources(decided: Decided) -> list[Dataset]:
    found = {}
    for image in decided.images:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.sop_class_uid, image.sop_instance_uid
        found[image.sop_instance_uid] = item
    return list(found.values())


def pdf(decided: Decided, header: Dataset) -> bytes:
    """The page itself; the same for the same decision, byte for byte."""
    buffer = BytesIO()
    canvas = Canvas(buffer, pagesize=A4, invariant=1)
    canvas.setTitle("Image quality")
    canvas.setAuthor(codes.MANUFACTURER)
    _write(canvas, decided, header)
    canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def _write(canvas: Any, decided: Decided, header: Dataset) -> None:
    verdict = codes.VERDICTS[decided.verdict].meaning
    lines: list[tuple[str, str, float]] = [("Helvetica-Bold", "Image quality", 16), ("Helvetica-Bold", verdict, 13)]
    lines += [("Helvetica", f"{title}: {_printable(header.get(keyword))}", 10) for title, keyword in _PERSON]
    lines += [("Helvetica", f"Decided {identity.utc(decided.decided_at)}, revision {decided.revision}", 10)]
    for number, reason in enumerate(decided.reasons):
        words = decided.details[number] if number < len(decided.details) else ""
        lines.append(("Helvetica-Bold", codes.finding(reason).meaning, 10))
        lines.append(("Helvetica", identity.ascii_only(words), 9))
    for number, image in enumerate(decided.images, 1):
        of_image = f"Image {number} ({image.modality or 'no modality'}): {codes.VERDICTS[image.verdict].meaning}"
        lines.append(("Helvetica-Bold", of_image, 9))
        lines += [("Helvetica", line, 8) for line in _findings(image.assessment)]
    _draw(canvas, lines)
    foot = (
        f"Audit log {decided.log}, record {decided.record_index}: decided/{decided.pseudonym}/{decided.revision}",
        f"Policy {decided.policy_sha256}",
        f"Software {decided.software_build}. Made by a device; no person has verified it.",
    )
    canvas.setFont("Helvetica", 7)
    for place, line in enumerate(foot):
        canvas.drawString(_LEFT, _FOOT - (place + 2) * 3.4 * mm, identity.ascii_only(line))


def _findings(assessment: bytes) -> list[str]:
    lines = []
    for one in inference_pb2.Assessment.FromString(assessment).findings:
        value = ""
        if one.HasField("measurement"):
            unit = "" if one.measurement.unit in ("", "1") else f" {one.measurement.unit}"
            value = f" ({one.measurement.value:g}{unit})"
        line = f"{_WORDS.get(one.outcome, '-')}: {codes.finding(one.code).meaning}{value}: {one.detail}"
        lines.append(identity.ascii_only(line))
    return lines


def _draw(canvas: Any, lines: list[tuple[str, str, float]]) -> None:
    """Line under line; where the page is full, it says how many more there are."""
    height = _TOP
    for place, (font, text, size) in enumerate(lines):
        if height < _FOOT + 2 * _LINE and place < len(lines) - 1:
            canvas.setFont("Helvetica", 8)
            canvas.drawString(_LEFT, height, f"and {len(lines) - place} more lines; the structured report has all")
            return
        canvas.setFont(font, size)
        canvas.drawString(_LEFT, height, text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}...")
        height -= _LINE * max(1.0, size / 9)


def _printable(value: Any) -> str:
    """A value of the header in the repertoire of the page's font; what it does not have is left to the header."""
    text = str(value or "").split("=")[0].replace("^", " ").strip()
    return (
        text
        if text and text.isprintable() and all(ord(sign) < 256 for sign in text)
        else "see the header"
        if text
        else "-"
    )
