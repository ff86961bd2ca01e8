"""The log over mutual TLS: a real server, both databases, every method."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from services.audit.__main__ import SERVICE, build
from shared import keys
from shared.audit import Recorder
from shared.errors import ErrorCode, StepwedgeError, from_rpc
from shared.health import Health
from shared.identity import Identity
from shared.pki import Credentials
from shared.rpc import Server, channel
from shared.settings import Settings
from shared.transparency import merkle
from shared.transparency.note import VerificationKey, open_checkpoint
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc
from stepwedge.common.v1 import common_pb2
from tests.unit.audit.making import Producer, digest, uid
from verifier import verify

Stop = Callable[[], Awaitable[None]]


class Running:
    """A server of the log, and channels to it."""

    def __init__(self, server: Server, credentials: Callable[[Identity], Credentials], vkey: str) -> None:
        self.server = server
        self.vkey = vkey
        self._credentials = credentials
        self._channels: list[grpc.aio.Channel] = []

    def channel(self, identity: Identity) -> grpc.aio.Channel:
        made = channel(self.server.address, self._credentials(identity), server=Identity.AUDIT)
        self._channels.append(made)
        return made

    def __call__(self, identity: Identity) -> "audit_pb2_grpc.AuditServiceAsyncStub":
        return audit_pb2_grpc.AuditServiceStub(self.channel(identity))  # type: ignore[return-value]

    async def close(self) -> None:
        for one in self._channels:
            await one.close()


async def start(
    settings: Settings, credentials: Callable[[Identity], Credentials]
) -> tuple[Running, Callable[[], object]]:
    keys.create(settings.cluster.keys, origin=settings.audit.origin, development=True)
    health = Health()
    server = Server(Identity.AUDIT, settings, health)
    hooks = await build(settings, health, server)
    ready = asyncio.Event()
    task = asyncio.create_task(server.run(on_ready=ready.set))
    await asyncio.wait_for(ready.wait(), 20)
    running = Running(server, credentials, (settings.cluster.keys / keys.VERIFICATION).read_text().strip())

    async def stop() -> None:
        await running.close()
        server.stop()
        await task
        assert hooks.on_stopped is not None
        await hooks.on_stopped()

    return running, stop


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


async def append(audit: Running, producer: Producer, *records: audit_pb2.Record) -> audit_pb2.AppendResponse:
    return await audit(producer.identity).Append(audit_pb2.AppendRequest(records=records), timeout=10)


async def code_of(call: object) -> ErrorCode.ValueType:
    with pytest.raises(grpc.RpcError) as raised:
        await call  # type: ignore[misc]
    return from_rpc(raised.value).code


async def export(audit: Running, size: int = 0) -> bytes:
    pieces = audit(Identity.AUDITOR).Export(audit_pb2.ExportRequest(size=size), timeout=30)
    return b"".join([piece.chunk async for piece in pieces])


async def test_what_is_appended_is_in_the_log_under_the_checkpoint_that_was_answered(audit: Running) -> None:
    producer = Producer()
    answer = await append(audit, producer, *(producer.received(number) for number in range(3)))
    assert list(answer.indexes) == [0, 1, 2]
    reader = audit(Identity.AUDITOR)
    newest = await reader.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=10)
    assert newest.checkpoint == answer.checkpoint
    assert newest.verification_key == audit.vkey
    checkpoint = open_checkpoint(answer.checkpoint.encode(), [VerificationKey.parse(audit.vkey)], "stepwedge/audit")
    assert (checkpoint.size, checkpoint.root) == (3, newest.root_hash)
    proof = await reader.GetInclusionProof(audit_pb2.GetInclusionProofRequest(index=1), timeout=10)
    entry = (await reader.GetEntry(audit_pb2.GetEntryRequest(index=1), timeout=10)).entry
    assert entry.producer == "ingest"
    assert entry.record.instance == uid(1)
    assert entry.leaf_hash == merkle.leaf_hash(entry.leaf)
    assert merkle.verify_inclusion(entry.leaf_hash, 1, 3, list(proof.path), checkpoint.root)
    assert proof.checkpoint == answer.checkpoint


async def test_an_auditor_follows_the_log_from_checkpoint_to_checkpoint(audit: Running) -> None:
    producer = Producer()
    reader = audit(Identity.AUDITOR)
    before = None
    for number in range(5):
        await append(audit, producer, producer.received(number))
        newest = await reader.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=10)
        if before is not None:
            request = audit_pb2.GetConsistencyProofRequest(from_size=before.size, to_size=newest.size)
            proof = await reader.GetConsistencyProof(request, timeout=10)
            roots = before.root_hash, newest.root_hash
            assert merkle.verify_consistency(before.size, newest.size, *roots, list(proof.path))
        before = newest


async def test_the_recorder_of_the_house_numbers_without_gaps_and_gets_the_same_index_again(audit: Running) -> None:
    recorder = Recorder(audit.channel(Identity.INGEST))

    async def record(number: int) -> int:
        event = audit_pb2.ReceivedEvent(
            channel="GRPC",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.7",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            size_bytes=number,
        )
        return await recorder.record(
            key=f"received/{uid(number)}/{digest(number)}",
            outcome=audit_pb2.EVENT_OUTCOME_SUCCESS,
            event=event,
            instance=uid(number),
            study=uid(99),
        )

    indexes = await asyncio.gather(*(record(number) for number in range(50)))
    assert sorted(indexes) == list(range(50))
    assert await record(7) == indexes[7]
    page = await audit(Identity.AUDITOR).QueryEntries(audit_pb2.QueryEntriesRequest(study=uid(99)), timeout=10)
    assert sorted(entry.record.sequence for entry in page.entries) == list(range(1, 51))
    assert all(entry.record.pins.software_build for entry in page.entries)


async def test_an_export_over_the_wire_is_proved_by_the_verifier(audit: Running, tmp_path: Path) -> None:
    producer = Producer()
    for start in range(0, 600, 200):
        await append(audit, producer, *(producer.received(number) for number in range(start, start + 200)))
    early = tmp_path / "early.zip"
    early.write_bytes(await export(audit, 400))
    await append(audit, producer, producer.decided(1, instances=1500))
    late = tmp_path / "late.zip"
    late.write_bytes(await export(audit))
    report = verify.verify(str(late), key=audit.vkey, older=str(early))
    # 601 records, and that of the first export.
    assert (report.code, report.size, report.older_size) == (verify.PROVED, 602, 400), report.problems
    assert report.gaps == []
    names = zipfile.ZipFile(io.BytesIO(late.read_bytes())).namelist()
    assert {"checkpoint", "vkey", "manifest.json", "tile/0/000", "tile/0/002.p/90", "tile/1/000.p/2"} <= set(names)
    assert await code_of(export(audit, 10_000)) == ErrorCode.ERROR_CODE_INVALID_REQUEST


MAY_NOT = {
    Identity.INGEST: {"entry", "query"},
    Identity.AUDITOR: {"append"},
    Identity.OPERATOR: {"append"},
    # Producers, but not of the kind of record that is tried here (the console too).
    Identity.REDACTION: {"append", "entry", "query", "checkpoint"},
    Identity.INFERENCE: {"append", "entry", "query", "checkpoint"},
    Identity.AUDIT: {"append", "entry", "query", "checkpoint"},
    Identity.PACS: {"append", "entry", "query", "checkpoint"},
    Identity.CONSOLE: {"append"},
}


async def test_an_export_that_is_given_up_leaves_the_server_well(audit: Running) -> None:
    producer = Producer()
    for start in range(0, 1000, 200):
        await append(audit, producer, *(producer.received(number) for number in range(start, start + 200)))
    for _ in range(5):
        call = audit(Identity.AUDITOR).Export(audit_pb2.ExportRequest(), timeout=30)
        await asyncio.sleep(0)
        call.cancel()
    call = audit(Identity.AUDITOR).Export(audit_pb2.ExportRequest(), timeout=30)
    assert (await call.read()).chunk
    call.cancel()
    (index,) = (await append(audit, producer, producer.received(5000))).indexes
    assert 1000 < index <= 1006  # an export that was given up before it began is no read


async def test_only_producers_append_and_only_readers_read(audit: Running) -> None:
    producer = Producer()
    for identity in Identity:
        stub = audit(identity)
        calls = {
            "append": stub.Append(audit_pb2.AppendRequest(records=[producer.received(1)]), timeout=10),
            "entry": stub.GetEntry(audit_pb2.GetEntryRequest(index=0), timeout=10),
            "query": stub.QueryEntries(audit_pb2.QueryEntriesRequest(), timeout=10),
            "checkpoint": stub.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=10),
        }
        refused = set()
        for name, call in calls.items():
            try:
                await call
            except grpc.RpcError as error:
                if from_rpc(error).code == ErrorCode.ERROR_CODE_PERMISSION_DENIED:
                    refused.add(name)
        assert refused == MAY_NOT[identity], identity


async def test_wrong_requests_get_their_codes(audit: Running) -> None:
    producer = Producer()
    stub, reader = audit(Identity.INGEST), audit(Identity.AUDITOR)
    invalid = ErrorCode.ERROR_CODE_INVALID_REQUEST
    assert await code_of(stub.Append(audit_pb2.AppendRequest(), timeout=10)) == invalid
    many = [producer.received(number) for number in range(257)]
    assert await code_of(stub.Append(audit_pb2.AppendRequest(records=many), timeout=10)) == invalid
    named = producer.received(1)
    named.subject = "DOE^JANE"
    with pytest.raises(grpc.RpcError) as raised:
        await stub.Append(audit_pb2.AppendRequest(records=[producer.received(0), named]), timeout=10)
    error = from_rpc(raised.value)
    assert (error.code, error.permanent) == (invalid, True)
    assert "DOE" not in error.message
    first = producer.received(5)
    await append(audit, producer, first)
    first.received.size_bytes += 1
    conflict = ErrorCode.ERROR_CODE_IDEMPOTENCY_CONFLICT
    assert await code_of(append(audit, producer, first)) == conflict
    missing = ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND
    assert await code_of(reader.GetEntry(audit_pb2.GetEntryRequest(index=1), timeout=10)) == missing
    assert await code_of(reader.GetEntry(audit_pb2.GetEntryRequest(index=2**64 - 1), timeout=10)) == missing
    proof = audit_pb2.GetInclusionProofRequest(index=0, size=2**63)
    assert await code_of(reader.GetInclusionProof(proof, timeout=10)) == invalid
    page = audit_pb2.QueryEntriesRequest(page_token="rubbish")
    assert await code_of(reader.QueryEntries(page, timeout=10)) == invalid
    when = audit_pb2.QueryEntriesRequest()
    when.recorded_from.seconds = -5
    assert await code_of(reader.QueryEntries(when, timeout=10)) == invalid


async def test_large_entries_make_short_pages_and_none_is_lost(audit: Running) -> None:
    producer = Producer()
    for study in range(6):
        await append(audit, producer, producer.decided(study, instances=9000))
    reader = audit(Identity.AUDITOR)
    found: list[int] = []
    token = ""
    while True:
        request = audit_pb2.QueryEntriesRequest(
            kind=audit_pb2.RECORD_KIND_DECIDED, verdict=common_pb2.VERDICT_REVIEW, page_size=1000, page_token=token
        )
        page = await reader.QueryEntries(request, timeout=20)
        assert len(page.entries) < 6
        found += [entry.index for entry in page.entries]
        assert all(len(entry.record.decided.instances) == 9000 for entry in page.entries)
        token = page.next_page_token
        if not token:
            break
    assert found == list(range(6))


async def test_a_server_that_starts_again_goes_on_with_the_same_log(
    settings: Settings, credentials: Callable[[Identity], Credentials]
) -> None:
    producer = Producer()
    for number in range(3):
        running, stop = await start(settings, credentials)
        answer = await append(running, producer, producer.received(number))
        assert list(answer.indexes) == [number]
        await stop()


async def test_a_log_that_was_tampered_with_refuses_to_start(
    settings: Settings, credentials: Callable[[Identity], Credentials]
) -> None:
    running, stop = await start(settings, credentials)
    producer = Producer()
    await append(running, producer, producer.received(0))
    await stop()
    import sqlalchemy as sa

    from shared import database

    engine = database.create_engine(settings.audit.database)
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM entries"))
    engine.dispose()
    with pytest.raises(StepwedgeError) as raised:
        await start(settings, credentials)
    assert raised.value.code == ErrorCode.ERROR_CODE_LOG_INCONSISTENT


def test_the_service_is_named_as_in_the_contract() -> None:
    assert audit_pb2.DESCRIPTOR.services_by_name["AuditService"].full_name == SERVICE
