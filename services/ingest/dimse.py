"""The DICOM door: C-ECHO, C-STORE, storage commitment and notifications as SCP (PS3.4 Annexes A, B, J and R).

pynetdicom's state machine and negotiation are used as they are. Three of its parts are replaced, because a door must
not trust who knocks: how a PDU is read from the socket (bounded in length and in time), how the fragments of a message
are put together (straight into a file of the object store, so that memory does not grow with the object), and what is
left of an association that ends in the middle (nothing).
"""

import ctypes
import gc
import logging
import os
import queue
import select
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BytesIO
from itertools import count
from typing import Any, Final, cast

from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid
from pynetdicom import AE, _config, evt, sop_class
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, N_EVENT_REPORT_RSP, DIMSEMessage
from pynetdicom.dimse_primitives import C_CANCEL, C_ECHO, C_STORE, N_ACTION, N_CREATE, N_EVENT_REPORT
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made when the module is read
from pynetdicom.transport import AddressInformation, AssociationSocket

from services.ingest import dicom_tls, store_command
from services.ingest.admission import Admission, Negotiation
from services.ingest.availability import INSTANCE_AVAILABILITY, NotUnderstoodError, notified
from services.ingest.desk import Desk
from services.ingest.incoming import Announced, Incoming
from services.ingest.storage_commitment import (
    PUSH_MODEL,
    RefusedError,
    event_information,
    event_report,
    requested,
)
from services.ingest.store_command import StoreRequest
from services.ingest.wrapping import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, file_meta
from shared import logs
from shared.dicom import STORAGE_SOP_CLASSES
from shared.errors import ErrorCode, StepwedgeError
from shared.settings import Ingest

CHANNEL: Final = "DIMSE"
SUCCESS: Final = 0x0000

STATUS: Final[Mapping[ErrorCode.ValueType, int]] = {
    # PS3.4 Table B.2-1, "Refused: Out of Resources": the sender tries again.
    ErrorCode.ERROR_CODE_STORAGE_FULL: 0xA700,
    ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE: 0xA700,
    ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE: 0xA700,
    ErrorCode.ERROR_CODE_OVERLOADED: 0xA700,
    # "Error: Data Set does not match SOP Class".
    ErrorCode.ERROR_CODE_SOP_CLASS_MISMATCH: 0xA900,
    # "Error: Cannot understand"; the last digits are ours and tell the errors apart.
    ErrorCode.ERROR_CODE_MALFORMED_DICOM: 0xC000,
    ErrorCode.ERROR_CODE_NOT_DICOM: 0xC010,
    ErrorCode.ERROR_CODE_OBJECT_TOO_LARGE: 0xC020,
    # PS3.7 Annex C.5.9: "Invalid SOP Instance", the UID breaks the rules by which UIDs are made.
    ErrorCode.ERROR_CODE_INVALID_UID: 0x0117,
}
"""Status of a C-STORE response by the error that it stands for; any other is `PROCESSING_FAILURE`."""
# PS3.7 Annex C.5
PROCESSING_FAILURE: Final = 0x0110
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122
UNRECOGNIZED_OPERATION: Final = 0x0211

_MAX_NEGOTIATION_BYTES: Final = 1 << 20  # 128 presentation contexts with all their transfer syntaxes fit in well
_MAX_COMMAND_BYTES: Final = 1 << 14
_MAX_OTHER_DATA_SET_BYTES: Final = 1 << 24
_MAX_UID: Final = 64
_MAX_WAITING_MESSAGES: Final = 8  # no asynchronous window is negotiated (PS3.7 D.3.3.3), so one would do
_PDU_TYPES: Final = range(0x01, 0x08)
_P_DATA_TF: Final = 0x04
_A_ASSOCIATE_RQ: Final = 0x01
_TIMED_STATES: Final = frozenset({"Sta1", "Sta2", "Sta13"})  # before and while the ARTIM timer runs (PS3.8 9.1.5)

