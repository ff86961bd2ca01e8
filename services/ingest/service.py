"""The gRPC face of ingest."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from services.ingest import constancy, metrics, reviews
from services.ingest.activity import LONGEST_HOURS, Activity
from services.ingest.announcements import Announcements, by_count
from services.ingest.completion import Missing
from services.ingest.devices import Wanted
from services.ingest.door import Door, Incoming
from services.ingest.drift import Drift
from services.ingest.explain import explain, steps, timestamp
from services.ingest.repeats import WITHIN, Repeats
from services.ingest.states import (
    INSTANCE_STATE_TO_PROTO,
    STUDY_STATE_FROM_PROTO,
    STUDY_STATE_TO_PROTO,
    InstanceState,
    StudyState,
)
from services.ingest.store import Snapshot, StudyStore
from services.ingest.tables import Baseline, Decision, Device, Instance, Review, Study
from services.ingest.uploads import Upload, Uploads
from shared.audit import Recorder
from shared.build import software_build
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import PERSON_NAME, Identity, peer
from shared.objects import ObjectStore, Zone
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1 import common_pb2
from stepwedge.inference.v1 import inference_pb2
from stepwedge.ingest.v1 import ingest_pb2, ingest_pb2_grpc

CHANNEL: Final = "GRPC"
MAX_CHUNK_BYTES: Final = 1 << 20
_SILENCE_SECONDS: Final = 30.0  # between two chunks; a sender that is slower than that is gone
_WATCH_SECONDS: Final = 0.5  # how soon a watcher sees a decision of another process
_WATCH_BATCH: Final = 200
_DEFAULT_PAGE: Final = 100
_MAX_PAGE: Final = 1000
_USUAL_SPAN: Final = timedelta(days=90)
_Devices = Mapping[int, ingest_pb2.Device]
_REVIEWABLE: Final = (common_pb2.VERDICT_ACCEPT, common_pb2.VERDICT_REVIEW, common_pb2.VERDICT_REJECT)


class IngestService(ingest_pb2_grpc.IngestServiceServicer):
    """Translates between the contract and the door, the queue and the explanation; holds no logic."""

    def __init__(
        self,
        door: Door,
        studies: StudyStore,
        said: reviews.Reviews,
        measured: Drift,
        recorder: Recorder,
        ring: Callable[[], None],
        *,
        max_uploads: int,
        half: Uploads,
        announcements: Announcements,
        objects: ObjectStore,
    ) -> None:
        self._objects = objects
        self._half = half
        self._announcements = announcements
        self._door = door
        self._reviews = said
        self._drift = measured
        self._repeats = Repeats(studies.engine)
        self._activity = Activity(studies.engine)
        self._uploads = asyncio.Semaphore(max_uploads)
        self._studies = studies
        self._recorder = recorder
        self._ring = ring
        self._baselines = constancy.Baselines(studies.engine)
        metrics.tell_of_constancy(self._baselines.last_test)

    async def SubmitInstance(  # noqa: N802 - the contract's name
        self, request_iterator: AsyncIterator[ingest_pb2.SubmitInstanceRequest], context: Any
    ) -> ingest_pb2.SubmitInstanceResponse:
        """Take one object in chunks; whatever ends the stream early leaves nothing."""
        if self._uploads.locked():
            raise StepwedgeError(ErrorCode.ERROR_CODE_OVERLOADED, "as many objects are on their way as may be")
        async with self._uploads:
            return await self._submit(request_iterator, context)

    async def _submit(
        self, request_iterator: AsyncIterator[ingest_pb2.SubmitInstanceRequest], context: Any
    ) -> ingest_pb2.SubmitInstanceResponse:
        try:
            requests = _without_silence(request_iterator)
            first = await anext(requests, ingest_pb2.SubmitInstanceRequest())
            incoming = await self._open(first, peer(context).value)
            try:
                await _fill(incoming, first, requests)
                # The end of a stream that was broken off looks like its end; what came may be a whole, shorter object.
                # Only sending something tells for certain: a call that is over cannot be answered, and is cancelled.
                await context.send_initial_metadata(())
                if first.sha256 and first.sha256 != incoming.sha256:
                    raise _invalid("the file does not have the digest that was announced")
                kept = await asyncio.to_thread(self._door.keep, incoming, CHANNEL)
            except (asyncio.CancelledError, _SilenceError):
                if isinstance(incoming, Upload):
                    await asyncio.shield(asyncio.to_thread(incoming.park))
                raise
            finally:
                await asyncio.shield(asyncio.to_thread(incoming.discard))
            accepted = await self._door.record(kept)
        except StepwedgeError as error:
            metrics.REFUSED.labels(CHANNEL, error.name).inc()
            raise
        return ingest_pb2.SubmitInstanceResponse(
            sha256=accepted.sha256,
            study_instance_uid=accepted.study_instance_uid,
            sop_instance_uid=accepted.sop_instance_uid,
            duplicate=accepted.duplicate,
            conflict=accepted.conflict,
            record_index=accepted.record_index,
        )

    async def GetUpload(  # noqa: N802
        self, request: ingest_pb2.GetUploadRequest, context: Any
    ) -> ingest_pb2.GetUploadResponse:
        """How much of an upload is here."""
        offset, expires = await asyncio.to_thread(self._half.held, peer(context).value, request.upload_id)
        return ingest_pb2.GetUploadResponse(offset=offset, expires_at=None if expires is None else timestamp(expires))

    async def _open(self, first: ingest_pb2.SubmitInstanceRequest, caller: str) -> Incoming:
        """A file for what comes; a call that is cancelled while the file is made leaves none."""

        def open_it() -> Incoming:
            if not first.upload_id:
                return self._door.open()
            self._door.ready()
            return self._half.open(caller, first.upload_id, first.offset)

        opening = asyncio.ensure_future(asyncio.to_thread(open_it))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_discard)
            raise

    async def GetStudy(  # noqa: N802
        self, request: ingest_pb2.GetStudyRequest, context: Any
    ) -> ingest_pb2.GetStudyResponse:
        """Where a study stands."""
        return ingest_pb2.GetStudyResponse(study=await self._study(await self._find(request.study)))

    async def ListStudies(  # noqa: N802
        self, request: ingest_pb2.ListStudiesRequest, context: Any
    ) -> ingest_pb2.ListStudiesResponse:
        """Studies, newest first."""
        size = request.page_size or _DEFAULT_PAGE
        if size > _MAX_PAGE:
            raise _invalid(f"page_size is 1 to {_MAX_PAGE}")
        before = _number(request.page_token, "page_token") if request.page_token else None
        state = STUDY_STATE_FROM_PROTO.get(request.state)
        if request.state and state is None:
            raise _invalid("no such state")
        page = await asyncio.to_thread(
            self._studies.page,
            state=state,
            verdict=request.verdict,
            before=before,
            size=size + 1,
            wanted=_wanted(request.device),
        )
        more = str(page[size - 1].id) if len(page) > size else ""
        devices = await self._devices(study.device_id for study in page)
        return ingest_pb2.ListStudiesResponse(
            studies=[_study_alone(study, devices) for study in page[:size]], next_page_token=more
        )

    async def RequeueStudy(  # noqa: N802
        self, request: ingest_pb2.RequeueStudyRequest, context: Any
    ) -> ingest_pb2.RequeueStudyResponse:
        """Put a study of the dead letter back in the queue, once the log has that it was asked for."""
        caller = peer(context)
        requested_by, person = caller.value, _person(request.requested_by, caller)
        study_id = await self._find(request.study)
        requeue = await asyncio.to_thread(
            self._studies.ask_requeue, study_id, requested_by, datetime.now(UTC), person=person
        )
        snapshot = await asyncio.to_thread(self._studies.snapshot, study_id)
        index = await self._recorder.record(
            key=f"requeued/{snapshot.study.pseudonym}/{requeue.id % 1_000_000}",
            outcome=audit_pb2.EVENT_OUTCOME_SUCCESS,
            event=audit_pb2.RequeuedEvent(requested_by=requested_by, person=person),
            subject=snapshot.instances[0].subject,
            study=snapshot.study.pseudonym,
            pins=audit_pb2.Pins(software_build=software_build()),
            occurred_at=requeue.requested_at,
        )
        await asyncio.to_thread(self._studies.requeue, requeue.id, index, datetime.now(UTC))
        self._ring()
        return ingest_pb2.RequeueStudyResponse(study=await self._study(study_id))

    async def AnnounceStudy(  # noqa: N802
        self, request: ingest_pb2.AnnounceStudyRequest, context: Any
    ) -> ingest_pb2.AnnounceStudyResponse:
        """Note what will come of a study."""
        said = by_count(
            request.study_instance_uid,
            instances=request.instances,
            series=request.series,
            uids=request.sop_instance_uids,
        )
        waiting = await asyncio.to_thread(self._announcements.announce, said)
        self._ring()
        return ingest_pb2.AnnounceStudyResponse(waiting=waiting)

    async def CompleteStudy(  # noqa: N802
        self, request: ingest_pb2.CompleteStudyRequest, context: Any
    ) -> ingest_pb2.CompleteStudyResponse:
        """Make a study due for its decision, whatever it lacks; the record of the decision names who asked."""
        caller = peer(context)
        by = _person(request.requested_by, caller) or caller.value
        study_id = await self._find(request.study)
        await asyncio.to_thread(self._studies.force, study_id, by, datetime.now(UTC))
        self._ring()
        return ingest_pb2.CompleteStudyResponse(study=await self._study(study_id))

    async def ReviewStudy(  # noqa: N802
        self, request: ingest_pb2.ReviewStudyRequest, context: Any
    ) -> ingest_pb2.ReviewStudyResponse:
        """A person confirms or overrules a decision; visible once the log has it."""
        reviewer, role = _reviewer(request, peer(context))
        if request.verdict not in _REVIEWABLE or request.reason not in reviews.REASONS:
            raise _invalid(f"a review is ACCEPT, REVIEW or REJECT, for one of: {', '.join(reviews.REASONS)}")
        if len(request.note) > reviews.LONGEST_NOTE:
            raise _invalid(f"a note has at most {reviews.LONGEST_NOTE} characters")
        study_id = await self._find(request.study)
        review, decision = await asyncio.to_thread(
            self._reviews.write,
            study_id,
            revision=request.revision,
            verdict=request.verdict,
            reason=request.reason,
            note=request.note,
            reviewer=reviewer,
            role=role,
        )
        snapshot = await asyncio.to_thread(self._studies.snapshot, study_id)
        index = await self._recorder.record(
            key=f"reviewed/{snapshot.study.pseudonym}/{review.revision}/{review.id % 1_000_000}",
            outcome=audit_pb2.EVENT_OUTCOME_SUCCESS,
            event=audit_pb2.ReviewedEvent(
                verdict=request.verdict,
                decided=review.decided,  # type: ignore[arg-type]
                revision=review.revision,
                decided_index=decision.record_index,
                reason=review.reason,
                reviewer=reviewer,
                role=role,
                note_commitment=self._reviews.commitment(review),
            ),
            subject=snapshot.instances[0].subject,
            study=snapshot.study.pseudonym,
            pins=audit_pb2.Pins(software_build=software_build()),
            occurred_at=review.reviewed_at,
        )
        return ingest_pb2.ReviewStudyResponse(
            review=_review(await asyncio.to_thread(self._reviews.confirm, review.id, index))
        )

    async def SummarizeDecisions(  # noqa: N802
        self, request: ingest_pb2.SummarizeDecisionsRequest, context: Any
    ) -> ingest_pb2.SummarizeDecisionsResponse:
        """Counts for charts."""
        start, before, only = await self._asked(request)
        found = await asyncio.to_thread(
            self._reviews.summary,
            start,
            before,
            only,
            by_week=request.by_week,
            sum_days=request.sum_days_of_devices,
            states=not request.without_states,
        )
        devices = await self._devices(device for _, device, _ in found.by_device if device)
        return _summary(found, devices)

    async def SummarizeMeasurements(  # noqa: N802
        self, request: ingest_pb2.SummarizeMeasurementsRequest, context: Any
    ) -> ingest_pb2.SummarizeMeasurementsResponse:
        """What images measured, day by day."""
        start, before, only = await self._asked(request)
        days = await asyncio.to_thread(self._drift.days, start, before, only, by_week=request.by_week)
        return ingest_pb2.SummarizeMeasurementsResponse(
            days=[
                ingest_pb2.MeasurementDay(
                    day=one.day,
                    name=one.name,
                    unit=one.unit,
                    count=one.count,
                    mean=one.mean,
                    deviation=one.deviation,
                )
                for one in days
            ]
        )

    async def SummarizeRepeats(  # noqa: N802
        self, request: ingest_pb2.SummarizeRepeatsRequest, context: Any
    ) -> ingest_pb2.SummarizeRepeatsResponse:
        """Images that were taken, rejected and repeated."""
        start, before, only = await self._asked(request)
        by = {name: getattr(request, name) for name in ("by_day", "by_week", "by_device", "by_reason")}
        counts = await asyncio.to_thread(self._repeats.counts, start, before, only, **by)
        devices = await self._devices({one.device_id for one in counts if one.device_id})
        message = ingest_pb2.SummarizeRepeatsResponse(
            devices=[devices[row] for row in sorted(devices)], within_minutes=int(WITHIN.total_seconds()) // 60
        )
        for one in counts:
            message.counts.add(
                day=one.day,
                device_id=one.device_id,
                reason=one.reason,
                images=one.images,
                rejected=one.rejected,
                repeated=one.repeated,
                unsaid=one.unsaid,
            )
        return message

    async def SummarizeActivity(  # noqa: N802
        self, request: ingest_pb2.SummarizeActivityRequest, context: Any
    ) -> ingest_pb2.SummarizeActivityResponse:
        """What was done hour by hour, and what failed."""
        if request.hours > LONGEST_HOURS:
            raise _invalid(f"hours is 1 to {LONGEST_HOURS}")
        hours, errors = await asyncio.to_thread(self._activity.of_the_last, request.hours or 24, datetime.now(UTC))
        message = ingest_pb2.SummarizeActivityResponse()
        for hour in hours:
            message.hours.add(hour=timestamp(hour.began), studies=hour.studies, images=hour.images)
        for one in errors:
            message.errors.add(error=one.error, step=one.step, count=one.count, newest=timestamp(one.newest))
        return message

    async def CheckConstancy(  # noqa: N802
        self, request: ingest_pb2.CheckConstancyRequest, context: Any
    ) -> ingest_pb2.CheckConstancyResponse:
        """Hold what phantoms measured against the baseline, or make it the baseline; visible once the log has it."""
        study_id = await self._find(request.study)
        snapshot = await asyncio.to_thread(self._studies.snapshot, study_id)
        values, asked = constancy.values_of(snapshot), peer(context).value
        if request.set_baseline:
            baseline = await asyncio.to_thread(self._baselines.write, snapshot.study.id, values, asked)
        else:
            baseline = await asyncio.to_thread(self._baselines.newest)
        compared = constancy.compare(values, constancy.content_of(baseline))
        drifted = sum(one.drifted for one in compared)
        revision = snapshot.study.revision
        decided = snapshot.decisions[-1].record_index
        index = await self._recorder.record(
            key=f"constancy/{snapshot.study.pseudonym}/{revision}/{baseline.version}"
            + ("/set" if request.set_baseline else ""),
            outcome=audit_pb2.EVENT_OUTCOME_MINOR_FAILURE if drifted else audit_pb2.EVENT_OUTCOME_SUCCESS,
            event=constancy.event(baseline, compared, decided, asked, set_now=request.set_baseline),
            study=snapshot.study.pseudonym,
            pins=audit_pb2.Pins(software_build=software_build()),
        )
        if request.set_baseline:
            await asyncio.to_thread(self._baselines.confirm, baseline.version, index)
        await asyncio.to_thread(self._baselines.tested, snapshot.study.id, baseline, compared, index)
        return _constancy(baseline, compared, index, set_now=request.set_baseline)

    async def GetPolicy(  # noqa: N802
        self, request: ingest_pb2.GetPolicyRequest, context: Any
    ) -> ingest_pb2.GetPolicyResponse:
        """A policy, as its file was."""
        found = await asyncio.to_thread(self._studies.policies.get, request.sha256)
        return ingest_pb2.GetPolicyResponse(
            sha256=found.sha256, toml=found.content, first_used_at=timestamp(found.first_used_at)
        )

    async def GetStorage(  # noqa: N802
        self, request: ingest_pb2.GetStorageRequest, context: Any
    ) -> ingest_pb2.GetStorageResponse:
        """How much room the originals have left."""
        space = await asyncio.to_thread(self._objects.space, Zone.ORIGINAL)
        if space is None:
            return ingest_pb2.GetStorageResponse()
        return ingest_pb2.GetStorageResponse(
            known=True, total_bytes=space.total, free_bytes=space.free, reserve_bytes=space.reserve
        )

    async def WatchDecisions(  # noqa: N802
        self, request: ingest_pb2.WatchDecisionsRequest, context: Any
    ) -> AsyncIterator[ingest_pb2.WatchDecisionsResponse]:
        """Decisions in the order in which they became visible, from a cursor on, for as long as the caller listens."""
        cursor = _number(request.cursor, "cursor") if request.cursor else 0
        if cursor > await asyncio.to_thread(self._studies.newest_cursor):
            # A database from before: what it decides now would bear numbers that this client believes to have seen.
            raise _invalid("cursor is from a later time than the database")
        while True:
            found = await asyncio.to_thread(self._studies.decisions_after, cursor, _WATCH_BATCH)
            for decision, study in found:
                cursor = decision.cursor or cursor
                yield ingest_pb2.WatchDecisionsResponse(decision=_decision(decision, study), cursor=str(cursor))
            if len(found) < _WATCH_BATCH:
                await asyncio.sleep(_WATCH_SECONDS)

    async def ExplainStudy(  # noqa: N802
        self, request: ingest_pb2.ExplainStudyRequest, context: Any
    ) -> ingest_pb2.ExplainStudyResponse:
        """Where a study is, why, and what happens next."""
        snapshot = await asyncio.to_thread(self._studies.snapshot, await self._find(request.study))
        where, why, then = explain(snapshot, datetime.now(UTC))
        return ingest_pb2.ExplainStudyResponse(
            study=await self._study(snapshot), where=where, why=why, next=then, steps=steps(snapshot)
        )

    async def _study(self, found: int | Snapshot) -> ingest_pb2.Study:
        snapshot = found if isinstance(found, Snapshot) else await asyncio.to_thread(self._studies.snapshot, found)
        rows = [snapshot.study.device_id, *(instance.device_id for instance in snapshot.instances)]
        return _study(snapshot, await self._devices(rows))

    async def _asked(self, request: Any) -> tuple[datetime, datetime, Collection[int] | None]:
        """The span of time that a request for counts names, and the rows of its devices; None for all."""
        now = datetime.now(UTC)
        before = request.before.ToDatetime(UTC) if request.HasField("before") else now
        start = getattr(request, "from").ToDatetime(UTC) if request.HasField("from") else now - _USUAL_SPAN
        wanted = _wanted(request.device)
        only = None if wanted.anything else await asyncio.to_thread(self._studies.devices.matching, wanted)
        return start, before, only

    async def _devices(self, rows: Iterable[int | None]) -> _Devices:
        """The devices of these rows as messages."""
        found = await asyncio.to_thread(self._studies.devices.named, rows)
        return {row: _device(device, self._studies.devices.room(device)) for row, device in found.items()}

    async def _find(self, key: ingest_pb2.StudyKey) -> int:
        if not (key.study_instance_uid or key.pseudonym):
            raise _invalid("the study is not named")
        return await asyncio.to_thread(
            self._studies.find, study_instance_uid=key.study_instance_uid, pseudonym=key.pseudonym
        )


def _discard(opened: asyncio.Future[Incoming]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        opened.result().discard()


async def _without_silence(
    requests: AsyncIterator[ingest_pb2.SubmitInstanceRequest],
) -> AsyncIterator[ingest_pb2.SubmitInstanceRequest]:
    """The requests, as long as each comes in time: a stream that falls silent must not keep a place for ever."""
    while True:
        try:
            async with asyncio.timeout(_SILENCE_SECONDS):
                request = await anext(requests)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise _SilenceError from None
        yield request


class _SilenceError(StepwedgeError):
    """A sender that is slower than it may be."""

    def __init__(self) -> None:
        super().__init__(
            ErrorCode.ERROR_CODE_INVALID_REQUEST, f"the next chunk did not come within {_SILENCE_SECONDS:.0f} s"
        )


async def _fill(
    incoming: Incoming,
    first: ingest_pb2.SubmitInstanceRequest,
    others: AsyncIterator[ingest_pb2.SubmitInstanceRequest],
) -> None:
    """Write the chunks as they come. Raises INVALID_REQUEST for one that is too long."""
    request: ingest_pb2.SubmitInstanceRequest | None = first
    while request is not None:
        if len(request.chunk) > MAX_CHUNK_BYTES:
            raise _invalid(f"a chunk is longer than {MAX_CHUNK_BYTES} bytes")
        if request.chunk:
            await asyncio.to_thread(incoming.write, request.chunk)
        request = await anext(others, None)


def _person(said: str, caller: Identity) -> str:
    """Account of the person behind a call, which only the console has; empty for every other caller."""
    if caller != Identity.CONSOLE:
        return ""
    if not re.fullmatch(PERSON_NAME, said):  # as the record will take it
        raise _invalid("the console names who asks")
    return said


def _reviewer(request: ingest_pb2.ReviewStudyRequest, caller: Identity) -> tuple[str, str]:
    """Account and role of the person: as the console says, whose people have signed in; else the caller itself."""
    if caller != Identity.CONSOLE:
        return caller.value, "operator"
    # As the record will take it: nothing is written down whose record the log would refuse.
    if not re.fullmatch(PERSON_NAME, request.reviewer) or not re.fullmatch(r"[a-z]{1,32}", request.role):
        raise _invalid("the console names the reviewer and the role")
    return request.reviewer, request.role


def _constancy(
    baseline: Baseline, compared: Sequence[constancy.Compared], index: int, *, set_now: bool
) -> ingest_pb2.CheckConstancyResponse:
    message = ingest_pb2.CheckConstancyResponse(
        drifted=sum(one.drifted for one in compared),
        baseline_version=baseline.version,
        baseline_sha256=baseline.sha256,
        baseline_at=timestamp(baseline.set_at),
        baseline_set=set_now,
        record_index=index,
    )
    for one in compared:
        message.values.add(
            phantom=one.phantom,
            name=one.name,
            value=one.value,
            expected=one.expected,
            tolerance=one.tolerance,
            unit=one.unit,
            drifted=one.drifted,
        )
    return message


def _review(review: Review) -> ingest_pb2.Review:
    return ingest_pb2.Review(
        verdict=review.verdict,  # type: ignore[arg-type]
        revision=review.revision,
        reason=review.reason,
        note=review.note,
        reviewer=review.reviewer,
        role=review.role,
        reviewed_at=timestamp(review.reviewed_at),
        record_index=review.record_index or 0,
    )


def _wanted(device: ingest_pb2.DeviceFilter) -> Wanted:
    return Wanted(
        device=device.id,
        room=device.room,
        station=device.station,
        department=device.department,
        manufacturer=device.manufacturer,
        model=device.model,
    )


def _device(device: Device, room: str) -> ingest_pb2.Device:
    return ingest_pb2.Device(
        id=device.id,
        room=room,
        station=device.station,
        department=device.department,
        manufacturer=device.manufacturer,
        model=device.model,
        serial_number=device.serial,
        calling_ae_title=device.calling_ae_title,
    )


def _summary(found: reviews.Summary, devices: _Devices) -> ingest_pb2.SummarizeDecisionsResponse:
    message = ingest_pb2.SummarizeDecisionsResponse(devices=[devices[row] for row in sorted(devices)])
    for (day, device, verdict), count in sorted(found.by_device.items()):
        message.by_device.add(day=day, device_id=device, verdict=verdict, count=count)
    for (day, device, reason), count in sorted(found.reasons_by_device.items()):
        message.reasons_by_device.add(day=day, device_id=device, reason=reason, count=count)
    for (day, modality, verdict), count in sorted(found.decisions.items()):
        message.decisions.add(day=day, modality=modality, verdict=verdict, count=count)
    for (day, reason), count in sorted(found.reasons.items()):
        message.reasons.add(day=day, reason=reason, count=count)
    for (day, was, now), count in sorted(found.reviews.items()):
        message.reviews.add(day=day, decided=was, verdict=now, count=count)
    for state, (count, oldest) in sorted(found.states.items()):
        waits = None if oldest is None else timestamp(oldest)
        message.states.add(state=STUDY_STATE_TO_PROTO[StudyState(state)], count=count, oldest=waits)
    return message


def _study_alone(study: Study, devices: _Devices) -> ingest_pb2.Study:
    message = ingest_pb2.Study(
        study_instance_uid=study.study_instance_uid,
        pseudonym=study.pseudonym,
        state=STUDY_STATE_TO_PROTO[StudyState(study.state)],
        attempts=study.attempts,
        first_received_at=timestamp(study.first_received_at),
        last_received_at=timestamp(study.last_received_at),
        last_error=study.last_error,  # type: ignore[arg-type]
        verdict=study.verdict,  # type: ignore[arg-type]
        reasons=study.reasons,  # type: ignore[arg-type]
        modalities=[one for one in study.modalities.split("+") if one],
        instance_count=study.instances,
        device=devices.get(study.device_id or 0),
        incomplete=_incompleteness(study.missing),
        constancy=study.constancy,
    )
    if study.next_action_at is not None:
        message.next_action_at.CopyFrom(timestamp(study.next_action_at))
    return message


def _study(snapshot: Snapshot, devices: _Devices) -> ingest_pb2.Study:
    message = _study_alone(snapshot.study, devices)
    # An image's verdict stands in the log as a part of its study's decision, and is shown no sooner (law 1).
    visible = [decision for decision in snapshot.decisions if decision.cursor is not None]
    decided = {one["id"]: one for one in visible[-1].instances} if visible else {}
    message.instances.extend(
        _instance(instance, decided.get(instance.id, {}), devices) for instance in snapshot.instances
    )
    message.decisions.extend(_decision(decision, snapshot.study) for decision in visible)
    message.reviews.extend(_review(one) for one in snapshot.reviews if one.record_index is not None)
    if visible:
        message.findings.extend(inference_pb2.Assessment.FromString(visible[-1].findings).findings)
    return message


def _instance(instance: Instance, decided: Mapping[str, Any], devices: _Devices) -> ingest_pb2.Instance:
    assessment = inference_pb2.Assessment.FromString(instance.assessment)
    message = ingest_pb2.Instance(
        sop_instance_uid=instance.sop_instance_uid,
        pseudonym=instance.pseudonym,
        sop_class_uid=instance.sop_class_uid,
        modality=instance.modality,
        sha256=instance.sha256,
        size_bytes=instance.size_bytes,
        state=INSTANCE_STATE_TO_PROTO[InstanceState(instance.state)],
        conflict=instance.conflict,
        verdict=decided.get("verdict", 0),
        reasons=decided.get("reasons", []),
        findings=assessment.findings,
        last_error=instance.last_error,  # type: ignore[arg-type]
        masks=[ingest_pb2.InstanceMask(structure=mask.structure, png=mask.png) for mask in assessment.masks],
        measurements=assessment.measurements,
        model=f"{assessment.model.name}/{assessment.model.version}" if assessment.HasField("model") else "",
        rows=assessment.rows,
        columns=assessment.columns,
        view=assessment.facts.view,
        site=instance.site,
        body_part=instance.body_part,
        laterality=instance.laterality,
        procedure_code=instance.procedure_code,
        device=devices.get(instance.device_id or 0),
    )
    if assessment.HasField("confidence"):
        message.confidence = assessment.confidence
    if instance.deidentified_sha256:
        message.deidentified.zone = common_pb2.ZONE_DEIDENTIFIED
        message.deidentified.sha256 = instance.deidentified_sha256
        message.deidentified.size_bytes = instance.deidentified_bytes
    return message


def _decision(decision: Decision, study: Study) -> ingest_pb2.Decision:
    return ingest_pb2.Decision(
        study_instance_uid=study.study_instance_uid,
        pseudonym=study.pseudonym,
        revision=decision.revision,
        verdict=decision.verdict,  # type: ignore[arg-type]
        reasons=decision.reasons,  # type: ignore[arg-type]
        details=decision.details,
        decided_at=timestamp(decision.decided_at),
        record_index=decision.record_index or 0,
        policy_sha256=decision.policy_sha256,
        instances=len(decision.instances),
        incomplete=_incompleteness(decision.missing),
        forced_by=decision.forced_by,
    )


def _incompleteness(row: Mapping[str, Any] | None) -> ingest_pb2.Incompleteness | None:
    lacking = Missing.from_json(row)
    if not lacking:
        return None
    return ingest_pb2.Incompleteness(
        missing_instances=lacking.instances, missing_series=lacking.series, unmet_rules=lacking.rules
    )


def _number(text: str, field: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise _invalid(f"{field} is not one that was given out")
    return int(text)


def _invalid(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, words)
