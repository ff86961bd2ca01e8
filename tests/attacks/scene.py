"""Where the crimes happen: a log that the real service made, copies of it to tamper with, and the judge.

The judge is `verifier/verify.py`, run as a process by an interpreter that sees no other file of ours.
"""

import copy
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.audit.__main__ import write_export
from services.audit.high_water import HighWater, Mark
from shared import keys, pki
from shared.calling import sync_channel
from shared.identity import Identity
from shared.paths import ROOT
from shared.settings import PREFIX
from shared.transparency.note import Signer
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc
from tests.faults.nursery import Child, Nursery, until_ready
from tests.unit.audit.making import Producer
from tests.wire.witness_house import House, running

ORIGIN = "stepwedge/audit"
EARLY = 300
"""Records of ingest that the auditor's first export covers."""
RECORDS = 530
"""Records of ingest in all; one more has a list kept beside it."""

PROVED, USAGE, ALTERED, TRUNCATED, FORKED, BAD_SIGNATURE, MISSING_WITNESS, MALFORMED, UNREADABLE = 0, *range(2, 10)
"""Exit statuses of the verifier, as its documentation lists them (1 is Python's own)."""


ONCE = pytest.mark.parametrize("databases", ["sqlite"], indirect=True, scope="session")
"""For what is done to an export alone: it is the same from either database."""


class Judgement(NamedTuple):
    """What the verifier said."""

    code: int
    report: dict[str, Any]

    @property
    def words(self) -> str:
        """Every problem in one text."""
        return "\n".join(problem["message"] for problem in self.report["problems"])

    @property
    def indexes(self) -> list[int]:
        """The records that it names."""
        return [problem["index"] for problem in self.report["problems"] if "index" in problem]


def judge(
    export: Path,
    *,
    key: str | None,
    older: Path | None = None,
    witness: Sequence[str] = (),
    more: Sequence[str] = (),
) -> Judgement:
    """Run the verifier on an export."""
    command = [sys.executable, "-I", "-S", str(ROOT / "verifier" / "verify.py"), str(export), "--json", *more]
    command += ["--key", key] if key is not None else []
    command += ["--older", str(older)] if older is not None else []
    for one in witness:
        command += ["--witness", one]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    report = json.loads(done.stdout) if done.stdout else {"problems": []}
    assert "Traceback" not in done.stderr, done.stderr
    return Judgement(done.returncode, report)


@dataclass
class Databases:
    """One kind of database: how to make one, and how to copy one as its administrator."""

    kind: str
    new: Callable[[Path], str]
    copy: Callable[[str, Path], str]


def sqlite_databases() -> Databases:
    """SQLite: a database is a file."""

    def copy(url: str, folder: Path) -> str:
        source = Path(str(sa.engine.make_url(url).database))
        for suffix in ("", "-wal"):
            if (beside := source.with_name(source.name + suffix)).exists():
                shutil.copy(beside, folder / f"audit.db{suffix}")
        return f"sqlite:///{folder / 'audit.db'}"

    return Databases("sqlite", lambda folder: f"sqlite:///{folder / 'audit.db'}", copy)


