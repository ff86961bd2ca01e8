"""The messages of storage commitment (PS3.4 Annex J): what a request asks for, and how its outcome is told."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any, Final, cast

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.dsutils import decode, encode

from shared.errors import ErrorCode, StepwedgeError

PUSH_MODEL: Final = UID("1.2.840.10008.1.20.1")
"""Storage Commitment Push Model SOP Class."""
WELL_KNOWN_INSTANCE: Final = UID("1.2.840.10008.1.20.1.1")
_REQUEST: Final = 1  # the one action type there is (PS3.4 J.3.2)
_ALL_COMMITTED: Final = 1
_FAILURES_EXIST: Final = 2

# PS3.3 C.14.1.1, Failure Reason
NO_SUCH_INSTANCE: Final = 0x0112
CLASS_INSTANCE_CONFLICT: Final = 0x0119
# PS3.7 Annex C, status of the N-ACTION response
PROCESSING_FAILURE: Final = 0x0110
INVALID_ARGUMENT: Final = 0x0115
NO_SUCH_ACTION: Final = 0x0123

_MOST_REFERENCES: Final = 20_000

Reference = tuple[str, str]
"""SOP Class UID, SOP Instance UID."""


class RefusedError(Exception):
    """A request that is answered with a status and leaves nothing."""

    def __init__(self, status: int) -> None:
        super().__init__(hex(status))
        self.status = status


def requested(request: N_ACTION, context: Any) -> tuple[str, list[Reference]]:
    """Transaction UID and references of an N-ACTION request (PS3.4 J.3.2). Raises RefusedError."""
    if request.RequestedSOPInstanceUID != WELL_KNOWN_INSTANCE:
        raise RefusedError(NO_SUCH_INSTANCE)
    if request.ActionTypeID != _REQUEST:
        raise RefusedError(NO_SUCH_ACTION)
    try:
        syntax = context.transfer_syntax[0]
        data = cast(BytesIO, request.ActionInformation)
        information = decode(data, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
        transaction = str(information.TransactionUID)
        references = [
            (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
            for item in information.ReferencedSOPSequence
        ]
    except Exception:  # noqa: BLE001 - pydicom's readers raise whatever the bytes make them raise
        raise RefusedError(INVALID_ARGUMENT) from None
    uids = [transaction, *(uid for pair in references for uid in pair)]
    if not 0 < len(references) <= _MOST_REFERENCES or not all(UID(uid).is_valid for uid in uids):
        raise RefusedError(INVALID_ARGUMENT)
    return transaction, references


def event_report(event_type: int, information: Dataset, context: Any, message_id: int) -> N_EVENT_REPORT:
    """The request that reports an outcome (PS3.7 10.1.1)."""
    syntax = context.transfer_syntax[0]
    encoded = encode(information, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
    if encoded is None:
        raise StepwedgeError(ErrorCode.ERROR_CODE_INTERNAL, "a report cannot be encoded")
    request = N_EVENT_REPORT()
    request.MessageID = message_id
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = PUSH_MODEL, WELL_KNOWN_INSTANCE
    request.EventTypeID = event_type
    request.EventInformation = BytesIO(encoded)
    return request


def event_information(
    transaction_uid: str, committed: Sequence[Reference], failed: Sequence[tuple[str, str, int]]
) -> tuple[int, Dataset]:
    """Event type and event information (PS3.4 J.3.3): what is committed, and what is not with its Failure Reason."""
    report = Dataset()
    report.TransactionUID = transaction_uid
    if committed:
        report.ReferencedSOPSequence = [_item(sop_class, instance) for sop_class, instance in committed]
    if failed:
        items = []
        for sop_class, instance, reason in failed:
            item = _item(sop_class, instance)
            item.FailureReason = reason
            items.append(item)
        report.FailedSOPSequence = items
    return (_FAILURES_EXIST if failed else _ALL_COMMITTED), report


def _item(sop_class: str, instance: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
    return item