NETWORK_SECONDS: Final = 60.0
"""Silence after which an association is aborted, and the time within which one PDU must come in whole."""
NEGOTIATION_SECONDS: Final = 10.0
"""Time within which a connection must ask for an association (the ARTIM timer of PS3.8 9.1.5)."""

_SWITCH_SECONDS: Final = 0.0005
_TICK_SECONDS: Final = 0.2  # how late a timer may be noticed
_LOOK_SECONDS: Final = 0.001
_HEAR_OUT_SECONDS: Final = 1.0
_UNLIMITED: Final = 1 << 20

_log = logs.get_logger(__name__)


def status_of(error: StepwedgeError) -> int:
    """The status of a response to what failed so."""
    return STATUS.get(error.code, PROCESSING_FAILURE)


def error_status(error: StepwedgeError) -> Dataset:
    """The status of a response (PS3.7 C): its number, and the error's code as Error Comment (0000,0902)."""
    status = Dataset()
    status.Status = status_of(error)
    status.ErrorComment = error.name
    return status


class Reception:
    """The data set of one C-STORE request: a file while all goes well, an error to answer with once it does not."""

    def __init__(self, desk: Desk, preface: bytes, error: StepwedgeError | None = None) -> None:
        self.error = error
        self.incoming: Incoming | None = None
        if error is None:
            self._guarded(lambda: self._open(desk, preface))

    def write(self, piece: memoryview) -> None:
        """Take a fragment; after an error the rest of the data set is read from the network and dropped."""
        incoming = self.incoming
        if incoming is not None:
            self._guarded(lambda: incoming.write(piece))

    def discard(self) -> None:
        """Leave nothing of it."""
        if self.incoming is not None:
            self.incoming.discard()
            self.incoming = None

    def _open(self, desk: Desk, preface: bytes) -> None:
        self.incoming = desk.open()
        self.incoming.write(preface)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except StepwedgeError as error:
            self.error = error
            self.discard()


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
            connection.wait(cast(int, self._bell), _TICK_SECONDS)
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


