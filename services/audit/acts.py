"""What the log does to what lies beside its leaves, in one transaction with the record of it."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import sqlalchemy as sa

from services.audit import record, store
from services.audit.store import StoredEntry
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from shared.transparency import merkle
from stepwedge.audit.v1 import audit_pb2


@dataclass(frozen=True, slots=True)
class Own:
    """A record that the log itself makes of an act."""

    key: str
    """How its idempotency key begins; where `once`, the whole key."""
    outcome: audit_pb2.EventOutcome.ValueType
    fields: dict[str, Any] = field(default_factory=dict)
    """Of `Record`: the event, and what it is about."""
    once: bool = False
    """Whether the log takes it once however often it is tried, as it does the records of others."""


class Act(Protocol):
    """One act. The sequencer performs it; nobody writes meanwhile."""

    @property
    def makes_facets(self) -> bool:
        """Whether it writes facets by itself."""
        ...

    def perform(self, connection: sa.Connection, now_us: int, size: int) -> Own | None:
        """Do it; the record of it, or None where nothing is to be recorded. Where it raises, nothing of it is done.

        `size` is the number of entries before the batch.
        """
        ...

    def committed(self) -> None:
        """It is durable."""
        ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for an act, and why."""

    identity: Identity
    person: str = ""
    purpose: audit_pb2.PurposeOfUse.ValueType = audit_pb2.PURPOSE_OF_USE_UNSPECIFIED
    reference: str = ""

    @classmethod
    def of(cls, identity: Identity, cause: audit_pb2.Cause, *, purpose_needed: bool = True) -> "Caller":
        """Out of a request. Raises INVALID_REQUEST where the purpose is not said, or a person by whom none is."""
        if purpose_needed and cause.purpose not in _PURPOSES:
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "Cause.purpose is not set")
        if cause.person and identity != Identity.CONSOLE:
            message = "Cause.person is taken only from an identity that signs people in"
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, message)
        return cls(identity, cause.person, cause.purpose, cause.reference)

    def fields(self) -> dict[str, Any]:
        """The members that the events of acts have in common."""
        asked = {"requested_by": self.identity.value, "person": self.person}
        return {**asked, "purpose": self.purpose, "reference": self.reference}


_PURPOSES = frozenset(number for number in audit_pb2.PurposeOfUse.values() if number)


def trusted_leaf(connection: sa.Connection, index: int) -> dict[str, Any]:
    """The members of an entry that is in the tree. Raises ENTRY_NOT_FOUND, or LOG_INCONSISTENT where it is not it."""
    rows = store.leaves(connection, index, index + 1)
    if not rows:
        raise StepwedgeError(ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND, "the log has no such entry")
    return trusted(store.node_reader(connection), rows[0])


def trusted(node: merkle.Node, row: StoredEntry) -> dict[str, Any]:
    """The members of an entry. Raises LOG_INCONSISTENT where it is not the one in the tree."""
    try:
        if node(0, row.index) == merkle.leaf_hash(row.leaf):
            return record.parse(row.leaf)
    except (LookupError, ValueError):
        pass
    message = f"the entry {row.index} is not the one in the tree; `stepwedge verify` tells more"
    raise StepwedgeError(ErrorCode.ERROR_CODE_LOG_INCONSISTENT, message)
