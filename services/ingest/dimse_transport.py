"""The upper layer of a DICOM association (PS3.8 9): how PDUs are read, bounded in length and in time."""

import os
import queue
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket

from services.ingest import store_command
from shared import logs

_MAX_NEGOTIATION_BYTES: Final = 1 << 20  # 128 presentation contexts with all their transfer syntaxes fit in well
_PDU_TYPES: Final = range(0x01, 0x08)
_P_DATA_TF: Final = 0x04
_A_ASSOCIATE_RQ: Final = 0x01
_TIMED_STATES: Final = frozenset({"Sta1", "Sta2", "Sta13"})  # before and while the ARTIM timer runs (PS3.8 9.1.5)
NEGOTIATION_SECONDS: Final = 10.0
"""Time within which a connection must ask for an association (the ARTIM timer of PS3.8 9.1.5)."""
NETWORK_SECONDS: Final = 60.0
"""Silence after which an association is aborted, and the time within which one PDU must come in whole."""
TICK_SECONDS: Final = 0.2
"""How late a timer may be noticed."""
_LOOK_SECONDS: Final = 0.001

_log = logs.get_logger(__name__)


class _Fragments:
    """A P-DATA-TF PDU whose values are views on the bytes that were read; what the state machine needs of one."""

    def __init__(self, values: list[tuple[int, memoryview]]) -> None:
        self._values = values

    def to_primitive(self) -> P_DATA:
        primitive: Any = P_DATA()
        primitive._presentation_data_value_list = self._values
        return cast(P_DATA, primitive)


class _Heard(queue.Queue[Any]):
    """What the upper layer tells its user, who waits for messages and is woken."""

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__()
        self._wake = wake

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """As of any queue."""
        super().put(item, block, timeout)
        self._wake()


class BoundedReader(DULServiceProvider):
    """The upper layer (PS3.8 9), reading PDUs of bounded length within bounded time.

    It sleeps until there is something to read or to send, where pynetdicom's looks a thousand times a second: with
    several associations that would be most of what one interpreter can do.
    """

    def __init__(self, association: Association) -> None:
        super().__init__(association)
        self._run_loop_delay = 0.0
        self.to_user_queue = _Heard(lambda: association.dimse.msg_queue.put((None, None)))
        self._guard = threading.Lock()
        self._bell: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def run_reactor(self) -> None:
        """Run until the association is over."""
        try:
            super().run_reactor()
        except Exception as error:  # noqa: BLE001 - an event that the state has no action for, or an action that fails
            _log.warning(
                "association aborted", reason=logs.Words("what came is out of place"), error=type(error).__name__
            )
        finally:
            with self._guard:
                if self._bell is not None:
                    os.close(self._bell)
                self._bell = None
            # Nothing more comes. Whoever waits for the request of an association would wait for it until its timeout,
            # and keep a place for a connection that is gone.
            self.to_user_queue.put(cast(Any, None))

    def send_pdu(self, primitive: Any) -> None:
        """Hand a primitive to the thread that sends it, which is this one where it serves a request itself."""
        super().send_pdu(primitive)
        if threading.current_thread() is self:
            return
        with self._guard:
            if self._bell is not None:
                os.eventfd_write(self._bell, 1)

    def send_command(self, context_id: int, command: bytes, longest_pdu: int) -> None:
        """Send a command set that no data set follows; at once where this thread is the one that sends."""
        at_once = threading.current_thread() is self and self.to_provider_queue.empty()
        for value in store_command.values(command, longest_pdu):
            if at_once:
                cast(BoundedSocket, self.socket).send(store_command.pdu(context_id, value))
            else:
                self.send_pdu(_Fragments([(context_id, memoryview(value))]).to_primitive())

    def _is_transport_event(self) -> bool:
        connection = cast(BoundedSocket, self.socket)
        if self.state_machine.current_state == "Sta13":  # the other end has to close, and the base class looks for it
            time.sleep(_LOOK_SECONDS)
        elif self.event_queue.empty() and self.to_provider_queue.empty():
            connection.wait(cast(int, self._bell), TICK_SECONDS)
        return super()._is_transport_event()

    def _read_pdu_data(self) -> None:
        """Read one PDU and tell the state machine what it was (PS3.8 Table 9-10)."""
        # The timer that runs in these states ends in a thread that looks, not in one that reads.
        timed = self.state_machine.current_state in _TIMED_STATES
        deadline = time.monotonic() + (self.artim_timer.remaining if timed else NETWORK_SECONDS)
        connection = cast(BoundedSocket, self.socket)
        try:
            header = connection.receive(6, deadline)
            kind, length = header[0], int.from_bytes(header[2:6], "big")
            longest = (self.assoc.acceptor.maximum_length or 0) + 6
            limit = _MAX_NEGOTIATION_BYTES if kind == _A_ASSOCIATE_RQ else longest
            if kind not in _PDU_TYPES or length > limit:
                self.event_queue.put("Evt19")  # unrecognized or invalid PDU
                return
            body = connection.receive(length, deadline)
        except (OSError, EOFError):
            self.event_queue.put("Evt17")  # transport connection closed
            return
        try:
            if kind == _P_DATA_TF:
                self._recv_pdu.put(cast(P_DATA_TF, _Fragments(_values(memoryview(body)))))
                self.event_queue.put("Evt10")
            else:
                pdu, event = self._decode_pdu(header + body)
                self._recv_pdu.put(pdu)
                self.event_queue.put(event)
        except Exception:  # noqa: BLE001 - pynetdicom's decoders raise whatever the bytes make them raise
            self.event_queue.put("Evt19")


