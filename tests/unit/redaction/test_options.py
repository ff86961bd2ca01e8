"""Options of a profile: each keeps what it names and nothing else."""

import io
import re
from datetime import date
from functools import lru_cache

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from services.redaction.engine import Redacted, RefusedError, redact
from services.redaction.profile import PROFILES, Action, Option, Profile
from services.redaction.values import is_public_uid
from shared import dicom
from shared.errors import ErrorCode
from shared.pseudonyms import Pseudonyms
from tests.unit.redaction.canaries import ROOT, everything, minimal, survivors
from tests.unit.redaction.test_engine import BUNDLE, REFUSED, walked

PSEUDONYMS = Pseudonyms(bytes(range(32)))
COMPOSED = [Profile.of([option]) for option in Option if option not in (Option.CLEAN_PIXELS, Option.CLEAN_FACES)]
COMPOSED += [Profile.load(path) for path in sorted(PROFILES.glob("*.toml"))]
COMPOSED += [Profile.of(set(Option) - {Option.RETAIN_MODIFIED_DATES, Option.CLEAN_PIXELS, Option.CLEAN_FACES})]
DUMMIES = {"ANONYMIZED", "ANONYMOUS", "19000101", "000000", "0", "000000.000000", "19000101000000"}


def written(ds: Dataset) -> bytes:
    """The object as a file."""
    out = io.BytesIO()
    ds.preamble = b"\0" * 128
    pydicom.dcmwrite(out, ds, enforce_file_format=False)
    return out.getvalue()


def redacted(ds: Dataset, *options: Option) -> tuple[Dataset, Redacted]:
    """The object after redaction with options."""
    result = redact(written(ds), PSEUDONYMS, Profile.of(options))
    return pydicom.dcmread(io.BytesIO(result.data)), result


@lru_cache(maxsize=2)
def planted_object(implicit: bool) -> tuple[bytes, dict[bytes, str]]:
    """The object with a canary in every place."""
    return everything(implicit=implicit)


def retained(profile: Profile, where: str) -> bool:
    """Whether an option keeps what stands in that place."""
    options = set(profile.options)
    kept_times = options & {Option.RETAIN_FULL_DATES, Option.RETAIN_MODIFIED_DATES}
    if match := re.search(r"\(([0-9A-F]{8})\)(?: > (\w+))?$", where):
        tag = int(match[1], 16)
        if match[2] == "ReferencedSOPInstanceUID":
            return Option.RETAIN_UIDS in options
        if match[2]:
            return False
        vr = pydicom.datadict.dictionary_VR(tag) if pydicom.datadict.dictionary_has_tag(tag) else ""
        if vr in ("TM", "DT") and kept_times:  # times of day stay, also where dates move
            return vr == "TM" or Option.RETAIN_FULL_DATES in options
        if vr == "UI" and Option.RETAIN_UIDS in options:
            return True
        return profile.action(tag) is Action.KEEP
    if match := re.match(r"(?:content (.*) (.*)|report|private) (\w+)$", where):
        kind = match[3]
        if kind in ("IMAGE", "COMPOSITE", "WAVEFORM", "UIDREF", "UI"):
            known_device = Option.RETAIN_DEVICE_IDENTITY in options and match[2] is not None
            return Option.RETAIN_UIDS in options or known_device
        if kind == "TIME" and kept_times:
            return True
        if kind == "DATETIME":
            return Option.RETAIN_FULL_DATES in options
        if kind in ("TEXT", "PNAME", "NUM", "CODE") and match[2] is not None:
            return bool(options & {Option.RETAIN_DEVICE_IDENTITY, Option.RETAIN_INSTITUTION_IDENTITY})
        return kind == "NUM"
    return where == "report NUM"


DAMAGED_PIXELS = {"JPEG2000-embedded-sequence-delimiter.dcm"}


@pytest.mark.parametrize("profile", COMPOSED, ids=lambda profile: "+".join(profile.options) or profile.name)
@pytest.mark.parametrize("implicit", [False, True], ids=["explicit", "implicit"])
def test_no_canary_survives_but_what_the_option_keeps(profile: Profile, implicit: bool) -> None:
    data, planted = planted_object(implicit)
    result = redact(data, PSEUDONYMS, profile)
    left = survivors(result.data, planted)
    assert [where for where in left if not retained(profile, where)] == []
    again = redact(result.data, PSEUDONYMS, profile)
    assert again.data == result.data