def postgres_databases(server: str) -> Databases:
    """PostgreSQL: its superuser makes and copies databases."""
    url = sa.engine.make_url(server).set(drivername="postgresql+psycopg")

    def create(name: str, template: str = "template1") -> str:
        admin = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(sa.text(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'))
        admin.dispose()
        return url.set(database=name, drivername="postgresql").render_as_string(hide_password=False)

    return Databases(
        "postgres",
        lambda _: create(f"attacks_{secrets.token_hex(6)}"),
        lambda source, _: create(f"attacks_{secrets.token_hex(6)}", str(sa.engine.make_url(source).database)),
    )


class Place:
    """A log at rest: its folder with keys and high-water mark, and its database. The attacker holds all of it."""

    def __init__(self, folder: Path, url: str, databases: Databases) -> None:
        self.folder = folder
        self.url = url
        self.databases = databases

    @property
    def mark(self) -> Path:
        """The high-water file."""
        return self.folder / "audit.high-water"

    @property
    def vkey(self) -> str:
        """The log's verification key, as the auditor got it on the first day."""
        return (self.folder / "keys" / keys.VERIFICATION).read_text().strip()

    @property
    def signer(self) -> Signer:
        """The log's signing key, stolen."""
        return Signer(ORIGIN, keys.signing_key(self.folder / "keys"))

    @property
    def signing(self) -> Ed25519PrivateKey:
        """The private key itself."""
        return keys.signing_key(self.folder / "keys")

    def set_mark(self, size: int, root: bytes) -> None:
        """Write the high-water mark anew."""
        self.mark.unlink(missing_ok=True)
        high_water = HighWater(self.mark)
        high_water.write(Mark(size, root))
        high_water.close()

    def copy(self, folder: Path) -> "Place":
        """The same log once more, its own for whoever tampers with it."""
        folder.mkdir(parents=True)
        shutil.copytree(self.folder / "keys", folder / "keys")
        if self.mark.exists():
            shutil.copy(self.mark, folder / self.mark.name)
        return Place(folder, self.databases.copy(self.url, folder), self.databases)

    @property
    def engine_url(self) -> sa.URL:
        """For connections that are nobody's but the attacker's."""
        return sa.engine.make_url(self.url).set(drivername=_driver(self.url))

    def sql(self, *statements: str, **values: object) -> None:
        """Run SQL with every right."""
        engine = sa.create_engine(self.engine_url)
        with engine.begin() as connection:
            for statement in statements:
                bound = {name: value for name, value in values.items() if f":{name}" in statement}
                connection.execute(sa.text(statement), bound)
        engine.dispose()

    def rows(self, statement: str) -> list[dict[str, Any]]:
        """Read with SQL."""
        engine = sa.create_engine(self.engine_url)
        with engine.begin() as connection:
            found = [dict(row) for row in connection.execute(sa.text(statement)).mappings()]
        engine.dispose()
        return found

    def export(self, name: str = "export.zip") -> Path:
        """Export out of the tables as they are, as `python -m services.audit export` does."""
        write_export(self.url, self.folder / name)
        return self.folder / name


def _driver(url: str) -> str:
    return "sqlite+pysqlite" if url.startswith("sqlite") else "postgresql+psycopg"


class Service:
    """The audit service as a process, and calls to it."""

    def __init__(self, child: Child, address: str, pki_folder: Path, nursery: Nursery) -> None:
        self.child = child
        self.address = address
        self._pki = pki_folder
        self._nursery = nursery
        self._channels: dict[Identity, grpc.Channel] = {}

    def stub(self, identity: Identity) -> audit_pb2_grpc.AuditServiceStub:
        """The methods, called as `identity`."""
        if identity not in self._channels:
            own = pki.Credentials.load(self._pki, identity)
            self._channels[identity] = sync_channel(self.address, own, server=Identity.AUDIT)
        return audit_pb2_grpc.AuditServiceStub(self._channels[identity])

    def append(self, producer: Producer, *records: audit_pb2.Record) -> list[int]:
        """Append as the producer; the indexes."""
        request = audit_pb2.AppendRequest(records=records)
        return list(self.stub(producer.identity).Append(request, timeout=20).indexes)

    def fill(self, producer: Producer, count: int, first: int = 0) -> None:
        """Append `count` records."""
        for start in range(first, first + count, 100):
            batch = range(start, min(start + 100, first + count))
            self.append(producer, *(producer.received(number) for number in batch))

    def checkpoint(self) -> audit_pb2.GetCheckpointResponse:
        """The newest checkpoint."""
        answer: audit_pb2.GetCheckpointResponse = self.stub(Identity.AUDITOR).GetCheckpoint(
            audit_pb2.GetCheckpointRequest(), timeout=20
        )
        return answer

    def export(self, file: Path) -> Path:
        """The bundle, as an auditor gets it."""
        with file.open("wb") as out:
            for piece in self.stub(Identity.AUDITOR).Export(audit_pb2.ExportRequest(), timeout=60):
                out.write(piece.chunk)
        return file

    def alerts(self, code: "audit_pb2.AlertCode.ValueType") -> list[audit_pb2.AlertEvent]:
        """The alerts of one kind in the log."""
        request = audit_pb2.QueryEntriesRequest(kind=audit_pb2.RECORD_KIND_ALERT)
        page = self.stub(Identity.AUDITOR).QueryEntries(request, timeout=20)
        return [entry.record.alert for entry in page.entries if entry.record.alert.code == code]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; the exit status."""
        for one in self._channels.values():
            one.close()
        self.child.kill(number)
        return self._nursery.reap(self.child.pid)


@dataclass
class Town:
    """What every scene needs: certificates, and a nursery for processes."""

    pki: Path
    nursery: Nursery

    def environment(self, place: Place, witnesses: Sequence[House] = (), **more: str) -> dict[str, str]:
        """The settings of the service on a place."""
        named = [{"url": house.url, "vkey": house.vkey} for house in witnesses]
        return {
            f"{PREFIX}CLUSTER__DATA": str(place.folder),
            f"{PREFIX}CLUSTER__PKI": str(self.pki),
            f"{PREFIX}AUDIT__LISTEN": "127.0.0.1:0",
            f"{PREFIX}AUDIT__METRICS": "",
            f"{PREFIX}AUDIT__DATABASE": place.url,
            f"{PREFIX}AUDIT__HIGH_WATER": str(place.mark),
            f"{PREFIX}AUDIT__WITNESSES": json.dumps(named),
            f"{PREFIX}AUDIT__QUORUM": str(len(named)),
            f"{PREFIX}AUDIT__WITNESS_INTERVAL_SECONDS": "0.05",
            f"{PREFIX}AUDIT__WITNESS_TIMEOUT_SECONDS": "0.5",
            **{f"{PREFIX}{name}": value for name, value in more.items()},
        }

    def spawn(self, place: Place, witnesses: Sequence[House] = (), **more: str) -> Child:
        """Start the service without waiting for it."""
        out = place.folder / f"out.{secrets.token_hex(4)}"
        return self.nursery.start_service(out, self.environment(place, witnesses, **more))

    @contextmanager
    def serving(self, place: Place, witnesses: Sequence[House] = (), **more: str) -> Iterator[Service]:
        """The service on a place; ended in good order, unless it has ended."""
        child = self.spawn(place, witnesses, **more)
        service = Service(child, until_ready(child), self.pki, self.nursery)
        try:
            yield service
        finally:
            if child.pid in self.nursery.living:
                assert service.stop() == 0, Path(f"{child.out}.err").read_text()

    def refuses_to_start(self, place: Place, witnesses: Sequence[House] = ()) -> str:
        """Start the service where it must not start; what it writes to stderr."""
        child = self.spawn(place, witnesses)
        status = self.nursery.reap(child.pid)
        assert status not in (0, -signal.SIGKILL)
        assert child.lines() == []
        return Path(f"{child.out}.err").read_text()


@dataclass
class Scene:
    """An honest log, its witness, and what its auditor has kept."""

    town: Town
    place: Place
    witness: House
    early: Path
    """The auditor's first export."""
    export: Path
    """The newest export, cosigned to its last record."""
    folder: Path

    auditor = Identity.AUDITOR

    @property
    def vkey(self) -> str:
        """The log's verification key."""
        return self.place.vkey

    def copy(self) -> Place:
        """The log once more, to tamper with."""
        return self.place.copy(self.folder / f"copy-{secrets.token_hex(4)}")

    @contextmanager
    def witness_twin(self) -> Iterator[House]:
        """A witness with the key and the memory of the scene's, for a test to lead on; it runs."""
        folder = self.folder / f"witness-{secrets.token_hex(4)}"
        folder.mkdir()
        for name in ("key", "state"):
            shutil.copy(self.witness.folder / name, folder / name)
        twin = copy.copy(self.witness)
        twin.folder, twin.address, twin.process = folder, "", None
        with running(twin) as house:
            yield house

    @contextmanager
    def new_witness(self) -> Iterator[House]:
        """A witness that knows the log and has cosigned nothing; it runs."""
        with self.witness_of(self.place) as house:
            yield house

    @contextmanager
    def witness_of(self, place: Place) -> Iterator[House]:
        """The same, of another log."""
        name = secrets.token_hex(4)
        with running(House(self.folder / f"new-{name}", f"witness.example/{name}", [place.vkey])) as house:
            yield house

    def judge(self, export: Path, **more: Any) -> Judgement:
        """Run the verifier with the log's key."""
        return judge(export, **{"key": self.vkey, **more})

    def uncaught(self, export: Path) -> None:
        """Assert that the verifier cannot tell with the log's key alone."""
        alone = self.judge(export)
        assert alone.code == PROVED, alone.words


def make_scene(town: Town, databases: Databases, folder: Path) -> Scene:
    """Let the service make a log under a witness's eyes."""
    home = folder / "log"
    home.mkdir(parents=True)
    keys.create(home / "keys", origin=ORIGIN, development=True)
    place = Place(home, databases.new(home), databases)
    witness = House(folder / "witness", "witness.example/one", [place.vkey])
    witness.start()
    with town.serving(place, [witness]) as service:
        producer = Producer()
        service.fill(producer, EARLY)
        early = service.export(folder / "early.zip")
        service.fill(producer, RECORDS - EARLY, EARLY)
        service.append(producer, producer.decided(1, instances=800))
        export = service.export(folder / "export.zip")
    return Scene(town, place, witness, early, export, folder)


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait for a condition; what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)
    return found


def environment_of_tests() -> dict[str, str]:
    """The environment without the tester's own settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
