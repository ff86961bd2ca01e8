"""What is sent, and what every way of sending answers; the ways are `delivery` (C-STORE) and `stow_out` (STOW-RS)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.ingest.tables import Instance, Result
from shared.errors import ErrorCode, StepwedgeError
from shared.settings import Destination

DUPLICATE = 0x0111
"""Duplicate SOP Instance (PS3.7 C.4.4): the peer has an object of this UID."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One object on its way: an instance as received, or a result."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    sha256: str
    conflict: bool = False
    """Another object of the same UID and other content was received: what the peer has may be that one."""
    instance: int | None = None
    """Row of the instance; None where it is a result."""
    result: int | None = None
    """Row of the result; None where it is an instance."""


Delivered = Callable[[Outgoing], None]
"""Called after each object that the peer acknowledged, before the next is sent."""


class Way(Protocol):
    """One way of sending; blocks."""

    def send(self, destination: Destination, objects: Sequence[Outgoing], delivered: Delivered) -> None:
        """Send every object; call `delivered` after each that the peer acknowledged, before the next is sent.

        Raises StepwedgeError, permanent or not as the peer's answer says; `failed` makes it.
        """
        ...


def of_instance(instance: Instance) -> Outgoing:
    """An instance as it goes out: as received."""
    return Outgoing(
        instance.sop_class_uid,
        instance.sop_instance_uid,
        instance.transfer_syntax_uid,
        instance.sha256,
        conflict=instance.conflict,
        instance=instance.id,
    )


def of_result(result: Result) -> Outgoing:
    """A result as it goes out."""
    return Outgoing(
        result.sop_class_uid, result.sop_instance_uid, result.transfer_syntax_uid, result.sha256, result=result.id
    )


def acknowledged(one: Outgoing, status: int) -> bool:
    """Whether a C-STORE status or a failure reason says that the peer has the object.

    A duplicate it has had from us, from a try whose answer we never saw; unless two contents claim the UID.
    """
    return status == 0x0000 or 0xB000 <= status <= 0xBFFF or (status == DUPLICATE and not one.conflict)


def passes(status: int) -> bool:
    """Whether a failure may pass by itself: PS3.4 Table B.2-1, PS3.7 Annex C and PS3.18 Table I.2-2."""
    return 0xA700 <= status <= 0xA7FF or status in (0x0110, 0x0210, 0x0213)


def failed(words: str, *, permanent: bool) -> StepwedgeError:
    """The error of a peer that does not take what it is sent."""
    return StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, words, permanent=permanent)
