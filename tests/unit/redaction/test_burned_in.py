"""Which objects may show a name in their pixels, by what they say of themselves."""

from pathlib import Path

import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from services.redaction.burned_in import risk
from shared.dicom_encoding import parse
from tests.shared_material import SHARED, needs_shared
from tests.unit.redaction.canaries import minimal
from tests.unit.redaction.test_engine import written

CT, MR, CR = (f"1.2.840.10008.5.1.4.1.1.{arc}" for arc in ("2", "4", "1"))
DX, MG, US, SC = (f"1.2.840.10008.5.1.4.1.1.{arc}" for arc in ("1.1", "1.2", "6.1", "7"))


def _risk(sop_class: str, **attributes: object) -> str:
    ds: Dataset = minimal(sop_class)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return risk(parse(written(ds)))


@pytest.mark.parametrize(
    ("sop_class", "attributes"),
    [
        (CT, {"Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}),
        (MR, {"Modality": "MR", "ImageType": ["DERIVED", "PRIMARY", "M"]}),
        (CR, {"Modality": "CR", "ImageType": ["DERIVED", "PRIMARY"]}),
        (DX, {"Modality": "DX", "ImageType": ["DERIVED", "PRIMARY"]}),
        (DX, {"Modality": "DX"}),
        (MG, {"Modality": "MG"}),
        (SC, {"Modality": "DX"}),
        (US, {"Modality": "US", "BurnedInAnnotation": "NO"}),
        (SC, {"Modality": "OT", "ConversionType": "WSD", "BurnedInAnnotation": "NO"}),
    ],
)
def test_an_ordinary_image_passes(sop_class: str, attributes: dict[str, object]) -> None:
    assert _risk(sop_class, **attributes) == ""


@pytest.mark.parametrize(
    ("sop_class", "attributes"),
    [
        (DX, {"Modality": "DX", "BurnedInAnnotation": "YES"}),
        (US, {"Modality": "US"}),
        (SC, {"Modality": "OT"}),
        (SC, {"Modality": "CT"}),
        (SC, {"Modality": "DX", "ConversionType": "DF"}),
        (SC, {"Modality": "DX", "ImageType": ["DERIVED", "SECONDARY"]}),
        (CR, {"Modality": "CR", "ImageType": ["DERIVED", "SECONDARY"], "ConversionType": "DI"}),
        (CT, {"Modality": "CT", "ImageType": ["DERIVED", "SECONDARY", "DOSE_INFO"], "BurnedInAnnotation": "NO"}),
        (CT, {"Modality": "CT", "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}),
        (CT, {"Modality": "CT", "RecognizableVisualFeatures": "YES"}),
        ("1.2.840.10008.5.1.4.1.1.77.1.1", {"Modality": "ES"}),
        ("1.2.840.10008.5.1.4.1.1.77.1.4", {"Modality": "XC"}),
    ],
)
def test_a_suspect_says_why(sop_class: str, attributes: dict[str, object]) -> None:
    assert _risk(sop_class, **attributes).endswith(("deny that", "burned in", "recognized", "report", "capture"))


def test_an_object_without_pixels_has_no_text_in_them() -> None:
    assert risk(parse(Path(get_testdata_file("reportsi.dcm")).read_bytes())) == ""


@needs_shared
@pytest.mark.parametrize("name", ["RG1_J2KI.dcm", "nih_dx_chest.dcm", "RG3_J2KR.dcm", "693_J2KR.dcm"])
def test_the_real_radiographs_pass(name: str) -> None:
    assert SHARED is not None
    assert risk(parse((SHARED / "data" / "dicom" / name).read_bytes())) == ""


@needs_shared
@pytest.mark.parametrize("name", ["US1_UNCI.dcm", "OBXXXX1A_2frame.dcm"])
def test_the_real_ultrasounds_with_burned_in_text_do_not(name: str) -> None:
    assert SHARED is not None
    assert risk(parse((SHARED / "data" / "dicom" / name).read_bytes()))
