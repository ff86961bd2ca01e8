"""Attack 15: a person was erased, and somebody looks for that person in the log, its database, files and backups."""

from typing import NamedTuple

import pytest
from cryptography.exceptions import InvalidTag

from services.audit.subjects import Master
from shared import keys
from shared.identification import BlindIndex, Identities
from shared.identity import Identity
from stepwedge.audit.v1 import audit_pb2
from tests.attacks.calling import code_of
from tests.attacks.scene import PROVED, Judgement, Place, Scene
from tests.unit.audit.making import Producer

ANNA = "SW-" + "B" * 24
WHO = {
    "name": "Kanarienvogel^Anna",
    "patient_id": "QX4711",
    "accession_number": "ACC0815",
    "birth_date": "19700102",
    "study_instance_uid": "1.2.826.0.1.3680043.10.4711",
}
SEAL, INDEX = Identities(bytes(32)), BlindIndex(bytes(range(32)))
WHY = audit_pb2.Cause(purpose=audit_pb2.PURPOSE_OF_USE_PATRQT, reference="ERA-2026-17")
COUNT = 5


class Erased(NamedTuple):
    """A log before and after a person was erased."""

    place: Place
    backup: Place
    wrapped: list[bytes]
    """The person's wrapped keys, as they were."""
    first: int
    before: Judgement
    after: Judgement


@pytest.fixture(scope="module")
def erased(scene: Scene) -> Erased:
    place = scene.copy()
    producer = Producer()
    with scene.town.serving(place) as service:
        made = []
        for number in range(COUNT):
            one = producer.received(110_000 + number, study=77)
            one.subject = ANNA
            one.identification.sealed = SEAL.seal(WHO, ANNA, one.idempotency_key)
            one.identification.tokens.extend(INDEX.tokens(WHO))
            made.append(one)
        first = service.append(producer, *made)[0]
        stub = service.stub(Identity.AUDITOR)
        opened = stub.OpenIdentity(audit_pb2.OpenIdentityRequest(index=first, cause=WHY), timeout=20)
        assert SEAL.open(opened.sealed, opened.subject, opened.idempotency_key)["name"] == WHO["name"]
        before = service.export(place.folder / "before.zip")
    wrapped = [
        bytes(row["wrapped"]) for row in place.rows(f"SELECT wrapped FROM subject_keys WHERE subject = '{ANNA}'")
    ]
    backup = place.copy(scene.folder / "backup-before-erasure")
    with scene.town.serving(place) as service:
        request = audit_pb2.EraseSubjectRequest(subject=ANNA, cause=WHY)
        answer = service.stub(Identity.AUDITOR).EraseSubject(request, timeout=30)
        assert (answer.erased.keys, answer.erased.identities) == (1, COUNT)
        export = service.export(place.folder / "after.zip")
    told = scene.judge(export, older=before)
    return Erased(place, backup, wrapped, first, scene.judge(before), told)


def test_15_every_proof_holds_as_before_and_the_erasure_is_a_record(erased: Erased) -> None:
    assert erased.before.code == PROVED, erased.before.words
    assert erased.after.code == PROVED, erased.after.words
    assert erased.after.report["kinds"]["ERASED"] == 1
    assert erased.after.report["gaps"] == []


def test_15_the_log_gives_the_person_out_no_more(scene: Scene, erased: Erased) -> None:
    with scene.town.serving(erased.place) as service:
        stub = service.stub(Identity.AUDITOR)
        for index in range(erased.first, erased.first + COUNT):
            answer = stub.OpenIdentity(audit_pb2.OpenIdentityRequest(index=index, cause=WHY), timeout=20)
            assert answer.sealed == b""
        for token in INDEX.tokens(WHO):
            assert not stub.QueryEntries(audit_pb2.QueryEntriesRequest(token=token), timeout=20).entries


def test_15_no_file_and_no_row_of_the_log_ever_held_the_person_in_the_clear(erased: Erased) -> None:
    for place in (erased.place, erased.backup):
        contents = [file.read_bytes() for file in place.folder.rglob("*") if file.is_file()]
        contents += [repr(place.rows(f'SELECT * FROM "{table}"')).encode() for table in _tables(place)]
        for value in WHO.values():
            assert not any(value.encode() in content for content in contents)


def _tables(place: Place) -> list[str]:
    if place.databases.kind == "sqlite":
        return [row["name"] for row in place.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [row["tablename"] for row in place.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]


def test_15_the_backup_of_the_database_opens_nothing_with_the_keys_that_are_left(scene: Scene, erased: Erased) -> None:
    """The wrapped key is in the backup, the master key that wraps it is no more."""
    assert len(erased.wrapped) == 1
    (row,) = erased.backup.rows(f"SELECT subject, key_id, wrapped FROM subject_keys WHERE subject = '{ANNA}'")
    left = Master.of(keys.secret(erased.place.folder / "keys", keys.MASTER))
    with pytest.raises((InvalidTag, Exception), match="does not open"):
        left.unwrap(bytes(row["wrapped"]), row["subject"], row["key_id"])
    # Put back and started with the keys of today, the service refuses.
    master = erased.backup.folder / "keys" / keys.MASTER
    kept = master.read_bytes()
    master.write_bytes((erased.place.folder / "keys" / keys.MASTER).read_bytes())
    erased.backup.mark.unlink()
    assert "master key" in scene.town.refuses_to_start(erased.backup)
    master.write_bytes(kept)


def test_15_who_copied_the_master_key_and_the_database_before_has_them_still(scene: Scene, erased: Erased) -> None:
    """What no erasure can reach: the threat model says so, and that the master key belongs in no backup."""
    with scene.town.serving(erased.backup) as service:
        request = audit_pb2.OpenIdentityRequest(index=erased.first, cause=WHY)
        opened = service.stub(Identity.AUDITOR).OpenIdentity(request, timeout=20)
    # Even then the log's side opens the outer seal only: the inner one needs ingest's identity key.
    assert WHO["name"].encode() not in opened.sealed
    assert SEAL.open(opened.sealed, opened.subject, opened.idempotency_key)["name"] == WHO["name"]


def test_15_only_who_guards_the_log_may_erase_or_open(scene: Scene, copy: Place) -> None:
    with scene.town.serving(copy) as service:
        for identity in (Identity.INGEST, Identity.INFERENCE, Identity.OPERATOR, Identity.PACS):
            stub = service.stub(identity)
            erase = audit_pb2.EraseSubjectRequest(subject=ANNA, cause=WHY)
            look = audit_pb2.OpenIdentityRequest(index=1, cause=WHY)
            assert code_of(lambda stub=stub, erase=erase: stub.EraseSubject(erase, timeout=20)) == "PERMISSION_DENIED"
            assert code_of(lambda stub=stub, look=look: stub.OpenIdentity(look, timeout=20)) == "PERMISSION_DENIED"
