"""Several processes of each service over one PostgreSQL and one S3-compatible store, to be treated badly.

What a site with more than one machine has: any number of ingest, redaction and inference processes, a log, a front
before each service. Every connection between two of them goes through a front of `tests.faults.front`. Processes are
forked from a nursery, so that a kill costs the service's own start and no imports; one that ends starts again at once,
as under any supervisor.
"""

from __future__ import annotations

import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import psutil
import sqlalchemy as sa
from pydicom.dataset import Dataset

from cli import configuration, tables
from cli.receiver import Receiver
from shared import keys, pki
from shared.identity import Identity
from shared.settings import Settings, load
from tests.faults.front import Backend, Front, Fronts
from tests.faults.nursery import Child, Nursery
from tests.faults.test_postgres import Server
from tests.wire.ingest_house import DX, Sender, dx

EXPLICIT = "1.2.840.10008.1.2.1"
SERVICES = ("audit", "redaction", "inference", "ingest")
MODULES = tuple(f"services.{name}.__main__" for name in SERVICES)
"""What a nursery of this farm imports."""
READY_SECONDS = 150.0
NO_ASSOCIATION = "no association"
NO_ANSWER = "no answer"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


class Violation(AssertionError):
    """Something acknowledged is lost, done twice, never ends, or the log does not verify."""


def until(condition: Callable[[], Any], seconds: float, what: str) -> None:
    """Return when the condition holds. Raises Violation."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Violation(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)


class ObjectServer:
    """An S3-compatible store, a process of its own."""

    def __init__(self, port: int) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.port = port
        self.client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", **_named())
        until(self._made, 60, "the object store")

    def _made(self) -> bool:
        with suppress(Exception):
            for bucket in ("original", "deidentified"):
                self.client.create_bucket(Bucket=bucket)
            return True
        return False

    def stop(self) -> None:
        """End it, and all that it holds."""
        self._process.kill()
        self._process.wait()


def _named() -> dict[str, str]:
    return {"aws_access_key_id": "test", "aws_secret_access_key": "test"}


@dataclass
class Member:
    """One process of a service."""

    service: str
    number: int
    nursery: Nursery
    out: Path
    environment: Mapping[str, str]
    child: Child | None = None
    held: bool = False
    """Not started again."""
    ready: bool = False
    starts: int = 0

    @property
    def name(self) -> str:
        return f"{self.service}-{self.number}"

    def start(self) -> None:
        """Fork it."""
        self.starts += 1
        self.ready = False
        out = self.out.with_name(f"{self.out.name}.{self.starts}")
        self.child = self.nursery.spawn(f"services.{self.service}", out, environment=self.environment)

    def has_ended(self) -> bool:
        """Whether it waits to be reaped."""
        assert self.child is not None
        try:
            return Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    def processes(self) -> list[psutil.Process]:
        """It and its workers."""
        if self.child is None:
            return []
        try:
            whole = psutil.Process(self.child.pid)
            return [whole, *whole.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to it, and where it is SIGKILL to its workers after it, as the end of a container does."""
        found = self.processes()
        if number != signal.SIGKILL:
            found = found[:1]
        for one in found:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(number)