@pytest.mark.parametrize(
    ("age", "kept"), [("045Y", "045Y"), ("089Y", "089Y"), ("093Y", "090Y"), ("003M", "003M"), ("old", "000D")]
)
def test_ages_over_89_are_capped(age: str, kept: str) -> None:
    ds = minimal()
    ds.PatientAge, ds.PatientSex, ds.PatientWeight, ds.Allergies = age, "F", "81", "latex, ask Mrs Kowalczyk"
    after, _ = redacted(ds, Option.RETAIN_PATIENT_CHARACTERISTICS)
    assert (after.PatientAge, after.PatientSex, after.PatientWeight) == (kept, "F", 81)
    assert "latex" in after.Allergies
    assert "owalczyk" not in after.Allergies
    basic, _ = redacted(ds)
    assert "PatientAge" not in basic


@pytest.mark.parametrize(
    ("age", "unit", "kept"), [("95", "a", 90), ("61", "a", 61), ("1200", "mo", 1080), ("7", "mo", 7)]
)
def test_the_age_of_a_subject_in_a_report_is_capped(age: str, unit: str, kept: int) -> None:
    ds, item, concept, measured, units = minimal("1.2.840.10008.5.1.4.1.1.88.33"), *(Dataset() for _ in range(4))
    concept.CodeValue, concept.CodingSchemeDesignator, concept.CodeMeaning = "121033", "DCM", "Subject Age"
    units.CodeValue, units.CodingSchemeDesignator, units.CodeMeaning = unit, "UCUM", "time"
    measured.NumericValue, measured.MeasurementUnitsCodeSequence = age, Sequence([units])
    item.RelationshipType, item.ValueType = "HAS OBS CONTEXT", "NUM"
    item.ConceptNameCodeSequence, item.MeasuredValueSequence = Sequence([concept]), Sequence([measured])
    ds.ContentSequence = Sequence([item])
    after, _ = redacted(ds, Option.CLEAN_STRUCTURED_CONTENT, Option.RETAIN_PATIENT_CHARACTERISTICS)
    assert after.ContentSequence[0].MeasuredValueSequence[0].NumericValue == kept
    after, _ = redacted(ds, Option.CLEAN_STRUCTURED_CONTENT)
    assert not after.ContentSequence


def test_dates_of_one_person_move_alike_and_intervals_stay() -> None:
    first, second, other = minimal(), minimal(), minimal()
    first.StudyDate, second.StudyDate, other.StudyDate = "20210310", "20210317", "20210310"
    first.StudyTime, first.AcquisitionDateTime = "134501", "20210311084500.5+0100"
    other.PatientID = "ANOTHER9"
    results = [redacted(ds, Option.RETAIN_MODIFIED_DATES)[0] for ds in (first, second, other)]
    days = [date.fromisoformat(ds.StudyDate) for ds in results]
    assert (days[1] - days[0]).days == 7
    assert days[0] not in (days[2], date(2021, 3, 10))
    assert results[0].StudyTime == "134501"
    moved = str(results[0].AcquisitionDateTime)
    assert (date.fromisoformat(moved[:8]) - days[0]).days == 1
    assert moved[8:] == "084500.5+0100"
    assert results[0].LongitudinalTemporalInformationModified == "MODIFIED"
    assert {code.CodeValue for code in results[0].DeidentificationMethodCodeSequence} == {"113100", "113107"}


def test_a_date_that_many_people_share_does_not_move() -> None:
    ds = minimal()
    ds.StudyDate, ds.DateOfLastCalibration, ds.DateOfSecondaryCapture = "20210310", "20210301", "19000101"
    for options in ([], [Option.RETAIN_DEVICE_IDENTITY]):
        after, _ = redacted(ds, Option.RETAIN_MODIFIED_DATES, *options)
        assert "DateOfLastCalibration" not in after
        assert after.get("DateOfSecondaryCapture") in (None, "19000101")
    after, _ = redacted(ds, Option.RETAIN_DEVICE_IDENTITY)
    assert after.DateOfLastCalibration == "20210301"


@pytest.mark.parametrize("value", ["Kowalczyk", "2021031", "20211310", "20210310Kow"])
def test_what_is_no_date_is_not_kept_as_one(value: str) -> None:
    ds = minimal()
    ds.add_new(0x00181012, "DA", value)  # Date of Secondary Capture
    ds.add_new(0x00080021, "DA", value)
    for option in (Option.RETAIN_FULL_DATES, Option.RETAIN_MODIFIED_DATES):
        _, result = redacted(ds, option)
        assert value.encode() not in result.data


