"""What ingest makes of a study as it comes in over real associations: its device, its completeness, its revisions."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt

from shared.errors import from_rpc
from shared.identity import Identity
from stepwedge.common.v1.common_pb2 import Reason, Verdict
from stepwedge.ingest.v1 import ingest_pb2
from tests.unit.ingest.test_completion import notification
from tests.wire.cluster import eventually
from tests.wire.ingest_house import DX, House, Sender, dx, house
from tests.wire.ports import port

AVAILABILITY = "1.2.840.10008.5.1.4.33"
EXPLICIT = str(ExplicitVRLittleEndian)


@pytest.fixture(scope="module")
def at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One house for all tests of this file."""
    toml = """
rooms = { "CR-4" = "Emergency", "BY_TITLE" = "Ward 3" }
[ingest.completion]
wait_seconds = 3
[[ingest.completion.required]]
name = "chest"
modalities = ["DX"]
body_parts = ["CHEST"]
needs = [{ views = ["PA", "AP"] }, { views = ["LATERAL"] }]
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


def of_study(study: str, *, view: str = "", **said: int) -> Dataset:
    ds = dx(study=study)
    if view:
        ds.BodyPartExamined, ds.ViewPosition = "CHEST", view
    for keyword, value in said.items():
        setattr(ds, keyword, value)
    return ds


def notify(at_home: House, ds: Dataset, syntax: str = EXPLICIT, title: str = "PACS") -> tuple[int, str]:
    """N-CREATE of an Instance Availability Notification; its status, and the instance that the answer names."""
    ae = AE(title)
    ae.add_requested_context(AVAILABILITY, syntax)
    answers: list[Dataset] = []
    heard = [(evt.EVT_DIMSE_RECV, lambda event: answers.append(event.message.command_set))]
    association = ae.associate(*at_home.dimse, evt_handlers=heard)
    assert association.is_established
    try:
        status, _ = association.send_n_create(ds, AVAILABILITY, None)
        return int(status.Status), str(answers[-1].get("AffectedSOPInstanceUID", ""))
    finally:
        association.release()


def key(uid: str) -> ingest_pb2.StudyKey:
    return ingest_pb2.StudyKey(study_instance_uid=uid)


def test_a_late_image_by_an_association_opens_a_revision_whose_record_names_the_first(at_home: House):
    first = dx()
    assert store(at_home, first) == [0]
    at_home.in_state(first.StudyInstanceUID, "DONE", revision=1)
    assert store(at_home, dx(study=first.StudyInstanceUID)) == [0]
    study = at_home.in_state(first.StudyInstanceUID, "DONE", revision=2)
    decided = [one for one in at_home.entries(study=study.pseudonym) if one.HasField("decided")]
    assert [one.decided.revision for one in decided] == [1, 2]
    assert decided[1].decided.previous_index == study.decisions[0].record_index
    assert [one.instances for one in study.decisions] == [1, 2]


def test_a_study_without_its_second_view_waits_and_is_decided_as_incomplete_then_anew_when_it_comes(at_home: House):
    frontal = of_study("", view="PA")
    uid = frontal.StudyInstanceUID
    assert store(at_home, frontal) == [0]
    waiting = eventually(
        lambda: (study := at_home.study(uid)) and study.HasField("incomplete") and study, 10, what="the study waits"
    )
    assert list(waiting.incomplete.unmet_rules) == ["chest"]
    told = at_home.ingest().ExplainStudy(ingest_pb2.ExplainStudyRequest(study=key(uid)), timeout=10)
    assert "rule chest" in told.why
    assert "stepwedge complete" in told.next
    study = at_home.in_state(uid, "DONE", revision=1)
    assert study.verdict == Verdict.VERDICT_REVIEW
    assert list(study.reasons) == [Reason.REASON_INCOMPLETE]
    assert store(at_home, of_study(uid, view="LL")) == [0]
    study = at_home.in_state(uid, "DONE", revision=2)
    assert study.verdict == Verdict.VERDICT_ACCEPT
    assert not study.HasField("incomplete")
    records = [one.decided for one in at_home.entries(study=study.pseudonym) if one.HasField("decided")]
    assert [list(one.unmet_rules) for one in records] == [["chest"], []]
    assert records[1].HasField("previous_index")


def test_the_numbers_that_images_carry_are_waited_for(at_home: House):
    first = of_study("", NumberOfStudyRelatedInstances=2)
    assert store(at_home, first) == [0]
    uid = first.StudyInstanceUID
    eventually(lambda: (study := at_home.study(uid)) and study.HasField("incomplete"), 10, what="the study waits")
    assert store(at_home, dx(study=uid)) == [0]
    study = at_home.in_state(uid, "DONE", revision=1)
    assert (study.decisions[0].instances, study.verdict) == (2, Verdict.VERDICT_ACCEPT)


@pytest.mark.parametrize("syntax", [EXPLICIT, str(ImplicitVRLittleEndian)])
def test_an_availability_notification_holds_the_study_until_what_it_names_is_here(at_home: House, syntax: str):
    first, second = dx(), dx()
    second.StudyInstanceUID = uid = first.StudyInstanceUID
    status, instance = notify(at_home, notification(uid, first.SOPInstanceUID, second.SOPInstanceUID), syntax)
    assert status == 0
    assert instance, "the provider names the instance where the user did not (PS3.7 10.1.5.1.4)"
    assert store(at_home, first) == [0]
    eventually(lambda: (study := at_home.study(uid)) and study.HasField("incomplete"), 10, what="the study waits")
    assert store(at_home, second) == [0]
    study = at_home.in_state(uid, "DONE", revision=1)
    assert (study.decisions[0].instances, study.verdict) == (2, Verdict.VERDICT_ACCEPT)


def test_a_notification_of_more_after_the_decision_opens_the_next_revision(at_home: House):
    first = dx()
    assert store(at_home, first) == [0]
    at_home.in_state(first.StudyInstanceUID, "DONE", revision=1)
    assert notify(at_home, notification(first.StudyInstanceUID, first.SOPInstanceUID, "1.2.3.4.5"))[0] == 0
    study = at_home.in_state(first.StudyInstanceUID, "DONE", revision=2)
    assert study.incomplete.missing_instances == 1
    assert list(study.reasons) == [Reason.REASON_INCOMPLETE]


def test_a_notification_that_lacks_its_study_is_answered_with_that_and_the_association_goes_on(at_home: House):
    wrong = notification("1.2.3", "1.2.3.4")
    del wrong.StudyInstanceUID
    assert notify(at_home, wrong)[0] == 0x0120


def test_an_operator_ends_the_wait_and_the_record_names_who_and_what_was_lacking(at_home: House):
    stub = at_home.ingest(Identity.PACS)
    first = dx()
    uid = first.StudyInstanceUID
    said = stub.AnnounceStudy(ingest_pb2.AnnounceStudyRequest(study_instance_uid=uid, instances=5), timeout=10)
    assert not said.waiting
    assert store(at_home, first) == [0]
    eventually(lambda: (study := at_home.study(uid)) and study.HasField("incomplete"), 10, what="the study waits")
    with pytest.raises(grpc.RpcError) as refused:
        stub.CompleteStudy(ingest_pb2.CompleteStudyRequest(study=key(uid)), timeout=10)
    assert from_rpc(refused.value).name == "PERMISSION_DENIED"
    at_home.ingest().CompleteStudy(ingest_pb2.CompleteStudyRequest(study=key(uid)), timeout=10)
    study = at_home.in_state(uid, "DONE", revision=1)
    assert study.decisions[0].forced_by == "operator"
    (record,) = [one.decided for one in at_home.entries(study=study.pseudonym) if one.HasField("decided")]
    assert (record.forced_by, record.missing_instances) == ("operator", 4)
    with pytest.raises(grpc.RpcError) as refused:
        at_home.ingest().CompleteStudy(ingest_pb2.CompleteStudyRequest(study=key(uid)), timeout=10)
    assert from_rpc(refused.value).name == "WRONG_STATE"
