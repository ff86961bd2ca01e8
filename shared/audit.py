"""How a service records what it did: one numbered stream of records into the log, or a refusal.

Each process is an incarnation, and its records are counted from 1 without gaps, so that the log shows an omission.
All records of the process share one call that stays open (AppendStream). One batch is under way at a time, in the order
of the numbers; records that come meanwhile go with the next. A number whose fate is unknown (the answer was lost) is
never given to another record: the very same request is sent again first, and the log recognizes it by its idempotency
keys.
"""

import asyncio
import contextvars
import random
import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import grpc
from google.protobuf.message import Message

from shared import logs, metrics
from shared.build import software_build
from shared.errors import ErrorCode, StepwedgeError, from_rpc
from shared.tracing import current_trace_id
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc
from stepwedge.audit.v1.audit_pb2 import Pins, Record

MAX_RECORDS = 256
"""Records in one Append (audit.proto)."""
DEADLINE_SECONDS = 30.0
"""How long `record` tries before it says AUDIT_UNAVAILABLE."""

_MAX_BYTES = 3_900_000  # below the longest message of the transport, with room for its own framing
_ATTEMPT_SECONDS = 10.0
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0

MOST_SHOWN = 100
"""Studies that the record of one list or search names (audit.proto); of more it says how many."""

# After these the log has certainly not taken the batch, so its numbers are free again.
_REFUSED = frozenset(
    {
        ErrorCode.ERROR_CODE_INVALID_REQUEST,
        ErrorCode.ERROR_CODE_UNAUTHENTICATED,
        ErrorCode.ERROR_CODE_PERMISSION_DENIED,
        ErrorCode.ERROR_CODE_DEADLINE_REQUIRED,
        ErrorCode.ERROR_CODE_IDEMPOTENCY_CONFLICT,
    }
)

_FIELDS: Mapping[str, str] = {
    field.message_type.full_name: field.name
    for field in Record.DESCRIPTOR.oneofs_by_name["event"].fields
    if field.message_type is not None
}

_log = logs.get_logger(__name__)


@dataclass(eq=False)
class _Pending:
    """A record on its way, and who waits for it."""

    record: Record
    index: asyncio.Future[int]
    size: int