def test_descriptions_keep_the_words_that_name_nobody() -> None:
    ds = minimal()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.StudyDescription = "CT Thorax with contrast, Dr. Kowalczyk, 0171 5551234"
    ds.SeriesDescription = "t2_tse_sag 5mm L4/L5 Schädel"
    ds.ProtocolName = "Kowalczyk Spezial"
    ds.PatientComments = "K O W A L C Z Y K, 12/03/1980"
    after, result = redacted(ds, Option.CLEAN_DESCRIPTORS)
    assert after.StudyDescription.startswith("CT Thorax with contrast")
    assert after.SeriesDescription == "t2_tse_sag 5mm L4/L5 Schadel"
    assert "PatientComments" not in after
    assert not re.search(rb"owalczyk|5551234|1980|K O W|KOWAL", result.data)
    assert {code.CodeValue for code in after.DeidentificationMethodCodeSequence} == {"113100", "113105"}


def private_object() -> Dataset:
    """An object with private elements: safe by the table, not in the table, and of a block of its own word."""
    ds = minimal()
    known = ds.private_block(0x0019, "GEMS_ACQU_01", create=True)
    known.add_new(0x9E, "LO", "efgre3d")
    known.add_new(0x01, "LO", "Kowalczyk")
    said = ds.private_block(0x0029, "ACME", create=True)
    said.add_new(0x10, "DS", "1.5")
    said.add_new(0x11, "LO", "of Aurelia Cnryson")
    unsaid = ds.private_block(0x0031, "GEMS_ACQU_01", create=True)  # the creator, in another group
    unsaid.add_new(0x9E, "LO", "Kowalczyk")
    item = Dataset()
    item.PrivateGroupReference, item.PrivateCreatorReference = 0x0029, "ACME"
    item.BlockIdentifyingInformationStatus = "SAFE"
    ds.PrivateDataElementCharacteristicsSequence = Sequence([item])
    return ds


def test_private_elements_stay_by_the_table_and_by_the_word_of_the_object() -> None:
    after, result = redacted(private_object(), Option.RETAIN_SAFE_PRIVATE)
    assert after.private_block(0x0019, "GEMS_ACQU_01")[0x9E].value == "efgre3d"
    assert 0x01 not in after.private_block(0x0019, "GEMS_ACQU_01")
    assert after.private_block(0x0029, "ACME")[0x10].value == 1.5
    assert b"owalczyk" not in result.data
    assert b"Cnryson" not in result.data
    assert [
        (item.PrivateGroupReference, item.PrivateCreatorReference, item.BlockIdentifyingInformationStatus)
        for item in after.PrivateDataElementCharacteristicsSequence
    ] == [(0x0019, "GEMS_ACQU_01", "SAFE"), (0x0029, "ACME", "SAFE")]
    basic, _ = redacted(private_object())
    assert not any(element.tag.is_private for element in basic)
    assert "PrivateDataElementCharacteristicsSequence" not in basic


def test_the_word_of_the_object_is_not_taken_where_the_profile_says_so() -> None:
    source = b'edition = "2026c"\noptions = ["retain-safe-private"]\ntrust_private_characteristics = false'
    result = redact(written(private_object()), PSEUDONYMS, Profile.parse(source))
    assert b"ACME" not in result.data
    assert b"efgre3d" in result.data


def test_two_creators_of_one_block_make_nothing_safe() -> None:
    data = written(private_object())
    at = data.index(b"\x19\x00\x10\x00LO")
    second = b"\x19\x00\x10\x00LO\x0a\x00OTHERMAKER"
    result = redact(data[:at] + second + data[at:], PSEUDONYMS, Profile.of([Option.RETAIN_SAFE_PRIVATE]))
    assert b"efgre3d" not in result.data


