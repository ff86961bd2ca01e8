"""The life of a study and of an instance, each as one table from (state, event) to state."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from shared.errors import ErrorCode, StepwedgeError
from stepwedge.ingest.v1 import ingest_pb2


class StudyState(StrEnum):
    """Where a study stands; the same words as `stepwedge.ingest.v1.StudyState`."""

    RECEIVING = "RECEIVING"
    """Images arrive, are redacted and assessed; the quiet period has not passed."""
    PROCESSING = "PROCESSING"
    """Complete; its last steps are under way or will be tried again."""
    DELIVERING = "DELIVERING"
    """Decided and recorded; results are on their way to the destinations."""
    DONE = "DONE"
    """Decided, recorded, and delivered where a destination is configured."""
    DEAD_LETTER = "DEAD_LETTER"
    """Given up; kept until a person requeues it."""


class StudyEvent(StrEnum):
    """What can happen to a study."""

    INSTANCE = "INSTANCE"
    """A new instance of it is durable, or one of its instances was found to be in conflict with another object."""
    ANNOUNCED = "ANNOUNCED"
    """A peer announced an instance of it that has not come."""
    QUIET = "QUIET"
    """The quiet period passed since its last instance, and nothing that was announced is lacking, or was waited for as
    long as may be; or a person asked to decide at once."""
    DECIDED = "DECIDED"
    """A decision on all its instances is in the log."""
    SUPERSEDED = "SUPERSEDED"
    """A decision is in the log, but an instance came in meanwhile that it does not cover."""
    DELIVERED = "DELIVERED"
    """Every delivery of the newest decision was made; at once where there is none to make."""
    GIVEN_UP = "GIVEN_UP"
    """A step failed for good, or its attempts ran out."""
    REQUEUED = "REQUEUED"
    """A person put it back in the queue; work on its instances or its decision is left."""
    REDELIVER = "REDELIVER"
    """A person put it back in the queue; only deliveries of its newest decision are left."""


class InstanceState(StrEnum):
    """Where an instance stands; the same words as `stepwedge.ingest.v1.InstanceState`."""

    STORED = "STORED"
    """Durable, its record not yet confirmed."""
    RECEIVED = "RECEIVED"
    """Durable and recorded."""
    REDACTED = "REDACTED"
    """De-identified."""
    ASSESSED = "ASSESSED"
    """Assessed, or found not assessable."""


class InstanceEvent(StrEnum):
    """What can happen to an instance."""

    RECORDED = "RECORDED"
    """The log took its `received` record."""
    REDACTED = "REDACTED"
    """Redaction answered with a de-identified object."""
    ASSESSED = "ASSESSED"
    """Inference answered with findings."""
    NOT_ASSESSABLE = "NOT_ASSESSABLE"
    """It is settled that no judgement can be made on it."""
    DERIVED_LOST = "DERIVED_LOST"
    """Its de-identified object is damaged or gone, and a person put its study back in the queue."""


_S, _E = StudyState, StudyEvent

STUDY_TRANSITIONS: Final[Mapping[tuple[StudyState, StudyEvent], StudyState]] = {
    (_S.RECEIVING, _E.INSTANCE): _S.RECEIVING,
    (_S.RECEIVING, _E.ANNOUNCED): _S.RECEIVING,
    (_S.RECEIVING, _E.QUIET): _S.PROCESSING,
    # Requeued with its decision already handed in.
    (_S.RECEIVING, _E.DECIDED): _S.DELIVERING,
    (_S.RECEIVING, _E.SUPERSEDED): _S.RECEIVING,
    (_S.RECEIVING, _E.GIVEN_UP): _S.DEAD_LETTER,
    (_S.PROCESSING, _E.INSTANCE): _S.RECEIVING,
    (_S.PROCESSING, _E.ANNOUNCED): _S.RECEIVING,
    (_S.PROCESSING, _E.QUIET): _S.PROCESSING,
    (_S.PROCESSING, _E.DECIDED): _S.DELIVERING,
    (_S.PROCESSING, _E.SUPERSEDED): _S.RECEIVING,
    (_S.PROCESSING, _E.GIVEN_UP): _S.DEAD_LETTER,
    # A late image opens the next revision; what of the last one was not yet delivered is left to the next.
    (_S.DELIVERING, _E.INSTANCE): _S.RECEIVING,
    (_S.DELIVERING, _E.ANNOUNCED): _S.RECEIVING,
    (_S.DELIVERING, _E.DELIVERED): _S.DONE,
    (_S.DELIVERING, _E.GIVEN_UP): _S.DEAD_LETTER,
    (_S.DONE, _E.INSTANCE): _S.RECEIVING,
    (_S.DONE, _E.ANNOUNCED): _S.RECEIVING,
    # Only a person takes a study out of the dead letter; a late image is kept and waits there with it.
    (_S.DEAD_LETTER, _E.INSTANCE): _S.DEAD_LETTER,
    (_S.DEAD_LETTER, _E.ANNOUNCED): _S.DEAD_LETTER,
    (_S.DEAD_LETTER, _E.GIVEN_UP): _S.DEAD_LETTER,
    (_S.DEAD_LETTER, _E.SUPERSEDED): _S.DEAD_LETTER,
    (_S.DEAD_LETTER, _E.REQUEUED): _S.RECEIVING,
    (_S.DEAD_LETTER, _E.REDELIVER): _S.DELIVERING,
}
"""Every transition of a study; a pair that is not here cannot happen."""

INSTANCE_TRANSITIONS: Final[Mapping[tuple[InstanceState, InstanceEvent], InstanceState]] = {
    (InstanceState.STORED, InstanceEvent.RECORDED): InstanceState.RECEIVED,
    # Two associations may carry one object at the same time: both confirm the same record.
    (InstanceState.RECEIVED, InstanceEvent.RECORDED): InstanceState.RECEIVED,
    (InstanceState.REDACTED, InstanceEvent.RECORDED): InstanceState.REDACTED,
    (InstanceState.ASSESSED, InstanceEvent.RECORDED): InstanceState.ASSESSED,
    (InstanceState.RECEIVED, InstanceEvent.REDACTED): InstanceState.REDACTED,
    (InstanceState.RECEIVED, InstanceEvent.NOT_ASSESSABLE): InstanceState.ASSESSED,
    (InstanceState.REDACTED, InstanceEvent.ASSESSED): InstanceState.ASSESSED,
    (InstanceState.REDACTED, InstanceEvent.NOT_ASSESSABLE): InstanceState.ASSESSED,
    # The one way back: the de-identified object is made of the original anew.
    (InstanceState.REDACTED, InstanceEvent.DERIVED_LOST): InstanceState.RECEIVED,
}
"""Every transition of an instance."""

ACTIVE_STATES: Final = frozenset({_S.RECEIVING, _S.PROCESSING, _S.DELIVERING})
"""States in which a worker has something to do, now or later."""

STUDY_STATE_TO_PROTO: Final[Mapping[StudyState, ingest_pb2.StudyState.ValueType]] = {
    state: ingest_pb2.StudyState.Value(f"STUDY_STATE_{state}") for state in StudyState
}
INSTANCE_STATE_TO_PROTO: Final[Mapping[InstanceState, ingest_pb2.InstanceState.ValueType]] = {
    state: ingest_pb2.InstanceState.Value(f"INSTANCE_STATE_{state}") for state in InstanceState
}
STUDY_STATE_FROM_PROTO: Final = {number: state for state, number in STUDY_STATE_TO_PROTO.items()}


def next_study_state(state: StudyState, event: StudyEvent) -> StudyState:
    """The state after `event`. Raises `StepwedgeError` (WRONG_STATE) where the table has no such pair."""
    try:
        return STUDY_TRANSITIONS[state, event]
    except KeyError:
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_WRONG_STATE, f"a study that is {state} takes no event {event}"
        ) from None


def next_instance_state(state: InstanceState, event: InstanceEvent) -> InstanceState:
    """The state after `event`. Raises `StepwedgeError` (WRONG_STATE) where the table has no such pair."""
    try:
        return INSTANCE_TRANSITIONS[state, event]
    except KeyError:
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_WRONG_STATE, f"an instance that is {state} takes no event {event}"
        ) from None
