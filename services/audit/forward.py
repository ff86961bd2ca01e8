"""The log, forwarded record by record to a syslog receiver over TLS: kept until taken, in order, never skipped.

Syslog has no acknowledgement (RFC 5425). What it has is the end of a TLS session: a receiver that answers close_notify
has read everything before it. So each batch has a session of its own, and the cursor moves when the receiver has closed
it in that way. What a receiver lost in any other way is sent again; it may then see a record twice, never none.
"""

import fcntl
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from services.audit import store
from services.audit.formats import stream, syslog
from services.audit.pruned import Pruned
from services.audit.reading import checkpoint_of, newest
from services.audit.store import Store
from shared import logs
from shared.errors import ErrorCode, StepwedgeError
from shared.settings import Forward, host_and_port
from shared.transparency import merkle

LONGEST_WAIT_SECONDS = 60.0
"""Between two attempts at a receiver that does not take anything."""

_logger = logs.get_logger(__name__)


class Position(NamedTuple):
    """How far the log was forwarded."""

    next: int
    """Index of the first entry that no receiver confirmed."""
    last: str
    """Leaf hash of the entry before it, hexadecimal; empty at the start. Names the log that this cursor belongs to."""


class Cursor:
    """A position in a file, replaced as a whole and synchronised; one process holds it at a time."""

    def __init__(self, path: Path) -> None:
        """Take the file. Raises CONFIGURATION where another process holds it, FILE where it cannot be used."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError:
            raise _file_error() from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            message = "another process forwards this log"
            raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, message) from None

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._lock)

    def read(self) -> Position:
        """Where to go on; the start where there is no file. Raises FILE where it is damaged."""
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return Position(0, "")
        except OSError:
            raise _file_error() from None
        try:
            position = Position(**json.loads(text))
            if type(position.next) is not int or position.next < 0 or bool(position.next) != (len(position.last) == 64):
                raise ValueError
        except (ValueError, TypeError):
            raise _file_error() from None
        return position

    def write(self, position: Position) -> None:
        """Make the position durable. Raises FILE where that fails; the old one then stands."""
        temporary = self._path.with_name(f"{self._path.name}.new")
        try:
            with temporary.open("wb") as file:
                file.write(json.dumps(position._asdict()).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError:
            raise _file_error() from None


def _file_error() -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_FILE, "the cursor of the forwarder cannot be used")


class Receiver:
    """A syslog receiver over TLS (RFC 5425), which names itself and is told who we are by certificates."""

    def __init__(self, section: Forward, certificate: Path, key: Path) -> None:
        """Load the certificates. Raises CONFIGURATION where one is absent or wrong."""
        self._address = host_and_port(section.receiver)
        self._name = section.server_name or self._address[0]
        self._timeout = section.timeout_seconds
        try:
            self._context = ssl.create_default_context(cafile=str(section.ca) if section.ca != Path() else None)
            self._context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError):
            message = "a certificate or key of audit.forward is absent or wrong"
            raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, message) from None
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2

    def take(self, frames: Iterable[bytes]) -> None:
        """Send the frames in a session of their own and return when the receiver has read them all.

        Raises
        ------
        OSError
            Where that is not certain (ssl.SSLError is one).
        """
        with (
            socket.create_connection(self._address, timeout=self._timeout) as plain,
            self._context.wrap_socket(plain, server_hostname=self._name) as session,
        ):
            for frame in frames:
                session.sendall(frame)
            session.unwrap()  # our close_notify, then the wait for theirs


class Forwarder:
    """Takes what is committed from the log to a receiver, a batch at a time."""

    def __init__(self, the_store: Store, cursor: Cursor, take: Callable[[Iterable[bytes]], None], section: Forward):
        self._store = the_store
        self._cursor = cursor
        self._take = take
        self._section = section
        self._host = socket.gethostname()
        self._process = os.getpid()

    def step(self) -> int:
        """Forward the next batch; how many records that were.

        Raises
        ------
        OSError
            The receiver did not confirm; nothing is lost, and the next step begins with the same record.
        StepwedgeError
            LOG_INCONSISTENT where the log is not the one that was forwarded so far, FILE for the cursor,
            AUDIT_UNAVAILABLE or DEPENDENCY_UNAVAILABLE where the log cannot be read now.
        """
        position = self._cursor.read()
        with self._store.reading() as connection:
            head = newest(connection)
            end = min(position.next + self._section.batch, head.size)
            rows = store.leaves(connection, max(0, position.next - 1), end)
            hashes = {row.index: merkle.leaf_hash(row.leaf) for row in rows}
            self._hold_to_tree(connection, position, end, hashes)
            if end == position.next:
                return 0
            last = store.node_reader(connection)(0, end - 1).hex()
        origin = checkpoint_of(head).origin
        most = self._section.max_octets or None
        self._take(
            syslog.frame(stream.event_of(row, hashes[row.index], origin), self._host, self._process, most=most)
            for row in rows
            if row.index >= position.next
        )
        self._cursor.write(Position(end, last))
        return end - position.next

    def _hold_to_tree(
        self, connection: sa.Connection, position: Position, end: int, hashes: Mapping[int, bytes]
    ) -> None:
        """Raise LOG_INCONSISTENT where this is not the log that was forwarded, or entries are not in its tree."""
        node = store.node_reader(connection)
        try:
            if position.next > end:
                raise _inconsistent("the log is not the one that was forwarded so far")
            if position.next:
                last = position.next - 1
                if {node(0, last).hex(), hashes.get(last, node(0, last)).hex()} != {position.last}:
                    raise _inconsistent("the log is not the one that was forwarded so far")
            if any(node(0, index) != leaf_hash for index, leaf_hash in hashes.items()):
                raise _inconsistent("an entry is not the one in the tree")
        except LookupError:
            raise _inconsistent("tiles of the tree are missing") from None
        absent = [index for index in range(position.next, end) if index not in hashes]
        pruned = Pruned.of(connection) if absent else ()
        if any(index not in pruned for index in absent):
            raise _inconsistent("entries that were signed are absent")

    def run(self, stop: threading.Event) -> None:
        """Forward until `stop`. Raises StepwedgeError for what no waiting mends."""
        wait = 0.0
        while not stop.wait(wait):
            try:
                moved = self.step()
            except OSError as error:
                wait = min(LONGEST_WAIT_SECONDS, 2 * wait or 1.0)
                _logger.warning("the syslog receiver did not take a batch", seconds=wait, **logs.describe(error))
            except StepwedgeError as error:
                if error.permanent:
                    raise
                wait = min(LONGEST_WAIT_SECONDS, 2 * wait or 1.0)
                _logger.warning("the log could not be read", seconds=wait, code=error.name)
            else:
                if moved:
                    _logger.info("forwarded", count=moved)
                wait = 0.0 if moved == self._section.batch else self._section.poll_seconds


def _inconsistent(message: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_LOG_INCONSISTENT, message)
