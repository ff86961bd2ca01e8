"""Takes each study through its steps: redact and assess every instance, decide, deliver; whatever dies is picked up.

Any number of workers, in any number of processes, claim studies that are due. Every step leaves its trace in three
moves: it is done by a service that answers the same to the same request, or written down as pending; it is recorded
under a key that names it; it is confirmed. A worker that dies between two moves leaves what the next worker finds and
finishes, and nothing becomes visible before the log has it (law 1).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import grpc

from services.ingest import collation, metrics, verdicts
from services.ingest.backoff import backoff, jitter
from services.ingest.baselines import Usuals
from services.ingest.delivery import Sender
from services.ingest.dispatch import DELIVER, RESULTS, Dispatch, Stopping
from services.ingest.door import record_key, record_received
from services.ingest.gates import Gate, Waiting
from services.ingest.identification import Identifier
from services.ingest.outcomes import NOT_ASSESSABLE, Outcome, outcome
from services.ingest.results.workshop import Workshop
from services.ingest.states import InstanceState, StudyState
from services.ingest.store import CONFIRM_GRACE, Claim, LeaseLostError, Settled, Snapshot, StudyStore
from services.ingest.tables import Decision, Failure, Instance
from shared import logs
from shared.audit import Recorder
from shared.build import software_build
from shared.errors import DETAILS_KEY, ErrorCode, StepwedgeError, from_rpc
from shared.health import Health
from shared.policy import Policy
from shared.settings import Ingest
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1 import common_pb2
from stepwedge.common.v1.common_pb2 import Verdict
from stepwedge.inference.v1 import inference_pb2, inference_pb2_grpc
from stepwedge.redaction.v1 import redaction_pb2, redaction_pb2_grpc

REDACTION: Final = "redaction"
INFERENCE: Final = "inference"
AUDIT: Final = "audit"
DECIDE: Final = "decide"
"""The step in which a study is decided, as records of failures name it."""

_CALL_SECONDS: Final = 300.0  # a long multi-frame object; a dead peer is found by keepalive long before
_IDLE_SECONDS: Final = 1.0  # how often a worker looks for studies of other processes
_PAUSE_SECONDS: Final = 20.0  # while a dependency is away; its return ends the pause
_WATCH_SECONDS: Final = 0.5
_CLOCK_SECONDS: Final = 15.0  # how often times are looked at that a wrong clock may have written
_INSTANCES_AT_ONCE: Final = 64

_BEFORE_DECISION: Final = frozenset({StudyState.RECEIVING, StudyState.PROCESSING})
_AFTER_DECISION: Final = frozenset({StudyState.DELIVERING})

_OF_THE_DECISION: Final = (DELIVER, RESULTS)
"""Steps that are about a decision which is in the log; any other is about the next one."""

_T = TypeVar("_T")
_log = logs.get_logger(__name__)


@dataclass(frozen=True)
class Services:
    """What the hallway calls."""

    redaction: redaction_pb2_grpc.RedactionServiceAsyncStub
    inference: inference_pb2_grpc.InferenceServiceAsyncStub
    recorder: Recorder
    sender: Sender
    workshop: Workshop
    identifier: Identifier
    log: str
    """Origin of the log."""


class Hallway:
    """The workers of one process; belongs to one event loop."""

    def __init__(
        self, settings: Ingest, studies: StudyStore, services: Services, policy: Policy, health: Health
    ) -> None:
        self._settings = settings
        self._studies = studies
        self._services = services
        self._policy = policy
        self._usual = Usuals(studies.engine)
        studies.policies.use(policy)
        self._gates = {name: Gate(name, health) for name in (REDACTION, INFERENCE, AUDIT)}
        self._lease = timedelta(seconds=settings.lease_seconds)
        self._dispatch = Dispatch(
            settings,
            studies,
            services.sender,
            services.workshop,
            services.recorder,
            origin=services.log,
            backoff=backoff,
            stopping=lambda: self._stopping,
        )
        self._bell = asyncio.Event()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._claims = 0
        self._asking: dict[frozenset[StudyState], asyncio.Future[datetime | None]] = {}

    def start(self) -> None:
        """Begin to work."""
        for number in range(self._settings.workers):
            # Of their own, so that a slow destination keeps no study from its verdict.
            for states in (_BEFORE_DECISION, _AFTER_DECISION):
                self._tasks.append(asyncio.create_task(self._run_worker(states), name=f"hallway {number}"))
        self._tasks.append(asyncio.create_task(self._watch_dependencies(), name="hallway gates"))

    async def stop(self) -> None:
        """Finish the steps that are under way, let go of the studies, and return."""
        self._stopping = True
        self.ring()
        *workers, watcher = self._tasks or [asyncio.create_task(asyncio.sleep(0))]
        await asyncio.gather(*workers, return_exceptions=True)
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)

    def ring(self) -> None:
        """Something is due now."""
        self._asking.clear()  # an answer that is under way may be of before
        self._bell.set()

    # -- workers --------------------------------------------------------------------------------------------------

    async def _run_worker(self, states: frozenset[StudyState]) -> None:
        while not self._stopping:
            try:
                self._bell.clear()  # before the question, so that whatever rings behind it is heard
                due = await self._next_due(states)
                claim = await self._claim(states, due) if self._gates[AUDIT].open else None
                if claim is None:
                    await self._wait_for_work(due)
                else:
                    await self._work(claim)
            except StepwedgeError as error:
                # The database itself is away: nothing can be claimed, and nothing is lost by waiting.
                _log.warning("the queue cannot be read", **logs.describe(error))
                await asyncio.sleep(_IDLE_SECONDS)
            except Exception as error:  # noqa: BLE001 - a worker must outlive whatever one study does to it
                _log.error("worker stumbled", **logs.describe(error))
                await asyncio.sleep(_IDLE_SECONDS)

    async def _next_due(self, states: frozenset[StudyState]) -> datetime | None:
        """When the next study is due; workers that the same bell woke ask the database once."""
        asking = self._asking.get(states)
        if asking is None or asking.done():
            asking = self._asking[states] = asyncio.ensure_future(asyncio.to_thread(self._studies.next_due, states))
        return await asyncio.shield(asking)

    async def _claim(self, states: frozenset[StudyState], due: datetime | None) -> Claim | None:
        if due is None or due > _now():
            return None
        self._claims += 1
        owner = f"{os.getpid()}-{self._services.recorder.incarnation[:8]}-{self._claims}"
        return await asyncio.to_thread(self._studies.claim, owner, _now(), self._lease, states)

    async def _wait_for_work(self, due: datetime | None) -> None:
        seconds = _IDLE_SECONDS
        if due is not None:
            seconds = min(seconds, max(0.02, (due - _now()).total_seconds()))
        if self._stopping:
            return  # the bell that was silenced just now may have been that of the end
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._bell.wait()

    async def _watch_dependencies(self) -> None:
        was_open, clocks_at = dict.fromkeys(self._gates, False), 0.0
        while True:
            for name, gate in self._gates.items():
                if gate.open and not was_open[name]:
                    with suppress(StepwedgeError):
                        await asyncio.to_thread(self._studies.wake, name, _now())
                        self.ring()
                was_open[name] = gate.open
            if time.monotonic() >= clocks_at:
                clocks_at = time.monotonic() + _CLOCK_SECONDS
                await self._set_right()
            await asyncio.sleep(_WATCH_SECONDS)

    async def _set_right(self) -> None:
        with suppress(StepwedgeError):  # the database is away: later
            found = await asyncio.to_thread(self._studies.set_right, _now(), self._lease)
            if found:
                _log.warning("studies waited for a time that a wrong clock wrote", count=found)
                self.ring()

    async def _work(self, claim: Claim) -> None:
        """Do what is due for one study, then let go of it."""
        work = asyncio.create_task(self._take_on(claim))
        keeping = asyncio.create_task(self._keep(claim, work))
        waiting_for, pause = "", timedelta()
        try:
            await work
        except Waiting as waiting:
            waiting_for, pause = waiting.dependency, timedelta(seconds=_PAUSE_SECONDS * jitter())
            await self._note_waiting(claim, waiting)
        except Stopping:
            pass
        except (LeaseLostError, asyncio.CancelledError):
            # Fenced: what this worker still had under way cannot be written any more.
            _log.warning("lease lost")
            return
        except StepwedgeError as error:
            _log.warning("study could not be worked on", **logs.describe(error))
            pause = timedelta(seconds=_IDLE_SECONDS * (1 + jitter()))
            if outcome(DECIDE, error) is Outcome.GIVE_UP:  # it would be the same for ever
                pause = await self._stumbled(claim, error)
        except Exception as error:  # noqa: BLE001 - a defect of ours must end in the dead letter, not in a loop
            _log.error("worker stumbled over a study", **logs.describe(error))
            pause = await self._stumbled(claim, StepwedgeError(ErrorCode.ERROR_CODE_INTERNAL, "see the log"))
        finally:
            keeping.cancel()
        with suppress(LeaseLostError):
            await _in_thread(self._studies.release, claim, _now(), waiting_for=waiting_for, pause=pause)

    async def _keep(self, claim: Claim, work: asyncio.Task[None]) -> None:
        """Renew the lease; where it is lost, stop the work."""
        while True:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            try:
                await _in_thread(self._studies.renew, claim, _now(), self._lease)
            except LeaseLostError:
                work.cancel()
                return
            except StepwedgeError:
                continue  # the database is away; the lease holds as long as it holds

    async def _take_on(self, claim: Claim) -> None:
        # Most claims of a large study are for the few images that came in last.
        snapshot = await _in_thread(self._studies.snapshot, claim.study_id, only_unsettled=True)
        await self._finish_received(snapshot)
        if snapshot.pending_decision is not None or any(one.record_index is None for one in snapshot.failures):
            snapshot = await _in_thread(self._studies.snapshot, claim.study_id)
            await self._finish_failures(snapshot)
            if snapshot.pending_decision is not None:
                await self._hand_in(claim, snapshot, snapshot.pending_decision)
        await self._settle_instances(claim, snapshot)
        study = await _in_thread(self._studies.complete, claim, _now())
        if study.state == StudyState.PROCESSING:
            await self._decide(claim)
        elif study.state == StudyState.DELIVERING:
            await self._dispatch.deliver(claim, self)

    async def _stumbled(self, claim: Claim, error: StepwedgeError) -> timedelta:
        """Count an attempt that ended in an error that no step has; returns how long to wait before the next."""
        with suppress(LeaseLostError, StepwedgeError, Waiting):
            snapshot = await _in_thread(self._studies.snapshot, claim.study_id)
            attempts = snapshot.study.attempts + 1
            step = DELIVER if snapshot.study.state == StudyState.DELIVERING else DECIDE
            last = attempts >= self._settings.max_attempts
            told = {"study": snapshot.study.pseudonym, "step": step, "error": error.name, "attempt": attempts}
            _log.warning("an attempt at a study failed", **told)
            await self.record_failure(claim, snapshot, None, step, error, attempts, last=last)
            await _in_thread(self._studies.study_attempt_failed, claim, error=error.code, attempts=attempts)
            if last:
                await _in_thread(self._studies.give_up, claim, error=error.code)
            return backoff(attempts)
        return timedelta(seconds=_PAUSE_SECONDS)

    # -- what a worker before this one left unfinished ------------------------------------------------------------

    async def _finish_failures(self, snapshot: Snapshot) -> None:
        for failure in snapshot.failures:
            if failure.record_index is None:
                await self._hand_in_failure(snapshot, failure)

    async def _finish_received(self, snapshot: Snapshot) -> None:
        """Record what a door stored and did not live to record, or could not while the log was away."""
        for instance in snapshot.instances:
            if instance.state == InstanceState.STORED and abs(_now() - instance.received_at) > CONFIRM_GRACE:
                sealed = await _in_thread(self._services.identifier.again, instance, record_key(instance))
                index = await self.recorded(
                    record_received(self._services.recorder, instance, snapshot.study.pseudonym, sealed)
                )
                await _in_thread(self._studies.confirm_received, {instance.id: index}, _now())

    # -- instances ------------------------------------------------------------------------------------------------

    async def _settle_instances(self, claim: Claim, snapshot: Snapshot) -> None:
        now = _now()
        open_ones = [
            instance
            for instance in snapshot.instances
            if instance.state in (InstanceState.RECEIVED, InstanceState.REDACTED)
            and (instance.next_attempt_at is None or instance.next_attempt_at <= now)
        ]
        for start in range(0, len(open_ones), _INSTANCES_AT_ONCE):
            if self._stopping:
                return
            results = await asyncio.gather(
                *(
                    self._settle(claim, snapshot, instance)
                    for instance in open_ones[start : start + _INSTANCES_AT_ONCE]
                ),
                return_exceptions=True,
            )
            raised = [result for result in results if isinstance(result, BaseException)]
            if raised:
                raise min(raised, key=_gravity)

    async def _settle(self, claim: Claim, snapshot: Snapshot, instance: Instance) -> None:
        """Take one instance as far as it goes."""
        if instance.state == InstanceState.RECEIVED:
            redacted = await self._redact(claim, snapshot, instance)
            if redacted is None or redacted.receipt.burned_in_text_possible:
                return
            instance.deidentified_sha256, instance.deidentified_bytes = (
                redacted.object.sha256,
                redacted.object.size_bytes,
            )
        await self._assess(claim, snapshot, instance)

    async def _redact(
        self, claim: Claim, snapshot: Snapshot, instance: Instance
    ) -> redaction_pb2.RedactInstanceResponse | None:
        request = redaction_pb2.RedactInstanceRequest(
            object=common_pb2.ObjectReference(
                zone=common_pb2.ZONE_ORIGINAL, sha256=instance.sha256, size_bytes=instance.size_bytes
            ),
            study=snapshot.study.pseudonym,
        )
        response = await self._call(
            claim,
            snapshot,
            instance,
            "redact",
            self._gates[REDACTION],
            lambda: self._services.redaction.RedactInstance(request, timeout=_CALL_SECONDS),
        )
        if response is None:
            return None
        if (response.study, response.instance) != (snapshot.study.pseudonym, instance.pseudonym):
            # Two services with two keys for pseudonyms: no fault of the study, and every other would fail alike.
            error = StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "redaction has another key for pseudonyms")
            await self._failed(claim, snapshot, instance, "redact", self._gates[REDACTION], error, ours=True)
            return None
        # In one transaction with its state: a worker that found it merely redacted would pass it on.
        settled = verdicts.burned_in(response.receipt) if response.receipt.burned_in_text_possible else None
        await _in_thread(
            self._studies.redacted,
            claim,
            instance.id,
            sha256=response.object.sha256,
            size_bytes=response.object.size_bytes,
            record_index=response.record_index,
            settled=settled,
            now=_now(),
        )
        return response

    async def _assess(self, claim: Claim, snapshot: Snapshot, instance: Instance) -> None:
        request = inference_pb2.AssessInstanceRequest(
            object=common_pb2.ObjectReference(
                zone=common_pb2.ZONE_DEIDENTIFIED,
                sha256=instance.deidentified_sha256,
                size_bytes=instance.deidentified_bytes,
            )
        )
        response = await self._call(
            claim,
            snapshot,
            instance,
            "assess",
            self._gates[INFERENCE],
            lambda: self._services.inference.AssessInstance(request, timeout=_CALL_SECONDS),
        )
        if response is None:
            return
        verdict, reasons = self._policy.instance_verdict(
            response.assessment.findings,
            modality=instance.modality,
            view=response.assessment.facts.view,
            site=instance.site,
        )
        await _in_thread(
            self._studies.assessed,
            claim,
            instance.id,
            settled=Settled(verdict, tuple(reasons), response.assessment.SerializeToString()),
            record_index=response.record_index,
            now=_now(),
        )

    async def _call(
        self,
        claim: Claim,
        snapshot: Snapshot,
        instance: Instance,
        step: str,
        gate: Gate,
        request: Callable[[], Awaitable[_T]],
    ) -> _T | None:
        """Call a service about an instance; None where the call failed and what follows from that has been done."""
        began = time.perf_counter()
        ended = "failed"
        try:
            async with gate.call(instance.id):
                response = await request()
            gate.mended(instance.id)
            ended = "done"
            return response
        except grpc.RpcError as exc:
            error = from_rpc(exc)
            ended = error.name
            await self._failed(claim, snapshot, instance, step, gate, error, ours=_is_ours(exc))
            return None
        finally:
            metrics.STEP_SECONDS.labels(step, ended).observe(time.perf_counter() - began)

    async def _failed(
        self,
        claim: Claim,
        snapshot: Snapshot,
        instance: Instance,
        step: str,
        gate: Gate,
        error: StepwedgeError,
        *,
        ours: bool,
    ) -> None:
        """Do what follows from a failed step of an instance. Raises Waiting."""
        follows = outcome(step, error)
        attempts = instance.attempts + 1
        if follows is Outcome.WAIT:
            away = self._gates[AUDIT] if error.code == ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE else gate
            away.shut()
            if ours or gate.broke(instance.id) < self._settings.max_attempts:
                raise Waiting(away.name, error)
            # It broke the connection each time, lately alone: the object itself must be what takes the service down.
            follows, attempts = Outcome.GIVE_UP, self._settings.max_attempts
        if follows is Outcome.TRY_AGAIN and attempts >= self._settings.max_attempts:
            follows = Outcome.GIVE_UP
        last = follows is not Outcome.TRY_AGAIN
        await self.record_failure(claim, snapshot, instance, step, error, attempts, last=last)
        if follows is Outcome.TRY_AGAIN:
            await _in_thread(
                self._studies.attempt_failed,
                claim,
                instance.id,
                error=error.code,
                attempts=attempts,
                next_attempt_at=_now() + backoff(attempts),
            )
        elif follows is Outcome.NOT_ASSESSABLE:
            settled = verdicts.refused(NOT_ASSESSABLE[step, error.code])
            await _in_thread(
                self._studies.not_assessable, claim, instance.id, settled=settled, error=error.code, now=_now()
            )
        else:
            await _in_thread(self._studies.give_up, claim, error=error.code)

    # -- decisions ------------------------------------------------------------------------------------------------

    async def _decide(self, claim: Claim) -> None:
        snapshot = await _in_thread(self._studies.snapshot, claim.study_id)
        if any(one.state != InstanceState.ASSESSED for one in snapshot.instances):
            return  # one came since, or waits for its next attempt or for its record: release says when to look again
        began = time.perf_counter()
        ours_left_out = snapshot.without_echoes()
        images = [collation.image(instance) for instance in ours_left_out.instances]
        usual = await _in_thread(self._usual.of, images, snapshot.study.last_received_at)
        decision = verdicts.decide(self._policy, ours_left_out, _now(), collation.collate(images, usual))
        written = await _in_thread(self._studies.write_decision, claim, decision)
        if written is not None:  # else something came in between: the study is due again at once
            await self._hand_in(claim, snapshot, written)
            metrics.STEP_SECONDS.labels(DECIDE, "done").observe(time.perf_counter() - began)

    async def _hand_in(self, claim: Claim, snapshot: Snapshot, decision: Decision) -> None:
        """Record a decision that is written down, then make it visible."""
        study = snapshot.study
        try:
            index = await self.recorded(
                self._services.recorder.record(
                    key=f"decided/{study.pseudonym}/{decision.revision}",
                    outcome=audit_pb2.EVENT_OUTCOME_SUCCESS,
                    event=verdicts.decided_event(decision),
                    subject=snapshot.instances[0].subject,
                    study=study.pseudonym,
                    pins=audit_pb2.Pins(policy_sha256=decision.policy_sha256, software_build=decision.software_build),
                    occurred_at=decision.decided_at,
                )
            )
        except StepwedgeError as error:
            if not error.permanent:
                raise
            await self.record_failure(claim, snapshot, None, DECIDE, error, study.attempts + 1, last=True)
            await _in_thread(self._studies.give_up, claim, error=error.code)
            return
        verdict = Verdict.Name(decision.verdict).removeprefix("VERDICT_")  # type: ignore[arg-type]
        sendings, kinds = await self._dispatch.plan(snapshot, decision)
        await _in_thread(
            self._studies.confirm_decision,
            claim,
            decision.id,
            index,
            sendings,
            _now(),
            kinds=kinds,
            shadow=self._settings.shadow,
        )
        if not snapshot.study.constancy:
            metrics.VERDICTS.labels(verdict).inc()
        complete_at = study.last_received_at + timedelta(seconds=self._settings.quiet_seconds)
        metrics.DECISION_SECONDS.observe(max(0.0, (_now() - complete_at).total_seconds()))

    # -- records --------------------------------------------------------------------------------------------------

    async def recorded(self, handing_in: Awaitable[int]) -> int:
        """Hand in a record. Raises Waiting where the log is away."""
        try:
            return await handing_in
        except StepwedgeError as error:
            if error.code != ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE:
                raise
            self._gates[AUDIT].shut()
            raise Waiting(AUDIT, error) from None

    async def record_failure(
        self,
        claim: Claim,
        snapshot: Snapshot,
        instance: Instance | None,
        step: str,
        error: StepwedgeError,
        attempts: int,
        *,
        last: bool,
        detail: str = "",
    ) -> None:
        """Write a failure down and record it, once for each attempt."""
        study = snapshot.study
        about = study.pseudonym if instance is None else instance.pseudonym
        if instance is not None and instance.conflict:
            about = f"{about}/{instance.commitment}"  # two objects share the pseudonym
        times = sum(requeue.record_index is not None for requeue in snapshot.requeues)
        revision = study.revision + (instance is not None or step not in _OF_THE_DECISION)
        key = "/".join(
            filter(
                None,
                (
                    f"failed/{about}/{step}/{revision}/{attempts}",
                    detail,
                    f"requeue{times}" if times else "",
                ),
            )
        )
        failure = Failure(
            study_id=study.id,
            instance_id=None if instance is None else instance.id,
            key=key,
            step=step,
            error=error.code,
            permanent=last,
            attempts=attempts,
            revision=study.revision,
            failed_at=_now(),
        )
        failure = await _in_thread(self._studies.fail, claim, failure)
        if failure.record_index is None:
            await self._hand_in_failure(snapshot, failure)

    async def _hand_in_failure(self, snapshot: Snapshot, failure: Failure) -> None:
        instance = next((one for one in snapshot.instances if one.id == failure.instance_id), None)
        index = await self.recorded(
            self._services.recorder.record(
                key=failure.key,
                outcome=audit_pb2.EVENT_OUTCOME_SERIOUS_FAILURE
                if failure.permanent
                else audit_pb2.EVENT_OUTCOME_MINOR_FAILURE,
                event=audit_pb2.FailedEvent(
                    step=failure.step,
                    error=failure.error,  # type: ignore[arg-type]
                    permanent=failure.permanent,
                    attempts=failure.attempts,
                ),
                subject=(instance or snapshot.instances[0]).subject,
                study=snapshot.study.pseudonym,
                series="" if instance is None else instance.series_pseudonym,
                instance="" if instance is None else instance.pseudonym,
                pins=audit_pb2.Pins(
                    input_commitment="" if instance is None else instance.commitment, software_build=software_build()
                ),
                occurred_at=failure.failed_at,
            )
        )
        await _in_thread(self._studies.confirm_failure, failure.id, index)

    async def _note_waiting(self, claim: Claim, waiting: Waiting) -> None:
        """Say why nothing happens; in the log too, once for each dependency and revision, unless it is the log."""
        with suppress(LeaseLostError, StepwedgeError, Waiting):
            await _in_thread(self._studies.waits, claim, error=waiting.error.code)
            if waiting.dependency != AUDIT:
                snapshot = await _in_thread(self._studies.snapshot, claim.study_id)
                step = "redact" if waiting.dependency == REDACTION else "assess"
                await self.record_failure(
                    claim, snapshot, None, step, waiting.error, 0, last=False, detail=waiting.error.name
                )


async def _in_thread(function: Callable[..., _T], *args: object, **keywords: object) -> _T:
    return await asyncio.to_thread(function, *args, **keywords)


def _now() -> datetime:
    return datetime.now(UTC)


def _gravity(raised: BaseException) -> int:
    """Which of several errors of one study decides: a lost lease before a defect before a dependency that is away."""
    order = (asyncio.CancelledError, LeaseLostError, Waiting)
    return next((place for place, kind in zip((0, 1, 3), order, strict=True) if isinstance(raised, kind)), 2)


def _is_ours(exc: grpc.RpcError) -> bool:
    """Whether a service of ours answered with the error, and not the transport in its place."""
    trailing: Any = getattr(exc, "trailing_metadata", None)
    return callable(trailing) and any(key == DETAILS_KEY for key, _ in trailing() or ())