class FragmentsToFile(DIMSEServiceProvider):
    """Puts messages together (PS3.7 6.3, PS3.8 Annex E); the data set of a C-STORE request goes straight to a file."""

    def __init__(self, association: Association, desk: Desk, serve: Callable[[Any, int], None]) -> None:
        super().__init__(association)
        self._desk = desk
        self._serve = serve
        self._now: tuple[Any, int] | None = None
        self._lock = threading.Lock()
        self._ended = False
        self._command = bytearray()
        self._reception: Reception | None = None
        self._receptions: list[Reception] = []

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take the values of one PDU; anything that breaks the rules ends the association (AA-8 of PS3.8 9.2)."""
        try:
            for context_id, value in primitive.presentation_data_value_list:
                with self._lock:
                    if self._ended:
                        return
                    self._take(context_id, memoryview(value))
                if self._now is not None:
                    (request, number), self._now = self._now, None
                    self._serve(request, number)
        except Exception:  # noqa: BLE001 - pynetdicom's decoders raise whatever the bytes make them raise
            self.dul.event_queue.put("Evt19")

    def get_msg(self, block: bool = False) -> Any:
        """The next message; waits a moment for it where the base class would be asked again and again."""
        if block:
            return super().get_msg(block)
        try:
            return self.msg_queue.get(timeout=_TICK_SECONDS)
        except queue.Empty:
            return None, None

    def end(self) -> None:
        """The association is over: leave nothing of what was not kept."""
        with self._lock:
            self._ended = True
            for reception in self._receptions:
                reception.discard()
            self._receptions.clear()

    def served(self, reception: Reception) -> None:
        """A request was answered; whatever is left of it goes."""
        with self._lock:
            reception.discard()
            if reception in self._receptions:
                self._receptions.remove(reception)

    def _take(self, context_id: int, value: memoryview) -> None:
        is_command, is_last = value[0] & 1, value[0] & 2
        if is_command:
            self._command += value[1:]
            if self.message is not None or len(self._command) > _MAX_COMMAND_BYTES:
                raise ValueError("a command set out of place or too long")
            if is_last:
                self._begin(context_id)
            return
        if self.message is None or context_id != self.message.context_id:
            raise ValueError("a data set without its command set")
        if self._reception is not None:
            self._reception.write(value[1:])
        elif self.message.data_set is not None:
            self.message.data_set.write(value[1:])
            if self.message.data_set.tell() > _MAX_OTHER_DATA_SET_BYTES:
                raise ValueError("a data set too long")
        if is_last:
            self._complete()

    def _begin(self, context_id: int) -> None:
        usual = store_command.read(self._command)
        if usual is not None and context_id in self.assoc._accepted_cx:
            self._command.clear()
            usual.context_id = context_id
            self.message = cast(Any, usual)
            self._reception = self._receive(usual.sop_class, usual.sop_instance, context_id)
            self._receptions.append(self._reception)
            return
        command: Any = P_DATA()
        command._presentation_data_value_list = [(context_id, b"\x03" + bytes(self._command))]
        self._command.clear()
        self.message = DIMSEMessage()
        complete = self.message.decode_msg(command, self.assoc)
        # The only request of ours is the report of a storage commitment.
        if type(self.message).__name__.endswith("_RSP") and not isinstance(self.message, N_EVENT_REPORT_RSP):
            raise ValueError("a response to nothing")
        if isinstance(self.message, C_STORE_RQ):
            command = self.message.command_set
            sop_class, sop_instance = _uid(command, "AffectedSOPClassUID"), _uid(command, "AffectedSOPInstanceUID")
            if len(sop_instance) > _MAX_UID:
                command.AffectedSOPInstanceUID = sop_instance[:_MAX_UID]  # pynetdicom would end the association
            self._reception = self._receive(sop_class, sop_instance, context_id)
            self._receptions.append(self._reception)
        if complete:
            self._complete()

    def _receive(self, sop_class: str, sop_instance: str, context_id: int) -> Reception:
        context = self.assoc._accepted_cx.get(context_id)
        error = None
        if context is None or str(context.abstract_syntax) != sop_class:
            error = StepwedgeError(ErrorCode.ERROR_CODE_SOP_CLASS_MISMATCH, "not the SOP class of its context")
        elif not sop_instance:
            error = StepwedgeError(ErrorCode.ERROR_CODE_INVALID_UID, "no SOP instance is announced")
        elif len(sop_instance) > _MAX_UID:  # PS3.5 9.1
            error = StepwedgeError(ErrorCode.ERROR_CODE_INVALID_UID, "the announced UID is too long")
        if context is None or error is not None:
            return Reception(self._desk, b"", error)
        return Reception(self._desk, file_meta(sop_class, sop_instance, str(context.transfer_syntax[0])))

    def _complete(self) -> None:
        message: Any = self.message
        reception = self._reception
        self.message = self._reception = None
        if isinstance(message, StoreRequest):
            message.reception = reception
            self._hand_over(message, message.context_id, here=True)
            return
        request: Any = message.message_to_primitive()
        if isinstance(request, C_CANCEL):
            return  # nothing here is ever cancelled
        if reception is not None:
            request.DataSet = BytesIO()  # it lies in the file; the request only has to have one
            request.reception = reception
        self._hand_over(request, message.context_id, here=reception is not None and request.is_valid_request)

    def _hand_over(self, request: Any, context_id: int, *, here: bool) -> None:
        """Have a request served: `here`, in the thread that reads and sends, or by the association's own."""
        if here and self.msg_queue.empty():
            # Of what a sender waits for, two changes of thread are a part.
            self._now = (request, context_id)
            return
        if self.msg_queue.qsize() >= _MAX_WAITING_MESSAGES:
            raise ValueError("more requests at once than were negotiated")
        self.msg_queue.put((context_id, request))


def _uid(command: Dataset, keyword: str) -> str:
    """A UID of a command set; empty where the element is absent or empty."""
    value = command.get(keyword)
    return "" if value is None else str(value).strip(" \0")


