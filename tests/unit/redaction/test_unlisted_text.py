"""Names typed into fields that no table lists, by people of whom the object says nothing else."""

import copy
import io

import pydicom
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from services.redaction import words
from services.redaction.engine import RefusedError, redact
from services.redaction.profile import PROFILES, Profile
from shared.errors import ErrorCode
from shared.pseudonyms import Pseudonyms
from tests.unit.redaction.canaries import minimal
from tests.unit.redaction.test_engine import written

PSEUDONYMS = Pseudonyms(bytes(range(32)))
STRANGER = "Brzeziczanka"
FIELDS = (
    "SequenceName", "ConvolutionKernel", "FilterType", "PulseSequenceName", "ReceiveCoilName", "LUTExplanation",
    "PlateType", "RescaleType", "PositionReferenceIndicator", "ContrastBolusRoute", "AcquisitionDeviceProcessingCode",
    "TransducerData", "BeamName", "WindowCenterWidthExplanation", "ToleranceTableLabel", "BlockTrayID", "BlockName",
    "OpticalPathIdentifier", "OpticalPathDescription", "SegmentLabel", "SegmentDescription", "CodingSchemeName",
    "FrameLabel", "StackID", "InstructionText", "SetupDeviceDescription", "TrackingID", "DataSetDescription",
    "CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "LongCodeValue", "CodeMeaning", "URNCodeValue",
)  # fmt: skip


def made(ds: Dataset, profile: str = "basic") -> tuple[bytes, Dataset]:
    """The result, whose second redaction changes nothing."""
    compiled = Profile.load(PROFILES / f"{profile}.toml")
    first = redact(written(ds), PSEUDONYMS, compiled).data
    assert redact(first, PSEUDONYMS, compiled).data == first
    return first, pydicom.dcmread(io.BytesIO(first))


@pytest.mark.parametrize("profile", ["basic", "research", "quality"])
@pytest.mark.parametrize("keyword", FIELDS)
def test_a_strangers_name_goes_from_a_field_that_no_table_lists(keyword: str, profile: str) -> None:
    for text in (STRANGER, f"fuer {STRANGER} 555-0192", f"{STRANGER} 12.03.1971"):
        ds = minimal()
        item = Dataset()
        for one in (ds, item):
            setattr(one, keyword, text[:16] if dictionary_VR(keyword) == "SH" else text)
        ds.AnatomicRegionSequence = [item]
        data, result = made(ds, profile)
        assert b"zeziczan" not in data
        assert b"0192" not in data
        assert b"1971" not in data
        assert keyword in result  # something valid stands there


def test_a_name_split_over_two_fields_goes() -> None:
    ds = minimal()
    ds.PatientName = "Brzeziczanka^Kazimiera"
    ds.SequenceName, ds.FilterType, ds.ConvolutionKernel, ds.PlateType = "Brzezi", "czanka", "Kazim", "iera"
    data, _ = made(ds)
    for part in (b"Brzezi", b"czanka", b"Kazim", b"iera"):
        assert part not in data


def test_settings_of_devices_stay() -> None:
    ds = minimal()
    ds.Manufacturer, ds.ManufacturerModelName, ds.SoftwareVersions = (
        "ACME",
        "LightSpeed Ultra",
        ["V3.51*P25", "syngo 4"],
    )
    ds.SequenceName, ds.ConvolutionKernel, ds.FilterType = "*fl3d1", "B30s", "0.1Cu 1Al"
    ds.ImagedNucleus, ds.PulseSequenceName, ds.StackID, ds.PlateType = "1H", "T1TFE", "1", "ST"
    ds.PositionReferenceIndicator, ds.DimensionDescriptionLabel = "SN", "ReferencedSegmentNumber"
    before = {element.tag: element.value for element in ds if element.tag >> 16 in (0x0018, 0x0020)}
    _, after = made(copy.deepcopy(ds))
    for tag, value in before.items():
        if dictionary_VR(tag) in ("LO", "SH"):
            assert after[tag].value == value
    assert (after.Manufacturer, after.ManufacturerModelName) == ("ACME", "LightSpeed Ultra")
    assert list(after.SoftwareVersions) == ["V3.51*P25", "syngo 4"]


def test_what_leads_from_one_place_to_another_leads_there_still() -> None:
    ds = minimal()
    path, frame = Dataset(), Dataset()
    path.OpticalPathIdentifier = frame.ReferencedOpticalPathIdentifier = "Brzeziczanka1"
    other = Dataset()
    other.OpticalPathIdentifier = "Brzeziczanka2"
    ds.OpticalPathSequence, ds.OpticalPathIdentificationSequence = [path, other], [frame]
    _, after = made(ds)
    first, second = (item.OpticalPathIdentifier for item in after.OpticalPathSequence)
    assert first != second
    assert after.OpticalPathIdentificationSequence[0].ReferencedOpticalPathIdentifier == first


def test_codes_of_public_schemes_stay_and_their_meanings_are_judged() -> None:
    ds = minimal()
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "51185008", "SCT", f"Chest of {STRANGER}"
    ds.AnatomicRegionSequence = [code]
    _, after = made(ds)
    kept = after.AnatomicRegionSequence[0]
    assert (kept.CodeValue, kept.CodingSchemeDesignator, kept.CodeMeaning) == ("51185008", "SCT", "Chest of")


@pytest.mark.parametrize("tag", [0x60200022, 0x50200022, 0x60FE1500])
def test_a_group_beyond_those_of_overlays_and_curves_goes(tag: int) -> None:
    ds = minimal()
    ds.add_new(tag, "LO", STRANGER)
    _, after = made(ds)
    assert tag not in after


@pytest.mark.parametrize(("keyword", "vr"), [("SliceThickness", "DS"), ("NumberOfStudyRelatedSeries", "IS")])
def test_the_digits_of_an_identifier_in_a_number_quarantine(keyword: str, vr: str) -> None:
    ds = minimal()
    ds.AccessionNumber = "ACC77120934"
    ds.add_new(Tag(keyword), vr, "77120934")
    with pytest.raises(RefusedError) as caught:
        redact(written(ds), PSEUDONYMS, Profile.basic())
    assert caught.value.code == ErrorCode.ERROR_CODE_RESIDUAL_IDENTITY
    assert caught.value.receipt.second_opinion == {"NUMBER": 1}


def test_the_date_of_birth_in_a_report_goes_where_dates_stay() -> None:
    ds = minimal()
    ds.PatientBirthDate = "19470319"
    item, moment = Dataset(), Dataset()
    item.ValueType, item.Date = "DATE", "19470319"
    moment.ValueType, moment.DateTime = "DATETIME", "19470319101112"
    ds.ContentSequence = [item, moment]
    data, _ = made(ds, "quality")
    assert b"19470319" not in data


@pytest.mark.parametrize("text", ["für Brzeziczanka 0171 998", "T1TFE *fl3d1", "C5-1\\O'Brien", "a b c d", "1,349"])
def test_judging_a_label_twice_changes_nothing_more(text: str) -> None:
    once = words.technical(text)
    assert words.technical(once) == once


def test_a_site_keeps_a_field_by_an_override() -> None:
    override = b'[[override]]\nattribute = "SequenceName"\naction = "K"\nreason = "names of this trial"\n'
    profile = Profile.parse(b'name = "trial"\nedition = "2026c"\n' + override)
    ds = minimal()
    ds.SequenceName, ds.FilterType = STRANGER, STRANGER
    after = pydicom.dcmread(io.BytesIO(redact(written(ds), PSEUDONYMS, profile).data))
    assert (after.SequenceName, after.FilterType) == (STRANGER, "ANONYMIZED")