def report() -> Dataset:
    """A report: words, a measurement, a person, a reference, and evidence for it."""

    def item(kind: str, code: tuple[str, str, str], **values: object) -> Dataset:
        found, concept = Dataset(), Dataset()
        concept.CodeValue, concept.CodingSchemeDesignator, concept.CodeMeaning = code
        found.RelationshipType, found.ValueType = "CONTAINS", kind
        found.ConceptNameCodeSequence = Sequence([concept])
        for keyword, value in values.items():
            setattr(found, keyword, value)
        return found

    ds = minimal("1.2.840.10008.5.1.4.1.1.88.33")
    measured, image, study, series = Dataset(), Dataset(), Dataset(), Dataset()
    measured.NumericValue = "12.5"
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"{ROOT}.41"
    study.StudyInstanceUID, series.SeriesInstanceUID = f"{ROOT}.2", f"{ROOT}.3"
    series.ReferencedSOPSequence = Sequence([image])
    study.ReferencedSeriesSequence = Sequence([series])
    ds.CurrentRequestedProcedureEvidenceSequence = Sequence([study])
    ds.ContentSequence = Sequence(
        [
            item("TEXT", ("121071", "DCM", "Finding"), TextValue="small nodule in the right lung, told Mrs Kowalczyk"),
            item("NUM", ("103355008", "SCT", "Width"), MeasuredValueSequence=Sequence([measured])),
            item("PNAME", ("121008", "DCM", "Person Observer Name"), PersonName="Kowalczyk^Jan"),
            item("TEXT", ("121022", "DCM", "Accession Number"), TextValue="chest"),
            item("IMAGE", ("111040", "DCM", "Original Source"), ReferencedSOPSequence=Sequence([image])),
            item("TEXT", ("4711", "99ACME", "Kowalczyk scale"), TextValue="normal"),
        ]
    )
    return ds


def test_a_report_keeps_the_content_that_names_nobody() -> None:
    after, result = redacted(report(), Option.CLEAN_STRUCTURED_CONTENT, Option.CLEAN_DESCRIPTORS)
    assert b"owalczyk" not in result.data
    by_meaning = {item.ConceptNameCodeSequence[0].CodeMeaning: item for item in after.ContentSequence}
    assert by_meaning["Finding"].TextValue.startswith("small nodule in the right lung")
    assert by_meaning["Width"].MeasuredValueSequence[0].NumericValue == 12.5
    assert "Accession Number" not in by_meaning
    assert result.receipt.actions["CONTENT"] >= 1
    basic, _ = redacted(report())
    assert len(basic.ContentSequence) == 6
    assert basic.ContentSequence[0].TextValue == "ANONYMIZED"


@pytest.mark.parametrize("options", [[], [Option.CLEAN_STRUCTURED_CONTENT], [Option.RETAIN_UIDS]])
def test_references_of_a_report_are_those_of_its_evidence(options: list[Option]) -> None:
    after, _ = redacted(report(), *options)
    series = after.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    evidence = {item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence}
    cited = {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in after.ContentSequence
        if "ReferencedSOPSequence" in item
    }
    assert cited == evidence
    assert (cited == {f"{ROOT}.41"}) == (Option.RETAIN_UIDS in options)


def test_no_item_is_left_out_of_a_report_that_refers_to_items_by_their_place() -> None:
    ds = report()
    reference = Dataset()
    reference.RelationshipType, reference.ReferencedContentItemIdentifier = "INFERRED FROM", [1, 4]
    ds.ContentSequence[0].ContentSequence = Sequence([reference])
    after, result = redacted(ds, Option.CLEAN_STRUCTURED_CONTENT)
    assert len(after.ContentSequence) == 6
    assert after.ContentSequence[3].TextValue == "ANONYMIZED"
    assert b"owalczyk" not in result.data


@pytest.mark.parametrize(
    ("modality", "part", "refused"),
    [("CT", "HEAD", True), ("CT", "", True), ("CT", "CHEST", False), ("CR", "SKULL", False), ("XC", "HAND", True)],
)
def test_an_object_that_may_show_a_face_is_refused_where_none_may_be_recognized(
    modality: str, part: str, refused: bool
) -> None:
    ds = minimal()
    ds.Modality, ds.BodyPartExamined = modality, part
    if refused:
        with pytest.raises(RefusedError) as caught:
            redacted(ds, Option.CLEAN_FACES)
        assert caught.value.code == ErrorCode.ERROR_CODE_NOT_REDACTABLE
    else:
        after, _ = redacted(ds, Option.CLEAN_FACES)
        assert after.RecognizableVisualFeatures == "NO"


