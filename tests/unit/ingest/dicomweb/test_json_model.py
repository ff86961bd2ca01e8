"""The JSON model: as pydicom reads it, and as the standard writes it, whatever the values are."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from services.ingest.dicomweb import json_model
from shared import dicom


def bulk(path: str) -> str:
    return f"bulk/{path}"


@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        (
            "PatientName",
            "A^B=\u6f22^\u5b57=\u304b^\u306a",
            [{"Alphabetic": "A^B", "Ideographic": "\u6f22^\u5b57", "Phonetic": "\u304b^\u306a"}],
        ),
        ("PatientName", "", None),
        ("ImageType", ["ORIGINAL", "", "AXIAL"], ["ORIGINAL", None, "AXIAL"]),
        ("SliceThickness", "1.50", [1.5]),
        ("InstanceNumber", "7", [7]),
        ("FrameIncrementPointer", 0x00181063, ["00181063"]),
        ("RealWorldValueIntercept", float("nan"), ["NaN"]),
        ("RealWorldValueSlope", float("-inf"), ["-inf"]),
        ("Rows", 512, [512]),
        ("StudyDate", "20261122", ["20261122"]),
    ],
)
def test_each_kind_of_value_is_written_as_annex_f_says(keyword: str, value: Any, expected: Any):
    ds = Dataset()
    setattr(ds, keyword, value)
    made = json_model.of_dataset(ds, bulk)
    (one,) = made.values()
    assert one.get("Value") == expected
    json.loads(json_model.dumps(made), parse_constant=pytest.fail)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "rtplan.dcm", "reportsi.dcm", "examples_overlay.dcm"])
def test_real_objects_read_back_by_pydicom_are_the_same(name: str):
    ds = dicom.read(Path(str(get_testdata_file(name))).read_bytes())
    made = json_model.of_dataset(ds, bulk)
    assert not {tag for tag in made if tag.startswith("0002")}

    def fetched(tag: str, vr: str, address: str) -> Any:
        at: Any = ds
        *items, last = address.removeprefix("bulk/").split("/")
        for sequence, number in zip(items[::2], items[1::2], strict=True):
            at = at[int(sequence, 16)].value[int(number)]
        return at[int(last, 16)].value

    again = Dataset.from_json(json.loads(json_model.dumps(made)), bulk_data_uri_handler=fetched)
    for element in ds:
        if element.tag.element == 0:
            continue
        other = again[element.tag]
        if element.VR == "SQ":
            assert len(other.value) == len(element.value)
        elif element.VR in ("FL", "FD", "DS"):
            np.testing.assert_allclose(np.ravel(element.value or []), np.ravel(other.value or []))
        else:
            assert (other.value or None) == (element.value or None), element.tag


def test_xml_holds_no_character_that_xml_has_not():
    ds = Dataset()
    ds.StudyDescription = 'a\x00b\x1b<&">'
    ElementTree.fromstring(json_model.to_xml(json_model.of_dataset(ds)))
