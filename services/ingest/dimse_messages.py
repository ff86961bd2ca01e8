"""How the fragments of a DICOM message are put together (PS3.7 6.3, PS3.8 Annex E).

What a C-STORE request brings goes straight into a file of the object store: memory does not grow with the object.
"""

import queue
import threading
from collections.abc import Callable
from io import BytesIO
from typing import Any, Final, cast

from pydicom.dataset import Dataset
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, N_EVENT_REPORT_RSP, DIMSEMessage
from pynetdicom.dimse_primitives import C_CANCEL
from pynetdicom.pdu_primitives import P_DATA

from services.ingest import store_command
from services.ingest.desk import Desk
from services.ingest.dimse_transport import TICK_SECONDS
from services.ingest.incoming import Incoming
from services.ingest.store_command import StoreRequest
from services.ingest.wrapping import file_meta
from shared.errors import ErrorCode, StepwedgeError

_MAX_COMMAND_BYTES: Final = 1 << 14
_MAX_OTHER_DATA_SET_BYTES: Final = 1 << 24
_MAX_UID: Final = 64
_MAX_WAITING_MESSAGES: Final = 8  # no asynchronous window is negotiated (PS3.7 D.3.3.3), so one would do


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
            return self.msg_queue.get(timeout=TICK_SECONDS)
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
