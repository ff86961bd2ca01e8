"""Retention classes, legal holds and pruning, on both databases; what is left is proved by the stand-alone verifier."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.audit import export, retention, store
from services.audit.acts import Caller
from services.audit.formats import stream
from services.audit.formats.stream import Format
from services.audit.high_water import HighWater
from services.audit.log import Log
from services.audit.pruned import Pruned
from services.audit.reading import Reader, newest
from services.audit.retention import Hold, Prune, Wish, classes, over_before, ranges
from services.audit.scrub import Scrub
from services.audit.store import Filter, Store
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from shared.transparency import merkle
from shared.transparency.note import Signer, VerificationKey
from stepwedge.audit.v1 import audit_pb2
from tests.unit.audit.making import KEY, ORIGIN, Producer, close, fill, uid
from verifier import verify

OPERATOR = Caller(Identity.OPERATOR)
YEAR = 365 * 86400
VKEY = str(VerificationKey(ORIGIN, KEY.public_key().public_bytes_raw()))


def open_log(url: str, folder: Path, chosen: dict[str, str] | None = None) -> Log:
    log = Log(
        Store.open(url), Signer(ORIGIN, KEY), HighWater(folder / "high-water"), retention=classes("Y6", chosen or {})
    )
    log.open()
    return log


@contextmanager
def years_ago(monkeypatch: pytest.MonkeyPatch, years: float) -> Iterator[None]:
    """The log's clock, as it was then."""
    real = time.time_ns
    with monkeypatch.context() as patch:
        patch.setattr("services.audit.log.time.time_ns", lambda: real() - int(years * YEAR * 1e9))
        yield


def old_log(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, count: int = 700) -> Log:
    """A log whose first entries are seven years old; every tenth is a decision, which is kept ten years."""
    with years_ago(monkeypatch, 7):
        log = open_log(url, folder, {"decided": "Y10"})
        producer = Producer()
        made = [
            producer.prepared(producer.decided(number) if number % 10 == 0 else producer.received(number, study=number))
            for number in range(count)
        ]
        for start in range(0, count, 100):
            log.submit(made[start : start + 100]).result(20)
    return log


def prune(log: Log, wish: Wish | None = None) -> Prune:
    act = Prune(OPERATOR, wish or Wish())
    log.perform(act).result(30)
    return act


def bundle(log: Log, file: Path) -> Path:
    with log.store.reading() as connection:
        head, known = newest(connection), store.keys(connection)
    file.write_bytes(b"".join(export.pieces(log.store, head, known, None)))
    return file


