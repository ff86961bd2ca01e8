"""A pseudonym key is rotated between the images of a study: what comes late bears the names that its study has."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID

from cli.send import Sent
from shared import dicom, keys
from shared.objects import Zone, open_store
from shared.pseudonyms import Pseudonyms, read_keys
from stepwedge.audit.v1 import audit_pb2
from stepwedge.ingest.v1 import ingest_pb2
from tests.wire import canary
from tests.wire.cluster import RunningCluster, running_cluster
from tests.wire.command import Ran, stepwedge

STUDY, OTHER_STUDY = f"{canary.ROOT}.1", f"{canary.ROOT}.2"
PLACE = f"{canary.ROOT}.8"
"""The frame of reference that the images of the study share."""


@dataclass
class House:
    """What happened before and after the rotation, and what the cluster then held."""

    sent: list[Sent]
    old: Pseudonyms
    new: Pseudonyms
    old_key: bytes
    rotated: Ran
    early: Ran
    """`keys destroy` while the services hold copies of the old key that are in use."""
    first: ingest_pb2.Study
    late: ingest_pb2.Study
    other: ingest_pb2.Study
    records: list[audit_pb2.Record]
    results: dict[str, Dataset]
    """De-identified objects by their SOP Instance UID."""
    verified: Ran
    destroyed: Ran
    data: Path

    @property
    def redacted(self) -> list[audit_pb2.Record]:
        """The records of redaction."""
        return [record for record in self.records if record.WhichOneof("event") == "redacted"]


def _image(folder: Path, study: int, series: int, image: int) -> Path:
    ds = canary.planted("CT_small.dcm", study)
    ds.SeriesInstanceUID = f"{ds.StudyInstanceUID}.{series}"
    ds.SOPInstanceUID = UID(f"{ds.SeriesInstanceUID}.{image}")
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.FrameOfReferenceUID = PLACE
    ds.InstanceNumber, ds.SliceLocation = image, float(image)
    ds.ImagePositionPatient = [0, 0, image]
    if image > 1:
        before = Dataset()
        before.ReferencedSOPClassUID, before.ReferencedSOPInstanceUID = ds.SOPClassUID, f"{ds.SeriesInstanceUID}.1"
        ds.ReferencedImageSequence = [before]
    return canary.write(ds, folder / f"{study}-{series}-{image}.dcm")


def _results(cluster: RunningCluster, records: list[audit_pb2.Record]) -> dict[str, Dataset]:
    store = open_store(cluster.settings.objects, {Zone.DEIDENTIFIED})
    made = {record.pins.deidentified_sha256 for record in records if record.WhichOneof("event") == "redacted"}
    objects = [pydicom.dcmread(io.BytesIO(store.get(Zone.DEIDENTIFIED, sha256))) for sha256 in made if sha256]
    return {str(ds.SOPInstanceUID): ds for ds in objects}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    folder = tmp_path_factory.mktemp("late")
    with running_cluster(folder, ingest={"seal_identities": True}) as cluster:
        file, key = cluster.file, cluster.settings.cluster.keys / keys.PSEUDONYMS
        old, old_key = Pseudonyms.load(key), read_keys(key)[0]
        sent = cluster.store([_image(folder, 1, 1, 1)])
        first = cluster.decided(STUDY)
    rotated = stepwedge("keys", "rotate", "--config", file, "--json")
    early = stepwedge("keys", "destroy", old.key_id, "--yes", "--config", file)
    cluster = RunningCluster(file)
    try:
        cluster.children.start()
        cluster.wait_ready()
        again = folder / "1-1-1.dcm"  # what came before comes once more beside what is late
        sent += cluster.store([_image(folder, 1, 1, 2), _image(folder, 1, 2, 1), again, _image(folder, 2, 1, 1)])
        late = cluster.decided(STUDY, revision=first.decisions[-1].revision + 1)
        other = cluster.decided(OTHER_STUDY)
        records = [entry.record for entry in cluster.entries()]
        results = _results(cluster, records)
        verified = stepwedge("verify", "--config", file)
    finally:
        cluster.close()
    new = Pseudonyms.load(key)
    destroyed = stepwedge("keys", "destroy", old.key_id, "--yes", "--config", file)
    return House(
        sent, old, new, old_key, rotated, early, first, late, other, records, results, verified, destroyed, cluster.data
    )


def test_the_key_is_another_one_and_the_old_one_is_kept_behind_it(house: House) -> None:
    assert house.rotated.lines == [{"key_id": house.new.key_id, "state": "in use"}]
    assert house.new.key_id != house.old.key_id
    assert house.new.uid("1.2.3.4") != house.old.uid("1.2.3.4")


def test_no_image_is_refused_and_no_step_fails(house: House) -> None:
    assert [one.words for one in house.sent if not one.ok] == []
    assert [record.redacted.refusal for record in house.redacted] == [0] * 4
    assert len(house.results) == 4, "the image that came twice is one"
    for study in (house.late, house.other):
        assert study.state == ingest_pb2.STUDY_STATE_DONE
        assert not study.last_error


def test_a_late_image_has_the_names_of_its_study_series_and_person(house: House) -> None:
    first = house.results[house.old.uid(f"{STUDY}.1.1")]
    late = house.results[house.old.uid(f"{STUDY}.1.2")]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"):
        assert late[keyword].value == first[keyword].value, keyword
    assert late.PatientID == house.old.subject(canary.NUMBER)
    assert late.ReferencedImageSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID


def test_a_late_series_has_the_names_of_its_study_and_person(house: House) -> None:
    first = house.results[house.old.uid(f"{STUDY}.1.1")]
    late = house.results[house.old.uid(f"{STUDY}.2.1")]
    assert (late.StudyInstanceUID, late.PatientID) == (first.StudyInstanceUID, first.PatientID)
    assert late.FrameOfReferenceUID == first.FrameOfReferenceUID
    assert late.SeriesInstanceUID != first.SeriesInstanceUID


def test_another_study_of_the_same_person_has_names_of_the_new_key_alone(house: House) -> None:
    other = house.results[house.new.uid(f"{OTHER_STUDY}.1.1")]
    first = house.results[house.old.uid(f"{STUDY}.1.1")]
    assert other.StudyInstanceUID == house.new.uid(OTHER_STUDY)
    assert other.PatientID == house.new.subject(canary.NUMBER)
    names = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName")
    assert not {str(other[name].value) for name in names} & {str(first[name].value) for name in names}


def test_the_study_stays_one_study_and_is_decided_anew_with_all_of_its_images(house: House) -> None:
    assert house.late.pseudonym == house.first.pseudonym == house.old.uid(STUDY)
    assert (house.first.instance_count, house.late.instance_count, house.other.instance_count) == (1, 3, 1)
    assert house.other.pseudonym == house.new.uid(OTHER_STUDY)


def test_the_log_says_which_key_named_each_object_and_verifies(house: House) -> None:
    named = {record.study: set[str]() for record in house.redacted}
    for record in house.redacted:
        named[record.study].add(record.redacted.key_id)
    assert named == {house.old.uid(STUDY): {house.old.key_id}, house.new.uid(OTHER_STUDY): {house.new.key_id}}
    studies = {record.study for record in house.records if record.study}
    assert studies == set(named), "a record under a third name"
    assert house.verified.status == 0, house.verified.err


def test_nothing_of_the_patient_is_in_what_was_made(house: House) -> None:
    for ds in house.results.values():
        out = io.BytesIO()
        ds.save_as(out)
        assert canary.found(out.getvalue(), [*canary.WORDS, canary.ROOT]) == []
        assert dicom.read_header(out.getvalue()).PatientIdentityRemoved == "YES"


def test_a_key_that_services_were_started_with_is_not_destroyed_before_they_have_another(house: House) -> None:
    assert house.early.failed_in_one_line("WRONG_STATE")


def test_once_destroyed_the_old_key_is_nowhere_not_even_in_the_copies_of_the_services(house: House) -> None:
    assert house.destroyed.status == 0, house.destroyed.err
    spellings = (house.old_key, house.old_key.hex().encode(), house.old_key.hex().upper().encode())
    files = [path for path in house.data.rglob("*") if path.is_file()]
    assert any(path.name == keys.PSEUDONYMS and "secrets" in str(path) for path in files), (
        "the copies were not looked at"
    )
    assert [path for path in files if any(key in path.read_bytes() for key in spellings)] == []