class Recorder:
    """The hand of one process in the log; belongs to one event loop.

    Parameters
    ----------
    channel
        To the audit service.
    deadline_seconds
        How long `record` tries.
    """

    def __init__(self, channel: grpc.aio.Channel, *, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        self.incarnation = str(uuid.uuid4())
        self._stub = audit_pb2_grpc.AuditServiceStub(channel)
        self._deadline_seconds = deadline_seconds
        self._waiting: deque[_Pending] = deque()
        self._in_doubt: list[_Pending] = []
        """The batch that was sent and not answered; it goes first."""
        self._next_sequence = 1
        self._alone = 0
        """How many of the waiting records go alone, to find the one for which the log refused a batch."""
        self._pump: asyncio.Task[None] | None = None
        self._stream: Any = None
        """The open call; None before the first batch and after a failure."""
        self._streams = True
        """Whether the log has AppendStream; one of an older build does not."""

    async def record(
        self,
        *,
        key: str,
        outcome: audit_pb2.EventOutcome.ValueType,
        event: Message,
        subject: str = "",
        study: str = "",
        series: str = "",
        instance: str = "",
        pins: Pins | None = None,
        occurred_at: datetime | None = None,
        identification: audit_pb2.Identification | None = None,
    ) -> int:
        """Record an act; return once the log has it durably.

        Parameters
        ----------
        key
            Idempotency key: the same act again bears the same key and gets the same index.
        outcome
            How the act ended.
        event
            What happened: a member of `Record.event`, as `ReceivedEvent`.
        subject, study, series, instance
            Pseudonyms and de-identified UIDs; empty where none applies.
        pins
            What the act was bound to; `software_build` is filled in where empty.
        occurred_at
            When; now by default.
        identification
            Who it is about, sealed; kept beside the log.

        Returns
        -------
        int
            The index of the record in the log.

        Raises
        ------
        StepwedgeError
            AUDIT_UNAVAILABLE where the log did not take it in time: the act must not become visible (it may still turn
            out to be recorded; try again with the same key). What the log answered where it refuses the record for
            good: INVALID_REQUEST, IDEMPOTENCY_CONFLICT, PERMISSION_DENIED.
        """
        began = time.monotonic()
        record = _record(key, outcome, event, subject, study, series, instance, pins, occurred_at)
        if identification is not None:
            record.identification.CopyFrom(identification)
        record.incarnation = self.incarnation
        pending = _Pending(record, asyncio.get_running_loop().create_future(), record.ByteSize() + 32)
        self._waiting.append(pending)
        self._wake()
        result = "failed"
        try:
            async with asyncio.timeout(self._deadline_seconds):
                # A future cancelled by its waiter is one that nobody waits for; see _next_batch.
                index = await pending.index
            result = "recorded"
            return index
        except TimeoutError:
            raise StepwedgeError(
                ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE, "the audit log did not take the record in time"
            ) from None
        finally:
            metrics.RECORDS.labels(result).inc()
            metrics.RECORD_LATENCY.observe(time.monotonic() - began)

    async def close(self) -> None:
        """Give up what is under way; whoever still waits gets AUDIT_UNAVAILABLE."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        self._hang_up()
        for pending in (*self._in_doubt, *self._waiting):
            _fail(pending, StepwedgeError(ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE, "the service is stopping"))
        self._waiting.clear()

    def _wake(self) -> None:
        if self._pump is None or self._pump.done():
            # In a context of its own, since what it sends belongs to no one caller's trace.
            self._pump = asyncio.create_task(self._run(), name="recorder", context=contextvars.Context())

    async def _run(self) -> None:
        """Send batches until nobody waits any more; `record` starts this again."""
        pause = _FIRST_PAUSE_SECONDS
        while self._someone_waits():
            batch = self._in_doubt or self._next_batch()
            if not batch:
                continue
            try:
                indexes = await self._append(batch)
            except StepwedgeError as error:
                if error.code in _REFUSED:
                    self._refused(batch, error)
                    continue
                _log.warning("the log did not take a batch", error=error.name, count=len(batch))
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                pause = _FIRST_PAUSE_SECONDS
                self._taken(batch, indexes)

    def _someone_waits(self) -> bool:
        return any(not pending.index.done() for pending in (*self._in_doubt, *self._waiting))

    def _next_batch(self) -> list[_Pending]:
        """Take records off the queue and give them their numbers; those that nobody waits for are dropped unsent."""
        batch: list[_Pending] = []
        size = 0
        limit = 1 if self._alone else MAX_RECORDS
        while self._waiting and len(batch) < limit and (not batch or size + self._waiting[0].size <= _MAX_BYTES):
            pending = self._waiting.popleft()
            self._alone = max(0, self._alone - 1)
            if not pending.index.done():
                pending.record.sequence = self._next_sequence + len(batch)
                batch.append(pending)
                size += pending.size
        # From here on the numbers may be in the log, whatever becomes of the request.
        self._in_doubt = batch
        return batch

    async def _append(self, batch: list[_Pending]) -> list[int]:
        records = [pending.record for pending in batch]
        seconds = min(_ATTEMPT_SECONDS, self._deadline_seconds)
        try:
            if self._streams:
                indexes = await self._over_stream(records, seconds)
            else:
                request = audit_pb2.AppendRequest(records=records)
                indexes = list((await self._stub.Append(request, timeout=seconds)).indexes)
        except grpc.RpcError as error:
            if self._streams and error.code() is grpc.StatusCode.UNIMPLEMENTED:
                self._streams = False
                return await self._append(batch)
            raise from_rpc(error) from None
        if len(indexes) != len(batch):
            raise StepwedgeError(ErrorCode.ERROR_CODE_INTERNAL, "the log answered for another number of records")
        return indexes

    async def _over_stream(self, records: list[Record], seconds: float) -> list[int]:
        """Send a batch on the open call; whatever goes wrong ends the call, and the next batch opens another."""
        stream = self._stream
        if stream is None or stream.done():
            stream = self._stream = self._stub.AppendStream()  # type: ignore[call-arg]  # requests are written one by one
        answered = False
        try:
            async with asyncio.timeout(seconds):
                await stream.write(audit_pb2.AppendStreamRequest(records=records))
                response = await stream.read()
            if response is grpc.aio.EOF:  # type: ignore[attr-defined]  # missing in its stubs
                raise _away("the log ended the call")
            answered = True
            return list(response.indexes)
        except TimeoutError:
            raise _away("the log did not answer in time") from None
        except asyncio.InvalidStateError:  # the call ended between the check and the write
            raise _away("the log ended the call") from None
        finally:
            if not answered:
                self._hang_up()

    def _hang_up(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()

    def _taken(self, batch: list[_Pending], indexes: list[int]) -> None:
        self._in_doubt = []
        self._next_sequence += len(batch)
        for pending, index in zip(batch, indexes, strict=True):
            if not pending.index.done():
                pending.index.set_result(index)

    def _refused(self, batch: list[_Pending], error: StepwedgeError) -> None:
        """The log took nothing of the batch, and their numbers go to the next; of several, each is tried alone."""
        self._in_doubt = []
        if len(batch) == 1:
            _fail(batch[0], error)
        else:
            self._waiting.extendleft(reversed(batch))
            self._alone = len(batch)


def view(person: str, role: str, what: str, studies: Iterable[str] = ()) -> audit_pb2.ViewedEvent:
    """The event that a person, or a system, looked at something; `studies`: pseudonyms of those that it showed."""
    shown = list(dict.fromkeys(one for one in studies if one))
    event = audit_pb2.ViewedEvent(person=person, role=role, what=what, studies=shown[:MOST_SHOWN])
    if len(shown) > MOST_SHOWN:
        event.more_studies = len(shown) - MOST_SHOWN
    return event


def _away(message: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, message)


def _fail(pending: _Pending, error: StepwedgeError) -> None:
    if not pending.index.done():
        pending.index.set_exception(error)


def _record(
    key: str,
    outcome: audit_pb2.EventOutcome.ValueType,
    event: Message,
    subject: str,
    study: str,
    series: str,
    instance: str,
    pins: Pins | None,
    occurred_at: datetime | None,
) -> Record:
    record = Record(
        idempotency_key=key,
        outcome=outcome,
        subject=subject,
        study=study,
        series=series,
        instance=instance,
        trace_id=current_trace_id(),
    )
    record.occurred_at.FromDatetime((occurred_at or datetime.now(UTC)).astimezone(UTC).replace(tzinfo=None))
    record.pins.CopyFrom(pins or Pins())
    record.pins.software_build = record.pins.software_build or software_build()
    try:
        getattr(record, _FIELDS[event.DESCRIPTOR.full_name]).CopyFrom(event)
    except KeyError:
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "this message is no event of a record") from None
    return record