def test_what_is_over_goes_and_every_proof_of_what_is_kept_stands(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = old_log(database_url, tmp_path, monkeypatch)
    fill(log, 50, first=5000)
    older = bundle(log, tmp_path / "older.zip")
    act = prune(log)
    # 700 entries are old; those of full tiles below 512 go, but for every tenth.
    size = Reader(log.store).head().size
    full = (size - 1) // 256 * 256
    assert act.removed == sum(1 for index in range(min(full, 700)) if index % 10)
    assert act.removed > 400
    reader = Reader(log.store)
    assert reader.entry(10).record.WhichOneof("event") == "decided"
    with pytest.raises(StepwedgeError, match="proof stands"):
        reader.entry(11)
    for index in (10, 11, size - 1):
        proof = reader.inclusion(index, 0)
        assert merkle.verify_inclusion(proof.leaf_hash, index, proof.size, proof.path, proof.root)
    entries, token = reader.query(Filter(kind=audit_pb2.RECORD_KIND_PRUNED), 10, "")
    (record,) = [entry.record.pruned for entry in entries]
    assert (record.removed, token) == (act.removed, "")
    assert sum(one.last - one.first + 1 for one in record.ranges) == act.removed
    report = verify.verify(str(bundle(log, tmp_path / "pruned.zip")), key=VKEY, older=str(older))
    assert (report.code, report.problems) == (verify.PROVED, [])
    assert report.pruned == act.removed
    for form in Format:
        with log.store.reading() as connection:
            head = newest(connection)
        text = b"".join(stream.export(log.store, head, form))
        assert text.count(b"\n") == head.size - act.removed + (form == Format.CSV)
    found = list(Scrub(log, 0).check())[-1]
    assert (found.first, found.pruned) == (None, act.removed)
    assert prune(log).removed == 0
    close(log)
    log = open_log(database_url, tmp_path)
    fill(log, 3, first=9000)
    close(log)


def test_a_hole_that_no_record_speaks_of_is_no_pruning(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = old_log(database_url, tmp_path, monkeypatch)
    prune(log)
    with store.database.create_engine(database_url).begin() as connection:
        connection.execute(store.ENTRIES.delete().where(store.ENTRIES.c.index == 20))
    report = verify.verify(str(bundle(log, tmp_path / "hole.zip")), key=VKEY)
    assert report.code == verify.ALTERED
    with pytest.raises(StepwedgeError) as raised:
        Reader(log.store).query(Filter(study=uid(1)), 10, "")
    assert raised.value.code == ErrorCode.ERROR_CODE_LOG_INCONSISTENT
    close(log)


@pytest.mark.parametrize("on", ["study", "subject"])
def test_a_legal_hold_keeps_what_is_over(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: str
) -> None:
    log = old_log(database_url, tmp_path, monkeypatch, 520)
    # All entries of the producer are of one subject.
    about = {"study": uid(9_000_011)} if on == "study" else {"subject": "SW-" + "A" * 24}
    hold = Hold(Caller(Identity.AUDITOR, purpose=audit_pb2.PURPOSE_OF_USE_HLEGAL), **about)
    log.perform(hold).result(20)
    act = prune(log)
    assert act.held == (1 if on == "study" else 460)
    assert act.removed == (459 if on == "study" else 0)
    assert Reader(log.store).entry(11).index == 11
    log.perform(Hold(OPERATOR, release=hold.hold)).result(20)
    act = prune(log)
    assert (act.held, act.removed) == (0, 1 if on == "study" else 460)
    close(log)


def test_what_must_still_be_kept_is_refused_and_the_refusal_is_a_record(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = old_log(database_url, tmp_path, monkeypatch, 520)
    now = time.time_ns() // 1000
    wishes = [
        Wish(now),  # not even six months ago
        Wish(now - 8 * YEAR * 1_000_000, ("Y10",)),
        Wish(now - 8 * YEAR * 1_000_000, ("Y6", "Y10")),
        Wish(0, ("LOG",)),
    ]
    for wish in wishes:
        act = prune(log, wish)
        assert (act.refused, act.removed) == (True, 0)
    entries, _ = Reader(log.store).query(Filter(kind=audit_pb2.RECORD_KIND_PRUNED), 10, "")
    assert [entry.record.pruned.refusal for entry in entries] == [ErrorCode.ERROR_CODE_RETAINED] * len(wishes)
    assert prune(log, Wish(now - 8 * YEAR * 1_000_000, ("Y6",))).removed == 0  # nothing is so old
    assert prune(log, Wish(now - int(6.5 * YEAR) * 1_000_000, ("Y6",))).removed == 460
    close(log)


def test_what_explains_the_log_is_never_pruned(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with years_ago(monkeypatch, 20):
        log = open_log(database_url, tmp_path)
        hold = Hold(OPERATOR, study=uid(1))
        log.perform(hold).result(20)
        log.perform(Hold(OPERATOR, release=hold.hold)).result(20)
        fill(log, 300)
    assert prune(log).removed == 254
    with log.store.reading() as connection:
        pruned = Pruned.of(connection)
        assert 0 not in pruned
        assert 1 not in pruned
        assert 2 in pruned
    # By now the record of pruning lies in no full tile; once it does, it stays.
    fill(log, 600, first=10_000)
    assert prune(log).removed == 46
    entries, _ = Reader(log.store).query(Filter(kind=audit_pb2.RECORD_KIND_PRUNED), 10, "")
    assert len(entries) == 2
    close(log)


@pytest.mark.parametrize(
    ("retention_class", "now", "then"),
    [
        ("M6", "2026-08-31T12:00:00+00:00", "2026-02-28T12:00:00+00:00"),
        ("Y6", "2028-02-29T00:00:00+00:00", "2022-02-28T00:00:00+00:00"),
        ("Y10", "2026-11-22T05:00:00+00:00", "2016-11-22T05:00:00+00:00"),
        ("Y15", "2026-01-01T00:00:00+00:00", "2011-01-01T00:00:00+00:00"),
    ],
)
def test_a_class_ends_by_the_calendar(retention_class: str, now: str, then: str) -> None:
    moment = int(datetime.fromisoformat(now).timestamp()) * 1_000_000
    over = over_before(retention_class, moment)
    assert datetime.fromtimestamp(over / 1e6, UTC) == datetime.fromisoformat(then)


def test_the_settings_choose_classes_and_never_that_of_the_log_itself() -> None:
    made = classes("M6", {"received": "Y15"})
    assert (made["received"], made["decided"], made["alert"], made["pruned"]) == ("Y15", "M6", "Y10", "LOG")
    for wrong in ({"pruned": "M6"}, {"no_such_kind": "Y6"}):
        with pytest.raises(StepwedgeError, match="CONFIGURATION"):
            classes("Y6", wrong)


def test_ranges_are_what_they_were_made_of() -> None:
    assert ranges([]) == []
    assert ranges([3]) == [(3, 3)]
    assert ranges([0, 1, 2, 5, 7, 8]) == [(0, 2), (5, 5), (7, 8)]
    held = Pruned([(0, 2), (5, 5), (3, 4), (7, 8)])
    assert [index for index in range(10) if index in held] == [0, 1, 2, 3, 4, 5, 7, 8]
    assert len(held) == 8
    assert retention.LASTING not in retention.MONTHS
