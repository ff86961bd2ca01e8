"""Whoever changes what queries search against, or takes entries out, is found, on both databases."""

import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.audit import record, store
from services.audit.log import Log
from services.audit.reading import Reader
from services.audit.scrub import Findings, Scrub
from services.audit.store import Filter
from shared import database
from shared.errors import ErrorCode, StepwedgeError
from stepwedge.audit.v1 import audit_pb2
from tests.unit.audit.making import Producer, close, fill, open_log, uid

C = store.ENTRIES.c
HIDE = {
    "another study": {"study": uid(1)},
    "no study": {"study": None},
    "another subject": {"subject": "SW-" + "Z" * 24},
    "another instance": {"instance": None},
    "another kind": {"facet": 2},
    "no facet": {"facet": None},
    "another time": {"recorded_us": 5},
    "another idempotency key": {"key_hash": bytes(32)},
    "a later latest time": {"recorded_max_us": 2**53},
}


def filled(url: str, folder: Path) -> Log:
    log = open_log(url, folder)
    producer = Producer()
    fill(log, 299, producer=producer)
    log.submit([producer.prepared(producer.decided(7))]).result(10)
    return log


def attack(url: str, *statements: sa.Executable) -> None:
    engine = database.create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(statement)
    engine.dispose()


def checked(scrub: Scrub, **given: bool) -> Findings:
    return list(scrub.check(**given))[-1]


def alerts(log: Log) -> list[audit_pb2.AlertEvent]:
    # Not through a reader, which refuses while entries are missing.
    with log.store.reading() as connection:
        rows = list(store.query(connection, Filter(kind=audit_pb2.RECORD_KIND_ALERT), after=-1, limit=100))
    return [record.to_record(record.parse(row.leaf), {}).alert for row in rows]


def test_an_untouched_log_has_nothing_to_find(database_url: str, tmp_path: Path) -> None:
    log = filled(database_url, tmp_path)
    found = checked(Scrub(log, 0))
    assert (found.checked, found.size, found.first) == (300, 300, None)
    assert alerts(log) == []
    close(log)


@pytest.mark.parametrize("place", [40, 280])
@pytest.mark.parametrize("how", sorted(HIDE))
def test_a_record_hidden_by_its_columns_is_found_recorded_and_put_right(
    database_url: str, tmp_path: Path, how: str, place: int
) -> None:
    log = filled(database_url, tmp_path)
    attack(database_url, store.ENTRIES.update().where(C.index == place).values(**HIDE[how]))
    scrub = Scrub(log, 0)
    reader = Reader(log.store, scrub.raise_if_refused)
    found = checked(scrub)
    assert place in found.columns
    assert found.entries == found.missing == []
    with pytest.raises(StepwedgeError) as raised:
        reader.query(Filter(study=uid(9_000_001)), 10, "")
    assert raised.value.code == ErrorCode.ERROR_CODE_LOG_INCONSISTENT
    (alert,) = alerts(log)
    assert (alert.code, alert.first_index) == (audit_pb2.ALERT_CODE_COLUMNS_ALTERED, found.first)
    assert place in checked(scrub, reindex=True).columns
    assert checked(scrub).columns == []
    entries, _ = reader.query(Filter(instance=uid(place)), 10, "")
    assert [entry.index for entry in entries] == [place]
    close(log)


def test_what_is_wrong_at_the_end_is_found_before_the_service_answers(database_url: str, tmp_path: Path) -> None:
    log = filled(database_url, tmp_path)
    attack(database_url, store.ENTRIES.update().where(C.index == 290).values(study=None))
    scrub = Scrub(log, 0)
    scrub.start()
    with pytest.raises(StepwedgeError, match="290"):
        scrub.raise_if_refused()
    scrub.close()
    close(log)


def test_what_is_wrong_anywhere_is_found_in_the_background(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.audit.scrub.AT_START", 0)
    monkeypatch.setattr("services.audit.scrub._PAUSE_SECONDS", 0.01)
    log = filled(database_url, tmp_path)
    scrub = Scrub(log, 1_000_000)
    scrub.start()
    scrub.raise_if_refused()
    attack(database_url, store.ENTRIES.update().where(C.index == 3).values(study=None))
    deadline = time.monotonic() + 20
    while scrub._refusal is None and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(StepwedgeError, match="first 3"):
        scrub.raise_if_refused()
    scrub.close()
    assert [alert.first_index for alert in alerts(log)] == [3]
    close(log)


def test_an_entry_that_is_gone_or_another_is_found_and_no_reindex_hides_it(database_url: str, tmp_path: Path) -> None:
    log = filled(database_url, tmp_path)
    other = sa.select(C.leaf).where(C.index == 8).scalar_subquery()
    attack(
        database_url,
        store.ENTRIES.update().where(C.index == 9).values(leaf=other),
        store.ENTRIES.delete().where(C.index == 20),
    )
    scrub = Scrub(log, 0)
    for reindex in (False, True):
        found = checked(scrub, reindex=reindex)
        assert (found.entries, found.missing) == ([9], [20])
        with pytest.raises(StepwedgeError):
            scrub.raise_if_refused()
    assert sorted(alert.code for alert in alerts(log)) == [
        audit_pb2.ALERT_CODE_ENTRIES_ALTERED,
        audit_pb2.ALERT_CODE_ENTRIES_MISSING,
    ]
    close(log)


def test_an_entry_rewritten_together_with_its_tile_is_found(database_url: str, tmp_path: Path) -> None:
    from shared.transparency import merkle

    log = filled(database_url, tmp_path)
    with log.store.reading() as connection:
        (row,) = store.leaves(connection, 5, 6)
        hashes = bytearray(store.tile(connection, 0, 0))
    forged = row.leaf.replace(b'"conflict":false', b'"conflict":true')
    hashes[5 * 32 : 6 * 32] = merkle.leaf_hash(forged)
    tiles = store.TILES
    attack(
        database_url,
        store.ENTRIES.update().where(C.index == 5).values(leaf=forged),
        tiles.update().where(tiles.c.level == 0, tiles.c.index == 0).values(hashes=bytes(hashes)),
    )
    assert len(checked(Scrub(log, 0)).entries) == 256
    close(log)


def test_a_facet_put_there_twice_hides_nothing(database_url: str, tmp_path: Path) -> None:
    log = filled(database_url, tmp_path)
    copied = sa.select(sa.literal(99), *[column for column in store.FACETS.c if column.name != "id"])
    f = store.FACETS.c
    attack(
        database_url,
        store.FACETS.insert().from_select(list(f.keys()), copied.where(f.kind == audit_pb2.RECORD_KIND_DECIDED)),
        store.ENTRIES.update().where(C.index == 299).values(facet=99),
    )
    entries, _ = Reader(log.store).query(Filter(kind=audit_pb2.RECORD_KIND_DECIDED), 10, "")
    assert [entry.index for entry in entries] == [299]
    close(log)
