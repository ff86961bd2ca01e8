"""Answers "where is my study, why, and what next" in sentences that hold no identity."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from services.ingest.completion import Missing
from services.ingest.routing import ORIGINAL
from services.ingest.states import InstanceState, StudyState
from services.ingest.store import DAMAGED, Snapshot
from services.ingest.tables import Decision, Delivery
from shared.errors import MEANING, ErrorCode
from stepwedge.common.v1.common_pb2 import Reason, Verdict
from stepwedge.ingest.v1 import ingest_pb2

_FEW: Final = 20
"""Up to so many instances each has lines of its own."""


def explain(snapshot: Snapshot, now: datetime) -> tuple[str, str, str]:
    """Where the study is, why it is there, and what happens next; one sentence each."""
    state = StudyState(snapshot.study.state)
    return _WHERE[state](snapshot), _why(snapshot), _NEXT[state](snapshot, now)


def steps(snapshot: Snapshot) -> list[ingest_pb2.ExplainStep]:
    """What happened so far, oldest first."""
    found = [*_instance_steps(snapshot), *_failure_steps(snapshot), *_study_steps(snapshot)]
    return [step for _, step in sorted(found, key=lambda one: one[0])]


def timestamp(moment: datetime) -> Timestamp:
    """The moment as protobuf writes it."""
    result = Timestamp()
    result.FromDatetime(moment)
    return result


def error_name(code: int) -> str:
    """An error's code in words: "AUDIT_UNAVAILABLE"."""
    return str(ErrorCode.Name(code)).removeprefix("ERROR_CODE_")  # type: ignore[arg-type]


def _verdict(number: int) -> str:
    return str(Verdict.Name(number)).removeprefix("VERDICT_")  # type: ignore[arg-type]


def _reasons(numbers: list[int]) -> str:
    words = ", ".join(str(Reason.Name(number)).removeprefix("REASON_") for number in numbers)  # type: ignore[arg-type]
    return f" ({words})" if words else ""


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _settled(snapshot: Snapshot) -> int:
    return sum(instance.state == InstanceState.ASSESSED for instance in snapshot.instances)


def _newest(snapshot: Snapshot) -> str:
    visible = [decision for decision in snapshot.decisions if decision.record_index is not None]
    if not visible:
        return "not decided yet"
    return f"revision {visible[-1].revision} is {_verdict(visible[-1].verdict)}{_reasons(visible[-1].reasons)}"


_WHERE: Final[Mapping[StudyState, Callable[[Snapshot], str]]] = {
    StudyState.RECEIVING: lambda one: (
        f"Receiving: {_count(len(one.instances), 'instance')} came in, {_settled(one)} of them settled; {_newest(one)}."
    ),
    StudyState.PROCESSING: lambda one: (
        f"Complete with {_count(len(one.instances), 'instance')}, {_settled(one)} of them settled; {_newest(one)}."
    ),
    StudyState.DELIVERING: lambda one: f"Decided, {_newest(one)}; results are on their way.",
    StudyState.DONE: lambda one: f"Done: {_newest(one)}.",
    StudyState.DEAD_LETTER: lambda one: f"In the dead letter; {_newest(one)}; nothing of it is lost.",
}


def _why(snapshot: Snapshot) -> str:
    study = snapshot.study
    if study.last_error:
        waiting = f" while it waits for {study.waiting_for}" if study.waiting_for else ""
        times = f", after {_count(study.attempts, 'attempt')}" if study.attempts else ""
        meaning = MEANING[study.last_error]  # type: ignore[index]
        return f"The last step failed with {error_name(study.last_error)}{times}{waiting}: {meaning}."
    unrecorded = sum(instance.state == InstanceState.STORED for instance in snapshot.instances)
    if unrecorded:
        return f"{_count(unrecorded, 'instance')} not yet confirmed by the log."
    if study.state == StudyState.RECEIVING:
        if lacking := Missing.from_json(study.missing):
            return f"It waits for what has not come: {lacking.words()}."
        return "More instances may come until the quiet period has passed."
    return "Every step so far succeeded."


def _until_decided(snapshot: Snapshot, now: datetime) -> str:
    if snapshot.study.missing:
        return (
            f"It is decided when that has come, and {_at(snapshot, now)} at the latest, then with the reason "
            "INCOMPLETE; at once by a person: stepwedge complete STUDY."
        )
    return f"A worker looks at it {_at(snapshot, now)}; it is decided when it is quiet."


def _at(snapshot: Snapshot, now: datetime) -> str:
    due = snapshot.study.next_action_at
    if due is None:
        return "now"
    seconds = round((due - now).total_seconds())
    return "now" if seconds <= 0 else f"in {seconds} s"


