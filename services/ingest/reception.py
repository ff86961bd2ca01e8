"""Listens for DICOM connections, hands each to the worker with the fewest, and answers what the workers ask.

Workers (`services.ingest.dimse_worker`) read, check and keep objects; rows, records and limits are made here, in the
one process that owns the database and the way to the log. A worker that dies takes its associations along and is
replaced; what it had not acknowledged is sent again by whoever sent it.
"""

import asyncio
import base64
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from services.ingest import dicom_tls, metrics
from services.ingest.announcements import Announcements
from services.ingest.arrival import Arrival
from services.ingest.availability import Told
from services.ingest.commitments import Answers, Reporter
from services.ingest.dimse_worker import PLAIN, SECURE
from services.ingest.door import Door
from services.ingest.intercom import Frames, Message, encoded
from shared import logs
from shared.errors import ErrorCode, StepwedgeError
from shared.paths import ROOT
from shared.settings import Ingest, host_and_port
from stepwedge.audit.v1 import audit_pb2

CHANNEL: Final = "DIMSE"

_MOST_WORKERS: Final = 4
_START_SECONDS: Final = 60.0
_AGAIN_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.2
_BACKLOG: Final = 128
_ABORT_SECONDS: Final = 2.0
_SWITCH_SECONDS: Final = 0.0005

_log = logs.get_logger(__name__)

_ENDS: Final = frozenset({"released", "aborted", "rejected"})
_ERRORS: Final = frozenset(name.removeprefix("ERROR_CODE_") for name, _ in ErrorCode.items())


class Nursery:
    """The process that forks workers; started early, as it takes a second to import what they need."""

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.ingest.dimse_worker"],
                cwd=ROOT,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={
                    **os.environ,
                    # What forks must have no threads but its own.
                    "OPENBLAS_NUM_THREADS": "1",
                    "GRPC_ENABLE_FORK_SUPPORT": "0",
                    # Each association is two new threads; in heaps of their own, freed memory would lie about.
                    "MALLOC_ARENA_MAX": "2",
                },
            )

    @property
    def alive(self) -> bool:
        """Whether it can fork."""
        return self._process.poll() is None

    def fork(self, *ends: socket.socket) -> None:
        """Have a worker with these two ends, its line and its doorstep. Raises OSError."""
        socket.send_fds(self._orders, [b"w"], [end.fileno() for end in ends])

    def close(self) -> None:
        """Let it end; blocks."""
        self._orders.close()
        self._process.wait()


class _Coming:
    """An object on its way: whether its bytes are durable."""

    def __init__(self) -> None:
        self.durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class _Worker(asyncio.Protocol):
    """One worker, as seen from here."""

    def __init__(self, reception: "Reception", doorstep: socket.socket) -> None:
        self._reception = reception
        self._doorstep = doorstep
        self._frames = Frames()
        self._transport: asyncio.WriteTransport | None = None
        self.coming: dict[int, _Coming] = {}
        self.connections = 0
        self.associations: set[int] = set()
        """Connections that have one of the places."""
        self.ready = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say at once how things stand."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self.send({"op": "ready", "error": self._reception.unready})

    def data_received(self, data: bytes) -> None:
        """Do what the messages ask for."""
        try:
            for message in self._frames.feed(data):
                self._reception.take(self, message)
        except (ValueError, KeyError, TypeError) as error:
            _log.error("a worker said what cannot be understood", **logs.describe(error))
            self.hang_up()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, and its associations with it."""
        self.ready.set()
        for coming in self.coming.values():
            if not coming.durable.done():
                coming.durable.cancel()
        self._doorstep.close()
        self._reception.lost(self)

    def send(self, message: Message) -> None:
        """Tell it something."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encoded(message))

    def hand_over(self, connection: socket.socket, kind: bytes) -> None:
        """Give it a connection. Raises OSError where it takes none."""
        socket.send_fds(self._doorstep, [kind], [connection.fileno()])
        self.connections += 1

    def hang_up(self) -> None:
        """Let it end."""
        if self._transport is not None:
            self._transport.abort()


