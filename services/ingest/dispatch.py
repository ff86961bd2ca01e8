"""After the decision: which results are made of it, what goes where by the rules, and each delivery to its end.

Results are made once and kept; then each destination gets what its rules say, object by object, each noted before the
next is sent. A delivery counts when its record is in the log. In shadow mode everything happens but the sending, and
the record says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol, TypeVar

from services.ingest import metrics
from services.ingest.delivery import Sender
from services.ingest.outgoing import Outgoing, of_instance, of_result
from services.ingest.results.material import Decided, Image, Kind, Named, Outlines
from services.ingest.results.workshop import Workshop
from services.ingest.routing import ORIGINAL, Facts, Sending, kinds, sendings
from services.ingest.store import Claim, Snapshot, StudyStore
from services.ingest.tables import Decision, Delivery, Instance, Making
from shared import logs
from shared.audit import Recorder
from shared.build import software_build
from shared.errors import ErrorCode, StepwedgeError
from shared.settings import Ingest
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1.common_pb2 import Reason, Verdict

RESULTS: Final = "results"
"""The step in which results are made, as records of failures name it."""
DELIVER: Final = "deliver"

_T = TypeVar("_T")
_log = logs.get_logger(__name__)


class Stopping(Exception):  # noqa: N818 - a state of affairs, not an error
    """The process was told to stop, and the work is at a place where it can be left."""


class Records(Protocol):
    """What the hallway does for a delivery: it knows what follows where the log is away."""

    async def recorded(self, handing_in: Awaitable[int]) -> int:
        """Hand in a record."""
        ...

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
        """Write a failure down and record it."""
        ...


class Dispatch:
    """Takes decided studies to their destinations.

    Parameters
    ----------
    origin
        Of the log, which results name.
    backoff
        How long to wait after so many failed attempts.
    stopping
        Whether the process was told to stop.
    """

    def __init__(
        self,
        settings: Ingest,
        studies: StudyStore,
        sender: Sender,
        workshop: Workshop,
        recorder: Recorder,
        *,
        origin: str,
        backoff: Callable[[int], timedelta],
        stopping: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._studies = studies
        self._sender = sender
        self._workshop = workshop
        self._recorder = recorder
        self._origin = origin
        self._backoff = backoff
        self._stopping = stopping
        self._destinations = {destination.name: destination for destination in settings.destinations}

    async def plan(self, snapshot: Snapshot, decision: Decision) -> tuple[list[Sending], tuple[Kind, ...]]:
        """What follows from a decision: what goes where, and which results must be made for it."""
        if snapshot.study.constancy:  # phantoms are nobody's images
            return [], ()
        sent = sendings(self._settings, await self._facts(snapshot, decision))
        if _only_echoed(snapshot, decision):
            # Who has everything gets nothing new; who has not must not go without because of another's echo.
            left = _left_undone(snapshot, decision)
            sent = [one for one in sent if one.destination in left]
            if not sent:
                return [], ()
        return sent, kinds(self._settings, sent)

    async def _facts(self, snapshot: Snapshot, decision: Decision) -> Facts:
        instances = snapshot.instances
        devices = await _in_thread(self._studies.devices.named, [one.device_id for one in instances])
        return Facts(
            verdict=Verdict.Name(decision.verdict).removeprefix("VERDICT_"),  # type: ignore[arg-type]
            reasons=frozenset(Reason.Name(one).removeprefix("REASON_") for one in decision.reasons),  # type: ignore[arg-type]
            modalities=frozenset(one.modality for one in instances),
            sites=frozenset(one.site for one in instances if one.site),
            stations=frozenset(one.station for one in devices.values() if one.station),
            calling_ae_titles=frozenset(one.calling_ae_title for one in devices.values() if one.calling_ae_title),
            called_ae_titles=frozenset(one.called_ae_title for one in instances if one.called_ae_title),
        )

    async def deliver(self, claim: Claim, records: Records) -> None:
        """Do what is due after the newest decision of a study; what failed for good puts it into the dead letter."""
        snapshot = await _in_thread(self._studies.snapshot, claim.study_id)
        failed: list[StepwedgeError] = []
        for making in snapshot.makings:
            if making.state == "PENDING" and _due(making) and not self._stopping():
                error = await self._make(claim, snapshot, making, records)
                snapshot = await _in_thread(self._studies.snapshot, claim.study_id)
                failed += [error] if error is not None and error.permanent else []
        for delivery in snapshot.deliveries:
            if delivery.state in ("PENDING", "SENT") and _due(delivery) and not self._stopping():
                try:
                    await self._deliver_one(claim, snapshot, delivery, records)
                except StepwedgeError as error:
                    if await self._delivery_failed(claim, snapshot, delivery, error, records):
                        failed.append(error)
        if failed:
            await _in_thread(self._studies.give_up, claim, error=failed[0].code)

    # -- results --------------------------------------------------------------------------------------------------

    async def _make(self, claim: Claim, snapshot: Snapshot, making: Making, records: Records) -> StepwedgeError | None:
        """Make the results of a decision; returns why not, where they could not be made."""
        began = time.perf_counter()
        try:
            decided = _decided(snapshot, making, self._origin)
            made = await self._workshop.make(decided, [Kind(kind) for kind in making.kinds])
        except StepwedgeError as error:
            metrics.STEP_SECONDS.labels(RESULTS, error.name).observe(time.perf_counter() - began)
            return await self._making_failed(claim, snapshot, making, error, records)
        await _in_thread(self._studies.results_made, claim, making.id, made, _now())
        metrics.STEP_SECONDS.labels(RESULTS, "done").observe(time.perf_counter() - began)
        return None

    async def _making_failed(
        self, claim: Claim, snapshot: Snapshot, making: Making, error: StepwedgeError, records: Records
    ) -> StepwedgeError:
        attempts = making.attempts + 1
        # A store that is full or away is no fault of the study; anything else that passes has its number of attempts.
        waits = error.code in (ErrorCode.ERROR_CODE_STORAGE_FULL, ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE)
        last = error.permanent or (not waits and attempts >= self._settings.max_attempts)
        _log.warning("results were not made", detail=logs.Words(error.message), **logs.describe(error))
        error = StepwedgeError(error.code, error.message, permanent=last)
        if last or attempts == 1:
            await records.record_failure(claim, snapshot, None, RESULTS, error, attempts, last=last)
        await _in_thread(
            self._studies.making_failed,
            claim,
            making.id,
            error=error.code,
            attempts=attempts,
            next_attempt_at=None if last else _now() + self._backoff(attempts),
        )
        return error

    # -- deliveries -----------------------------------------------------------------------------------------------

    async def _deliver_one(self, claim: Claim, snapshot: Snapshot, delivery: Delivery, records: Records) -> None:
        shadow: int | None = None
        if delivery.state == "PENDING":
            if delivery.shadow:
                _require_results(snapshot, delivery)
                if not _ready(snapshot, delivery):
                    return
                shadow = len(await self._outgoing(claim, delivery))
            elif not await self._send(claim, snapshot, delivery):
                return
        sent = await _in_thread(self._studies.sent, claim, delivery.id, _now(), objects=shadow)
        study = snapshot.study
        event = audit_pb2.DeliveredEvent(
            destination=delivery.destination,
            objects=sent.objects,
            revision=delivery.revision,
            contents=delivery.contents,
            routes=delivery.routes,
        )
        if delivery.shadow:
            event.shadow = True
        index = await records.recorded(
            self._recorder.record(
                key=f"delivered/{study.pseudonym}/{delivery.revision}/{delivery.destination}",
                outcome=audit_pb2.EVENT_OUTCOME_SUCCESS,
                event=event,
                subject=snapshot.instances[0].subject,
                study=study.pseudonym,
                pins=audit_pb2.Pins(software_build=software_build()),
                occurred_at=sent.sent_at,
            )
        )
        await _in_thread(self._studies.confirm_delivered, claim, delivery.id, index)

    async def _send(self, claim: Claim, snapshot: Snapshot, delivery: Delivery) -> bool:
        """Send what is still to be sent; returns whether that was all. What was received does not wait for results."""
        destination = self._destinations.get(delivery.destination)
        if destination is None:
            raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "no such destination is configured any more")
        began = time.perf_counter()
        outgoing = await self._outgoing(claim, delivery)

        def delivered(one: Outgoing) -> None:
            if one.instance is not None:
                self._studies.delivered_instance(claim, delivery, one.instance, _now())
            elif one.result is not None:
                self._studies.delivered_result(claim, delivery, one.result, _now())
            if self._stopping():
                raise Stopping

        if outgoing:
            await _in_thread(self._sender.send, destination, outgoing, delivered)
            metrics.STEP_SECONDS.labels(DELIVER, "done").observe(time.perf_counter() - began)
        _require_results(snapshot, delivery)
        return _ready(snapshot, delivery)

    async def _outgoing(self, claim: Claim, delivery: Delivery) -> list[Outgoing]:
        instances = await _in_thread(self._studies.undelivered, claim, delivery)
        results = await _in_thread(self._studies.undelivered_results, claim, delivery)
        return [*map(of_instance, instances), *map(of_result, results)]

    async def _delivery_failed(
        self, claim: Claim, snapshot: Snapshot, delivery: Delivery, error: StepwedgeError, records: Records
    ) -> bool:
        """Note a failed delivery; returns whether it is for good. A peer that is merely away is tried for ever."""
        attempts = delivery.attempts + 1
        if error.permanent or attempts == 1:
            await records.record_failure(
                claim, snapshot, None, DELIVER, error, attempts, last=error.permanent, detail=delivery.destination
            )
        await _in_thread(
            self._studies.delivery_failed,
            claim,
            delivery.id,
            error=error.code,
            attempts=attempts,
            next_attempt_at=None if error.permanent else _now() + self._backoff(attempts),
        )
        return error.permanent


def _only_echoed(snapshot: Snapshot, decision: Decision) -> bool:
    """Whether nothing is new since the decision before but results of ours that a peer sent back."""
    before = next((one for one in snapshot.decisions if one.revision == decision.revision - 1), None)
    if before is None or (decision.verdict, decision.reasons) != (before.verdict, before.reasons):
        return False
    ours = {result.sop_instance_uid for result in snapshot.results}
    judged = {one["id"] for one in before.instances}
    # By row and not by time: of two machines with two clocks, an image of the one may seem older than the decision.
    if any(one.id not in judged and one.sop_instance_uid not in ours for one in snapshot.instances):
        return False
    return any(one.sop_instance_uid in ours and one.received_at > before.decided_at for one in snapshot.instances)


def _left_undone(snapshot: Snapshot, decision: Decision) -> set[str]:
    """The destinations that have not got what the decision before this one was to bring them."""
    return {
        one.destination
        for one in snapshot.deliveries
        if one.revision == decision.revision - 1 and one.state in ("PENDING", "FAILED")
    }


def _making_of(snapshot: Snapshot, delivery: Delivery) -> Making | None:
    """The results that a delivery waits for; None where it is to get none."""
    if delivery.contents == [ORIGINAL]:
        return None
    return next((one for one in snapshot.makings if one.revision == delivery.revision), None)


def _ready(snapshot: Snapshot, delivery: Delivery) -> bool:
    making = _making_of(snapshot, delivery)
    return making is None or making.state == "MADE"


def _require_results(snapshot: Snapshot, delivery: Delivery) -> None:
    making = _making_of(snapshot, delivery)
    if making is not None and making.state == "FAILED":
        raise StepwedgeError(ErrorCode.ERROR_CODE_RESULT_INVALID, "the results that it is to get were not made")


def _due(row: Making | Delivery) -> bool:
    return row.next_attempt_at is None or row.next_attempt_at <= _now()


def _decided(snapshot: Snapshot, making: Making, origin: str) -> Decided:
    """What the results of a decision are made of."""
    study = snapshot.study
    decision = next(one for one in snapshot.decisions if one.revision == making.revision)
    judged = {one["id"]: one for one in decision.instances}
    before = [one for one in snapshot.results if one.revision < making.revision]
    reports = [one for one in before if one.kind == Kind.SR]
    return Decided(
        study_instance_uid=study.study_instance_uid,
        pseudonym=study.pseudonym,
        revision=decision.revision,
        verdict=decision.verdict,
        reasons=tuple(decision.reasons),
        details=tuple(decision.details),
        decided_at=decision.decided_at,
        record_index=decision.record_index or 0,
        log=origin,
        policy_sha256=decision.policy_sha256,
        software_build=decision.software_build,
        images=tuple(
            Image(
                row=one.id,
                sop_class_uid=one.sop_class_uid,
                sop_instance_uid=one.sop_instance_uid,
                series_instance_uid=one.series_instance_uid,
                modality=one.modality,
                sha256=one.sha256,
                content_sha256=one.content_sha256,
                size_bytes=one.size_bytes,
                conflict=one.conflict,
                verdict=judged[one.id]["verdict"],
                reasons=tuple(judged[one.id]["reasons"]),
                assessment=one.assessment,
            )
            for one in snapshot.instances
            if one.id in judged
        ),
        findings=decision.findings,
        predecessor=_named(reports[-1].sop_class_uid, reports[-1].sop_instance_uid, reports[-1].series_instance_uid)
        if reports
        else None,
        outlined={
            one.instance_id: Outlines(
                _named(one.sop_class_uid, one.sop_instance_uid, one.series_instance_uid), tuple(one.segments)
            )
            for one in before
            if one.kind == Kind.SEG and one.instance_id is not None
        },
    )


def _named(sop_class_uid: str, sop_instance_uid: str, series_instance_uid: str) -> Named:
    return Named(sop_class_uid, sop_instance_uid, series_instance_uid)


async def _in_thread(function: Callable[..., _T], *args: object, **keywords: object) -> _T:
    return await asyncio.to_thread(function, *args, **keywords)


def _now() -> datetime:
    return datetime.now(UTC)