def _values(body: memoryview) -> list[tuple[int, memoryview]]:
    """The presentation data values of a P-DATA-TF PDU (PS3.8 9.3.5.1): context ID; control header and fragment."""
    values = []
    pos = 0
    while pos < len(body):
        if len(body) - pos < 6:
            raise ValueError("a presentation data value is cut off")
        end = pos + 4 + int.from_bytes(body[pos : pos + 4], "big")
        if end > len(body) or end < pos + 6:
            raise ValueError("a presentation data value has a wrong length")
        values.append((body[pos + 4], body[pos + 5 : end]))
        pos = end
    return values


class BoundedSocket(AssociationSocket):
    """A socket that is read in large pieces up to a deadline, and polled without a limit on its number."""

    def receive(self, count: int, deadline: float) -> bytearray:
        """Exactly `count` bytes. Raises EOFError where the peer ends first, OSError at the deadline."""
        buffer = bytearray(count)
        view = memoryview(buffer)
        connection = self.socket
        if connection is None:
            raise EOFError
        while view:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            size = connection.recv_into(view)
            if not size:
                raise EOFError
            view = view[size:]
        connection.settimeout(NETWORK_SECONDS)  # what is sent next has its own time
        return buffer

    def wait(self, bell: int, seconds: float) -> None:
        """Return when there is something to read, when the bell rings, or after so many seconds."""
        connection = self.socket
        if connection is None or not self._is_connected:
            time.sleep(_LOOK_SECONDS)
            return
        if hasattr(connection, "pending") and connection.pending():
            return
        with suppress(OSError, ValueError):  # `ready` meets it too, and says so
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            poll.register(bell, select.POLLIN)
            if any(descriptor == bell for descriptor, _ in poll.poll(seconds * 1000)):
                os.eventfd_read(bell)

    @property
    def ready(self) -> bool:
        """Whether there is something to read; `select` cannot be asked about descriptors from 1024 on."""
        if self.socket is None or not self._is_connected:
            return False
        try:
            if hasattr(self.socket, "pending") and self.socket.pending():
                return True
            poll = select.poll()
            poll.register(self.socket, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            self.event_queue.put("Evt17")
            return False