def test_a_device_stays_known_and_an_institution_does_not() -> None:
    ds = minimal()
    ds.InstitutionName, ds.StationName, ds.DeviceSerialNumber = "Kowalczyk Clinic", "ROOM3", "SN-77123"
    after, result = redacted(ds, Option.RETAIN_DEVICE_IDENTITY)
    assert (after.StationName, after.DeviceSerialNumber) == ("ROOM3", "SN-77123")
    assert b"Kowalczyk Clinic" not in result.data
    after, result = redacted(ds, Option.RETAIN_INSTITUTION_IDENTITY)
    assert after.InstitutionName == "Kowalczyk Clinic"
    assert b"SN-77123" not in result.data


def test_an_override_is_done_and_said() -> None:
    source = b'edition = "2026c"\n[[override]]\nattribute = "KVP"\naction = "X"\nreason = "our protocol"\n'
    ds = minimal()
    ds.KVP = "120"
    after = pydicom.dcmread(io.BytesIO(redact(written(ds), PSEUDONYMS, Profile.parse(source)).data))
    assert "KVP" not in after
    assert "1 overrides" in str(after.DeidentificationMethod)


@pytest.mark.parametrize("profile", COMPOSED, ids=lambda profile: "+".join(profile.options) or profile.name)
def test_every_value_of_real_objects_that_a_profile_tells_to_change_is_changed(profile: Profile) -> None:
    checked = 0
    for path in BUNDLE:
        if path.name in REFUSED or path.stat().st_size > 60_000:
            continue
        data = path.read_bytes()
        before = dicom.read(data)
        try:
            result = redact(data, PSEUDONYMS, profile)
        except RefusedError as error:  # a date that stays may be that of birth, a UID may hold the patient's number
            kept = {Option.RETAIN_FULL_DATES, Option.RETAIN_UIDS} & set(profile.options)
            damaged = error.code == ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE and path.name in DAMAGED_PIXELS
            if not damaged and (error.code != ErrorCode.ERROR_CODE_RESIDUAL_IDENTITY or not kept):
                raise
            continue
        plan = profile.plan(str(before.get("SOPClassUID", "")))
        kept = {place: holder[tag] for place, holder, tag in walked(pydicom.dcmread(io.BytesIO(result.data)))}
        for place, holder, tag in walked(before):
            element, new = holder[tag], kept.get(place)
            action = (plan.nested if len(place) > 1 else plan.root).get(tag)
            changes = action in (Action.REMOVE, Action.EMPTY, Action.DUMMY, Action.UID, Action.SHIFT, Action.LABEL)
            if new is None or not changes or element.VR in ("SQ", "TM", "SH") or not str(element.value or "").strip():
                continue
            text = str(element.value)
            if is_public_uid(text) or text.upper() in DUMMIES or Option.CLEAN_STRUCTURED_CONTENT in profile.options:
                continue
            checked += 1
            assert str(new.value) == "" or new.value != element.value, (path.name, hex(tag))
    assert checked > 100 or Option.CLEAN_STRUCTURED_CONTENT in profile.options


@pytest.mark.parametrize(
    ("scheme", "value", "stays"),
    [
        ("DCM", "121071", True),
        ("SCT", "103355008", True),
        ("SRT", "T-A0100", True),
        ("UCUM", "mm", True),
        ("UCUM", "{counts}/s", True),
        ("DCM", "KOWALCZYK", False),
        ("SCT", "KOWALCZYK", False),
        ("UCUM", "{Kowalczyk}", False),
        ("99ACME", "121071", False),
    ],
)
@pytest.mark.parametrize("options", [[], [Option.CLEAN_STRUCTURED_CONTENT]])
def test_a_code_stays_in_a_report_where_its_scheme_is_public_and_it_has_its_form(
    scheme: str, value: str, stays: bool, options: list[Option]
) -> None:
    ds = report()
    (code,) = ds.ContentSequence[0].ConceptNameCodeSequence
    code.CodingSchemeDesignator, code.CodeValue = scheme, value
    after, _ = redacted(ds, *options)
    left = after.ContentSequence[0].ConceptNameCodeSequence[0]
    assert (left.CodeValue, left.CodingSchemeDesignator) == ((value, scheme) if stays else ("ANONYMIZED", "99ANON"))


def test_no_canary_survives_where_pixels_are_cleaned() -> None:
    data, planted = planted_object(False)
    result = redact(data, PSEUDONYMS, Profile.of([Option.CLEAN_PIXELS]))
    assert survivors(result.data, planted) == []
    after = pydicom.dcmread(io.BytesIO(result.data))
    assert after.BurnedInAnnotation == "NO"
    assert "113101" in {code.CodeValue for code in after.DeidentificationMethodCodeSequence}
