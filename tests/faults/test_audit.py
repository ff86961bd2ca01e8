"""The log under faults: killed at any moment, its disk full or broken, its database gone."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from services.audit.__main__ import write_export
from services.audit.high_water import HighWater
from services.audit.log import Log
from services.audit.store import Store
from shared import keys
from shared.errors import ErrorCode, StepwedgeError, from_rpc
from shared.identity import Identity
from shared.pki import Credentials
from shared.rpc import channel
from shared.settings import PREFIX
from shared.transparency.note import Signer
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc
from tests.unit.audit.making import KEY, ORIGIN, Producer, close, fill, open_log
from verifier import verify

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def process(folder: Path, pki_folder: Path, url: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The service as a process of its own, and where it listens; killed at the end."""
    environment = {
        **os.environ,
        f"{PREFIX}CLUSTER__DATA": str(folder),
        f"{PREFIX}CLUSTER__PKI": str(pki_folder),
        f"{PREFIX}AUDIT__LISTEN": "127.0.0.1:0",
        f"{PREFIX}AUDIT__METRICS": "",
        f"{PREFIX}AUDIT__DATABASE": url,
    }
    with (folder / "stderr").open("a") as errors:
        running = subprocess.Popen(
            [sys.executable, "-m", "services.audit"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert running.stdout is not None
        line = running.stdout.readline().split()
        assert line[:2] == ["ready", "audit"], (folder / "stderr").read_text()
        yield running, line[2]
    finally:
        running.kill()
        running.wait()


def code_of(log: Log, producer: Producer, number: int) -> ErrorCode.ValueType:
    with pytest.raises(StepwedgeError) as raised:
        log.submit([producer.prepared(producer.received(number))]).result(30)
    producer.sequence -= 1  # not taken: the number goes to the next
    return raised.value.code


def proved(url: str, folder: Path, size: int) -> None:
    write_export(url, folder / "proved.zip")
    report = verify.verify(str(folder / "proved.zip"), key=str(Signer(ORIGIN, KEY).key))
    assert (report.code, report.size, report.gaps) == (verify.PROVED, size, []), report.problems


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from pathlib import Path
from tests.unit.audit.making import Producer, close, open_log
from shared.errors import StepwedgeError
folder = Path(sys.argv[1])
log = open_log(f"sqlite:///{folder / 'audit.db'}", folder)
producer = Producer()
number = 0

def tell(word, index):
    sys.stdout.write(f"{word} {index}\\n")
    sys.stdout.flush()

for limit in (700_000, 1_500_000, None):
    # No file may grow beyond this: every write past it fails, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit or resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    failed = 0
    taken = 0
    while failed < 3 and taken < 3000:
        made = producer.prepared(producer.received(number))
        try:
            index = log.submit([made]).result(30).indexes[0]
        except StepwedgeError as error:
            tell(error.name, number)
            producer.sequence -= 1
            failed += 1
            continue
        tell("taken", index)
        number += 1
        taken += 1
        if limit is None and taken > 50:
            break
close(log)
"""


def test_a_full_disk_is_refused_nothing_is_acknowledged_and_the_log_goes_on_when_there_is_room(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    said = [line.split() for line in done.stdout.splitlines() if line.startswith(("taken", "AUDIT", "LOG", "STORAGE"))]
    taken = [int(index) for word, index in said if word == "taken"]
    refused = [word for word, _ in said if word != "taken"]
    assert refused
    assert set(refused) == {"AUDIT_UNAVAILABLE"}
    assert taken == list(range(len(taken)))
    assert len(taken) > 100
    proved(f"sqlite:///{tmp_path / 'audit.db'}", tmp_path, len(taken))


def test_a_mark_that_cannot_be_written_acknowledges_nothing_and_the_retry_finds_the_same_place(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(database_url, tmp_path)
    producer = Producer()
    fill(log, 3, producer=producer)

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("services.audit.high_water.os.fdatasync", broken)
        assert code_of(log, producer, 3) == ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE
    # The entry was committed before the mark failed: the same key finds it.
    assert log.submit([producer.prepared(producer.received(3))]).result(30).indexes == [3]
    close(log)
    proved(database_url, tmp_path, 4)


@pytest.mark.postgres
def test_a_postgresql_that_drops_its_connections_is_unavailable_and_then_the_log_goes_on(
    postgres_url: str, tmp_path: Path
) -> None:
    import secrets

    import sqlalchemy as sa

    server = sa.engine.make_url(postgres_url).set(drivername="postgresql+psycopg")
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    name = f"test_{secrets.token_hex(8)}"
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    url = server.set(database=name, drivername="postgresql").render_as_string(hide_password=False)
    log = open_log(url, tmp_path)
    producer = Producer()
    taken = fill(log, 5, producer=producer)
    for _ in range(3):
        with admin.connect() as connection:
            connection.execute(
                sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"), {"name": name}
            )
        number = len(taken)
        made = [producer.prepared(producer.received(number))]
        with pytest.raises(StepwedgeError) as raised:
            log.submit(made).result(30)
        assert raised.value.code == ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE
        taken += log.submit(made).result(30).indexes
    assert taken == list(range(8))
    close(log)
    proved(url, tmp_path, 8)
    with admin.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def test_a_log_whose_database_becomes_another_s_takes_nothing_more(tmp_path: Path) -> None:
    """The tail is cut off under the running log: it notices before it writes again."""
    import sqlite3

    url = f"sqlite:///{tmp_path / 'audit.db'}"
    log = open_log(url, tmp_path)
    producer = Producer()
    fill(log, 10, producer=producer)
    with sqlite3.connect(tmp_path / "audit.db", isolation_level=None) as other:
        other.execute(
            'INSERT INTO entries ("index", leaf, key_hash, facet, recorded_us, recorded_max_us, study)'
            ' SELECT "index" + 1, leaf, zeroblob(32), facet, recorded_us, recorded_max_us, study FROM entries'
            ' WHERE "index" = 9'
        )
    assert code_of(log, producer, 10) == ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE
    with pytest.raises(StepwedgeError) as raised:
        log.submit([producer.prepared(producer.received(11))]).result(30)
    assert raised.value.code == ErrorCode.ERROR_CODE_LOG_INCONSISTENT
    with pytest.raises(StepwedgeError) as raised:
        log.check()
    assert raised.value.code == ErrorCode.ERROR_CODE_LOG_INCONSISTENT
    close(log)


async def test_a_call_whose_client_has_gone_leaves_the_log_well(
    tmp_path: Path, pki_folder: Path, credentials: Callable[[Identity], Credentials]
) -> None:
    keys.create(tmp_path / "keys", development=True)
    with process(tmp_path, pki_folder, f"sqlite:///{tmp_path / 'audit.db'}") as (_, address):
        to = channel(address, credentials(Identity.INGEST), server=Identity.AUDIT)
        stub = audit_pb2_grpc.AuditServiceStub(to)
        producer = Producer()
        calls = [
            stub.Append(audit_pb2.AppendRequest(records=[producer.received(number)]), timeout=10)
            for number in range(40)
        ]
        for call in calls:
            await asyncio.sleep(0)
            call.cancel()  # type: ignore[attr-defined]
        await asyncio.gather(*calls, return_exceptions=True)
        final = producer.received(1000)
        answer = await stub.Append(audit_pb2.AppendRequest(records=[final]), timeout=10)  # type: ignore[misc]
        assert answer.indexes[0] <= 40
        with pytest.raises(grpc.RpcError) as raised:
            await stub.GetEntry(audit_pb2.GetEntryRequest(index=0), timeout=10)  # type: ignore[misc]
        assert from_rpc(raised.value).code == ErrorCode.ERROR_CODE_PERMISSION_DENIED
        await to.close()


def test_a_store_that_cannot_be_opened_refuses_to_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StepwedgeError, OSError)):
        Log(
            Store.open(f"sqlite:///{tmp_path / 'file' / 'audit.db'}"),
            Signer(ORIGIN, KEY),
            HighWater(tmp_path / "high-water"),
        ).open()
