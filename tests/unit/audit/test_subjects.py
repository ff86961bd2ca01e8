"""Identities under a key per subject: sealed, found, looked up, erased for good, on both databases."""

import shutil
import sqlite3
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.audit import store
from services.audit.acts import Caller, Own
from services.audit.high_water import HighWater
from services.audit.log import Log
from services.audit.reading import Reader
from services.audit.record import Prepared
from services.audit.retention import Hold, classes
from services.audit.store import Filter, Store
from services.audit.subjects import Erase, LookUp, Vault
from shared import keys
from shared.errors import ErrorCode, StepwedgeError
from shared.identification import BlindIndex, Identities, Number, normalised
from shared.identity import Identity
from shared.transparency import merkle
from shared.transparency.note import Signer
from stepwedge.audit.v1 import audit_pb2
from tests.unit.audit.making import KEY, ORIGIN, Producer, close, fill, uid

IDENTITIES, INDEX = Identities(bytes(32)), BlindIndex(bytes(range(32)))
CALLER = Caller(Identity.AUDITOR, purpose=audit_pb2.PURPOSE_OF_USE_PATRQT, reference="ERA-2026-17")
ANNA, BERT = "SW-" + "A" * 24, "SW-" + "B" * 24
WHO = {ANNA: ("Kanarienvogel^Anna", "QX4711"), BERT: ("Zwitscher^Bert", "0004712")}


def open_log(url: str, folder: Path) -> Log:
    log = Log(
        Store.open(url),
        Signer(ORIGIN, KEY),
        HighWater(folder / "high-water"),
        vault=Vault(folder / "keys" / keys.MASTER),
        retention=classes("Y6", {}),
    )
    log.open()
    return log


def identity(subject: str, number: int) -> dict[str, str]:
    name, patient = WHO[subject]
    return {
        "name": name,
        "patient_id": patient,
        "accession_number": f"ACC{number}",
        "study_instance_uid": f"1.2.826.{number}",
    }


def received(producer: Producer, number: int, subject: str) -> Prepared:
    made = producer.received(number, study=number)
    made.subject = subject
    who = identity(subject, number)
    made.identification.sealed = IDENTITIES.seal(who, subject, made.idempotency_key)
    made.identification.tokens.extend(INDEX.tokens(who))
    return producer.prepared(made)


def append(log: Log, *prepared: Prepared) -> list[int]:
    return log.submit(prepared).result(20).indexes


def look_up(log: Log, index: int) -> dict[str, str] | None:
    act = LookUp(log.vault, CALLER, index)  # type: ignore[arg-type]
    log.perform(act).result(20)
    return IDENTITIES.open(act.sealed, act.subject, act.key) if act.sealed else None


def erase(log: Log, **whom: object) -> Erase:
    act = Erase(log.vault, CALLER, **whom)  # type: ignore[arg-type]
    receipt = log.perform(act).result(20)
    act.index = receipt.indexes[0] if receipt.indexes else act.index
    return act


def proved(log: Log) -> None:
    """Every entry is in the tree, and every proof verifies."""
    reader = Reader(log.store)
    with log.store.reading() as connection:
        leaves = [row.leaf for row in store.leaves(connection, 0, 2**62)]
    for index, leaf in enumerate(leaves):
        proof = reader.inclusion(index, 0)
        assert merkle.verify_inclusion(merkle.leaf_hash(leaf), index, proof.size, proof.path, proof.root)


def test_an_identity_comes_back_to_who_may_look_it_up_and_the_look_up_is_a_record(
    database_url: str, tmp_path: Path
) -> None:
    log = open_log(database_url, tmp_path)
    producer = Producer()
    append(log, received(producer, 1, ANNA), received(producer, 2, BERT))
    assert look_up(log, 0) == identity(ANNA, 1)
    entry = Reader(log.store).entry(2)
    assert entry.record.identity_looked_up.index == 0
    assert entry.record.identity_looked_up.found
    assert entry.record.subject == ANNA
    assert entry.retention == audit_pb2.RETENTION_CLASS_Y6
    assert Reader(log.store).entry(0).identity_sha256
    close(log)


def test_an_identity_moved_to_another_entry_does_not_open(database_url: str, tmp_path: Path) -> None:
    log = open_log(database_url, tmp_path)
    producer = Producer()
    append(log, received(producer, 1, ANNA), received(producer, 2, ANNA))
    with store.database.create_engine(database_url).begin() as connection:
        connection.execute(store.IDENTITIES.update().values(index=store.IDENTITIES.c.index + 10))
        connection.execute(store.IDENTITIES.update().where(store.IDENTITIES.c.index == 11).values(index=0))
    with pytest.raises(StepwedgeError) as raised:
        look_up(log, 0)
    assert raised.value.code == ErrorCode.ERROR_CODE_LOG_INCONSISTENT
    close(log)


