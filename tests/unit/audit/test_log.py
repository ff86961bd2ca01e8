"""The sequencer on both databases: order, durability, idempotency, numbering, and what it refuses to go on from."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.audit import record, sequences, store
from services.audit.high_water import HighWater
from services.audit.log import Log
from services.audit.reading import Reader
from services.audit.refused import OwnRecorder
from services.audit.store import Filter, Store
from shared import database
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from shared.transparency import merkle
from shared.transparency.note import Signer, VerificationKey, open_checkpoint
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1 import common_pb2
from tests.unit.audit.making import KEY, ORIGIN, Producer, close, digest, fill, open_log, uid

VKEY = VerificationKey(ORIGIN, KEY.public_key().public_bytes_raw())


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """For what the other database has no part in."""
    return f"sqlite:///{tmp_path / 'only.db'}"


def entries(the_store: Store) -> list[bytes]:
    with the_store.reading() as connection:
        return [entry.leaf for entry in store.leaves(connection, 0, 2**62)]


def root_of(leaves: list[bytes]) -> bytes:
    compact = merkle.CompactRange()
    for leaf in leaves:
        compact.append(merkle.leaf_hash(leaf))
    return compact.root()


def execute(url: str, *statements: str) -> None:
    engine = database.create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    engine.dispose()


def refusal(url: str, folder: Path, **given: object) -> StepwedgeError:
    with pytest.raises(StepwedgeError) as raised:
        close(open_log(url, folder, **given))  # type: ignore[arg-type]
    return raised.value


def test_an_empty_log_has_a_signed_checkpoint(sqlite_url: str, tmp_path: Path) -> None:
    log = open_log(sqlite_url, tmp_path)
    head = Reader(log.store).head()
    close(log)
    assert open_checkpoint(head.note.encode(), [VKEY], ORIGIN).root == merkle.EMPTY_ROOT


def test_records_get_consecutive_places_under_a_checkpoint_that_covers_them(database_url: str, tmp_path: Path) -> None:
    log = open_log(database_url, tmp_path)
    producer = Producer()
    receipts = [
        log.submit([producer.prepared(producer.received(2 * i)), producer.prepared(producer.received(2 * i + 1))])
        for i in range(300)
    ]
    assert [index for receipt in receipts for index in receipt.result(30).indexes] == list(range(600))
    leaves = entries(log.store)
    for receipt in receipts:
        checkpoint = open_checkpoint(receipt.result().checkpoint.encode(), [VKEY], ORIGIN)
        assert checkpoint.size > max(receipt.result().indexes)
        assert checkpoint.root == root_of(leaves[: checkpoint.size])
    close(log)


def test_a_log_that_is_opened_again_goes_on_where_it_was(database_url: str, tmp_path: Path) -> None:
    for count, first in ((300, 0), (1, 300), (250, 301)):
        log = open_log(database_url, tmp_path)
        assert fill(log, count, first=first) == list(range(first, first + count))
        close(log)
    log = open_log(database_url, tmp_path)
    reader = Reader(log.store)
    leaves = entries(log.store)
    assert reader.consistency(1, 0).to_size == 551
    for older in (1, 255, 256, 257, 300, 512, 551):
        proof = reader.consistency(older, 0)
        assert merkle.verify_consistency(older, 551, root_of(leaves[:older]), root_of(leaves), proof.path)
        for index in {0, older // 2, older - 1}:
            inclusion = reader.inclusion(index, older)
            assert inclusion.root == root_of(leaves[:older])
            hashed = merkle.leaf_hash(leaves[index])
            assert merkle.verify_inclusion(hashed, index, older, inclusion.path, inclusion.root)
    close(log)


def test_a_record_that_was_changed_in_the_table_is_not_handed_out(database_url: str, tmp_path: Path) -> None:
    log = open_log(database_url, tmp_path)
    fill(log, 300)
    changed = entries(log.store)[5].replace(b'"outcome":"SUCCESS"', b'"outcome":"MINOR_FAILURE"')
    with database.create_engine(database_url).begin() as connection:
        connection.execute(store.ENTRIES.update().where(store.ENTRIES.c.index == 5).values(leaf=changed))
    reader = Reader(log.store)
    for ask in (lambda: reader.entry(5), lambda: reader.query(Filter(), 10, "")):
        with pytest.raises(StepwedgeError) as refused:
            ask()
        assert refused.value.code == ErrorCode.ERROR_CODE_LOG_INCONSISTENT
    assert reader.entry(6).index == 6
    close(log)


def test_the_same_key_with_the_same_content_is_the_first_entry(database_url: str, tmp_path: Path) -> None:
    log = open_log(database_url, tmp_path)
    first, second = Producer(), Producer()
    made = first.received(1)
    assert log.submit([first.prepared(made)]).result(10).indexes == [0]
    assert log.submit([first.prepared(made)]).result(10).indexes == [0]
    # Another start of the service, later, under another trace: the same act.
    again = second.received(1)
    both = log.submit([second.prepared(again), second.prepared(second.received(2)), second.prepared(again)])
    assert both.result(10).indexes == [0, 1, 0]
    assert len(entries(log.store)) == 2
    close(log)


def test_the_same_key_with_other_content_is_a_conflict_and_takes_nothing_of_its_batch(
    database_url: str, tmp_path: Path
) -> None:
    log = open_log(database_url, tmp_path)
    producer = Producer()
    log.submit([producer.prepared(producer.received(1))]).result(10)
    other = producer.received(1)
    other.received.size_bytes += 1
    with pytest.raises(StepwedgeError) as raised:
        log.submit([producer.prepared(producer.received(2)), producer.prepared(other)]).result(10)
    assert raised.value.code == ErrorCode.ERROR_CODE_IDEMPOTENCY_CONFLICT
    within = producer.received(3), producer.received(3)
    within[1].received.size_bytes += 1
    with pytest.raises(StepwedgeError) as raised:
        log.submit([producer.prepared(one) for one in within]).result(10)
    assert raised.value.code == ErrorCode.ERROR_CODE_IDEMPOTENCY_CONFLICT
    assert len(entries(log.store)) == 1
    close(log)


async def test_a_refused_call_that_is_recorded_again_after_an_unknown_end_is_recorded_once(
    database_url: str, tmp_path: Path
) -> None:
    event = audit_pb2.RefusedCallEvent(
        method="stepwedge.audit.v1.AuditService/Append", error=ErrorCode.ERROR_CODE_UNAUTHENTICATED, count=1
    )
    outcome = audit_pb2.EVENT_OUTCOME_SERIOUS_FAILURE
    indexes = []
    for _ in range(2):  # the second time by another process, which knows nothing of the first
        log = open_log(database_url, tmp_path)
        own = OwnRecorder(log)
        same = [own.record(key="refused/one", outcome=outcome, event=event) for _ in range(2)]
        indexes.extend(await asyncio.gather(*same))
        indexes.append(await own.record(key="refused/one", outcome=outcome, event=event))
        await asyncio.to_thread(close, log)
    assert indexes == [0] * 6


def test_two_producers_never_meet_in_a_key(sqlite_url: str, tmp_path: Path) -> None:
    log = open_log(sqlite_url, tmp_path)
    for identity in (Identity.INGEST, Identity.REDACTION):
        producer = Producer(identity)
        made = producer.record("failed/a")
        made.failed.step, made.failed.error = "redact", common_pb2.ERROR_CODE_INTERNAL
        log.submit([producer.prepared(made)]).result(10)
    assert len(entries(log.store)) == 2
    close(log)


def test_many_threads_at_once_each_get_their_own_place(database_url: str, tmp_path: Path) -> None:
    log = open_log(database_url, tmp_path)

    def work(number: int) -> list[int]:
        producer = Producer()
        made = [producer.prepared(producer.received(1000 * number + i)) for i in range(40)]
        return [log.submit([one]).result(30).indexes[0] for one in made]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    assert sorted(index for indexes in found for index in indexes) == list(range(320))
    assert all(indexes == sorted(indexes) for indexes in found)
    close(log)


def test_a_large_study_s_instances_come_back_with_its_entry(sqlite_url: str, tmp_path: Path) -> None:
    log = open_log(sqlite_url, tmp_path)
    producer = Producer()
    made = producer.decided(1, instances=2000)
    log.submit([producer.prepared(made)]).result(10)
    assert Reader(log.store).entry(0).record == made
    close(log)


def members(leaf: bytes) -> dict[str, object]:
    return record.parse(leaf)


def test_a_number_used_up_by_a_repeat_is_named_in_the_next_entry_and_is_no_gap(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequences, "GRACE_SECONDS", 0.0)
    log = open_log(sqlite_url, tmp_path)
    producer = Producer()
    for number in (1, 1, 2):
        log.submit([producer.prepared(producer.received(number))]).result(10)
    leaves = entries(log.store)
    assert len(leaves) == 2
    assert members(leaves[1])["repeats"] == [2]
    close(log)


def test_a_gap_in_a_producer_s_numbering_is_recorded_as_an_alert_once(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequences, "GRACE_SECONDS", 0.0)
    alerts: list[audit_pb2.AlertEvent] = []
    log = Log(Store.open(database_url), Signer(ORIGIN, KEY), HighWater(tmp_path / "high-water"), on_alert=alerts.append)
    log.open()
    producer = Producer()
    fill(log, 1, producer=producer)
    producer.sequence += 3
    fill(log, 1, producer=producer, first=1)
    fill(log, 1, producer=producer, first=2)
    found, _ = Reader(log.store).query(Filter(kind=audit_pb2.RECORD_KIND_ALERT), 10, "")
    close(log)
    assert [entry.record.alert for entry in found] == alerts
    (alert,) = alerts
    assert (alert.code, alert.about, alert.incarnation) == (
        audit_pb2.ALERT_CODE_SEQUENCE_GAP,
        "ingest",
        producer.incarnation,
    )
    assert (alert.first_sequence, alert.last_sequence) == (2, 4)
    assert found[0].producer == "audit"


def test_a_gap_is_reported_though_its_producer_falls_silent_and_the_log_starts_anew(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(database_url, tmp_path)
    producer = Producer()
    producer.sequence = 6
    fill(log, 1, producer=producer)
    close(log)
    monkeypatch.setattr(sequences, "GRACE_SECONDS", 0.0)
    log = open_log(database_url, tmp_path)
    deadline = time.monotonic() + 10
    while len(entries(log.store)) < 2:
        assert time.monotonic() < deadline, "no alert was recorded"
        time.sleep(0.05)
    close(log)
    log = open_log(database_url, tmp_path)
    alert = Reader(log.store).entry(1).record.alert
    close(log)
    assert (alert.first_sequence, alert.last_sequence) == (1, 6)


def test_a_number_used_for_two_records_is_recorded_as_an_alert(sqlite_url: str, tmp_path: Path) -> None:
    log = open_log(sqlite_url, tmp_path)
    producer = Producer()
    fill(log, 2, producer=producer)
    producer.sequence = 1
    fill(log, 1, producer=producer, first=2)
    found, _ = Reader(log.store).query(Filter(kind=audit_pb2.RECORD_KIND_ALERT), 10, "")
    close(log)
    assert [entry.record.alert.code for entry in found] == [audit_pb2.ALERT_CODE_SEQUENCE_REUSED]
    assert found[0].record.alert.first_sequence == 2


def test_a_clock_that_went_back_while_the_log_was_away_is_recorded_as_an_alert(sqlite_url: str, tmp_path: Path) -> None:
    log = open_log(sqlite_url, tmp_path)
    fill(log, 1)
    close(log)
    ahead = (time.time_ns() // 1000) + 3_600_000_000
    execute(sqlite_url, f"UPDATE entries SET recorded_max_us = {ahead}")
    log = open_log(sqlite_url, tmp_path)
    fill(log, 1, first=1)
    found, _ = Reader(log.store).query(Filter(kind=audit_pb2.RECORD_KIND_ALERT), 10, "")
    close(log)
    (alert,) = [entry.record.alert for entry in found]
    assert alert.code == audit_pb2.ALERT_CODE_CLOCK_STEP
    assert -3_600_000 <= alert.clock_step_ms < -3_500_000


def test_a_second_process_does_not_write_and_takes_over_when_the_first_ends(database_url: str, tmp_path: Path) -> None:
    first = open_log(database_url, tmp_path)
    fill(first, 3)
    second = open_log(database_url, tmp_path / "second")
    assert not second.writes
    with pytest.raises(StepwedgeError) as raised:
        fill(second, 1, first=10)
    assert raised.value.code == ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE
    assert Reader(second.store).entry(2).index == 2
    close(first)
    deadline = time.monotonic() + 15
    while not second.writes:
        assert time.monotonic() < deadline, "the second did not take over"
        time.sleep(0.05)
    assert fill(second, 2, first=10) == [3, 4]
    close(second)


TAMPERED = {
    "last leaf changed": 'UPDATE entries SET leaf = (SELECT leaf FROM entries WHERE "index" = 0) WHERE "index" = 299',
    "last entry removed": 'DELETE FROM entries WHERE "index" = 299',
    "entry in the newest tile removed": 'DELETE FROM entries WHERE "index" = 270',
    "all entries removed": "DELETE FROM entries",
    "checkpoints removed": "DELETE FROM checkpoints",
    "tile above removed": "DELETE FROM tiles WHERE level = 1",
    "signature of an older checkpoint under the newest size": "UPDATE checkpoints SET size = 301 WHERE size = 300",
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_log_whose_end_was_tampered_with_refuses_to_start(sqlite_url: str, tmp_path: Path, name: str) -> None:
    log = open_log(sqlite_url, tmp_path)
    fill(log, 300)
    close(log)
    execute(sqlite_url, TAMPERED[name])
    assert refusal(sqlite_url, tmp_path).code == ErrorCode.ERROR_CODE_LOG_INCONSISTENT


def test_a_log_that_was_cut_back_to_an_older_signed_state_refuses_to_start(database_url: str, tmp_path: Path) -> None:
    log = open_log(database_url, tmp_path)
    fill(log, 10)
    older = Reader(log.store).head()
    fill(log, 10, first=10)
    close(log)
    execute(
        database_url,
        'DELETE FROM entries WHERE "index" >= 10',
        "DELETE FROM checkpoints WHERE size > 10",
        "DELETE FROM checkpoints WHERE size = 10",
    )
    engine = database.create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(sa.insert(store.CHECKPOINTS), [older._asdict()])
    engine.dispose()
    error = refusal(database_url, tmp_path)
    assert error.code == ErrorCode.ERROR_CODE_LOG_INCONSISTENT
    assert "once had 20" in error.message
    # Without the mark outside the database nothing here could know: that is what a witness is for.
    close(open_log(database_url, tmp_path / "elsewhere"))


def test_another_log_of_the_same_size_is_not_that_which_was_signed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        log = open_log(f"sqlite:///{tmp_path / name}.db", tmp_path / name)
        fill(log, 5)
        close(log)
    (tmp_path / "b.db").rename(tmp_path / "a.db")
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"a.db{suffix}").unlink(missing_ok=True)
    error = refusal(f"sqlite:///{tmp_path / 'a'}.db", tmp_path / "a")
    assert error.code == ErrorCode.ERROR_CODE_LOG_INCONSISTENT
    assert "not those that were once signed" in error.message


@pytest.mark.parametrize("given", [{"key": Ed25519PrivateKey.generate()}, {"origin": "other.example/log"}])
def test_a_log_is_not_continued_under_another_key_or_name(
    sqlite_url: str, tmp_path: Path, given: dict[str, object]
) -> None:
    log = open_log(sqlite_url, tmp_path)
    fill(log, 1)
    close(log)
    assert refusal(sqlite_url, tmp_path, **given).code == ErrorCode.ERROR_CODE_CONFIGURATION


def test_a_log_that_is_closing_takes_nothing(tmp_path: Path) -> None:
    log = open_log(f"sqlite:///{tmp_path / 'a.db'}", tmp_path)
    close(log)
    with pytest.raises(StepwedgeError) as raised:
        fill(log, 1)
    assert raised.value.code == ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE


def query(reader: Reader, wanted: Filter, page: int = 1000) -> list[int]:
    found: list[int] = []
    token = ""
    while True:
        part, token = reader.query(wanted, page, token)
        assert len(part) <= page
        found += [entry.index for entry in part]
        if not token:
            return found


def test_queries_answer_what_matches_in_the_order_of_the_log_page_by_page(database_url: str, tmp_path: Path) -> None:
    log = open_log(database_url, tmp_path)
    ingest, inference = Producer(), Producer(Identity.INFERENCE)
    moments = []
    for number in range(30):
        made = [ingest.prepared(ingest.received(number, study=number % 3))]
        if number % 10 == 0:
            assessed = inference.record(f"assessed/{digest(number)}", instance=uid(number))
            assessed.pins.model_sha256 = digest(1 + number // 20)
            assessed.assessed.confidence = "0.5"
            made.append(inference.prepared(assessed))
            made.append(ingest.prepared(ingest.decided(number)))
        log.submit(made).result(10)
        moments.append(time.time_ns() // 1000)
    reader = Reader(log.store)
    everything = [reader.entry(index) for index in range(36)]
    assert query(reader, Filter()) == query(reader, Filter(), 7) == list(range(36))

    def matching(condition: object) -> list[int]:
        return [entry.index for entry in everything if condition(entry)]  # type: ignore[operator]

    study = uid(9_000_001)
    assert query(reader, Filter(study=study), 4) == matching(lambda e: e.record.study == study) != []
    assert query(reader, Filter(instance=uid(10))) == matching(lambda e: e.record.instance == uid(10))
    assert query(reader, Filter(subject="SW-" + "A" * 24)) == matching(lambda e: bool(e.record.subject))
    assert query(reader, Filter(kind=audit_pb2.RECORD_KIND_DECIDED)) == matching(lambda e: e.record.HasField("decided"))
    assert query(reader, Filter(producer="inference")) == matching(lambda e: e.producer == "inference") != []
    assert query(reader, Filter(outcome=audit_pb2.EVENT_OUTCOME_SUCCESS)) == list(range(36))
    assert query(reader, Filter(outcome=audit_pb2.EVENT_OUTCOME_MINOR_FAILURE)) == []
    assert len(query(reader, Filter(verdict=common_pb2.VERDICT_REVIEW))) == 3
    assert query(reader, Filter(verdict=common_pb2.VERDICT_REJECT)) == []
    assert len(query(reader, Filter(model_sha256=digest(1)))) == 2
    for start, end in ((0, 9), (10, 20), (29, 29), (5, 4)):
        wanted = Filter(recorded_from_us=moments[start], recorded_before_us=moments[end])
        inside = matching(
            lambda e, s=start, d=end: moments[s] <= e.recorded_at.ToMicroseconds() < moments[d]  # type: ignore[misc]
        )
        assert query(reader, wanted, 3) == inside
    assert query(reader, Filter(study=study, kind=audit_pb2.RECORD_KIND_RECEIVED, recorded_from_us=moments[20])) != []
    close(log)


def test_a_query_by_time_finds_entries_from_before_the_clock_was_set_back(sqlite_url: str, tmp_path: Path) -> None:
    log = open_log(sqlite_url, tmp_path)
    fill(log, 6)
    execute(
        sqlite_url,
        'UPDATE entries SET recorded_us = 1000 + "index" * 10, recorded_max_us = 1000 + "index" * 10',
        'UPDATE entries SET recorded_us = 995, recorded_max_us = 1030 WHERE "index" = 4',
    )
    reader = Reader(log.store)
    for producer in (None, "ingest"):  # by the order of the log, and by what many entries have in common
        assert query(reader, Filter(producer=producer, recorded_before_us=1010)) == [0, 4]
        assert query(reader, Filter(producer=producer, recorded_from_us=1000, recorded_before_us=1040)) == [0, 1, 2, 3]
        clocked = Filter(producer=producer, recorded_from_us=990, recorded_before_us=1040)
        assert query(reader, clocked) == [0, 1, 2, 3, 4]
        assert query(reader, Filter(producer=producer, recorded_from_us=1020)) == [2, 3, 5]
        assert query(reader, Filter(producer=producer, recorded_from_us=9999)) == []
    close(log)


@pytest.mark.parametrize("token", ["x", "MTox", "1:2:3", "\u00e4", "MToxMjM0NTY3ODkwMTIzNDU2Oi0x"])
def test_a_page_token_of_another_query_is_refused(tmp_path: Path, token: str) -> None:
    log = open_log(f"sqlite:///{tmp_path / 'a.db'}", tmp_path)
    fill(log, 3)
    reader = Reader(log.store)
    _, other = reader.query(Filter(producer="ingest"), 1, "")
    for wrong in (token, other):
        with pytest.raises(StepwedgeError) as raised:
            reader.query(Filter(), 1, wrong)
        assert raised.value.code == ErrorCode.ERROR_CODE_INVALID_REQUEST
    close(log)


def test_what_is_not_in_the_log_has_no_entry_and_no_proof(sqlite_url: str, tmp_path: Path) -> None:
    log = open_log(sqlite_url, tmp_path)
    fill(log, 3)
    reader = Reader(log.store)
    for ask, code in (
        (lambda: reader.entry(3), ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND),
        (lambda: reader.inclusion(3, 0), ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND),
        (lambda: reader.inclusion(2, 2), ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND),
        (lambda: reader.inclusion(0, 4), ErrorCode.ERROR_CODE_INVALID_REQUEST),
        (lambda: reader.consistency(0, 3), ErrorCode.ERROR_CODE_INVALID_REQUEST),
        (lambda: reader.consistency(3, 2), ErrorCode.ERROR_CODE_INVALID_REQUEST),
        (lambda: reader.consistency(1, 4), ErrorCode.ERROR_CODE_INVALID_REQUEST),
        (lambda: reader.query(Filter(), 1001, ""), ErrorCode.ERROR_CODE_INVALID_REQUEST),
    ):
        with pytest.raises(StepwedgeError) as raised:
            ask()  # type: ignore[no-untyped-call]
        assert raised.value.code == code
    close(log)