class Acceptor(Association):
    """One association, as acceptor."""

    def __init__(self, ae: AE, desk: Desk, admission: Admission, connection: int) -> None:
        super().__init__(ae, MODE_ACCEPTOR)
        self._desk = desk
        self._connection = connection
        self._reports: dict[int, int | None] = {}
        self.acse = Negotiation(self, admission, lambda: desk.admit(connection))
        self.dul = BoundedReader(self)
        # These set the timers of the upper layer, which is a new one.
        self.acse_timeout = ae.acse_timeout
        self.network_timeout = ae.network_timeout
        self._fragments = FragmentsToFile(self, desk, self._serve_request)
        self.dimse = self._fragments

    def run_reactor(self) -> None:
        """Serve until the association ends, however it ends."""
        try:
            super().run_reactor()
        except Exception as error:  # noqa: BLE001 - pynetdicom's negotiation raises whatever the bytes make it raise
            _log.warning(
                "association aborted", reason=logs.Words("it cannot be negotiated"), error=type(error).__name__
            )
            with suppress(Exception):
                self.abort()  # else the thread that reads, and the peer, would wait for ever
        finally:
            self._fragments.end()
            for commitment in filter(None, self._reports.values()):
                self._desk.hurry(commitment)  # it is due by itself in a while
            how = "aborted" if self.is_aborted else "rejected" if self.is_rejected else "released"
            self._desk.closed(self._connection, how)

    def _serve_request(self, msg: Any, context_id: int) -> None:
        """Serve what is served; answer at once any other message, which pynetdicom would leave unanswered."""
        if isinstance(msg, StoreRequest):
            self._serve_store(msg)
            return
        if isinstance(msg, N_EVENT_REPORT) and msg.MessageIDBeingRespondedTo is not None:
            self._took_report(msg)
            return
        if self._is_commitment(msg, context_id):
            self._commit(msg, context_id)
            return
        if self._is_notification(msg, context_id):
            self._note(msg, context_id)
            return
        echo = isinstance(msg, C_ECHO) and msg.AffectedSOPClassUID == Verification
        if msg.is_valid_request and (echo or isinstance(msg, C_STORE)):
            super()._serve_request(msg, context_id)
        elif msg.MessageID is None or context_id not in self._accepted_cx:
            _log.warning(
                "association aborted",
                reason=logs.Words("a request without an ID, or in a context that was not accepted"),
            )
            self.abort()
        else:
            self._refuse(msg, context_id)

    def _serve_store(self, request: StoreRequest) -> None:
        error = self.store(request.reception, Announced(request.sop_class, request.sop_instance))
        if not self.is_established:
            return
        status, comment = (SUCCESS, "") if error is None else (status_of(error), error.name)
        longest = self.requestor.maximum_length or 0
        cast(BoundedReader, self.dul).send_command(
            request.context_id, store_command.answer(request, status, comment), longest
        )

    def store(self, reception: Reception, announced: Announced) -> StepwedgeError | None:
        """PS3.4 B.2.3: success is said when the object is durable and recorded, and not before; else why not."""
        try:
            self._accept(reception, announced)
        except StepwedgeError as error:
            self._desk.refused(error)
            _log.warning("object refused", code=error.name, permanent=error.permanent)
            return error
        except Exception as error:  # noqa: BLE001 - a defect of ours must not reach the sender as pynetdicom's text
            _log.error("object could not be accepted", **logs.describe(error))
            return StepwedgeError(ErrorCode.ERROR_CODE_INTERNAL, "see the log")
        finally:
            self._fragments.served(reception)
        return None

    def _accept(self, reception: Reception, announced: Announced) -> None:
        if reception.error is not None:
            raise reception.error
        incoming, reception.incoming = reception.incoming, None
        if incoming is None:
            raise StepwedgeError(ErrorCode.ERROR_CODE_MALFORMED_DICOM, "the request has no data set")
        primitive = self.requestor.primitive
        calling = (self.requestor.ae_title or "").strip()
        called = ("" if primitive is None else primitive.called_ae_title or "").strip()
        self._desk.keep(incoming, CHANNEL, announced, calling, called)

    def _is_commitment(self, msg: Any, context_id: int) -> bool:
        context = self._accepted_cx.get(context_id)
        return (
            isinstance(msg, N_ACTION)
            and msg.is_valid_request
            and context is not None
            and context.abstract_syntax == msg.RequestedSOPClassUID == PUSH_MODEL
        )

    def _commit(self, request: N_ACTION, context_id: int) -> None:
        """Answer a request for storage commitment, and report its outcome behind the answer (PS3.4 J.3)."""
        context = self._accepted_cx[context_id]
        commitment, status, transaction = None, SUCCESS, ""
        try:
            transaction, references = requested(request, context)
            commitment = self._desk.commit((self.requestor.ae_title or "").strip(), transaction, references)
        except RefusedError as error:
            status = error.status
        except StepwedgeError as error:
            _log.warning("storage commitment refused", code=error.name)
            status = PROCESSING_FAILURE
        response = N_ACTION()
        response.MessageIDBeingRespondedTo = request.MessageID
        response.AffectedSOPClassUID = request.RequestedSOPClassUID
        response.AffectedSOPInstanceUID = request.RequestedSOPInstanceUID
        response.ActionTypeID = request.ActionTypeID
        response.Status = status
        self.dimse.send_msg(response, context_id)
        if commitment is not None:
            with suppress(StepwedgeError):  # then it is reported on an association of ours
                message_id = len(self._reports) % 0xFFFF + 1
                committed, failed = self._desk.outcome(commitment)
                report = event_report(*event_information(transaction, committed, failed), context, message_id)
                self._reports[message_id] = commitment
                self.dimse.send_msg(report, context_id)

    def _is_notification(self, msg: Any, context_id: int) -> bool:
        context = self._accepted_cx.get(context_id)
        return (
            isinstance(msg, N_CREATE)
            and msg.is_valid_request
            and context is not None
            and context.abstract_syntax == msg.AffectedSOPClassUID == INSTANCE_AVAILABILITY
        )

    def _note(self, request: N_CREATE, context_id: int) -> None:
        """Note what will come of a study, and answer when that is durable (PS3.4 R.3)."""
        status = SUCCESS
        try:
            self._desk.announce(notified(request, self._accepted_cx[context_id]))
        except NotUnderstoodError as error:
            status = error.status
        except StepwedgeError as error:
            _log.warning("notification refused", code=error.name)
            status = PROCESSING_FAILURE
        response = N_CREATE()
        response.MessageIDBeingRespondedTo = request.MessageID
        response.AffectedSOPClassUID = request.AffectedSOPClassUID
        response.AffectedSOPInstanceUID = request.AffectedSOPInstanceUID or generate_uid(None)
        response.Status = status
        self.dimse.send_msg(response, context_id)

    def _took_report(self, response: N_EVENT_REPORT) -> None:
        commitment = self._reports.get(response.MessageIDBeingRespondedTo or 0)
        if commitment is None:
            _log.warning("association aborted", reason=logs.Words("a response to nothing"))
            self.abort()
        elif response.Status == SUCCESS:
            self._desk.reported(commitment)
            self._reports[response.MessageIDBeingRespondedTo or 0] = None
        else:
            _log.warning("a peer did not take the report of a storage commitment")

    def _refuse(self, request: Any, context_id: int) -> None:
        """Answer a request that is not served (PS3.7 Annex C.5); the association goes on."""
        response: Any = type(request)()
        response.MessageIDBeingRespondedTo = request.MessageID
        response.AffectedSOPClassUID = getattr(request, "AffectedSOPClassUID", None)
        reception: Reception | None = getattr(request, "reception", None)
        if reception is not None:
            self._fragments.served(reception)
            incomplete = StepwedgeError(ErrorCode.ERROR_CODE_MALFORMED_DICOM, "the command set is incomplete")
            error = reception.error or incomplete
            self._desk.refused(error)
            _log.warning("object refused", code=error.name, permanent=error.permanent)
            status = error_status(error)
            response.Status, response.ErrorComment = status.Status, status.ErrorComment
        else:
            echo = isinstance(request, C_ECHO)
            response.Status = SOP_CLASS_NOT_SUPPORTED if echo else UNRECOGNIZED_OPERATION
            _log.warning("request refused", code="SOP_CLASS_NOT_SUPPORTED" if echo else "UNRECOGNIZED_OPERATION")
        self.dimse.send_msg(response, context_id)


