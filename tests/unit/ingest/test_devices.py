"""Which device made an image: kept once, found by room and station, and unknown where nothing is said."""

import io
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from sqlalchemy import Engine, select, text, update

from services.ingest import devices
from services.ingest.devices import Devices, Said, Wanted
from services.ingest.reviews import Reviews
from services.ingest.store import MIGRATIONS, Arrival, StudyStore
from services.ingest.tables import Device, Study
from shared import database, dicom, dicom_encoding
from shared.dicom import Equipment
from tests.unit.ingest.conftest import NOW, QUIET
from tests.wire.ingest_house import dx, part10

Make = Callable[..., Arrival]
ONE = Said(Equipment(station="CR1", manufacturer="Maker", model="M1", location="Level 2"), "CR1_AE")
OTHER = Said(Equipment(station="CR2", manufacturer="Maker", model="M2"), "CR2_AE")


def made_by(arrival: Arrival, device: Said) -> Arrival:
    from dataclasses import replace

    return replace(arrival, device=device)


def test_two_images_of_one_device_name_one_row_and_another_process_finds_it(
    studies: StudyStore, engine: Engine, arrival: Make
):
    first, _ = studies.receive(made_by(arrival("1"), ONE), NOW)
    second, _ = studies.receive(made_by(arrival("2"), ONE), NOW)
    third, _ = StudyStore(engine, quiet=QUIET).receive(made_by(arrival("3", study="2"), ONE), NOW)
    assert first.device_id == second.device_id == third.device_id is not None
    with engine.connect() as connection:
        assert len(connection.execute(select(Device)).all()) == 1


def test_a_study_is_of_the_device_of_its_first_image_that_names_one(studies: StudyStore, arrival: Make):
    studies.receive(arrival("1"), NOW)
    named, _ = studies.receive(made_by(arrival("2"), ONE), NOW)
    studies.receive(made_by(arrival("3"), OTHER), NOW)
    assert studies.snapshot(named.study_id).study.device_id == named.device_id


def test_studies_are_listed_by_room_station_and_model(engine: Engine, arrival: Make):
    studies = StudyStore(engine, quiet=QUIET, rooms={"CR2": "Emergency", "CR1_AE": ""})
    for number, device in (("1", ONE), ("2", OTHER), ("3", ONE), ("4", devices.NOTHING)):
        studies.receive(made_by(arrival(number, study=number), device), NOW)

    def listed(**wanted: str) -> list[str]:
        page = studies.page(state=None, before=None, size=10, wanted=Wanted(**wanted))
        return [study.study_instance_uid[-1] for study in page]

    assert listed() == ["4", "3", "2", "1"]
    assert listed(room="Emergency") == ["2"]
    assert listed(room="Level 2") == ["3", "1"]
    assert listed(station="CR1") == ["3", "1"]
    assert listed(manufacturer="Maker", model="M2") == ["2"]
    assert listed(room="Emergency", station="CR1") == []


def test_the_room_is_what_the_site_says_before_what_the_image_says(engine: Engine):
    device = Device(station="CR1", calling_ae_title="CR1_AE", location="Level 2")
    assert Devices(engine, {}).room(device) == "Level 2"
    assert Devices(engine, {"CR1_AE": "Room 4"}).room(device) == "Room 4"
    assert Devices(engine, {"CR1": "Room 5", "CR1_AE": "Room 4"}).room(device) == "Room 5"


def test_a_sender_that_invents_devices_does_not_fill_the_table(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "MOST_DEVICES", 3)
    monkeypatch.setattr(devices, "_REMEMBERED", 2)
    made = Devices(engine, {})
    rows = [made.row_of(Said(Equipment(station=f"CR{number}"))) for number in range(6)]
    assert rows[3:] == [None, None, None]
    assert made.row_of(Said(Equipment(station="CR0"))) == rows[0], "a known one is found all the same"