@dataclass
class Modality:
    """Sends one small study after the other, each until it is acknowledged."""

    address: tuple[str, int]
    chance: random.Random
    two: float = 0.15
    """Share of the studies that have two images."""
    pause: float = 0.0
    acknowledged: list[tuple[str, str]] = field(default_factory=list)
    """Study and SOP Instance UID of each object that was answered with success."""
    refused: Counter[str] = field(default_factory=Counter)
    limit: int | None = None
    """Studies to send; None for no end."""

    def __post_init__(self) -> None:
        self.goes_on = threading.Event()
        """Cleared while a person at the console would wait for the backlog."""
        self.goes_on.set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No more, once the object under way is acknowledged or refused."""
        self._stop.set()
        self._thread.join(90)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        sent = 0
        while not self._stop.is_set() and (self.limit is None or sent < self.limit):
            while not self.goes_on.wait(0.2) and not self._stop.is_set():
                pass
            first = dx(seed=self.chance.randrange(1 << 30))
            images = [first]
            if self.chance.random() < self.two:
                images.append(dx(study=str(first.StudyInstanceUID), seed=self.chance.randrange(1 << 30)))
            while images and not self._stop.is_set():
                self._send(images)
                if images:
                    self._stop.wait(0.05)
            sent += 1
            self._stop.wait(self.pause)

    def _send(self, images: list[Dataset]) -> None:
        """Send what is left over one association; what is acknowledged leaves the list."""
        try:
            with Sender(self.address, [(DX, EXPLICIT)]) as sender:
                while images:
                    answer = sender.store(images[0])
                    if answer.Status != 0:
                        self.refused[str(answer.get("ErrorComment"))] += 1
                        return
                    one = images.pop(0)
                    self.acknowledged.append((str(one.StudyInstanceUID), str(one.SOPInstanceUID)))
        except (OSError, RuntimeError, ValueError, StopIteration, AttributeError):
            self.refused[NO_ANSWER] += 1
        except AssertionError as error:
            self.refused[NO_ASSOCIATION if "no association" in str(error) else NO_ANSWER] += 1


@dataclass(frozen=True)
class Machine:
    """Where processes run: what forks them, where they listen, and where they find the fronts."""

    nursery: Nursery
    address: str = "127.0.0.1"
    gate: str = "127.0.0.1"


@dataclass(frozen=True)
class Place:
    """What the farms of a run share."""

    folder: Path
    pki: Path
    disk: Path
    """A small file system, or a plain folder."""
    postgres: Server
    fronts: Fronts
    receiver: Receiver
    machines: tuple[Machine, ...]
    """Member n of a service lives on machine n modulo their number."""


class Farm:
    """One cluster of several processes of each service, from nothing."""

    def __init__(
        self,
        place: Place,
        name: str,
        counts: Mapping[str, int],
        *,
        seed: int = 0,
        ingest: Mapping[str, Any] | None = None,
    ) -> None:
        self.place = place
        self._engines: dict[str, sa.Engine] = {}
        self._beyond: dict[tuple[str, str], tuple[str, int]] = {}
        self.folder = place.folder / name
        self.folder.mkdir()
        self.chance = random.Random(seed)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.expected: set[int] = set()
        """Processes that were told to end."""
        self.ended: Counter[str] = Counter()
        """Processes that ended and were not told to, by service and status."""
        self.urls = {one: place.postgres.new_database(self.folder) for one in ("ingest", "audit")}
        free = iter(configuration.free_ports(2 * sum(counts.values()) + 1))
        self.store = ObjectServer(next(free))
        self.disk = place.disk / name
        self.disk.mkdir()
        keys.create(self.folder / "keys", development=True)
        self.fronts = self._open_fronts(counts, free)
        self.members = [
            self._member(service, number, ingest or {}) for service in SERVICES for number in range(counts[service])
        ]
        self.settings = self._settings()

    def _open_fronts(self, counts: Mapping[str, int], free: Any) -> dict[str, Front]:
        """A front before each service, the DICOM door, PostgreSQL and the store."""
        self._ports = {(service, n): next(free) for service in SERVICES for n in range(counts[service])}
        self._doors = {n: next(free) for n in range(counts["ingest"])}
        behind: dict[str, list[Backend]] = {
            service: [(self._machine(n).address, self._ports[service, n]) for n in range(counts[service])]
            for service in SERVICES
        }
        behind["dicom"] = [(self._machine(n).address, port) for n, port in self._doors.items()]
        behind["store"] = [("127.0.0.1", self.store.port)]
        opened = {name: self.place.fronts.open(*backends) for name, backends in behind.items()}
        url = sa.engine.make_url(self.urls["ingest"])
        port = url.query.get("port") or url.port or 5432
        socket = Path(str(url.query["host"])) / f".s.PGSQL.{port}"
        (self.folder / "pg").mkdir()
        opened["postgres"] = self.place.fronts.open_socket(self.folder / "pg" / f".s.PGSQL.{port}", socket)
        # Machines of their own reach everything at their own end of the wire, PostgreSQL too.
        for gate in {machine.gate for machine in self.place.machines} - {"127.0.0.1"}:
            for name, backends in behind.items():
                self._beyond[gate, name] = self.place.fronts.open(*backends, host=gate).address
            pacs = ("127.0.0.1", self.place.receiver.port)
            self._beyond[gate, "pacs"] = self.place.fronts.open(pacs, host=gate).address
            self._beyond[gate, "postgres"] = self.place.fronts.open(socket, host=gate).address
        return opened

    def _machine(self, number: int) -> Machine:
        return self.place.machines[number % len(self.place.machines)]

    def _address(self, name: str, gate: str) -> tuple[str, int]:
        """Where a process behind a gate finds a front."""
        return self._beyond.get((gate, name), self.fronts[name].address)

    def _through_the_front(self, url: str, gate: str) -> str:
        parsed = sa.engine.make_url(url)
        if (gate, "postgres") in self._beyond:
            host, port = self._beyond[gate, "postgres"]
            return parsed.set(host=host, port=port, query={}).render_as_string(hide_password=False)
        changed = parsed.update_query_dict({"host": str(self.folder / "pg")})
        return changed.render_as_string(hide_password=False)

    def _member(self, service: str, number: int, ingest: Mapping[str, Any]) -> Member:
        name = f"{service}-{number}"
        home = self.folder / name
        home.mkdir()
        file = home / "stepwedge.toml"
        file.write_text(tables.dumps(self._table(service, number, home, ingest)))
        nursery = self._machine(number).nursery
        return Member(service, number, nursery, home / "out", {"STEPWEDGE_CONFIG": str(file), **CREDENTIALS})

    def _table(self, service: str, number: int, home: Path, ingest: Mapping[str, Any]) -> dict[str, Any]:
        gate, own = self._machine(number).gate, self._machine(number).address
        table: dict[str, Any] = {
            "cluster": {"data": str(home), "pki": str(self.place.pki), "keys": str(self.folder / "keys")},
            "objects": {
                "kind": "s3", "original": "s3://original", "deidentified": "s3://deidentified",
                "s3_endpoint": "http://{}:{}".format(*self._address("store", gate)), "s3_region": "us-east-1",
                "scratch": str(self.disk / f"{service}-{number}"),
            },
        }  # fmt: skip
        for other in SERVICES:
            address = "{}:{}".format(*self._address(other, gate))
            listen = f"{own}:{self._ports[other, number]}" if other == service else address
            table[other] = {"listen": listen, "address": address, "metrics": ""}
        table["redaction"]["workers"] = 1
        table["audit"] |= {
            "database": self._through_the_front(self.urls["audit"], gate),
            "high_water": str(self.disk / "audit.high-water"),
            "master_key": str(self.folder / "identity-master.key"),
            "check_per_second": 50,
        }
        table["ingest"] |= {
            "database": self._through_the_front(self.urls["ingest"], gate),
            "dimse": f"{own}:{self._doors.get(number, self._doors[0])}",
            "quiet_seconds": 0.3,
            "lease_seconds": 4.0,
            "destinations": [
                {
                    "name": "pacs", "ae_title": self.place.receiver.ae_title, "host": self._pacs(gate)[0],
                    "port": self._pacs(gate)[1], "verdicts": ["ACCEPT", "REVIEW", "REJECT"],
                }
            ],
            **ingest,
        }  # fmt: skip
        return table

    def _pacs(self, gate: str) -> tuple[str, int]:
        return self._beyond.get((gate, "pacs"), ("127.0.0.1", self.place.receiver.port))

    def _settings(self) -> Settings:
        """As an operator beside the cluster has them, who reaches database and store without the fronts."""
        table = self._table("ingest", 0, self.folder, {})
        table["objects"]["s3_endpoint"] = f"http://127.0.0.1:{self.store.port}"
        table["objects"]["scratch"] = str(self.folder / "scratch")
        for name, url in self.urls.items():
            table[name]["database"] = url
        self.file = self.folder / "operator.toml"
        self.file.write_text(tables.dumps(table))
        return load(self.file)

    def start(self) -> None:
        """Start every process and wait until all are ready."""
        for member in self.members:
            with self._lock:
                member.start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()
        self.wait_ready()

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Return when every process that is not held has said that it is ready."""
        until(lambda: all(member.ready or member.held for member in self.members), seconds, "every process ready")

    def _keep(self) -> None:
        """Start again whatever ends."""
        while not self._stopping.wait(0.1):
            for member in self.members:
                if member.child is None:
                    continue
                if not member.ready and any(line.startswith("ready ") for line in member.child.lines()):
                    member.ready = True
                if member.has_ended():
                    self._follow(member)

    def _follow(self, member: Member) -> None:
        assert member.child is not None
        with self._lock:
            pid = member.child.pid
            status = member.nursery.reap(pid)
            if pid not in self.expected:
                self.ended[f"{member.service} {status}"] += 1
            member.child, member.ready = None, False
            if not self._stopping.is_set():
                if status not in (0, -signal.SIGKILL):
                    time.sleep(0.2)  # as a supervisor waits
                if not member.held:
                    member.start()

    def kill(self, member: Member, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process; it is started again when it has ended."""
        with self._lock:
            if member.child is not None:
                self.expected.add(member.child.pid)
                member.kill(number)

    def release(self, member: Member) -> None:
        """Start a process that was held."""
        with self._lock:
            member.held = False
            if member.child is None:
                member.start()

    def of(self, service: str) -> list[Member]:
        """The processes of a service."""
        return [member for member in self.members if member.service == service]

    def query(self, name: str, statement: str, **values: Any) -> list[Any]:
        """Rows of a service's database, asked without a front."""
        if name not in self._engines:
            url = sa.engine.make_url(self.urls[name]).set(drivername="postgresql+psycopg")
            self._engines[name] = sa.create_engine(url, pool_pre_ping=True, pool_size=1)
        with self._engines[name].connect() as connection:
            return list(connection.execute(sa.text(statement), values))

    def unfinished(self, studies: set[str]) -> set[str]:
        """Those of the studies that have no verdict yet, and are not in the dead letter."""
        try:
            rows = self.query(
                "ingest",
                "SELECT study_instance_uid FROM studies WHERE state IN ('DONE', 'DEAD_LETTER')"
                " AND study_instance_uid = ANY(:wanted)",
                wanted=list(studies),
            )
        except sa.exc.OperationalError:
            return studies
        return studies - {row[0] for row in rows}

    def tail(self, lines: int = 6) -> str:
        """The last that each process wrote to stderr, for whoever looks into a violation."""
        found = []
        for member in self.members:
            file = member.out.with_name(f"{member.out.name}.{member.starts}.err")
            if file.exists():
                found += [f"{member.name}: {line}" for line in file.read_text("utf-8", "replace").splitlines()[-lines:]]
        return "\n".join(found)

    def stop(self) -> dict[str, int]:
        """Drain in order; the exit status of each process."""
        self._stopping.set()
        if hasattr(self, "_keeper"):
            self._keeper.join(30)
        statuses = {}
        for service in reversed(SERVICES):
            members = [member for member in self.of(service) if member.child is not None]
            for member in members:
                member.kill(signal.SIGTERM)
            for member in members:
                assert member.child is not None
                deadline = time.monotonic() + 40
                while not member.has_ended() and time.monotonic() < deadline:
                    time.sleep(0.02)
                if not member.has_ended():
                    member.kill()
                statuses[member.name] = member.nursery.reap(member.child.pid)
                member.child = None
        self.store.stop()
        return statuses

    def abandon(self) -> None:
        """End everything at once."""
        self._stopping.set()
        if hasattr(self, "_keeper"):
            self._keeper.join(30)
        for member in self.members:
            if member.child is not None:
                member.kill()
                member.nursery.reap(member.child.pid)
                member.child = None
        for engine in self._engines.values():
            engine.dispose()
        self.store.stop()


def certificates(folder: Path) -> Path:
    """A PKI for every farm of a run."""
    pki.create(folder / "pki", Identity, development=True)
    return folder / "pki"


class Clock:
    """The wall clock of one machine, which can be stepped; as if somebody set it, monotonic time goes on."""

    def __init__(self, file: Path, library: Path) -> None:
        self._file = file
        self._library = library
        self.step(0)

    def step(self, seconds: int) -> None:
        """Let it be so far from the true time, at once."""
        data = struct.pack("<q", seconds)
        if self._file.exists():
            with self._file.open("r+b") as file:  # the same file: processes have it mapped
                file.write(data)
        else:
            self._file.write_bytes(data)

    def environment(self) -> dict[str, str]:
        """What makes a process live by it."""
        return {"LD_PRELOAD": str(self._library), "CLOCK_SHIFT": str(self._file)}


def clock_library(folder: Path) -> Path | None:
    """What a `Clock` needs, made of clock.c by the C compiler; None where there is none."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library
