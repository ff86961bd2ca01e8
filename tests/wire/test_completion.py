"""What ingest makes of a study as it comes in over real associations: its device, its completeness, its revisions."""

import socket
from collections.abc import Iterator

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from stepwedge.ingest.v1 import ingest_pb2
from tests.wire.ingest_house import DX, House, Sender, dx, house

EXPLICIT = str(ExplicitVRLittleEndian)


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One house for all tests of this file."""
    toml = """
rooms = { "CR-4" = "Emergency", "BY_TITLE" = "Ward 3" }
"""
    with house(tmp_path_factory.mktemp("completion"), port, toml) as made:
        yield made


def store(at_home: House, *objects: Dataset, title: str = "MODALITY") -> list[int]:
    with Sender(at_home.dimse, [(DX, EXPLICIT)], title) as sender:
        return [int(sender.store(ds).Status) for ds in objects]


def test_lists_and_counts_tell_the_device_and_the_room_of_each_image(at_home: House):
    named, nameless = dx(), dx()
    named.StationName, named.Manufacturer, named.ManufacturerModelName = "CR-4", "Maker", "M1"
    named.InstitutionalDepartmentName, named.DeviceSerialNumber = "Radiology", "0815"
    assert store(at_home, named, title="CR4_AE") == [0]
    assert store(at_home, nameless, title="BY_TITLE") == [0]
    study = at_home.in_state(named.StudyInstanceUID, "DONE", revision=1)
    at_home.in_state(nameless.StudyInstanceUID, "DONE", revision=1)
    device = study.instances[0].device
    assert (device.room, device.station, device.department) == ("Emergency", "CR-4", "Radiology")
    assert (device.manufacturer, device.model, device.serial_number) == ("Maker", "M1", "0815")
    assert device.calling_ae_title == "CR4_AE"
    assert study.device == device

    stub = at_home.ingest()
    for wanted, expected in (({"room": "Ward 3"}, nameless), ({"station": "CR-4"}, named), ({"id": device.id}, named)):
        request = ingest_pb2.ListStudiesRequest(device=ingest_pb2.DeviceFilter(**wanted))
        found = stub.ListStudies(request, timeout=10).studies
        assert [one.study_instance_uid for one in found] == [expected.StudyInstanceUID]
        assert found[0].device.room in ("Emergency", "Ward 3")
    counted = stub.SummarizeDecisions(ingest_pb2.SummarizeDecisionsRequest(), timeout=10)
    assert {one.room for one in counted.devices} == {"Emergency", "Ward 3"}
    assert sorted((one.device_id, one.count) for one in counted.by_device) == sorted(
        (one.id, 1) for one in counted.devices
    )
    only = ingest_pb2.SummarizeDecisionsRequest(device=ingest_pb2.DeviceFilter(room="Emergency"))
    assert sum(one.count for one in stub.SummarizeDecisions(only, timeout=10).decisions) == 1


def test_the_log_and_the_processes_own_lines_hold_nothing_of_the_device(at_home: House):
    ds = dx()
    ds.StationName, ds.PerformedLocation = "XYZZYSTATION", "XYZZYROOM"
    assert store(at_home, ds, title="XYZZYTITLE") == [0]
    at_home.in_state(ds.StudyInstanceUID, "DONE", revision=1)
    assert not any(b"XYZZY" in record.SerializeToString() for record in at_home.entries())
    assert "XYZZY" not in at_home.log_text()
