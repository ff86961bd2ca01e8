"""The processes that speak DICOM with the senders: `python -m services.ingest.dimse_worker`, started by ingest alone.

One process imports what they need and then forks each of them, so that they start at once and share their memory. It is
told to by a message on its standard input that carries the two descriptors of a worker: its line to ingest, and the
doorstep on which connections are handed to it. Where ingest ends, they end: nothing could be acknowledged any more.
"""

import gc
import os
import signal
import socket
import threading
from contextlib import suppress
from typing import Final

from services.ingest.desk import Desk
from services.ingest.dimse import Associations
from services.ingest.intercom import Line, Message
from shared import keys, logs, settings
from shared.errors import StepwedgeError
from shared.identification import BlindIndex, Identities
from shared.identity import Identity
from shared.objects import Zone, open_store
from shared.pseudonyms import Pseudonyms

SECURE: Final = b"s"
PLAIN: Final = b"p"

_TIDY_SECONDS: Final = 10.0
_TIDY_CONNECTIONS: Final = 256

_log = logs.get_logger(__name__)


class Worker:
    """One process with its associations."""

    def __init__(self, configuration: settings.Settings, line: socket.socket, doorstep: socket.socket) -> None:
        section = configuration.ingest
        folder = configuration.cluster.keys
        self._doorstep = doorstep
        self._line = Line(line, self._hear)
        self._desk = Desk(
            open_store(configuration.objects, {Zone.ORIGINAL}),
            Pseudonyms.load(folder / keys.PSEUDONYMS),
            Identities.load(folder),
            BlindIndex.load(folder),
            self._line,
            max_object_bytes=section.max_object_bytes,
        )
        self._associations = Associations(section, self._desk)

    def run(self) -> None:
        """Serve until ingest is gone."""
        threading.Thread(target=self._receive, name="doorstep", daemon=True).start()
        self._line.tell("hello")
        self._line.read()

    def _hear(self, message: Message) -> None:
        if message["op"] == "ready":
            self._desk.hear(message)
        elif message["op"] == "abort":
            self._associations.abort()

    def _receive(self) -> None:
        self._doorstep.settimeout(_TIDY_SECONDS)
        served = 0
        while True:
            try:
                kind, descriptors, _, _ = socket.recv_fds(self._doorstep, 1, 1)
            except TimeoutError:
                if served:
                    self._associations.tidy()
                served = 0
                continue
            if not kind:
                return
            served += 1
            if served >= _TIDY_CONNECTIONS:
                self._associations.tidy()
                served = 0
            for descriptor in descriptors:
                self._associations.serve(socket.socket(fileno=descriptor), secure=kind == SECURE)


def main() -> None:
    """Fork a worker for each pair of descriptors that comes; end where ingest does."""
    os.umask(0o027)
    # A signal to the whole group of a terminal is for ingest, which lets its workers finish.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    logs.configure(Identity.INGEST.value)
    configuration = settings.load()
    logs.configure(Identity.INGEST.value, configuration.telemetry.log_level)
    gc.collect()
    gc.freeze()  # what all of them share is not looked through again, and so stays shared
    with socket.socket(fileno=0) as orders:
        while True:
            order, descriptors, _, _ = socket.recv_fds(orders, 1, 2)
            if not order:
                return
            if os.fork() == 0:
                orders.close()
                _work(configuration, *(socket.socket(fileno=descriptor) for descriptor in descriptors))
            for descriptor in descriptors:
                os.close(descriptor)


def _work(configuration: settings.Settings, line: socket.socket, doorstep: socket.socket) -> None:
    status = 1
    try:
        Worker(configuration, line, doorstep).run()
        status = 0
    except StepwedgeError as error:
        _log.critical("a worker could not start", error=error.name, detail=logs.Words(error.message))
    except Exception as error:  # noqa: BLE001 - it is told, and ingest starts another
        _log.critical("a worker ended", **logs.describe(error))
    finally:
        # Whatever its threads still do is for nobody: what was not acknowledged is sent again.
        with suppress(OSError):
            line.close()
        os._exit(status)


if __name__ == "__main__":
    main()