def test_decisions_and_reasons_are_counted_by_device(studies: StudyStore, engine: Engine, arrival: Make):
    reviews = Reviews(engine, commit=lambda digest: digest)
    for number, device, verdict, reasons in (("1", ONE, 3, [4]), ("2", ONE, 1, []), ("3", devices.NOTHING, 3, [4, 5])):
        row, _ = studies.receive(made_by(arrival(number, study=number), device), NOW)
        with engine.begin() as connection:
            connection.execute(
                update(Study).where(Study.id == row.study_id).values(verdict=verdict, reasons=reasons, decided_at=NOW)
            )
    day, span = NOW.date().isoformat(), (NOW - timedelta(days=1), NOW + timedelta(days=1))
    known = studies.devices.matching(Wanted(station="CR1"))
    found = reviews.summary(*span)
    assert found.by_device == {(day, known[0], 3): 1, (day, known[0], 1): 1, (day, 0, 3): 1}
    assert found.reasons_by_device == {(day, known[0], 4): 1, (day, 0, 4): 1, (day, 0, 5): 1}
    only = reviews.summary(*span, known)
    assert sum(only.decisions.values()) == 2
    assert only.states["RECEIVING"][0] == 2


def test_a_database_from_before_devices_is_upgraded_and_its_studies_are_of_none(tmp_path: Path, arrival: Make):
    engine = database.create_engine(f"sqlite:///{tmp_path / 'old.db'}")
    old = tmp_path / "old" / "versions"
    old.mkdir(parents=True)
    for version in sorted((MIGRATIONS / "versions").glob("000[123]_*.py")):
        (old / version.name).write_text(version.read_text())
    database.upgrade(engine, old.parent)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO studies (study_instance_uid, pseudonym, state, generation, revision, first_received_at,"
                " last_received_at, waiting_for, attempts, last_error) VALUES ('1.2.3.1', '2.25.11', 'DONE', 1, 0,"
                " '2026-01-01 00:00:00', '2026-01-01 00:00:00', '', 0, 0)"
            )
        )
    database.upgrade(engine, MIGRATIONS)
    studies = StudyStore(engine, quiet=QUIET)
    assert [study.device_id for study in studies.page(state=None, before=None, size=5)] == [None]
    row, _ = studies.receive(made_by(arrival("9"), ONE), NOW)
    assert studies.snapshot(row.study_id).study.device_id == row.device_id is not None
    engine.dispose()


def said_by(ds: Dataset) -> Equipment:
    return dicom.equipment(dicom_encoding.parse(part10(ds)))


def test_what_an_object_says_of_its_device_is_read_in_its_character_set():
    ds = dx()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.StationName, ds.Manufacturer, ds.ManufacturerModelName = "RÖNTGEN 1", "Maker", "M1 "
    ds.InstitutionalDepartmentName, ds.DeviceSerialNumber = "Radiology", "0815"
    ds.PerformedLocation = "Level 2"
    assert said_by(ds) == Equipment("RÖNTGEN 1", "Radiology", "Level 2", "Maker", "M1", "0815")


def test_a_device_of_any_object_of_the_wild_is_short_and_printable():
    for path in sorted(Path(pydicom.__file__).parent.joinpath("data").rglob("*.dcm")):
        try:
            encoded = dicom_encoding.parse(path.read_bytes())
        except Exception:
            continue
        found = dicom.equipment(encoded)
        for value in (getattr(found, name) for name in Equipment.__dataclass_fields__):
            assert len(value) <= 64
            assert value.isprintable()


def test_script_and_control_characters_in_a_station_name_are_a_line_of_text():
    ds = dx()
    ds.add_new(0x00081010, "SH", "")
    whole = (
        io.BytesIO(part10(ds))
        .getvalue()
        .replace(b"\x08\x00\x10\x10SH\x00\x00", b"\x08\x00\x10\x10SH\x06\x00a\x00b\x1b\nc")
    )
    assert dicom.equipment(dicom_encoding.parse(whole)).station.isprintable()
