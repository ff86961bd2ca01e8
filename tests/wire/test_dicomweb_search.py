"""QIDO-RS: what is held is found by what clients search for, and nothing of a person lies open in the database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from tests.wire.dicomweb_house import Web, dicomweb_house, parts_of
from tests.wire.ingest_house import DX, dx
from tests.wire.ports import port
from tests.wire.test_dicomweb_read import client, stored

NAMES = {"A": "SUCHWORT^Äda", "B": "SUCHWORT^Bob^^Dr", "C": "ANDERS^Cleo"}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with dicomweb_house(tmp_path_factory.mktemp("qido"), port, toml="max_results = 5") as made:
        yield made


@pytest.fixture(scope="module")
def studies(web: Web) -> dict[str, list[Dataset]]:
    """Three studies of three people, on three days, A with two series of three instances."""
    made: dict[str, list[Dataset]] = {}
    for number, (letter, name) in enumerate(NAMES.items()):
        study, series = generate_uid(None), generate_uid(None)
        objects = []
        for index in range(3 if letter == "A" else 1):
            ds = dx(study=study, series=series if index < 2 else "", seed=number * 10 + index)
            ds.SpecificCharacterSet = "ISO_IR 192"
            ds.PatientName, ds.PatientID, ds.AccessionNumber = name, f"NUMMER-{letter}", f"00{number}"
            ds.StudyDate, ds.StudyTime = f"2026010{number + 1}", f"1{number}3000.5"
            ds.StudyDescription = f"Thorax {letter}"
            ds.SeriesDescription, ds.SeriesNumber, ds.InstanceNumber = f"pa {index}", index // 2 + 1, index + 1
            ds.RequestAttributesSequence[0].ScheduledProcedureStepID = f"STEP-{letter}"
            objects.append(ds)
        stored(web, *objects)
        made[letter] = objects
    return made


def found(web: Web, query: str, studies: dict[str, list[Dataset]]) -> str:
    """The letters of the studies that a search finds."""
    answer = web.get(f"/studies?{query}")
    if answer.status == 204:
        return ""
    assert answer.status == 200, answer.body
    letters = {objects[0].StudyInstanceUID: letter for letter, objects in studies.items()}
    return "".join(sorted(letters[item["0020000D"]["Value"][0]] for item in answer.json))


@pytest.mark.parametrize(
    ("query", "letters"),
    [
        ("", "ABC"),
        ("PatientID=NUMMER-A", "A"),
        ("00100020=NUMMER-B", "B"),
        ("PatientID=nummer-a", ""),
        ("PatientID=NUMMER-*", "ABC"),
        ("PatientID=NUMMER-?", "ABC"),
        ("AccessionNumber=001", "B"),
        ("AccessionNumber=01", ""),
        ("PatientName=SUCHWORT*", "AB"),
        ("PatientName=suchwort*", "AB"),
        ("PatientName=SUCHWORT%5E%C3%84da", "A"),
        ("PatientName=*bob*", "B"),
        ("PatientName=SUCHWORT", ""),
        ("PatientName=*", "ABC"),
        ("PatientName=", "ABC"),
        ("StudyDate=20260102", "B"),
        ("StudyDate=20260102-", "BC"),
        ("StudyDate=-20260102", "AB"),
        ("StudyDate=20260102-20260103", "BC"),
        ("StudyDate=20270101-", ""),
        ("StudyTime=1130-1230", "BC"),
        ("StudyDescription=Thorax%20C", "C"),
        ("ModalitiesInStudy=DX", "ABC"),
        ("ModalitiesInStudy=CT", ""),
        ("ModalitiesInStudy=CT%5CDX", "ABC"),
        ("PatientName=SUCHWORT*&StudyDate=20260102", "B"),
        ("PatientName=.*", ""),
        ("PatientName=" + "*a" * 200, ""),
        ("_=12345", "ABC"),
        ("fuzzymatching=false", "ABC"),
    ],
)
def test_studies_are_found_by_what_is_searched_for(web: Web, studies: dict[str, Any], query: str, letters: str):
    assert found(web, query, studies) == letters


def test_lists_of_uids_are_found_with_commas_and_with_backslashes(web: Web, studies: dict[str, list[Dataset]]):
    uids = [studies[letter][0].StudyInstanceUID for letter in "AC"]
    for joined in (",".join(uids), "%5C".join(uids)):
        assert found(web, f"StudyInstanceUID={joined}", studies) == "AC"


def test_a_study_is_described_as_the_standard_says(web: Web, studies: dict[str, list[Dataset]]):
    ds = studies["A"][0]
    (item,) = web.get("/studies?PatientID=NUMMER-A&includefield=StudyDescription,00080060&includefield=00401001").json
    assert item == {
        "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
        "00080020": {"vr": "DA", "Value": ["20260101"]},
        "00080030": {"vr": "TM", "Value": ["103000.5"]},
        "00080050": {"vr": "SH", "Value": ["000"]},
        "00080056": {"vr": "CS", "Value": ["ONLINE"]},
        "00080061": {"vr": "CS", "Value": ["DX"]},
        "00080090": {"vr": "PN"},
        "00080201": {"vr": "SH"},
        "00081030": {"vr": "LO", "Value": ["Thorax A"]},
        "00081190": {"vr": "UR", "Value": [f"{web.root}/studies/{ds.StudyInstanceUID}"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "SUCHWORT^Äda"}]},
        "00100020": {"vr": "LO", "Value": ["NUMMER-A"]},
        "00100030": {"vr": "DA", "Value": ["19610203"]},
        "00100040": {"vr": "CS"},
        "0020000D": {"vr": "UI", "Value": [ds.StudyInstanceUID]},
        "00200010": {"vr": "SH"},
        "00201206": {"vr": "IS", "Value": [2]},
        "00201208": {"vr": "IS", "Value": [3]},
    }


def test_series_and_instances_are_found_below_a_study_and_everywhere(web: Web, studies: dict[str, list[Dataset]]):
    study = studies["A"][0].StudyInstanceUID
    series = web.get(f"/studies/{study}/series").json
    assert sorted(item["00201209"]["Value"] for item in series) == [[1], [2]]  # in the order in which they came
    assert "00100010" not in series[0], "the study is named by the address"
    (second,) = web.get(f"/studies/{study}/series?SeriesNumber=2").json
    assert second["0020000E"]["Value"] == [studies["A"][2].SeriesInstanceUID]
    assert second["00081190"]["Value"] == [f"{web.root}/studies/{study}/series/{studies['A'][2].SeriesInstanceUID}"]
    (of_step,) = web.get("/series?RequestAttributesSequence.ScheduledProcedureStepID=STEP-B").json
    assert of_step["00100020"]["Value"] == ["NUMMER-B"]
    assert web.get("/series?00400275.00400009=STEP-X").status == 204
    assert len(web.get(f"/series?Modality=DX&StudyInstanceUID={study}").json) == 2
    instances = web.get(f"/studies/{study}/instances?includefield=all").json
    assert {item["00080018"]["Value"][0] for item in instances} == {ds.SOPInstanceUID for ds in studies["A"]}
    assert instances[0]["00280010"] == {"vr": "US", "Value": [16]}
    assert "pa 0" in [item["0008103E"]["Value"][0] for item in instances]
    below = web.get(f"/studies/{study}/series/{studies['A'][0].SeriesInstanceUID}/instances?InstanceNumber=2").json
    assert [item["00080018"]["Value"][0] for item in below] == [studies["A"][1].SOPInstanceUID]
    assert web.get(f"/instances?SOPClassUID={DX}&SOPInstanceUID={studies['C'][0].SOPInstanceUID}").status == 200
    assert web.get("/instances?SOPClassUID=1.2.840.10008.5.1.4.1.1.2").status == 204


def test_pages_follow_each_other_without_gap_or_repeat(web: Web, studies: dict[str, list[Dataset]]):
    seen = []
    for offset in range(4):
        answer = web.get(f"/studies?limit=1&offset={offset}")
        assert answer.status == (200 if offset < 3 else 204)
        seen += [item["0020000D"]["Value"][0] for item in (answer.json if answer.body else [])]
        assert ("additional results" in answer.headers.get("warning", "")) == (offset < 2)
    assert sorted(seen) == sorted(objects[0].StudyInstanceUID for objects in studies.values())
    assert web.get("/studies?limit=0").status == 204


@pytest.mark.parametrize(
    "query",
    [
        "limit=x",
        "limit=-1",
        "limit=" + "9" * 5000,
        "offset=99999999",
        "StudyDate=yesterday",
        "StudyDate=20260101-x",
        "StudyInstanceUID=1.2.x",
        "PixelData=1",
        "Rows=16",
        "PatientName=" + "x" * 2000,
    ],
)
def test_a_search_that_cannot_be_made_is_refused(web: Web, query: str):
    assert web.get(f"/studies?{query}").status == 400


def test_what_is_not_done_is_said(web: Web, studies: dict[str, list[Dataset]]):
    answer = web.get("/studies?fuzzymatching=true&PatientName=SUCHWORT*")
    assert answer.headers["warning"].startswith('299 stepwedge "The fuzzymatching parameter is not supported.')
    assert web.get("/studies", "text/html").status == 406
    as_xml = web.get("/studies?PatientID=NUMMER-B", 'multipart/related; type="application/dicom+xml"')
    assert [b"<FamilyName>SUCHWORT</FamilyName>" in content for _, content in parts_of(as_xml)] == [True]
    assert web.get("/studies?accept=application/json&PatientID=NUMMER-B", "text/html").headers["content-type"] == (
        "application/json"
    )


def test_nothing_of_a_person_lies_open_in_the_database_or_in_a_log(web: Web, studies: dict[str, list[Dataset]]):
    assert found(web, "PatientName=SUCHWORT*", studies) == "AB"
    data = web.house.folder / "data"
    for file in [*data.glob("*.db*"), *web.house.folder.glob("*.stderr")]:
        content = file.read_bytes()
        for word in (b"SUCHWORT", b"NUMMER-", b"CANARY", b"Thorax"):
            assert word not in content, file.name


def test_a_search_is_a_record(web: Web, studies: dict[str, list[Dataset]]):
    before = len(web.house.entries())
    found(web, "PatientName=SUCHWORT*", studies)
    (record,) = [one for one in web.house.entries()[before:] if one.HasField("viewed")]
    assert (record.viewed.person, record.viewed.what) == ("pacs-1", "search")
    assert len(record.viewed.studies) == 2, "the studies that it showed, by their pseudonyms"
    assert all(one.startswith("2.25.") for one in record.viewed.studies)
    assert not record.viewed.HasField("more_studies")
    assert "SUCHWORT" not in str(record)


def test_the_client_library_of_the_field_searches(web: Web, studies: dict[str, list[Dataset]]):
    one: DICOMwebClient = client(web)
    ds = studies["B"][0]
    (item,) = one.search_for_studies(search_filters={"PatientID": "NUMMER-B"}, fields=["StudyDescription"])
    assert Dataset.from_json(item).StudyDescription == "Thorax B"
    (item,) = one.search_for_series(ds.StudyInstanceUID)
    assert Dataset.from_json(item).SeriesInstanceUID == ds.SeriesInstanceUID
    (item,) = one.search_for_instances(ds.StudyInstanceUID, ds.SeriesInstanceUID)
    assert Dataset.from_json(item).SOPInstanceUID == ds.SOPInstanceUID
    assert one.search_for_studies(search_filters={"PatientID": "NOBODY"}) == []
