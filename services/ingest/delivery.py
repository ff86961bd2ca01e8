"""Forwards objects to a DICOM peer as C-STORE SCU (PS3.4 Annex B), and says which failures are for good.

An object counts as delivered when the peer answered success or a warning (PS3.4 Table B.2-1). The caller notes each
one before the next is sent, so after a crash at most the one object that was under way is sent again, under its own
SOP Instance UID, by which the peer knows it. More the protocol does not allow.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any, Final

from pydicom.uid import UID
from pynetdicom import AE, build_context
from pynetdicom.dimse_primitives import C_STORE

from services.ingest.door import data_set_offset
from services.ingest.tables import Instance
from shared.errors import ErrorCode, StepwedgeError
from shared.objects import ObjectStore, Zone
from shared.settings import Destination

_MAX_CONTEXTS: Final = 128  # PS3.8 9.3.2.2: odd context IDs from 1 to 255
_NEGOTIATION_SECONDS: Final = 15.0
_ANSWER_SECONDS: Final = 60.0
_REJECTED_PERMANENT: Final = 0x01  # PS3.8 9.3.4, Result

# PS3.4 Table B.2-1 and PS3.7 Annex C, by what a failure means for trying again.
_RETRIED_STATUS: Final[Mapping[int, bool]] = {0xA700: True, 0x0110: True, 0x0210: True, 0x0213: True}


class Sender:
    """Sends objects to destinations; `send` blocks, and one destination is served by one call at a time."""

    def __init__(self, ae_title: str, objects: ObjectStore) -> None:
        self._ae_title = ae_title
        self._objects = objects
        self._locks: dict[str, threading.Lock] = {}

    def send(
        self, destination: Destination, instances: Sequence[Instance], delivered: Callable[[Instance], None]
    ) -> None:
        """Send every instance; call `delivered` after each that the peer acknowledged, before the next is sent.

        Raises
        ------
        StepwedgeError
            DEPENDENCY_UNAVAILABLE, permanent or not as the peer's answer says: a rejection that is permanent (PS3.8
            9.3.4), a SOP class or transfer syntax that it does not take, a status that another try will not change.
            OBJECT_NOT_FOUND, OBJECT_CORRUPT.
        """
        with self._locks.setdefault(destination.name, threading.Lock()):
            for batch in _batches(instances):
                self._send_batch(destination, batch, delivered)

    def _send_batch(
        self, destination: Destination, batch: Sequence[Instance], delivered: Callable[[Instance], None]
    ) -> None:
        ae = AE(self._ae_title)
        ae.acse_timeout = ae.connection_timeout = _NEGOTIATION_SECONDS
        ae.dimse_timeout = ae.network_timeout = _ANSWER_SECONDS
        contexts = sorted({_encoding(instance) for instance in batch})
        ae.requested_contexts = [build_context(sop_class, syntax) for sop_class, syntax in contexts]
        association = ae.associate(destination.host, destination.port, ae_title=destination.ae_title)
        if not association.is_established:
            raise _refused(association)
        try:
            accepted = {
                (str(context.abstract_syntax), str(context.transfer_syntax[0])): context.context_id
                for context in association.accepted_contexts
            }
            for number, instance in enumerate(batch):
                self._send_one(association, accepted, instance, number % 0xFFFF + 1)
                delivered(instance)
        finally:
            association.release()

    def _send_one(
        self, association: Any, accepted: Mapping[tuple[str, str], Any], instance: Instance, message_id: int
    ) -> None:
        context_id = accepted.get(_encoding(instance))
        if context_id is None:
            raise _failed("the peer takes no such SOP class in its transfer syntax", permanent=True)
        data = self._objects.get(Zone.ORIGINAL, instance.sha256)
        request = C_STORE()
        request.MessageID = message_id
        request.Priority = 0x0002
        request.AffectedSOPClassUID = UID(instance.sop_class_uid)
        request.AffectedSOPInstanceUID = UID(instance.sop_instance_uid)
        # The data set as it came, not decoded and encoded again.
        request.DataSet = BytesIO(memoryview(data)[data_set_offset(data) :])
        status = _exchange(association, request, context_id)
        if status is None:
            raise _failed("the peer did not answer", permanent=False)
        if status != 0x0000 and not 0xB000 <= status <= 0xBFFF:
            retried = _RETRIED_STATUS.get(status, 0xA700 <= status <= 0xA7FF)
            raise _failed("the peer did not take an object", permanent=not retried)


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


def _encoding(instance: Instance) -> tuple[str, str]:
    return instance.sop_class_uid, instance.transfer_syntax_uid


def _batches(instances: Sequence[Instance]) -> list[list[Instance]]:
    """Cut the instances, in their order, so that each part needs no more presentation contexts than there are."""
    batches: list[list[Instance]] = []
    contexts: set[tuple[str, str]] = set()
    for instance in instances:
        contexts.add(_encoding(instance))
        if not batches or len(contexts) > _MAX_CONTEXTS:
            batches.append([])
            contexts = {_encoding(instance)}
        batches[-1].append(instance)
    return batches


def _refused(association: Any) -> StepwedgeError:
    primitive = association.acceptor.primitive
    rejected = association.is_rejected and primitive is not None
    if rejected and primitive.result == _REJECTED_PERMANENT:
        return _failed("the peer rejects our associations for good", permanent=True)
    if not rejected and primitive is not None and primitive.result == 0x00:
        return _failed("the peer takes none of the SOP classes", permanent=True)
    return _failed("no association with the peer", permanent=False)


def _failed(words: str, *, permanent: bool) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, words, permanent=permanent)
