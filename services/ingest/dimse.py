"""The DICOM door: C-ECHO, C-STORE, storage commitment and notifications as SCP (PS3.4 Annexes A, B, J and R).

pynetdicom's state machine and negotiation are used as they are. Three of its parts are replaced, because a door must
not trust who knocks: how a PDU is read from the socket (`dimse_transport`), how the fragments of a message are put
together (`dimse_messages`), and what is left of an association that ends in the middle (nothing).
"""

import ctypes
import gc
import logging
import os
import select
import socket
import ssl
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from typing import Any, Final, cast

from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid
from pynetdicom import AE, _config, evt, sop_class
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_ECHO, C_STORE, N_ACTION, N_CREATE, N_EVENT_REPORT
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made when the module is read
from pynetdicom.transport import AddressInformation

from services.ingest import dicom_tls, store_command
from services.ingest.admission import Admission, Negotiation
from services.ingest.availability import INSTANCE_AVAILABILITY, NotUnderstoodError, notified
from services.ingest.desk import Desk
from services.ingest.dimse_messages import FragmentsToFile, Reception
from services.ingest.dimse_transport import NEGOTIATION_SECONDS, NETWORK_SECONDS, BoundedReader, BoundedSocket
from services.ingest.incoming import Announced
from services.ingest.storage_commitment import (
    PUSH_MODEL,
    RefusedError,
    event_information,
    event_report,
    requested,
)
from services.ingest.store_command import StoreRequest
from services.ingest.wrapping import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
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

_SWITCH_SECONDS: Final = 0.0005
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