@pytest.mark.parametrize("most", [1000, 1])
def test_numbers_lead_to_every_record_of_their_studies_and_are_stored_nowhere(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(store, "_MOST_STUDIES", most)
    log = open_log(database_url, tmp_path)
    producer = Producer()
    append(log, received(producer, 1, ANNA), received(producer, 2, BERT), received(producer, 3, BERT))
    append(log, producer.prepared(producer.decided(2)))
    reader = Reader(log.store)

    def found(kind: Number, value: str) -> list[int]:
        entries, _ = reader.query(Filter(token=INDEX.token(kind, value).hex()), 100, "")
        return [entry.index for entry in entries]

    assert found(Number.ACCESSION, "acc 2") == [1, 3]
    assert found(Number.PATIENT, "4712") == [1, 2, 3]
    assert found(Number.PATIENT, "QX4711") == [0]
    assert found(Number.STUDY, "1.2.826.3") == [2]
    assert found(Number.STUDY, "1.2.826.4") == []
    close(log)


def test_erasure_leaves_every_proof_and_nothing_to_open(database_url: str, tmp_path: Path) -> None:
    log = open_log(database_url, tmp_path)
    producer = Producer()
    append(log, *(received(producer, number, ANNA if number % 2 else BERT) for number in range(300)))
    before = (tmp_path / "keys" / keys.MASTER).read_bytes()
    head = Reader(log.store).head()
    act = erase(log, token=INDEX.token(Number.PATIENT, "qx4711"))
    assert act.subject == ANNA
    assert (act.event.keys, act.event.identities) == (1, 150)
    assert act.event.tokens > 150
    assert (tmp_path / "keys" / keys.MASTER).read_bytes() != before
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == [keys.MASTER]
    assert look_up(log, 1) is None
    assert look_up(log, 2) == identity(BERT, 2)
    assert Reader(log.store).query(Filter(token=INDEX.token(Number.ACCESSION, "ACC1").hex()), 10, "") == ([], "")
    proved(log)
    assert Reader(log.store).consistency(head.size, 0).path
    erased = Reader(log.store).entry(act.index)  # type: ignore[arg-type]
    assert erased.record.subject == ANNA
    assert erased.record.erased.reference == "ERA-2026-17"
    # Again is harmless and is the same record.
    assert erase(log, subject=ANNA).index == act.index
    # A new object of the same person is sealed under a new key, and only that is open.
    (index,) = append(log, received(producer, 301, ANNA))
    assert look_up(log, index) == identity(ANNA, 301)
    assert look_up(log, 1) is None
    close(log)
    # The keys that are left open after a start too.
    log = open_log(database_url, tmp_path)
    assert look_up(log, 2) == identity(BERT, 2)
    assert look_up(log, 3) is None
    close(log)


def test_a_backup_from_before_an_erasure_opens_nothing_with_the_keys_that_are_left(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'audit.db'}"
    log = open_log(url, tmp_path)
    producer = Producer()
    append(log, received(producer, 1, ANNA), received(producer, 2, BERT))
    close(log)
    backup = tmp_path / "backup"
    backup.mkdir()
    shutil.copy(tmp_path / "audit.db", backup / "audit.db")
    shutil.copy(tmp_path / "high-water", backup / "high-water")
    log = open_log(url, tmp_path)
    erase(log, subject=ANNA)
    close(log)
    shutil.copytree(tmp_path / "keys", backup / "keys")
    with sqlite3.connect(backup / "audit.db") as copy:
        assert copy.execute("SELECT count(*) FROM subject_keys").fetchone() == (2,)
        assert copy.execute("SELECT count(*) FROM identities").fetchone() == (2,)
    with pytest.raises(StepwedgeError) as raised:
        open_log(f"sqlite:///{backup / 'audit.db'}", backup)
    assert raised.value.code == ErrorCode.ERROR_CODE_CONFIGURATION
    # With the check taken out, the keys themselves do not open.
    vault = Vault(backup / "keys" / keys.MASTER)
    vault._master = vault._read(backup / "keys" / keys.MASTER)
    backed_up = Store.open_as_it_is(f"sqlite:///{backup / 'audit.db'}")
    with backed_up.reading() as connection:
        for index in (0, 1):
            with pytest.raises(StepwedgeError, match="master key"):
                LookUp(vault, CALLER, index).perform(connection, 0, 2)
    backed_up.close()


def test_nothing_that_identifies_is_in_any_file_of_the_log(tmp_path: Path) -> None:
    log = open_log(f"sqlite:///{tmp_path / 'audit.db'}", tmp_path)
    producer = Producer()
    append(log, *(received(producer, number, ANNA) for number in range(50)))
    erase(log, subject=ANNA)
    look_up(log, 1)
    held = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert (tmp_path / "audit.db-wal").stat().st_size
    close(log)
    held += b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for word in (b"Kanarienvogel", b"QX4711", b"ACC1", b"1.2.826"):
        assert word not in held


@pytest.mark.parametrize("on", ["subject", "study"])
def test_what_is_under_a_legal_hold_is_not_erased_and_the_refusal_is_a_record(
    database_url: str, tmp_path: Path, on: str
) -> None:
    log = open_log(database_url, tmp_path)
    append(log, received(Producer(), 1, ANNA))
    held = {"subject": ANNA} if on == "subject" else {"study": uid(9_000_001)}
    hold = Hold(CALLER, **held)
    log.perform(hold).result(20)
    act = erase(log, subject=ANNA)
    assert act.event.refusal == ErrorCode.ERROR_CODE_LEGAL_HOLD
    entry = Reader(log.store).entry(act.index)  # type: ignore[arg-type]
    assert entry.record.outcome == audit_pb2.EVENT_OUTCOME_SERIOUS_FAILURE
    assert look_up(log, 0) == identity(ANNA, 1)
    log.perform(Hold(CALLER, release=hold.hold)).result(20)
    assert not erase(log, subject=ANNA).event.refusal
    assert look_up(log, 0) is None
    close(log)


def test_a_start_after_a_crash_finds_the_master_key_that_counts(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'audit.db'}"
    log = open_log(url, tmp_path)
    producer = Producer()
    append(log, received(producer, 1, ANNA), received(producer, 2, BERT))
    master, staged = tmp_path / "keys" / keys.MASTER, tmp_path / "keys" / f"{keys.MASTER}.next"
    old = master.read_bytes()
    # Killed before the commit: a staged key that nothing is wrapped by.
    close(log)
    keys.write_new(staged, b"ab" * 32 + b"\n", 0o600)
    log = open_log(url, tmp_path)
    assert not staged.exists()
    assert look_up(log, 0) == identity(ANNA, 1)
    # Killed between the commit and the change of files: the database is wrapped by the staged one.
    act = erase(log, subject=ANNA)
    assert act.event.keys == 1
    close(log)
    staged.write_bytes(master.read_bytes())
    staged.chmod(0o600)
    master.write_bytes(old)
    log = open_log(url, tmp_path)
    assert not staged.exists()
    assert master.read_bytes() != old
    assert look_up(log, 1) == identity(BERT, 2)
    close(log)


class Slow(LookUp):
    """A look-up on a machine that is busy."""

    def perform(self, connection: sa.Connection, now_us: int, size: int) -> Own:
        made = super().perform(connection, now_us, size)
        time.sleep(1.3)
        return made


def test_an_act_that_takes_long_is_no_step_of_the_clock(tmp_path: Path) -> None:
    log = open_log(f"sqlite:///{tmp_path / 'audit.db'}", tmp_path)
    producer = Producer()
    append(log, received(producer, 1, ANNA))
    log.perform(Slow(log.vault, CALLER, 0)).result(20)  # type: ignore[arg-type]
    append(log, received(producer, 2, ANNA))
    assert Reader(log.store).query(Filter(kind=audit_pb2.RECORD_KIND_ALERT), 10, "") == ([], "")
    close(log)


def test_who_has_no_entry_cannot_be_erased_and_a_number_of_two_is_refused(tmp_path: Path) -> None:
    log = open_log(f"sqlite:///{tmp_path / 'audit.db'}", tmp_path)
    producer = Producer()
    fill(log, 3)
    for whom in ({"subject": BERT}, {"token": INDEX.token(Number.PATIENT, "nobody")}):
        with pytest.raises(StepwedgeError) as raised:
            erase(log, **whom)
        assert raised.value.code == ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND
    one, other = producer.received(11), producer.received(12)
    for made, subject, issuer in ((one, ANNA, "Here"), (other, BERT, "There")):
        made.subject = subject
        who = {"patient_id": "17", "issuer": issuer}
        made.identification.sealed = IDENTITIES.seal(who, subject, made.idempotency_key)
        made.identification.tokens.extend(INDEX.tokens(who))
    append(log, producer.prepared(one), producer.prepared(other))
    with pytest.raises(StepwedgeError, match="2 subjects"):
        erase(log, token=INDEX.token(Number.PATIENT, "17"))
    assert erase(log, token=INDEX.token(Number.PATIENT, "17", "There")).subject == BERT
    close(log)


def test_a_sealed_identity_says_nothing_by_its_length_and_opens_for_its_record_only() -> None:
    short = IDENTITIES.seal({"name": "A"}, ANNA, "received/a")
    long = IDENTITIES.seal({"name": "A" * 90, "sex": "F"}, ANNA, "received/a")
    assert len(short) == len(long)
    assert IDENTITIES.seal({"name": "A"}, ANNA, "received/a") != short
    assert IDENTITIES.open(short, ANNA, "received/a") == {"name": "A"}
    for subject, key in ((BERT, "received/a"), (ANNA, "received/b")):
        with pytest.raises(StepwedgeError):
            IDENTITIES.open(short, subject, key)
    with pytest.raises(StepwedgeError):
        Identities(bytes(range(32))).open(short, ANNA, "received/a")
    with pytest.raises(StepwedgeError):
        IDENTITIES.open(short[:20], ANNA, "received/a")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("0012", "12", True),
        ("ACC 0012", "acc0012", True),
        ("ACC0012", "ACC12", False),
        ("０１２", "12", True),
        ("000", "0", True),
        ("1.2.3", "1.2.30", False),
        ("Ä", "A\u0308", True),
    ],
)
def test_numbers_are_compared_in_one_form(one: str, other: str, same: bool) -> None:
    assert (normalised(one) == normalised(other)) is same