class _Owner:
    """What pynetdicom asks of the server that an association belongs to."""

    @staticmethod
    def shutdown_request(connection: socket.socket) -> None:
        """End a connection."""
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        connection.close()


class Associations:
    """The application entity, for the connections that this process was handed.

    Parameters
    ----------
    settings
        AE titles and limits; files of the secure transport.
    desk
        Where objects go, and who is asked.
    """

    def __init__(self, settings: Ingest, desk: Desk) -> None:
        _silence()
        # Threads that come back from the disk or the network take the interpreter from one another much sooner than
        # after Python's 5 ms, which several times for each object would be most of what a sender waits.
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._desk = desk
        self._owner = _Owner()
        self._numbers = count(1)
        self._ae = AE(settings.ae_title)
        self._ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        self._ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        self._ae.maximum_pdu_size = settings.max_pdu_bytes
        self._ae.maximum_associations = _UNLIMITED  # how many there may be is asked at the desk
        self._ae.acse_timeout = NEGOTIATION_SECONDS
        self._ae.dimse_timeout = NETWORK_SECONDS
        self._ae.network_timeout = NETWORK_SECONDS
        # Every storage SOP class, private ones too, in whatever transfer syntax is proposed first: bytes are kept as
        # they come, so nothing needs to be understood (see `_silence` for the switch).
        self._ae.add_supported_context(Verification)
        self._ae.add_supported_context(PUSH_MODEL)
        self._ae.add_supported_context(INSTANCE_AVAILABILITY)
        self._admission = Admission(settings)
        self._tls = dicom_tls.server_context(settings) if settings.dimse_tls else None

    def serve(self, connection: socket.socket, *, secure: bool) -> None:
        """Begin an association on a connection, over TLS where it is `secure`; returns at once."""
        threading.Thread(target=self._begin, args=(connection, secure), name="connection", daemon=True).start()

    @property
    def open(self) -> list[Acceptor]:
        """The associations that have not ended."""
        return [thread for thread in threading.enumerate() if isinstance(thread, Acceptor)]

    def abort(self) -> None:
        """Abort the open associations; does not wait until they are over."""
        for association in self.open:
            association.abort(block=False)

    @staticmethod
    def tidy() -> None:
        """Let go of what ended associations hold of each other, and of the memory; to be called now and then."""
        gc.collect()
        with suppress(AttributeError):  # the C library of GNU alone keeps what is freed, and has this to ask it back
            ctypes.CDLL(None).malloc_trim(0)

    def _begin(self, connection: socket.socket, secure: bool) -> None:
        number = next(self._numbers)
        try:
            # A C-STORE response is two small PDUs; without this each waits for the sender's delayed acknowledgement.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            local, remote = connection.getsockname(), connection.getpeername()
            if secure:
                # Once both sides have proved themselves.
                assert self._tls is not None
                connection = secured = self._tls.wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                )
                try:
                    _shake_hands(secured)
                except OSError:
                    _hear_out(connection)
                    raise
            self._association(number, connection, local, remote).start()
        except OSError as error:  # of which ssl.SSLError is one
            self._desk.closed(number, "no_tls" if secure else "aborted")
            _log.warning("connection refused", reason="TLS" if secure else "gone", error=type(error).__name__)
            self._owner.shutdown_request(connection)
        except Exception as error:  # noqa: BLE001 - one connection must not take the others down
            self._desk.closed(number, "aborted")
            _log.error("a connection could not be served", **logs.describe(error))
            self._owner.shutdown_request(connection)

    def _association(self, number: int, connection: socket.socket, local: Any, remote: Any) -> Acceptor:
        association = Acceptor(self._ae, self._desk, self._admission, number)
        association._server = cast(Any, self._owner)
        # pynetdicom finds its associations by this name.
        association.name = f"AcceptorThread@{remote[1]}"
        association.set_socket(BoundedSocket(association, client_socket=connection))
        association.acceptor.maximum_length = self._ae.maximum_pdu_size
        association.acceptor.ae_title = self._ae.ae_title
        association.acceptor.address_info = AddressInformation.from_tuple(local)
        association.acceptor.implementation_class_uid = self._ae.implementation_class_uid
        association.acceptor.implementation_version_name = self._ae.implementation_version_name
        association.acceptor.supported_contexts = self._ae.supported_contexts
        association.requestor.address_info = AddressInformation.from_tuple(remote)
        association.bind(evt.EVT_C_STORE, self._on_store)
        association.bind(evt.EVT_C_ECHO, self._on_echo)
        return association

    def _on_echo(self, event: evt.Event) -> Dataset | int:
        """PS3.4 A.4: here success says more than the standard asks, namely that a C-STORE would succeed."""
        try:
            self._desk.ready()
        except StepwedgeError as error:
            status = error_status(error)
            status.Status = PROCESSING_FAILURE
            return status
        return SUCCESS

    @staticmethod
    def _on_store(event: evt.Event) -> Dataset | int:
        """The C-STORE of a command set that is not as usual, see `store_command`."""
        request: Any = event.request
        announced = Announced(str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
        error = cast(Acceptor, event.assoc).store(request.reception, announced)
        return SUCCESS if error is None else error_status(error)


def know_other_services() -> None:
    """Tell pynetdicom of every SOP class that is no storage: what it has no name for, it takes for storage.

    Else a modality that asks here for a worklist would be told that there is one.
    """
    for uid, (_, kind, _, _, keyword) in UID_dictionary.items():
        other = kind in ("SOP Class", "Meta SOP Class", "Service Class") and uid not in STORAGE_SOP_CLASSES
        if other and keyword and not hasattr(sop_class, keyword):
            setattr(sop_class, keyword, UID(uid))


def _shake_hands(connection: ssl.SSLSocket) -> None:
    """Prove ourselves to each other, within a time that a peer cannot stretch by sending a byte now and then."""
    deadline = time.monotonic() + NEGOTIATION_SECONDS
    connection.setblocking(False)
    wanted = {ssl.SSLWantReadError: select.POLLIN, ssl.SSLWantWriteError: select.POLLOUT}
    while True:
        try:
            connection.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            poll = select.poll()
            poll.register(connection.fileno(), wanted[type(error)])
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000) or time.monotonic() > deadline:
                raise TimeoutError from None
        else:
            connection.settimeout(NETWORK_SECONDS)
            return


def _hear_out(connection: socket.socket) -> None:
    """Read what a peer says after it was refused: a connection closed before that takes the reason along (RFC 9293)."""
    deadline = time.monotonic() + _HEAR_OUT_SECONDS
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        while (left := deadline - time.monotonic()) > 0 and poll.poll(left * 1000):
            if not os.read(connection.fileno(), 1 << 16):
                return


def _silence() -> None:
    """Set what pynetdicom has only one of for the whole process; its log lines may hold values from objects."""
    _config.UNRESTRICTED_STORAGE_SERVICE = True
    know_other_services()
    _config.STORE_RECV_CHUNKED_DATASET = False
    _config.STORE_SEND_CHUNKED_DATASET = True
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = False
    _config.LOG_RESPONSE_IDENTIFIERS = False
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    logging.getLogger("pynetdicom").handlers.clear()