class Reception:
    """The DICOM door of this process; all of it belongs to one event loop.

    Parameters
    ----------
    settings
        Addresses, limits and number of workers.
    door
        What makes rows and records.
    answers
        What is told of objects that went there.
    announcements
        What peers said will come.
    heard
        Called when a study is looked at anew for that.
    nursery
        What forks workers.
    name_of
        The de-identified UID that a study has already.
    answering
        Raises where the database or the log is known not to answer; does not ask them.
    """

    def __init__(
        self,
        settings: Ingest,
        door: Door,
        answers: Answers,
        announcements: Announcements,
        nursery: Nursery,
        *,
        heard: Callable[[], None] = lambda: None,
        name_of: Callable[[str], str],
        answering: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._nursery = nursery
        self._answering_now = answering
        self._door = door
        self._answers = answers
        self._commitments = answers.commitments
        self._announcements = announcements
        self._heard = heard
        self._name_of = name_of
        self._loop = asyncio.get_running_loop()
        self._reporter = Reporter(settings, answers, self._loop)
        self._workers: set[_Worker] = set()
        self._count = settings.dimse_workers or min(_MOST_WORKERS, os.cpu_count() or 1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._ended = asyncio.Event()
        """Set whenever a connection ends."""
        self.unready = ""
        self._listeners: list[tuple[socket.socket, bytes]] = []
        if settings.dimse:
            self._listeners.append((_listening(settings.dimse), PLAIN))
        if settings.dimse_tls:
            dicom_tls.server_context(settings)  # so that a file that will not do is known at once
            self._listeners.append((_listening(settings.dimse_tls), SECURE))
        self.address = ", ".join(_address(listener) for listener, _ in self._listeners)
        self._operations: Mapping[str, Callable[[_Worker, Message], None]] = {
            "hello": lambda worker, _: worker.ready.set(),
            "arrived": self._arrived,
            "durable": self._durable,
            "lost": self._lost,
            "admit": self._admit,
            "closed": self._closed,
            "refused": self._refused,
            "ask": self._answering(self._ask),
            "name": self._answering(self._name),
            "commit": self._answering(self._commit),
            "outcome": self._answering(self._outcome),
            "announce": self._answering(self._announce),
            "reported": self._noting(self._commitments.reported),
            "hurry": self._noting(self._commitments.hurry),
        }

    async def open(self) -> None:
        """Start the workers. Raises INTERNAL where they do not come up."""
        for _ in range(self._count):
            await self._hire()
        try:
            async with asyncio.timeout(_START_SECONDS):
                for worker in set(self._workers):
                    await worker.ready.wait()
        except TimeoutError:
            raise StepwedgeError(ErrorCode.ERROR_CODE_INTERNAL, "the DICOM workers do not come up") from None
        if len(self._workers) < self._count:
            raise StepwedgeError(ErrorCode.ERROR_CODE_INTERNAL, "a DICOM worker ended before it began")

    def start(self) -> None:
        """Accept connections."""
        # The loop takes the interpreter back from threads of the database much sooner than after Python's 5 ms, which
        # several times for each object would be most of what a sender waits.
        sys.setswitchinterval(_SWITCH_SECONDS)
        for listener, kind in self._listeners:
            self._loop.add_reader(listener, self._accept, listener, kind)
        self._do(self._watch())
        self._reporter.start()

    async def drain(self, seconds: float) -> None:
        """Take no new connections, let those that were let in end by themselves, abort those that do not.

        What the system accepted in our name, and waits to be fetched, was let in: its peer is negotiating.
        """
        self._stopping = True
        for listener, kind in self._listeners:
            self._loop.remove_reader(listener)
            while self._accept(listener, kind):
                pass
            listener.close()
        # Counted here and not at the workers, which do not know yet of what was handed to them just now.
        await self._all_over(seconds)
        workers = set(self._workers)
        for worker in workers:
            worker.send({"op": "abort"})
        await self._all_over(_ABORT_SECONDS)
        for worker in workers:
            worker.hang_up()
        await asyncio.to_thread(self._nursery.close)
        for task in self._tasks:
            task.cancel()
        await asyncio.to_thread(self._reporter.stop)

    async def _all_over(self, seconds: float) -> None:
        """Return when no connection is open any more, or after so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(worker.connections for worker in self._workers):
                    self._ended.clear()
                    await self._ended.wait()

    # -- workers --------------------------------------------------------------------------------------------------

    async def _hire(self) -> None:
        if not self._nursery.alive:
            await asyncio.to_thread(self._nursery.close)
            self._nursery = Nursery()
        ours, theirs = socket.socketpair()
        step, doorstep = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, doorstep:
            self._nursery.fork(theirs, doorstep)
        step.setblocking(False)
        ours.setblocking(False)
        _, worker = await self._loop.create_unix_connection(lambda: _Worker(self, step), sock=ours)
        self._workers.add(worker)

    def lost(self, worker: _Worker) -> None:
        """A worker is gone."""
        self._workers.discard(worker)
        self._ended.set()
        self._count_associations()
        if not self._stopping:
            _log.error("a DICOM worker ended", count=worker.connections)
            self._do(self._replace())

    async def _replace(self) -> None:
        while not self._stopping:
            await asyncio.sleep(_AGAIN_SECONDS)
            try:
                await self._hire()
            except OSError as error:
                _log.error("a DICOM worker cannot be started", **logs.describe(error))
            else:
                return

    async def _watch(self) -> None:
        """Tell the workers whenever it changes whether objects can be accepted."""
        while True:
            try:
                self._answering_now()
                unready = ""
            except StepwedgeError as error:
                unready = error.name
            if unready != self.unready:
                self.unready = unready
                for worker in self._workers:
                    worker.send({"op": "ready", "error": unready})
            await asyncio.sleep(_LOOK_SECONDS)

    # -- connections ----------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket, kind: bytes) -> bool:
        """Let a connection in; whether there was one."""
        try:
            connection, _ = listener.accept()
        except OSError:
            return False
        with connection:
            open_now = sum(worker.connections for worker in self._workers)
            # Some that have not even asked for an association are let in, but not any number of them.
            if open_now < 2 * self._settings.max_associations:
                for worker in sorted(self._workers, key=lambda one: (not one.ready.is_set(), one.connections)):
                    with suppress(OSError):
                        worker.hand_over(connection, kind)
                        break
        return True

    def _admit(self, worker: _Worker, message: Message) -> None:
        admitted = sum(len(one.associations) for one in self._workers) < self._settings.max_associations
        if admitted:
            worker.associations.add(int(message["connection"]))
        self._count_associations()
        worker.send({"id": message["id"], "admitted": admitted})

    def _refused(self, _: _Worker, message: Message) -> None:
        # A worker reads what strangers send: what it says becomes a label only if it is one of ours.
        error = str(message["error"])
        metrics.REFUSED.labels(CHANNEL, error if error in _ERRORS else "INTERNAL").inc()

    def _closed(self, worker: _Worker, message: Message) -> None:
        worker.connections = max(0, worker.connections - 1)
        self._ended.set()
        worker.associations.discard(int(message["connection"]))
        self._count_associations()
        how = str(message["how"])
        metrics.ASSOCIATIONS_ENDED.labels(how if how in _ENDS else "aborted").inc()

    def _count_associations(self) -> None:
        metrics.ASSOCIATIONS.set(sum(len(one.associations) for one in self._workers))

    # -- objects --------------------------------------------------------------------------------------------------

    def take(self, worker: _Worker, message: Message) -> None:
        """Do what a message asks for."""
        self._operations[str(message["op"])](worker, message)

    def _arrived(self, worker: _Worker, message: Message) -> None:
        coming = worker.coming[int(message["id"])] = _Coming()
        self._do(self._take_in(worker, message, coming))

    async def _take_in(self, worker: _Worker, message: Message, coming: _Coming) -> None:
        began, number = time.monotonic(), int(message["id"])
        answer: Message = {"id": number}
        try:
            identification = audit_pb2.Identification(
                sealed=base64.b64decode(message["sealed"]),
                tokens=[base64.b64decode(token) for token in message["tokens"]],
            )
            await self._door.take(Arrival.from_json(message["arrival"]), identification, coming.durable)
        except StepwedgeError as error:
            answer["error"] = error.name
        except Exception as error:  # noqa: BLE001 - a defect of ours must not leave the sender without an answer
            _log.error("object could not be accepted", **logs.describe(error))
            answer["error"] = "INTERNAL"
        finally:
            worker.coming.pop(number, None)
            worker.send(answer)
            metrics.ACCEPT_SECONDS.labels(CHANNEL).observe(time.monotonic() - began + float(message["waited"]))

    def _durable(self, worker: _Worker, message: Message) -> None:
        coming = worker.coming.get(int(message["id"]))
        if coming is not None and not coming.durable.done():
            coming.durable.set_result(None)

    def _lost(self, worker: _Worker, message: Message) -> None:
        coming = worker.coming.get(int(message["id"]))
        if coming is not None:
            coming.durable.cancel()

    # -- questions ------------------------------------------------------------------------------------------------

    async def _ask(self, _: Message) -> Message:
        self._answering_now()
        return {}

    async def _name(self, message: Message) -> Message:
        return {"name": await asyncio.to_thread(self._name_of, str(message["study"]))}

    async def _commit(self, message: Message) -> Message:
        references = [(str(one[0]), str(one[1])) for one in message["references"]]

        def accept() -> int:
            self._door.settle()
            return self._commitments.accept(str(message["ae_title"]), str(message["transaction"]), references).id

        return {"commitment": await asyncio.to_thread(accept)}

    async def _outcome(self, message: Message) -> Message:
        due = await asyncio.to_thread(self._commitments.due, int(message["commitment"]))
        outcome = await self._answers.outcome(due)
        return {"committed": list(outcome.committed), "failed": list(outcome.failed)}

    async def _announce(self, message: Message) -> Message:
        said = Told(str(message["study"]), frozenset(message["available"]), frozenset(message["unavailable"]))
        if await asyncio.to_thread(self._announcements.announce, said):
            self._heard()
        return {}

    def _answering(self, work: Callable[[Message], Awaitable[Message]]) -> Callable[[_Worker, Message], None]:
        async def answer(worker: _Worker, message: Message) -> None:
            reply: Message = {}
            try:
                reply = await work(message)
            except StepwedgeError as error:
                reply = {"error": error.name}
            except Exception as error:  # noqa: BLE001 - as above
                _log.error("a worker's question could not be answered", **logs.describe(error))
                reply = {"error": "INTERNAL"}
            worker.send({**reply, "id": message["id"]})

        return lambda worker, message: self._do(answer(worker, message))

    def _noting(self, work: Callable[[int], None]) -> Callable[[_Worker, Message], None]:
        async def note(commitment: int) -> None:
            with suppress(StepwedgeError):  # then it is due once more, which is harmless
                await asyncio.to_thread(work, commitment)

        return lambda _, message: self._do(note(int(message["commitment"])))

    def _do(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _listening(endpoint: str) -> socket.socket:
    host, port = host_and_port(endpoint)
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError:
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_CONFIGURATION, f"DICOM cannot be served on {endpoint}: taken or not ours"
        ) from None
    listener.setblocking(False)
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"
