"""Appending over a call that stays open: the guarantees of a call a batch, and nothing half done when it breaks."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from shared import guard
from shared.audit import Recorder
from shared.errors import ErrorCode, from_rpc
from shared.health import Health
from shared.identity import Identity
from shared.pki import Credentials
from shared.rpc import Server, channel
from shared.settings import Settings
from shared.transparency.note import VerificationKey, open_checkpoint
from stepwedge.audit.v1 import audit_pb2
from tests.unit.audit.making import Producer, uid
from tests.wire.test_audit import Running, append, start


@pytest.fixture
def settings(make_settings: Callable[[str], Settings], database_url: str) -> Settings:
    made = make_settings("")
    made.audit.database = database_url
    return made


@pytest.fixture
async def audit(settings: Settings, credentials: Callable[[Identity], Credentials]) -> AsyncIterator[Running]:
    running, stop = await start(settings, credentials)
    yield running
    await stop()


def opened(audit: Running, identity: Identity = Identity.INGEST) -> Any:
    return audit(identity).AppendStream()  # type: ignore[call-arg]


def batch(*records: audit_pb2.Record) -> audit_pb2.AppendStreamRequest:
    return audit_pb2.AppendStreamRequest(records=records)


async def size(audit: Running) -> int:
    return int((await audit(Identity.AUDITOR).GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=10)).size)


async def test_batches_are_answered_in_order_each_under_a_checkpoint_that_covers_it(audit: Running) -> None:
    producer, stream = Producer(), opened(audit)
    key = VerificationKey.parse(audit.vkey)
    # Sent ahead: they wait their turn.
    for first in range(0, 30, 3):
        await stream.write(batch(*(producer.received(number) for number in range(first, first + 3))))
    for first in range(0, 30, 3):
        answer = await stream.read()
        assert list(answer.indexes) == [first, first + 1, first + 2]
        assert open_checkpoint(answer.checkpoint.encode(), [key], "stepwedge/audit").size >= first + 3
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF  # type: ignore[attr-defined]
    assert await stream.code() is grpc.StatusCode.OK


async def test_a_batch_that_is_refused_ends_the_call_and_nothing_of_it_or_behind_it_is_taken(audit: Running) -> None:
    producer, stream = Producer(), opened(audit)
    await stream.write(batch(producer.received(0)))
    bad = producer.received(2)
    bad.subject = "DOE^JANE"
    await stream.write(batch(producer.received(1), bad))
    await stream.write(batch(producer.received(3)))
    assert list((await stream.read()).indexes) == [0]
    with pytest.raises(grpc.RpcError) as raised:
        await stream.read()
    error = from_rpc(raised.value)
    assert (error.code, error.permanent) == (ErrorCode.ERROR_CODE_INVALID_REQUEST, True)
    assert "DOE" not in error.message
    assert await size(audit) == 1


@pytest.mark.parametrize("records", [0, 257])
async def test_a_batch_of_no_or_too_many_records_is_refused(audit: Running, records: int) -> None:
    producer, stream = Producer(), opened(audit)
    await stream.write(batch(*(producer.received(number) for number in range(records))))
    with pytest.raises(grpc.RpcError) as raised:
        await stream.read()
    assert from_rpc(raised.value).code == ErrorCode.ERROR_CODE_INVALID_REQUEST
    assert await size(audit) == 0


async def test_who_may_not_append_may_not_open_the_call(audit: Running) -> None:
    stream = opened(audit, Identity.AUDITOR)
    with pytest.raises(grpc.RpcError) as raised:
        await stream.read()
    assert from_rpc(raised.value).code == ErrorCode.ERROR_CODE_PERMISSION_DENIED


async def test_the_same_record_again_over_either_call_has_its_first_place(audit: Running) -> None:
    producer, stream = Producer(), opened(audit)
    first = producer.received(7)
    await stream.write(batch(first))
    assert list((await stream.read()).indexes) == [0]
    first.sequence = 2
    assert list((await append(audit, producer, first)).indexes) == [0]
    stream.cancel()


async def test_a_call_that_breaks_off_leaves_whole_batches_and_its_records_can_be_sent_again(audit: Running) -> None:
    producer = Producer()
    sent: list[list[audit_pb2.Record]] = []
    for number in range(20):
        stream = opened(audit)
        records = [producer.received(number * 4 + one) for one in range(4)]
        sent.append(records)
        await stream.write(batch(*records))
        if number % 3 == 0:
            await asyncio.sleep(0)
        stream.cancel()
    for records in sent:
        indexes = list((await append(audit, producer, *records)).indexes)
        assert indexes == list(range(indexes[0], indexes[0] + 4)), "a batch stands together"
    found = await audit(Identity.AUDITOR).QueryEntries(
        audit_pb2.QueryEntriesRequest(kind=audit_pb2.RECORD_KIND_RECEIVED, page_size=1000), timeout=10
    )
    assert len(found.entries) == 80
    assert len({entry.record.instance for entry in found.entries}) == 80


async def test_a_log_that_stops_ends_the_call_and_the_recorder_finds_the_next_one(
    settings: Settings, credentials: Callable[[Identity], Credentials]
) -> None:
    first, stop = await start(settings, credentials)
    settings.audit.listen = first.server.address
    recorder = Recorder(first.channel(Identity.INGEST), deadline_seconds=20)

    async def record(number: int) -> int:
        return await recorder.record(
            key=f"received/{uid(number)}",
            outcome=audit_pb2.EVENT_OUTCOME_SUCCESS,
            event=audit_pb2.ReceivedEvent(channel="GRPC"),
            instance=uid(number),
        )

    assert await asyncio.gather(*(record(number) for number in range(50))) == list(range(50))
    waiting = asyncio.create_task(_later(record, 50))
    kept, first._channels = first._channels, []
    await stop()
    second, stop = await start(settings, credentials)
    assert await waiting == 50
    assert await record(7) == 7
    await recorder.close()
    for one in kept:
        await one.close()  # type: ignore[call-arg]
    page = await second(Identity.AUDITOR).QueryEntries(audit_pb2.QueryEntriesRequest(producer="ingest"), timeout=10)
    assert [entry.record.sequence for entry in page.entries] == list(range(1, 52))
    await stop()


async def _later(record: Callable[[int], Any], number: int) -> int:
    await asyncio.sleep(0.2)
    return int(await record(number))


async def test_the_log_of_an_older_build_without_the_call_is_appended_to_by_batches(
    settings: Settings, credentials: Callable[[Identity], Credentials]
) -> None:
    taken: list[int] = []

    async def append_only(request: audit_pb2.AppendRequest, context: Any) -> audit_pb2.AppendResponse:
        first = sum(taken)
        taken.append(len(request.records))
        return audit_pb2.AppendResponse(indexes=range(first, first + len(request.records)))

    handler = grpc.unary_unary_rpc_method_handler(
        append_only,
        request_deserializer=audit_pb2.AppendRequest.FromString,
        response_serializer=audit_pb2.AppendResponse.SerializeToString,
    )
    name = "stepwedge.audit.v1.AuditService"
    server = Server(Identity.AUDIT, settings, Health())
    server.add(
        lambda _, to: to.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Append": handler}),)),
        object(),
        name,
    )
    ready = asyncio.Event()
    task = asyncio.create_task(server.run(on_ready=ready.set))
    await asyncio.wait_for(ready.wait(), 20)
    async with channel(server.address, credentials(Identity.INGEST), server=Identity.AUDIT) as to:
        recorder = Recorder(to, deadline_seconds=10)
        event = audit_pb2.ReceivedEvent(channel="GRPC")
        records = [
            recorder.record(key=f"received/{uid(number)}", outcome=audit_pb2.EVENT_OUTCOME_SUCCESS, event=event)
            for number in range(10)
        ]
        assert sorted(await asyncio.gather(*records)) == list(range(10))
        await recorder.close()
    server.stop()
    await task


async def test_calls_that_succeed_are_told_in_one_line_and_those_that_fail_in_one_each(
    audit: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[tuple[str, dict[str, Any]]] = []

    class Lines:
        def __getattr__(self, level: str) -> Callable[..., None]:
            return lambda event, **fields: lines.append((event, fields))

    monkeypatch.setattr(guard, "_log", Lines())
    monkeypatch.setattr(guard, "_TALLY_SECONDS", 0.3)
    producer = Producer()
    for number in range(5):
        await append(audit, producer, producer.received(number))
    with pytest.raises(grpc.RpcError):
        await append(audit, producer)
    deadline = time.monotonic() + 10
    while sum(fields["count"] for event, fields in lines if event == "calls") < 5:
        assert time.monotonic() < deadline, "the calls are not told"
        await asyncio.sleep(0.02)
    appends = [(event, fields) for event, fields in lines if fields["method"].endswith("/Append")]
    told = [fields for event, fields in appends if event == "calls"]
    assert {(one["peer"], one["code"]) for one in told} == {("ingest", "OK")}
    assert [fields["error"] for event, fields in appends if event == "call"] == ["INVALID_REQUEST"]
