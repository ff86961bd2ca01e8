"""A DICOM sender that can misbehave: pieces of a C-STORE, late, half, slow, under false names, and then gone."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

from pynetdicom import AE, build_context
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE

from cli.send import CONNECT_SECONDS, RESPONSE_SECONDS, Peer, status_words
from shared.errors import ErrorCode, StepwedgeError

PDU_BYTES: Final = 1 << 14


@dataclass(frozen=True)
class Object:
    """A data set as it travels, and the names under which it is announced."""

    data_set: bytes
    sop_class: str
    sop_instance: str
    study: str
    transfer_syntax: str


@dataclass(frozen=True)
class Answer:
    """What the peer answered; no status where it ended the association, or said nothing in time."""

    status: int | None

    @property
    def stored(self) -> bool:
        """Whether it says that the object is stored."""
        return self.status is not None and (self.status == 0 or self.status & 0xF000 == 0xB000)

    @property
    def refused(self) -> bool:
        """Whether it says that the object is not stored."""
        return self.status is not None and not self.stored

    def __str__(self) -> str:
        """ "0x0000 stored", or that there was none."""
        return "no answer" if self.status is None else f"0x{self.status:04X} {status_words(self.status)}"


class Line:
    """One association; `Line.open` makes it."""

    def __init__(self, association: Association) -> None:
        self.association = association
        self._message_id = 0

    @classmethod
    @contextmanager
    def open(cls, peer: Peer, contexts: list[tuple[str, str]]) -> Iterator[Line]:
        """An association with these contexts, SOP class and transfer syntax; released at the end where it still stands.

        Raises
        ------
        StepwedgeError
            DEPENDENCY_UNAVAILABLE where nobody answers, PERMISSION_DENIED where it is rejected.
        """
        entity = AE(peer.calling)
        entity.acse_timeout = entity.connection_timeout = CONNECT_SECONDS
        entity.dimse_timeout = entity.network_timeout = RESPONSE_SECONDS
        entity.requested_contexts = [build_context(sop_class, syntax) for sop_class, syntax in dict.fromkeys(contexts)]
        association = entity.associate(peer.host, peer.port, ae_title=peer.called)
        if not association.is_established:
            rejected = association.is_rejected
            code = ErrorCode.ERROR_CODE_PERMISSION_DENIED if rejected else ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE
            raise StepwedgeError(code, "the association was rejected" if rejected else "nobody answers as a DICOM peer")
        transport = association.dul.socket
        if transport is not None and transport.socket is not None:
            transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = cls(association)
        try:
            yield line
        finally:
            if association.is_established:
                association.release()

    @property
    def accepted(self) -> set[tuple[str, str]]:
        """SOP class and transfer syntax of the contexts that were accepted."""
        return {(str(one.abstract_syntax), str(one.transfer_syntax[0])) for one in self.association.accepted_contexts}

    def store(self, one: Object, *, pause: float = 0.0) -> Answer:
        """C-STORE of an object, with a pause before each PDU; returns the answer."""
        return self._answer() if self._send(one, pause=pause, share=1.0) else Answer(None)

    def begin(self, one: Object, share: float) -> None:
        """Send a share of an object's data set and no more."""
        self._send(one, pause=0.0, share=share)

    def abort(self) -> None:
        """A-ABORT (PS3.8 9.3.8)."""
        self.association.abort()

    def cut(self) -> None:
        """Close the connection, and say nothing."""
        transport = self.association.dul.socket
        if transport is not None and transport.socket is not None:
            transport.socket.shutdown(socket.SHUT_RDWR)
        self._until_over()

    def _until_over(self) -> None:
        deadline = time.monotonic() + 5.0
        while self.association.is_established and time.monotonic() < deadline:
            time.sleep(0.01)

    def _send(self, one: Object, *, pause: float, share: float) -> bool:
        association: Any = self.association
        # The thread of the association would take the answer for a message to serve.
        association._reactor_checkpoint.clear()
        while not association._is_paused and association.is_established:
            time.sleep(0.0005)
        pieces = list(self._message(one).encode_msg(self._context(one), PDU_BYTES))
        # The first piece is the command set.
        for piece in pieces[: max(2, round(len(pieces) * share))]:
            if not association.is_established:
                return False
            association.dul.send_pdu(piece)
            if pause:
                time.sleep(pause)
        while association.is_established and not association.dul.to_provider_queue.empty():
            time.sleep(0.001)
        return bool(association.is_established)

    def _message(self, one: Object) -> Any:
        self._message_id += 1
        request: Any = C_STORE()
        request.MessageID, request.Priority = self._message_id, 2
        request.AffectedSOPClassUID = one.sop_class
        request._affected_sop_instance_uid = one.sop_instance
        request.DataSet = BytesIO(one.data_set)
        message: Any = C_STORE_RQ()
        message.primitive_to_message(request)
        message.context_id = self._context(one)
        return message

    def _context(self, one: Object) -> int:
        wanted = (one.sop_class, one.transfer_syntax)
        accepted = {
            (str(context.abstract_syntax), str(context.transfer_syntax[0])): context.context_id
            for context in self.association.accepted_contexts
        }
        if wanted in accepted:
            return int(accepted[wanted] or 0)
        if accepted:  # a lie about its class travels in whatever context there is
            return int(next(iter(accepted.values())) or 0)
        raise StepwedgeError(ErrorCode.ERROR_CODE_SOP_CLASS_MISMATCH, "no presentation context was accepted")

    def _answer(self) -> Answer:
        association: Any = self.association
        _, response = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()
        return Answer(None if response is None else int(response.Status))