def _cure(snapshot: Snapshot) -> str:
    """What a person must do about a study in the dead letter."""
    last = max((one for one in snapshot.failures if one.permanent), key=lambda one: one.failed_at, default=None)
    if last is None or last.error not in DAMAGED:
        return "mends the cause and requeues it"
    if last.step == "assess":
        return "finds out what damaged the object store and requeues it; redaction makes the derived object anew"
    return (
        "finds out what damaged the object store, sends the original again as it was sent first (the same bytes "
        "through the same door put it back in its place), and requeues it"
    )


_NEXT: Final[Mapping[StudyState, Callable[[Snapshot, datetime], str]]] = {
    StudyState.RECEIVING: lambda one, now: _until_decided(one, now),
    StudyState.PROCESSING: lambda one, now: f"A worker takes it on {_at(one, now)}.",
    StudyState.DELIVERING: lambda one, now: f"A worker delivers {_at(one, now)}.",
    StudyState.DONE: lambda one, now: "Nothing; a late image would open the next revision.",
    StudyState.DEAD_LETTER: lambda one, now: f"A person {_cure(one)}: stepwedge requeue STUDY.",
}

_Steps = list[tuple[datetime, ingest_pb2.ExplainStep]]


def _step(at: datetime, what: str, record_index: int | None = None) -> tuple[datetime, ingest_pb2.ExplainStep]:
    return at, ingest_pb2.ExplainStep(at=timestamp(at), what=what, record_index=record_index)


def _instance_steps(snapshot: Snapshot) -> _Steps:
    if len(snapshot.instances) > _FEW:
        return _summed_instance_steps(snapshot)
    found = []
    for number, one in enumerate(snapshot.instances, 1):
        name = f"Instance {number} ({one.modality or 'no modality'})"
        conflict = ", in conflict with another object of its UID" if one.conflict_at_receipt else ""
        found.append(_step(one.received_at, f"{name} received by {one.channel}{conflict}.", one.record_index))
        if one.redacted_at is not None:
            found.append(_step(one.redacted_at, f"{name} de-identified.", one.redacted_index))
        if one.assessed_at is not None:
            what = "assessed" if one.assessed_index is not None else "settled without an assessment"
            found.append(_step(one.assessed_at, f"{name} {what}.", one.assessed_index))
    return found


def _summed_instance_steps(snapshot: Snapshot) -> _Steps:
    moments = (
        ("received", [one.received_at for one in snapshot.instances]),
        ("de-identified", [one.redacted_at for one in snapshot.instances if one.redacted_at is not None]),
        ("settled", [one.assessed_at for one in snapshot.instances if one.assessed_at is not None]),
    )
    return [
        _step(max(at), f"{_count(len(at), 'instance')} {what} so far, the last one now.") for what, at in moments if at
    ]


def _failure_steps(snapshot: Snapshot) -> _Steps:
    numbers = {instance.id: number for number, instance in enumerate(snapshot.instances, 1)}
    return [
        _step(
            one.failed_at,
            f"Step {one.step}{f' of instance {numbers[one.instance_id]}' if one.instance_id in numbers else ''} failed "
            f"with {error_name(one.error)}{', for good' if one.permanent else ''}.",
            one.record_index,
        )
        for one in snapshot.failures
    ]


def _delivered(delivery: Delivery) -> str:
    what = f" ({', '.join(delivery.contents)})" if delivery.contents != [ORIGINAL] or delivery.routes else ""
    rules = f"the rule{'s' if len(delivery.routes) > 1 else ''} {', '.join(delivery.routes)}"
    by = f" by {rules}" if delivery.routes else ""
    if delivery.shadow:
        count = _count(delivery.objects, "object")
        return (
            f"Revision {delivery.revision}: {count} would have gone to {delivery.destination}{what}{by}; "
            "in shadow mode nothing was sent."
        )
    return f"Revision {delivery.revision} delivered to {delivery.destination}{what}{by}."


def _before_time(decision: Decision) -> str:
    lacking = Missing.from_json(decision.missing)
    asked = f", as {decision.forced_by} asked" if decision.forced_by else ""
    return f"{asked}{f', without {lacking.words()}' if lacking else ''}"


def _study_steps(snapshot: Snapshot) -> _Steps:
    found = [
        _step(
            one.decided_at,
            f"Revision {one.revision} decided{_before_time(one)}: {_verdict(one.verdict)}{_reasons(one.reasons)}.",
            one.record_index,
        )
        for one in snapshot.decisions
        if one.record_index is not None
    ]
    found += [
        _step(one.sent_at, _delivered(one), one.record_index)
        for one in snapshot.deliveries
        if one.sent_at is not None and one.record_index is not None
    ]
    found += [
        _step(one.made_at, f"Results of revision {one.revision} made and checked: {', '.join(one.kinds)}.")
        for one in snapshot.makings
        if one.made_at is not None
    ]
    found += [
        _step(one.requested_at, f"Put back in the queue by {one.person or one.requested_by}.", one.record_index)
        for one in snapshot.requeues
        if one.record_index is not None
    ]
    return found
