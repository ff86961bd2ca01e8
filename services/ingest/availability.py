"""Instance Availability Notification as SCP (PS3.4 Annex R): what a notification says will come of a study.

Imports no database and no RPC, so that the processes that receive are small (`services.ingest.dimse_worker`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final, cast

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.dimse_primitives import N_CREATE
from pynetdicom.dsutils import decode

from shared import dicom

INSTANCE_AVAILABILITY: Final = UID("1.2.840.10008.5.1.4.33")
"""Instance Availability Notification SOP Class."""

# PS3.7 Annex C, status of the N-CREATE response
PROCESSING_FAILURE: Final = 0x0110
MISSING_ATTRIBUTE: Final = 0x0120
MISSING_VALUE: Final = 0x0121
INVALID_VALUE: Final = 0x0106
RESOURCE_LIMITATION: Final = 0x0213

MOST_INSTANCES: Final = 20_000
"""In one announcement."""


class NotUnderstoodError(Exception):
    """A notification that is answered with a status and leaves nothing."""

    def __init__(self, status: int) -> None:
        super().__init__(hex(status))
        self.status = status


@dataclass(frozen=True, slots=True)
class Told:
    """What an announcement says of one study."""

    study_instance_uid: str
    available: frozenset[str] = frozenset()
    """SOP Instance UIDs that will come, or may be fetched."""
    unavailable: frozenset[str] = frozenset()
    """Those that will not come."""
    instances: int = 0
    """How many there are in all; 0 where it is not said."""
    series: int = 0


def notified(request: N_CREATE, context: Any) -> Told:
    """What an N-CREATE request says. Raises NotUnderstoodError."""
    syntax = context.transfer_syntax[0]
    try:
        data = cast(BytesIO, request.AttributeList)
        notification = decode(data, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
    except Exception:  # noqa: BLE001 - pydicom's readers raise whatever the bytes make them raise
        raise NotUnderstoodError(PROCESSING_FAILURE) from None
    try:
        return told(notification)
    except NotUnderstoodError:
        raise
    except Exception:  # noqa: BLE001 - values convert when they are read
        raise NotUnderstoodError(INVALID_VALUE) from None


def told(notification: Dataset) -> Told:
    """What a notification says (PS3.4 Table R.3.2-1). Raises NotUnderstoodError."""
    study = _uid(notification, "StudyInstanceUID")
    available: set[str] = set()
    unavailable: set[str] = set()
    for series in _items(notification, "ReferencedSeriesSequence"):
        for reference in _items(series, "ReferencedSOPSequence"):
            uid = _uid(reference, "ReferencedSOPInstanceUID")
            gone = str(reference.get("InstanceAvailability") or "") == "UNAVAILABLE"
            (unavailable if gone else available).add(uid)
            if len(available) + len(unavailable) > MOST_INSTANCES:
                raise NotUnderstoodError(RESOURCE_LIMITATION)
    return Told(study, frozenset(available - unavailable), frozenset(unavailable))


def _items(dataset: Dataset, keyword: str) -> Iterable[Dataset]:
    if keyword not in dataset:
        raise NotUnderstoodError(MISSING_ATTRIBUTE)
    items = dataset[keyword].value
    if not items:
        raise NotUnderstoodError(MISSING_VALUE)
    return cast(Iterable[Dataset], items)


def _uid(dataset: Dataset, keyword: str) -> str:
    if keyword not in dataset:
        raise NotUnderstoodError(MISSING_ATTRIBUTE)
    value = str(dataset.get(keyword) or "").strip(" \0")
    if not value:
        raise NotUnderstoodError(MISSING_VALUE)
    if not dicom.is_uid(value):
        raise NotUnderstoodError(INVALID_VALUE)
    return value
