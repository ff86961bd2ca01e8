"""The recorder against a log on a real socket that fails in every way a log can."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from shared import pki, rpc
from shared.audit import MAX_RECORDS, Recorder
from shared.build import software_build
from shared.errors import ErrorCode, StepwedgeError
from shared.health import Health
from shared.identity import Identity
from shared.settings import Settings
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc

AUDIT = "stepwedge.audit.v1.AuditService"
SUCCESS = audit_pb2.EVENT_OUTCOME_SUCCESS


class Log(audit_pb2_grpc.AuditServiceServicer):
    """A log in memory with the rules of audit.proto, whose failures a test plans call by call."""

    def __init__(self) -> None:
        self.records: list[audit_pb2.Record] = []
        self.keys: dict[str, int] = {}
        self.repeats: dict[str, list[int]] = defaultdict(list)
        self.batches: list[int] = []
        self.plan: list[str] = []
        """What happens to the next calls: "refuse", "lose", "hang"; nothing where it is empty."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Semaphore(0)

    async def Append(self, request: Any, context: Any) -> Any:
        self.waiting.release()
        await self.gate.wait()
        step = self.plan.pop(0) if self.plan else ""
        if step == "refuse":
            raise StepwedgeError(ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE, "not now")
        if step == "full":
            raise StepwedgeError(ErrorCode.ERROR_CODE_OVERLOADED, "not now")
        if any(record.idempotency_key.startswith("bad") for record in request.records):
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "a field is out of range")
        indexes = [self._take(record) for record in request.records]
        self.batches.append(len(indexes))
        if step == "lose":
            raise StepwedgeError(ErrorCode.ERROR_CODE_INTERNAL, "the answer is lost")
        if step == "hang":
            await asyncio.Event().wait()
        return audit_pb2.AppendResponse(indexes=indexes)

    async def AppendStream(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield audit_pb2.AppendStreamResponse(indexes=(await self.Append(request, context)).indexes)

    def _take(self, record: audit_pb2.Record) -> int:
        if record.idempotency_key in self.keys:
            self.repeats[record.incarnation].append(record.sequence)
            return self.keys[record.idempotency_key]
        self.keys[record.idempotency_key] = len(self.records)
        self.records.append(record)
        return len(self.records) - 1

    def sequences(self, incarnation: str) -> list[int]:
        """Numbers of one incarnation, in the order of the log."""
        return [record.sequence for record in self.records if record.incarnation == incarnation]

    GetEntry = QueryEntries = GetCheckpoint = GetInclusionProof = GetConsistencyProof = Export = Append


class Running:
    def __init__(self, log: Log, channel: grpc.aio.Channel) -> None:
        self.log, self.channel = log, channel
        self.recorder = self.start()

    def start(self, deadline_seconds: float = 10.0) -> Recorder:
        return Recorder(self.channel, deadline_seconds=deadline_seconds)

    def record(self, key: str, recorder: Recorder | None = None) -> "asyncio.Task[int]":
        event = audit_pb2.ReceivedEvent(channel="GRPC")
        return asyncio.create_task((recorder or self.recorder).record(key=key, outcome=SUCCESS, event=event))


@pytest.fixture
def running(make_settings: Callable[[str], Settings], pki_folder: Path) -> Callable[[], Any]:
    @asynccontextmanager
    async def run() -> AsyncIterator[Running]:
        log = Log()
        server = rpc.Server(Identity.AUDIT, make_settings(""), Health())
        server.add(audit_pb2_grpc.add_AuditServiceServicer_to_server, log, AUDIT)
        ready = asyncio.Event()
        task = asyncio.create_task(server.run(on_ready=ready.set))
        await asyncio.wait_for(ready.wait(), 10)
        credentials = pki.Credentials.load(pki_folder, Identity.INGEST)
        async with rpc.channel(server.address, credentials, server=Identity.AUDIT) as channel:
            made = Running(log, channel)
            yield made
            await made.recorder.close()
        log.gate.set()
        server.stop()
        await asyncio.wait_for(task, 30)

    return run


def _gapless(numbers: list[int]) -> bool:
    return numbers == list(range(1, len(numbers) + 1))


async def test_a_record_reaches_the_log_with_everything_that_it_must_have(running: Any) -> None:
    async with running() as it:
        when = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
        index = await it.recorder.record(
            key="received/1",
            outcome=SUCCESS,
            event=audit_pb2.ReceivedEvent(channel="DIMSE", size_bytes=7),
            study="2.25.1",
            instance="2.25.2",
            pins=audit_pb2.Pins(input_commitment="c"),
            occurred_at=when,
        )
        (record,) = it.log.records
        assert index == 0
        assert record.incarnation == it.recorder.incarnation
        assert (record.sequence, record.study, record.instance) == (1, "2.25.1", "2.25.2")
        assert record.occurred_at.ToDatetime(UTC) == when
        assert (record.WhichOneof("event"), record.received.size_bytes) == ("received", 7)
        assert (record.pins.input_commitment, record.pins.software_build) == ("c", software_build())


async def test_records_that_come_together_go_together_in_order_and_without_gaps(running: Any) -> None:
    async with running() as it:
        it.log.gate.clear()
        first = it.record("first")
        await asyncio.wait_for(it.log.waiting.acquire(), 5)
        others = [it.record(f"k/{number}") for number in range(600)]
        await asyncio.sleep(0)  # lets each of them reach the queue
        it.log.gate.set()
        assert await first == 0
        assert await asyncio.gather(*others) == list(range(1, 601))
        assert it.log.batches == [1, MAX_RECORDS, MAX_RECORDS, 600 - 2 * MAX_RECORDS]
        assert _gapless(it.log.sequences(it.recorder.incarnation))


async def test_large_records_are_split_over_requests_below_the_limit_of_the_transport(running: Any) -> None:
    async with running() as it:
        it.log.gate.clear()
        instances = [audit_pb2.DecidedInstance(instance="2.25." + "1" * 38) for _ in range(20_000)]
        event = audit_pb2.DecidedEvent(instances=instances)
        tasks = [
            asyncio.create_task(it.recorder.record(key=f"decided/{number}", outcome=SUCCESS, event=event))
            for number in range(8)
        ]
        await asyncio.wait_for(it.log.waiting.acquire(), 5)
        it.log.gate.set()
        assert await asyncio.gather(*tasks) == list(range(8))
        assert it.log.batches == [4, 4]  # of about 0.96 MB each


@pytest.mark.parametrize("trouble", ["refuse", "full", "lose"])
async def test_a_failure_is_tried_again_with_the_same_numbers(running: Any, trouble: str) -> None:
    async with running() as it:
        it.log.plan = [trouble, trouble]
        tasks = [it.record(f"k/{number}") for number in range(5)]
        assert await asyncio.gather(*tasks) == list(range(5))
        assert await it.record("after") == 5
        assert _gapless(it.log.sequences(it.recorder.incarnation))


async def test_the_same_key_again_has_the_same_index_in_this_life_and_the_next(running: Any) -> None:
    async with running() as it:
        assert [await it.record("one"), await it.record("two"), await it.record("one")] == [0, 1, 0]
        again = it.start()
        assert [await it.record("two", again), await it.record("three", again)] == [1, 2]
        # Every number is accounted for: in the log, or as a repeat that the log notes.
        assert it.log.sequences(again.incarnation) == [2]
        assert it.log.repeats[again.incarnation] == [1]
        await again.close()


async def test_one_bad_record_does_not_take_its_neighbours_down_and_leaves_no_gap(running: Any) -> None:
    async with running() as it:
        it.log.gate.clear()
        first = it.record("first")
        await asyncio.wait_for(it.log.waiting.acquire(), 5)
        names = ["a", "b", "bad/1", "c", "bad/2", "d"]
        tasks = [it.record(name) for name in names]
        await asyncio.sleep(0)
        it.log.gate.set()
        results = await asyncio.gather(first, *tasks, return_exceptions=True)
        refused = [one for one in results if isinstance(one, StepwedgeError)]
        assert [one.name for one in refused] == ["INVALID_REQUEST"] * 2
        assert [record.idempotency_key for record in it.log.records] == ["first", "a", "b", "c", "d"]
        assert await it.record("after") == 5
        assert _gapless(it.log.sequences(it.recorder.incarnation))


async def test_a_log_that_does_not_answer_in_time_is_a_refusal_and_the_number_is_kept_for_that_record(
    running: Any,
) -> None:
    async with running() as it:
        recorder = it.start(deadline_seconds=0.5)
        it.log.plan = ["hang"]
        with pytest.raises(StepwedgeError) as raised:
            await it.record("in doubt", recorder)
        assert (raised.value.name, raised.value.permanent) == ("AUDIT_UNAVAILABLE", False)
        # The log had taken it after all: the next record must not bear its number.
        assert await it.record("next", recorder) == 1
        assert await it.record("in doubt", recorder) == 0
        assert it.log.sequences(recorder.incarnation) == [1, 2]
        assert it.log.repeats[recorder.incarnation] == [1, 3]
        await recorder.close()


async def test_records_given_up_before_they_were_sent_leave_no_trace(running: Any) -> None:
    async with running() as it:
        it.log.gate.clear()
        first = it.record("first")
        await asyncio.wait_for(it.log.waiting.acquire(), 5)
        kept, given_up = it.record("kept"), it.record("given up")
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        it.log.gate.set()
        assert [await first, await kept] == [0, 1]
        assert await it.record("after") == 2
        assert "given up" not in it.log.keys
        assert _gapless(it.log.sequences(it.recorder.incarnation))


async def test_a_caller_that_goes_away_while_its_record_is_sent_disturbs_nobody(running: Any) -> None:
    async with running() as it:
        it.log.gate.clear()
        gone = it.record("gone")
        await asyncio.wait_for(it.log.waiting.acquire(), 5)
        gone.cancel()
        stays = it.record("stays")
        await asyncio.sleep(0)
        it.log.gate.set()
        assert await stays == 1
        assert it.log.sequences(it.recorder.incarnation) == [1, 2]


async def test_the_log_away_is_a_refusal_and_its_return_goes_unnoticed(
    make_settings: Callable[[str], Settings], pki_folder: Path, free_port: Callable[[], int]
) -> None:
    toml = f'[audit]\nlisten = "127.0.0.1:{free_port()}"\nmetrics = ""\n'
    settings = make_settings(toml)
    credentials = pki.Credentials.load(pki_folder, Identity.INGEST)
    async with rpc.channel(settings.audit.address, credentials, server=Identity.AUDIT) as channel:
        recorder = Recorder(channel, deadline_seconds=0.3)
        event = audit_pb2.ReceivedEvent()
        with pytest.raises(StepwedgeError, match="AUDIT_UNAVAILABLE"):
            await recorder.record(key="away", outcome=SUCCESS, event=event)
        patient = Recorder(channel, deadline_seconds=20)
        waiting = asyncio.create_task(patient.record(key="waits", outcome=SUCCESS, event=event))
        log = Log()
        server = rpc.Server(Identity.AUDIT, settings, Health())
        server.add(audit_pb2_grpc.add_AuditServiceServicer_to_server, log, AUDIT)
        task = asyncio.create_task(server.run())
        assert await asyncio.wait_for(waiting, 20) == 0
        server.stop()
        await asyncio.wait_for(task, 10)
        for one in (recorder, patient):
            await one.close()


async def test_closing_refuses_what_still_waits(running: Any) -> None:
    async with running() as it:
        it.log.gate.clear()
        task = it.record("waits")
        await asyncio.wait_for(it.log.waiting.acquire(), 5)
        await it.recorder.close()
        with pytest.raises(StepwedgeError, match="AUDIT_UNAVAILABLE"):
            await task


async def test_a_message_that_is_no_event_is_refused_at_once(running: Any) -> None:
    async with running() as it:
        with pytest.raises(StepwedgeError, match="INVALID_REQUEST"):
            await it.recorder.record(key="x", outcome=SUCCESS, event=audit_pb2.Pins())


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_fails_in_whatever_order_every_success_is_in_the_log_once_and_no_number_is_missing(
    running: Any, seed: int
) -> None:
    chance = random.Random(seed)
    async with running() as it:
        recorder = it.start(deadline_seconds=20)
        it.log.plan = [chance.choice(["", "", "refuse", "lose", "full"]) for _ in range(12)]
        keys: list[str] = []
        tasks: list[asyncio.Task[int]] = []
        for number in range(200):
            key = f"{'bad' if chance.random() < 0.02 else 'k'}/{number if chance.random() < 0.9 else number // 2}"
            keys.append(key)
            tasks.append(it.record(key, recorder))
            if chance.random() < 0.05:
                tasks[-1].cancel()
            if chance.random() < 0.1:
                await asyncio.sleep(chance.random() / 100)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for key, result in zip(keys, results, strict=True):
            if isinstance(result, int):
                assert it.log.records[result].idempotency_key == key
            elif isinstance(result, StepwedgeError):
                assert key.startswith("bad"), result
                assert result.name == "INVALID_REQUEST"
        names = [record.idempotency_key for record in it.log.records]
        assert len(names) == len(set(names))
        accounted = set(it.log.sequences(recorder.incarnation)) | set(it.log.repeats[recorder.incarnation])
        assert accounted == set(range(1, max(accounted) + 1))
        assert it.log.sequences(recorder.incarnation) == sorted(it.log.sequences(recorder.incarnation))
        await recorder.close()
