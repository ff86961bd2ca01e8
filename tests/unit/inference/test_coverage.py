"""Which objects the chest model covers, by their headers."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from services.inference.coverage import Coverage, coverage, modality_of

COVERED, SILENT, OTHER = Coverage.COVERED, Coverage.SILENT, Coverage.OTHER


def _code(value: str) -> Sequence:
    item = Dataset()
    item.CodeValue = value
    return Sequence([item])


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"Modality": "CR", "BodyPartExamined": "CHEST", "ViewPosition": "PA"}, COVERED),
        ({"Modality": "DX", "BodyPartExamined": "CHEST"}, COVERED),
        ({"Modality": "RG", "BodyPartExamined": "Thorax", "ViewPosition": "AP"}, COVERED),
        ({"Modality": "DX", "BodyPartExamined": "TORAX P.A."}, COVERED),
        ({"Modality": "DX", "AnatomicRegionSequence": _code("51185008")}, COVERED),
        (
            {"Modality": "DX", "AnatomicRegionSequence": _code("T-D3000"), "ViewCodeSequence": _code("399348003")},
            COVERED,
        ),
        ({"Modality": "OT", "BodyPartExamined": "CHEST"}, COVERED),
        ({"Modality": "DX"}, SILENT),
        ({"Modality": "CR", "BodyPartExamined": "", "ViewPosition": ""}, SILENT),
        ({"Modality": "CR", "BodyPartExamined": "ROUTINE 1"}, SILENT),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1"}, SILENT),
        ({"Modality": "CR", "PatientOrientation": ["L", "F"]}, SILENT),
        ({"Modality": "CR", "PatientOrientation": ["A", "F"], "BodyPartExamined": "CHEST"}, OTHER),
        ({"Modality": "CR", "BodyPartExamined": "CHEST", "ViewPosition": "LL"}, OTHER),
        ({"Modality": "DX", "BodyPartExamined": "CHEST", "ViewPosition": "LATERAL"}, OTHER),
        ({"Modality": "DX", "BodyPartExamined": "CHEST", "ViewCodeSequence": _code("399173006")}, OTHER),
        ({"Modality": "CR", "BodyPartExamined": "EXTREMITY"}, OTHER),
        ({"Modality": "DX", "BodyPartExamined": "T SPINE"}, OTHER),
        ({"Modality": "DX", "BodyPartExamined": "RIBS"}, OTHER),
        ({"Modality": "DX", "BodyPartExamined": "ABDOMEN"}, OTHER),
        ({"Modality": "DX", "AnatomicRegionSequence": _code("69536005")}, OTHER),
        ({"Modality": "CT", "BodyPartExamined": "CHEST"}, OTHER),
        ({"Modality": "MG", "BodyPartExamined": "BREAST"}, OTHER),
        ({"Modality": "US"}, OTHER),
        ({"Modality": "OT"}, OTHER),
        ({}, OTHER),
        ({"Modality": ["CR", "DX"]}, OTHER),
        ({"Modality": "CR", "BodyPartExamined": ["CHEST", "ABDOMEN"], "PatientOrientation": ""}, SILENT),
    ],
)
def test_only_frontal_radiographs_of_chests_are_covered(attributes: dict[str, Any], expected: Coverage) -> None:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    found = coverage(dataset)
    assert found.coverage is expected
    assert bool(found.why) is (expected is OTHER)


def test_the_modality_is_implied_by_the_sop_class_where_it_is_absent() -> None:
    dataset = Dataset()
    assert modality_of(dataset) == ""
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    assert modality_of(dataset) == "DX"
