"""Sends objects to a DICOM peer as C-STORE SCU (PS3.4 Annex B), over TLS where asked, or hands them to STOW-RS.

An object counts as delivered when the peer answered success or a warning (PS3.4 Table B.2-1). The caller notes each
one before the next is sent, so after a crash at most the one object that was under way is sent again, under its own
SOP Instance UID, by which the peer knows it. More the protocol does not allow.
"""

import ssl
import threading
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, Final

from pydicom.uid import UID
from pynetdicom import AE, build_context
from pynetdicom.dimse_primitives import C_STORE

from services.ingest.dicom_tls import client_context
from services.ingest.door import data_set_offset
from services.ingest.outgoing import Delivered, Outgoing, Way, acknowledged, failed, passes
from services.ingest.stow_out import StowSender
from shared.objects import ObjectStore, Zone
from shared.settings import Destination

MAX_CONTEXTS: Final = 128  # PS3.8 9.3.2.2: odd context IDs from 1 to 255
_NEGOTIATION_SECONDS: Final = 15.0
_ANSWER_SECONDS: Final = 60.0
_REJECTED_PERMANENT: Final = 0x01  # PS3.8 9.3.4, Result


class Sender:
    """Sends objects to destinations; `send` blocks, and one destination is served by one call at a time."""

    def __init__(self, ae_title: str, objects: ObjectStore) -> None:
        self._by_dimse: Way = DimseSender(ae_title, objects)
        self._by_web: Way = StowSender(objects)
        self._locks: dict[str, threading.Lock] = {}

    def send(self, destination: Destination, objects: Sequence[Outgoing], delivered: Delivered) -> None:
        """As `Way.send`, by the way that the destination is reached.

        Raises
        ------
        StepwedgeError
            DEPENDENCY_UNAVAILABLE, permanent or not as the peer's answer says: a rejection that is permanent (PS3.8
            9.3.4), a SOP class or transfer syntax that it does not take, a status that another try will not change.
            CONFIGURATION where certificates or the token cannot be read. OBJECT_NOT_FOUND, OBJECT_CORRUPT.
        """
        way = self._by_web if destination.url else self._by_dimse
        with self._locks.setdefault(destination.name, threading.Lock()):
            way.send(destination, objects, delivered)


class DimseSender:
    """The way of C-STORE."""

    def __init__(self, ae_title: str, objects: ObjectStore) -> None:
        self._ae_title = ae_title
        self._objects = objects

    def send(self, destination: Destination, objects: Sequence[Outgoing], delivered: Delivered) -> None:
        """See `Way.send`."""
        for batch in _batches(objects):
            self._send_batch(destination, batch, delivered)

    def _send_batch(self, destination: Destination, batch: Sequence[Outgoing], delivered: Delivered) -> None:
        ae = AE(self._ae_title)
        ae.acse_timeout = ae.connection_timeout = _NEGOTIATION_SECONDS
        ae.dimse_timeout = ae.network_timeout = _ANSWER_SECONDS
        contexts = sorted({_encoding(one) for one in batch})
        ae.requested_contexts = [build_context(sop_class, syntax) for sop_class, syntax in contexts]
        association = ae.associate(
            destination.host, destination.port, ae_title=destination.ae_title, tls_args=_tls(destination)
        )
        if not association.is_established:
            raise _refused(association)
        try:
            accepted = {
                (str(context.abstract_syntax), str(context.transfer_syntax[0])): context.context_id
                for context in association.accepted_contexts
            }
            for number, one in enumerate(batch):
                self._send_one(association, accepted, one, number % 0xFFFF + 1)
                delivered(one)
        finally:
            association.release()

    def _send_one(
        self, association: Any, accepted: Mapping[tuple[str, str], Any], one: Outgoing, message_id: int
    ) -> None:
        context_id = accepted.get(_encoding(one))
        if context_id is None:
            raise failed("the peer takes no such SOP class in its transfer syntax", permanent=True)
        data = self._objects.get(Zone.ORIGINAL, one.sha256)
        request = C_STORE()
        request.MessageID = message_id
        request.Priority = 0x0002
        request.AffectedSOPClassUID = UID(one.sop_class_uid)
        request.AffectedSOPInstanceUID = UID(one.sop_instance_uid)
        # The data set as it came, not decoded and encoded again.
        request.DataSet = BytesIO(memoryview(data)[data_set_offset(data) :])
        status = _exchange(association, request, context_id)
        if status is None:
            raise failed("the peer did not answer", permanent=False)
        if not acknowledged(one, status):
            raise failed("the peer did not take an object", permanent=not passes(status))


def _tls(destination: Destination) -> tuple[ssl.SSLContext, str] | None:
    if not destination.tls:
        return None
    context = client_context(ca=destination.tls_ca, certificate=destination.tls_certificate, key=destination.tls_key)
    return context, destination.tls_name or destination.host


def _exchange(association: Any, request: C_STORE, context_id: int) -> int | None:
    """Send one request and wait for its response, as `send_c_store` does with a data set that it encodes itself."""
    association._reactor_checkpoint.clear()
    try:
        while not association._is_paused and association.is_alive():
            threading.Event().wait(0.0005)
        if not association.is_established:
            return None
        association.dimse.send_msg(request, context_id)
        _, response = association.dimse.get_msg(block=True)
    finally:
        association._reactor_checkpoint.set()
    if response is None or not response.is_valid_response:
        association.abort()
        return None
    status: int | None = response.Status
    return status


def _encoding(one: Outgoing) -> tuple[str, str]:
    return one.sop_class_uid, one.transfer_syntax_uid


def _batches(objects: Sequence[Outgoing]) -> list[list[Outgoing]]:
    """Cut the objects, in their order, so that each part needs no more presentation contexts than there are."""
    batches: list[list[Outgoing]] = []
    contexts: set[tuple[str, str]] = set()
    for one in objects:
        contexts.add(_encoding(one))
        if not batches or len(contexts) > MAX_CONTEXTS:
            batches.append([])
            contexts = {_encoding(one)}
        batches[-1].append(one)
    return batches


def _refused(association: Any) -> Exception:
    primitive = association.acceptor.primitive
    rejected = association.is_rejected and primitive is not None
    if rejected and primitive.result == _REJECTED_PERMANENT:
        return failed("the peer rejects our associations for good", permanent=True)
    if not rejected and primitive is not None and primitive.result == 0x00:
        return failed("the peer takes none of the SOP classes", permanent=True)
    return failed("no association with the peer", permanent=False)
