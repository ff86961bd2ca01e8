"""A server of the cluster on a real socket: who is let in, what is refused, how it sheds load, fails and stops."""

import asyncio
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from shared import pki, rpc, tracing
from shared.errors import ErrorCode, StepwedgeError, from_rpc
from shared.health import Health
from shared.identity import Identity, peer
from shared.paths import ROOT
from shared.settings import Settings
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc
from stepwedge.ingest.v1 import ingest_pb2, ingest_pb2_grpc

AUDIT = "stepwedge.audit.v1.AuditService"
CANARY = "DOE^JANE 19700101"


class Audit(audit_pb2_grpc.AuditServiceServicer):
    """Handlers that do what a test asks of them."""

    def __init__(self) -> None:
        self.entered = asyncio.Semaphore(0)
        self.released = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.queries = 0
        self.seen: dict[str, Any] = {}

    async def Append(self, request: Any, context: Any) -> Any:
        self.entered.release()
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return audit_pb2.AppendResponse(indexes=range(len(request.records)))

    async def GetEntry(self, request: Any, context: Any) -> Any:
        raise ValueError(CANARY)

    async def QueryEntries(self, request: Any, context: Any) -> Any:
        self.queries += 1
        raise StepwedgeError(ErrorCode.ERROR_CODE_STORAGE_FULL, "no room")

    async def GetCheckpoint(self, request: Any, context: Any) -> Any:
        self.seen = {"peer": peer(context), "trace": tracing.current_trace_id()}
        return audit_pb2.GetCheckpointResponse(size=7)

    async def GetInclusionProof(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "its own words")

    async def GetConsistencyProof(self, request: Any, context: Any) -> Any:
        return audit_pb2.GetConsistencyProofResponse(checkpoint="x" * (5 << 20))

    async def Export(self, request: Any, context: Any) -> Any:
        for number in range(3):
            if request.size == 1 and number == 2:
                raise KeyError(CANARY)
            yield audit_pb2.ExportResponse(chunk=bytes([number]))


class Ingest(ingest_pb2_grpc.IngestServiceServicer):
    """A client stream and a stream that stays open."""

    async def SubmitInstance(self, requests: Any, context: Any) -> Any:
        count = 0
        async for _ in requests:
            count += 1
        raise StepwedgeError(ErrorCode.ERROR_CODE_NOT_DICOM, f"{count} messages")

    async def WatchDecisions(self, request: Any, context: Any) -> Any:
        yield ingest_pb2.WatchDecisionsResponse()
        await asyncio.Event().wait()

    async def GetStudy(self, request: Any, context: Any) -> Any: ...
    async def ListStudies(self, request: Any, context: Any) -> Any: ...
    async def RequeueStudy(self, request: Any, context: Any) -> Any: ...
    async def ExplainStudy(self, request: Any, context: Any) -> Any: ...


class Running:
    """A server, its handlers, and channels to it for every identity."""

    def __init__(self, server: rpc.Server, audit: Audit, folder: Path, task: asyncio.Task[None]) -> None:
        self.server, self.audit, self.folder, self.task = server, audit, folder, task
        self.channels: list[grpc.aio.Channel] = []

    def channel(self, who: Identity, server: Identity = Identity.AUDIT, **kw: Any) -> grpc.aio.Channel:
        made = rpc.channel(self.server.address, pki.Credentials.load(self.folder, who), server=server)
        self.channels.append(made)
        return made

    def bare(self, who: Identity) -> grpc.aio.Channel:
        """A channel of gRPC's own, which adds no deadline and no retry."""
        ca, certificate, key = pki.Credentials.load(self.folder, who).read()
        made = grpc.aio.secure_channel(
            self.server.address,
            grpc.ssl_channel_credentials(ca, key, certificate),
            options=[("grpc.ssl_target_name_override", "audit.stepwedge"), ("grpc.enable_retries", 0)],
        )
        self.channels.append(made)
        return made

    def stub(self, who: Identity = Identity.AUDITOR) -> Any:
        return audit_pb2_grpc.AuditServiceStub(self.channel(who))


Serve = Callable[..., Any]


@pytest.fixture
def serve(make_settings: Callable[[str], Settings], pki_folder: Path) -> Serve:
    @asynccontextmanager
    async def running(toml: str = "", health: Health | None = None, **hooks: Any) -> AsyncIterator[Running]:
        settings = make_settings(toml)
        server = rpc.Server(Identity.AUDIT, settings, health or Health())
        audit = Audit()
        server.add(audit_pb2_grpc.add_AuditServiceServicer_to_server, audit, AUDIT)
        server.add(ingest_pb2_grpc.add_IngestServiceServicer_to_server, Ingest(), "stepwedge.ingest.v1.IngestService")
        ready = asyncio.Event()
        task = asyncio.create_task(server.run(on_ready=ready.set, **hooks))
        done, _ = await asyncio.wait(
            {task, asyncio.create_task(ready.wait())}, timeout=10, return_when=asyncio.FIRST_COMPLETED
        )
        if task in done:
            await task
        made = Running(server, audit, pki_folder, task)
        try:
            yield made
        finally:
            audit.released.set()
            server.stop()
            await asyncio.wait_for(task, 10)
            for channel in made.channels:
                await channel.close()

    return running


async def refused(call: Awaitable[Any]) -> StepwedgeError:
    with pytest.raises(grpc.RpcError) as raised:
        await call
    return from_rpc(raised.value)


async def eventually(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if await result if isinstance(result, Awaitable) else result:
            return
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)


# Who is let in


async def test_the_right_identity_is_let_in_and_known_to_the_handler(serve: Serve) -> None:
    async with serve() as running:
        assert (await running.stub(Identity.AUDITOR).GetCheckpoint(audit_pb2.GetCheckpointRequest())).size == 7
        assert running.audit.seen["peer"] is Identity.AUDITOR


@pytest.mark.parametrize("who", [Identity.PACS, Identity.INFERENCE])
async def test_an_identity_that_may_not_call_is_told_so_and_reaches_no_handler(serve: Serve, who: Identity) -> None:
    async with serve() as running:
        stub = running.stub(who)
        error = await refused(stub.GetCheckpoint(audit_pb2.GetCheckpointRequest()))
        assert (error.name, error.permanent) == ("PERMISSION_DENIED", True)
        assert running.audit.seen == {}
        chunks = stub.Export(audit_pb2.ExportRequest())
        assert (await refused(chunks.read())).name == "PERMISSION_DENIED"


async def test_access_is_refused_before_the_request_is_parsed(serve: Serve) -> None:
    async with serve() as running:
        for who, expected in ((Identity.PACS, "PERMISSION_DENIED"), (Identity.AUDITOR, "INVALID_REQUEST")):
            call = running.bare(who).unary_unary(f"/{AUDIT}/GetEntry")
            assert (await refused(call(b"\xff\xff garbage", timeout=5))).name == expected


async def test_a_method_that_does_not_exist_is_unimplemented(serve: Serve) -> None:
    async with serve() as running:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await running.bare(Identity.AUDITOR).unary_unary(f"/{AUDIT}/DropEverything")(b"", timeout=5)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_client_without_a_certificate_is_refused(serve: Serve) -> None:
    async with serve() as running:
        ca = pki.Credentials.load(running.folder, Identity.AUDITOR).ca.read_bytes()
        options = [("grpc.ssl_target_name_override", "audit.stepwedge")]
        for channel in (
            grpc.aio.secure_channel(running.server.address, grpc.ssl_channel_credentials(ca), options=options),
            grpc.aio.insecure_channel(running.server.address),
        ):
            async with channel:
                stub = audit_pb2_grpc.AuditServiceStub(channel)
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await stub.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=5)
                assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert running.audit.seen == {}


async def test_a_client_of_another_ca_is_refused_and_refuses_us(serve: Serve, tmp_path: Path) -> None:
    pki.create(tmp_path / "other", [Identity.AUDITOR], development=True)
    other = pki.Credentials.load(tmp_path / "other", Identity.AUDITOR)
    async with serve() as running:
        ours = pki.Credentials.load(running.folder, Identity.AUDITOR)
        for ca in (ours.ca, other.ca):
            mixed = pki.Credentials(ca, other.certificate, other.key)
            async with rpc.channel(running.server.address, mixed, server=Identity.AUDIT) as channel:
                stub = audit_pb2_grpc.AuditServiceStub(channel)
                error = await refused(stub.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=5))
                assert (error.name, error.permanent) == ("DEPENDENCY_UNAVAILABLE", False)
        assert running.audit.seen == {}


async def test_a_server_with_the_certificate_of_another_service_is_refused(serve: Serve) -> None:
    async with serve() as running:
        stub = audit_pb2_grpc.AuditServiceStub(running.channel(Identity.AUDITOR, server=Identity.INGEST))
        assert (await refused(stub.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=5))).name == (
            "DEPENDENCY_UNAVAILABLE"
        )
        assert running.audit.seen == {}


async def test_it_serves_on_ipv6_as_well(serve: Serve) -> None:
    async with serve('[audit]\nlisten = "[::1]:0"\nmetrics = ""\n') as running:
        assert running.server.address.startswith("[::1]:")
        assert (await running.stub().GetCheckpoint(audit_pb2.GetCheckpointRequest())).size == 7


async def test_production_refuses_certificates_made_for_development(make_settings: Any) -> None:
    with pytest.raises(StepwedgeError, match=r"CONFIGURATION: .* made for development"):
        rpc.Server(Identity.AUDIT, make_settings("[cluster]\nproduction = true\n"), Health())


async def test_a_port_that_is_taken_is_a_configuration_error(serve: Serve) -> None:
    async with serve() as running:
        with pytest.raises(StepwedgeError, match="CONFIGURATION: audit cannot listen"):
            async with serve(f'[audit]\nlisten = "{running.server.address}"\nmetrics = ""\n'):
                pass


async def test_a_renewed_certificate_is_served_to_new_connections_without_a_restart(
    serve: Serve, tmp_path: Path
) -> None:
    folder = tmp_path / "pki"
    pki.create(folder, [Identity.AUDIT, Identity.AUDITOR], development=True)

    def served(address: str) -> bytes:
        context = ssl.create_default_context(cafile=folder / "ca.crt")
        context.load_cert_chain(folder / "auditor.crt", folder / "auditor.key")
        host, port = address.rsplit(":", 1)
        with (
            socket.create_connection((host, int(port)), timeout=5) as raw,
            context.wrap_socket(raw, server_hostname="audit.stepwedge") as tls,
        ):
            return tls.getpeercert(binary_form=True) or b""

    async with serve(f'[cluster]\npki = "{folder}"\n') as running:
        before = await asyncio.to_thread(served, running.server.address)
        (folder / "audit.key").write_text("half-way through a renewal")
        assert await asyncio.to_thread(served, running.server.address) == before
        pki.create(folder, [Identity.AUDIT], development=True)
        after = await asyncio.to_thread(served, running.server.address)
        assert after == ssl.PEM_cert_to_DER_cert((folder / "audit.crt").read_text())
        assert after != before
        auditor = pki.Credentials.load(folder, Identity.AUDITOR)
        async with rpc.channel(running.server.address, auditor, server=Identity.AUDIT) as channel:
            stub = audit_pb2_grpc.AuditServiceStub(channel)
            assert (await stub.GetCheckpoint(audit_pb2.GetCheckpointRequest())).size == 7


# Deadlines


async def test_a_call_without_a_deadline_is_refused_in_every_shape(serve: Serve) -> None:
    async with serve() as running:
        channel = running.bare(Identity.OPERATOR)
        audit, ingest = audit_pb2_grpc.AuditServiceStub(channel), ingest_pb2_grpc.IngestServiceStub(channel)
        calls = (
            audit.GetCheckpoint(audit_pb2.GetCheckpointRequest()),
            audit.Export(audit_pb2.ExportRequest()).read(),
            ingest.SubmitInstance(iter([ingest_pb2.SubmitInstanceRequest()])),
        )
        for call in calls:
            assert (await refused(call)).name == "DEADLINE_REQUIRED"
        assert running.audit.seen == {}


async def test_our_own_channel_sets_a_deadline_where_the_caller_set_none(serve: Serve) -> None:
    async with serve() as running:
        await running.stub().GetCheckpoint(audit_pb2.GetCheckpointRequest())
        chunks = [answer.chunk async for answer in running.stub().Export(audit_pb2.ExportRequest())]
        assert chunks == [b"\0", b"\1", b"\2"]


async def test_a_deadline_that_passes_cancels_the_handler(serve: Serve) -> None:
    async with serve() as running:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await running.stub(Identity.INGEST).Append(audit_pb2.AppendRequest(), timeout=0.2)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(running.audit.cancelled.wait(), 5)


async def test_a_caller_that_goes_away_cancels_the_handler(serve: Serve) -> None:
    async with serve() as running:
        call = running.stub(Identity.INGEST).Append(audit_pb2.AppendRequest())
        task = asyncio.ensure_future(call)
        await asyncio.wait_for(running.audit.entered.acquire(), 5)
        call.cancel()
        await asyncio.wait_for(running.audit.cancelled.wait(), 5)
        with pytest.raises(asyncio.CancelledError):
            await task


# Errors


async def test_an_error_of_ours_arrives_with_its_code_its_words_and_whether_to_try_again(serve: Serve) -> None:
    async with serve() as running:
        error = await refused(running.stub().QueryEntries(audit_pb2.QueryEntriesRequest()))
        assert (error.name, error.message, error.permanent) == ("STORAGE_FULL", "no room", False)
        # RESOURCE_EXHAUSTED is retried by the channel, but the server said that this one is not to be.
        assert running.audit.queries == 1
        stub = ingest_pb2_grpc.IngestServiceStub(running.channel(Identity.OPERATOR))
        error = await refused(stub.SubmitInstance(iter([ingest_pb2.SubmitInstanceRequest()] * 3)))
        assert (error.name, error.message, error.permanent) == ("NOT_DICOM", "3 messages", True)


async def test_a_defect_is_internal_and_its_words_reach_neither_the_caller_nor_the_log(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    from shared import logs

    logs.configure("audit")
    async with serve() as running:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await running.stub().GetEntry(audit_pb2.GetEntryRequest())
        stream = running.stub().Export(audit_pb2.ExportRequest(size=1))
        with pytest.raises(grpc.aio.AioRpcError) as streamed:
            [answer async for answer in stream]
    for error in (raised.value, streamed.value):
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "DOE" not in repr(error)
        assert "DOE" not in str(error.trailing_metadata())
        assert from_rpc(error).name == "INTERNAL"
    logged = capfd.readouterr().err
    assert "DOE" not in logged
    lines = [json.loads(line) for line in logged.splitlines()]
    failed = [line for line in lines if line["event"] == "handler failed"]
    assert [line["error_type"] for line in failed] == ["builtins.ValueError", "builtins.KeyError"]
    assert all(line["frames"][-1].startswith("tests/wire/test_rpc.py:") for line in failed)
    calls = [line for line in lines if line["event"] == "call"]
    assert [(line["peer"], line["code"]) for line in calls] == [("auditor", "INTERNAL")] * 2


async def test_a_status_that_a_handler_set_by_itself_arrives_as_it_is(serve: Serve) -> None:
    async with serve() as running:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await running.stub().GetInclusionProof(audit_pb2.GetInclusionProofRequest())
        assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.OUT_OF_RANGE, "its own words")


async def test_a_message_over_the_limit_is_refused_either_way_and_the_connection_lives(serve: Serve) -> None:
    async with serve() as running:
        large = audit_pb2.AppendRequest(records=[audit_pb2.Record(idempotency_key="x" * (5 << 20))])
        bare = audit_pb2_grpc.AuditServiceStub(running.bare(Identity.INGEST))
        for call in (
            bare.Append(large, timeout=5),
            running.stub(Identity.AUDITOR).GetConsistencyProof(audit_pb2.GetConsistencyProofRequest(), timeout=5),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            error = from_rpc(raised.value)
            assert (error.name, error.permanent) == ("INVALID_REQUEST", True)  # unlike a server that is full
        assert (await bare.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=5)).size == 7


# Load


async def test_beyond_its_limit_it_refuses_at_once_and_goes_on_afterwards(serve: Serve) -> None:
    async with serve('[audit]\nlisten = "127.0.0.1:0"\nmetrics = ""\nmax_concurrent_rpcs = 3\n') as running:
        stub = running.stub(Identity.INGEST)
        held = [asyncio.ensure_future(stub.Append(audit_pb2.AppendRequest())) for _ in range(3)]
        for _ in held:
            await asyncio.wait_for(running.audit.entered.acquire(), 5)
        bare = audit_pb2_grpc.AuditServiceStub(running.bare(Identity.INGEST))
        for _ in range(20):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await bare.Append(audit_pb2.AppendRequest(), timeout=5)
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            error = from_rpc(raised.value)
            assert (error.name, error.permanent) == ("OVERLOADED", False)
        # Full is not ill.
        await rpc.probe(running.channel(Identity.PACS))()
        running.audit.released.set()
        await asyncio.gather(*held)
        await stub.Append(audit_pb2.AppendRequest())


async def test_an_idempotent_call_to_a_full_server_is_tried_again_by_the_channel(serve: Serve) -> None:
    async with serve('[audit]\nlisten = "127.0.0.1:0"\nmetrics = ""\nmax_concurrent_rpcs = 1\n') as running:
        held = asyncio.ensure_future(running.stub(Identity.INGEST).Append(audit_pb2.AppendRequest()))
        await asyncio.wait_for(running.audit.entered.acquire(), 5)
        waiting = asyncio.ensure_future(running.stub().GetCheckpoint(audit_pb2.GetCheckpointRequest()))
        asyncio.get_running_loop().call_later(0.05, running.audit.released.set)
        assert (await waiting).size == 7
        await held


# Health


async def test_health_follows_its_dependencies(serve: Serve) -> None:
    health = Health()
    well = {"database": True, "extra": True}

    def probe(name: str) -> Callable[[], Awaitable[None]]:
        async def check() -> None:
            if not well[name]:
                raise RuntimeError(CANARY)

        return check

    health.dependency("database", probe("database"))
    health.dependency("extra", probe("extra"), required=False)
    async with serve(health=health) as running:
        stub = health_pb2_grpc.HealthStub(running.channel(Identity.CONSOLE))

        async def states() -> list[str]:
            names = ("", AUDIT, "dependency/database", "dependency/extra")
            answers = [await stub.Check(health_pb2.HealthCheckRequest(service=name)) for name in names]
            return ["up" if one.status == health_pb2.HealthCheckResponse.SERVING else "down" for one in answers]

        async def are(*expected: str) -> None:
            async def now() -> bool:
                return await states() == list(expected)

            await eventually(now)

        assert await states() == ["up", "up", "up", "up"]
        well["extra"] = False
        await are("up", "up", "up", "down")
        well["database"] = False
        await are("down", "down", "down", "down")
        assert health.snapshot() == {"": "NOT_SERVING", "database": "NOT_SERVING", "extra": "NOT_SERVING"}
        with pytest.raises(StepwedgeError, match="DEPENDENCY_UNAVAILABLE"):
            await rpc.probe(running.channel(Identity.INGEST))()
        well["database"] = True
        await are("up", "up", "up", "down")
        assert health.ok("database")
        assert not health.ok("extra")
        assert not health.ok("nothing")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Check(health_pb2.HealthCheckRequest(service="nothing"))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_probe_that_hangs_counts_as_failed(serve: Serve) -> None:
    health = Health()
    health.dependency("stuck", lambda: asyncio.Event().wait())  # type: ignore[arg-type,return-value]
    async with serve(health=health):
        assert health.snapshot() == {"": "NOT_SERVING", "stuck": "NOT_SERVING"}


async def test_reflection_tells_operators_what_is_served_and_nobody_else(serve: Serve) -> None:
    async with serve() as running:
        request = reflection_pb2.ServerReflectionRequest(list_services="")

        async def listed(who: Identity) -> list[str]:
            stub = reflection_pb2_grpc.ServerReflectionStub(running.channel(who))
            call = stub.ServerReflectionInfo(iter([request]))
            return sorted(one.name for one in (await call.read()).list_services_response.service)

        assert await listed(Identity.OPERATOR) == [
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
            AUDIT,
            "stepwedge.ingest.v1.IngestService",
        ]
        assert (await refused(listed(Identity.PACS))).name == "PERMISSION_DENIED"


# The end


async def test_a_drain_says_not_serving_lets_calls_finish_and_ends_those_that_stay_open(serve: Serve) -> None:
    drained = asyncio.Event()

    async def on_drain() -> None:
        drained.set()

    async with serve(on_drain=on_drain) as running:
        call = asyncio.ensure_future(running.stub(Identity.INGEST).Append(audit_pb2.AppendRequest()))
        await asyncio.wait_for(running.audit.entered.acquire(), 5)
        health = health_pb2_grpc.HealthStub(running.channel(Identity.INGEST)).Watch(health_pb2.HealthCheckRequest())
        assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch = ingest_pb2_grpc.IngestServiceStub(running.channel(Identity.PACS)).WatchDecisions(
            ingest_pb2.WatchDecisionsRequest()
        )
        await watch.read()
        running.server.stop()
        await asyncio.wait_for(drained.wait(), 5)
        error = await refused(watch.read())
        assert (error.name, error.permanent) == ("DEPENDENCY_UNAVAILABLE", False)
        assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert not running.task.done()
        assert not call.done()
        running.audit.released.set()
        await call
        await asyncio.wait_for(running.task, 5)


_SERVICE = textwrap.dedent(
    """
    import asyncio
    from pathlib import Path
    from shared import rpc
    from shared.identity import Identity
    from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc

    class Audit(audit_pb2_grpc.AuditServiceServicer):
        async def GetCheckpoint(self, request, context):
            Path("entered").touch()
            while not Path("released").exists():
                await asyncio.sleep(0.01)
            return audit_pb2.GetCheckpointResponse(size=7)
        Append = GetEntry = QueryEntries = GetInclusionProof = GetConsistencyProof = Export = GetCheckpoint

    async def build(settings, health, server):
        server.add(audit_pb2_grpc.add_AuditServiceServicer_to_server, Audit(), "stepwedge.audit.v1.AuditService")
        return rpc.Hooks(on_stopped=lambda: asyncio.to_thread(Path("closed").touch))

    asyncio.run(rpc.main(Identity.AUDIT, build))
    """
)


@asynccontextmanager
async def _process(tmp_path: Path, pki_folder: Path) -> AsyncIterator[tuple["subprocess.Popen[bytes]", str]]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "STEPWEDGE_CLUSTER__PKI": str(pki_folder),
        "STEPWEDGE_AUDIT__LISTEN": "127.0.0.1:0",
        "STEPWEDGE_AUDIT__METRICS": "",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVICE], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        word, service, address = (await asyncio.to_thread(process.stdout.readline)).decode().split()
        assert (word, service) == ("ready", "audit")
        yield process, address
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signalled_process_finishes_the_call_in_flight_and_exits_with_zero(
    tmp_path: Path, pki_folder: Path, number: signal.Signals
) -> None:
    async with _process(tmp_path, pki_folder) as (process, address):
        credentials = pki.Credentials.load(pki_folder, Identity.AUDITOR)
        async with rpc.channel(address, credentials, server=Identity.AUDIT) as channel:
            stub = audit_pb2_grpc.AuditServiceStub(channel)
            call = asyncio.ensure_future(stub.GetCheckpoint(audit_pb2.GetCheckpointRequest()))
            await eventually((tmp_path / "entered").exists)
            process.send_signal(number)

            async def turns_newcomers_away() -> bool:
                async with rpc.channel(address, credentials, server=Identity.AUDIT) as late:
                    try:
                        await rpc.probe(late)()
                    except StepwedgeError:
                        return True
                    return False

            await eventually(turns_newcomers_away)
            assert process.poll() is None
            (tmp_path / "released").touch()
            assert (await call).size == 7
        out, err = await asyncio.to_thread(process.communicate, timeout=10)
        assert (process.returncode, out) == (0, b"")
        assert [json.loads(line)["event"] for line in err.splitlines()] == [
            "serving", "draining", "call", "stopped",
        ]  # fmt: skip
        assert (tmp_path / "closed").exists()


async def test_a_process_told_to_stop_twice_does_not_wait_for_the_call_in_flight(
    tmp_path: Path, pki_folder: Path
) -> None:
    async with (
        _process(tmp_path, pki_folder) as (process, address),
        rpc.channel(address, pki.Credentials.load(pki_folder, Identity.AUDITOR), server=Identity.AUDIT) as channel,
    ):
        stub = audit_pb2_grpc.AuditServiceStub(channel)
        call = asyncio.ensure_future(stub.GetCheckpoint(audit_pb2.GetCheckpointRequest()))
        await eventually((tmp_path / "entered").exists)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        while b'"draining"' not in await asyncio.to_thread(process.stderr.readline):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 10) == 0
        assert (await refused(call)).name == "DEPENDENCY_UNAVAILABLE"


# Telemetry


async def test_metrics_are_served_with_closed_sets_of_labels(serve: Serve) -> None:
    from shared import metrics

    async with serve() as running:
        await running.stub().GetCheckpoint(audit_pb2.GetCheckpointRequest())
        address, stop = metrics.serve("127.0.0.1:0")
        try:
            body = await asyncio.to_thread(
                lambda: urllib.request.urlopen(f"http://{address}/metrics", timeout=5).read().decode()
            )
        finally:
            await asyncio.to_thread(stop)
    assert f'stepwedge_rpc_requests_calls_total{{code="OK",method="/{AUDIT}/GetCheckpoint"}}' in body
    assert f'stepwedge_rpc_duration_seconds_count{{method="/{AUDIT}/GetCheckpoint"}}' in body
    assert "stepwedge_info{" in body


async def test_one_trace_runs_from_the_caller_into_the_handler(serve: Serve) -> None:
    tracing.configure("test")
    async with serve() as running:
        with tracing.span("test"):
            here = tracing.current_trace_id()
            await running.stub().GetCheckpoint(audit_pb2.GetCheckpointRequest())
        assert len(here) == 32
        assert running.audit.seen["trace"] == here
        foreign = secrets.token_hex(16)
        metadata = (("traceparent", f"00-{foreign}-{secrets.token_hex(8)}-01"), ("baggage", "name=DOE"))
        bare = audit_pb2_grpc.AuditServiceStub(running.bare(Identity.AUDITOR))
        await bare.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=5, metadata=metadata)
        assert running.audit.seen["trace"] == foreign


async def test_code_without_an_event_loop_calls_in_every_shape(serve: Serve) -> None:
    async with serve() as running:
        credentials = pki.Credentials.load(running.folder, Identity.OPERATOR)

        def calls() -> tuple[int, int, str]:
            with rpc.sync_channel(running.server.address, credentials, server=Identity.AUDIT) as channel:
                audit = audit_pb2_grpc.AuditServiceStub(channel)
                size = audit.GetCheckpoint(audit_pb2.GetCheckpointRequest()).size
                chunks = list(audit.Export(audit_pb2.ExportRequest()))
                try:
                    ingest_pb2_grpc.IngestServiceStub(channel).SubmitInstance(
                        iter([ingest_pb2.SubmitInstanceRequest()])
                    )
                except grpc.RpcError as error:
                    return size, len(chunks), from_rpc(error).name
            raise AssertionError

        assert await asyncio.to_thread(calls) == (7, 3, "NOT_DICOM")


async def test_strangers_who_speak_something_else_take_nothing_down_and_hold_no_drain_up(serve: Serve) -> None:
    streams = []
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    async with serve() as running:
        host, port = running.server.address.rsplit(":", 1)
        for junk in (b"", b"GET / HTTP/1.1\r\n\r\n", preface, os.urandom(65536), b"\x16\x03\x01"):
            for _ in range(10):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(junk)
                streams.append((reader, writer))
        assert (await running.stub().GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=5)).size == 7
        began = time.monotonic()
        running.server.stop()
        await asyncio.wait_for(running.task, 30)
        assert time.monotonic() - began < 5
    for _, writer in streams:
        writer.close()


async def test_spans_reach_a_collector_with_methods_and_codes_and_no_value(serve: Serve) -> None:
    collector = pytest.importorskip(
        "opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc", reason="needs the extra otlp"
    )
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

    received: list[Any] = []

    class Collector(collector.TraceServiceServicer):  # type: ignore[name-defined,misc]
        async def Export(self, request: Any, context: Any) -> Any:
            received.append(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    sink = grpc.aio.server()
    collector.add_TraceServiceServicer_to_server(Collector(), sink)
    port = sink.add_insecure_port("127.0.0.1:0")
    await sink.start()
    tracing.configure("audit", f"http://127.0.0.1:{port}")
    try:
        async with serve() as running:
            await running.stub().GetCheckpoint(audit_pb2.GetCheckpointRequest())
            with pytest.raises(grpc.RpcError):
                await running.stub().GetEntry(audit_pb2.GetEntryRequest())
        await asyncio.to_thread(tracing.shutdown)
    finally:
        await sink.stop(0)
        tracing.configure("test")
    spans = [
        span
        for request in received
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    by_name = {(span.name, span.kind): span for span in spans}
    server, client = 2, 3  # Span.SpanKind of OTLP
    method = f"{AUDIT}/GetCheckpoint"
    assert by_name[method, server].parent_span_id == by_name[method, client].span_id
    assert by_name[f"{AUDIT}/GetEntry", server].status.code == 2  # STATUS_CODE_ERROR
    assert CANARY.encode() not in b"".join(request.SerializeToString() for request in received)


# Several processes of one service


async def test_calls_to_a_name_of_several_processes_are_spread_over_all_of_them_and_one_that_ends_is_left_out(
    serve: Serve, pki_folder: Path
) -> None:
    async with serve() as one, serve() as other:
        address = f"ipv4:{one.server.address},{other.server.address}"
        async with rpc.channel(
            address, pki.Credentials.load(pki_folder, Identity.AUDITOR), server=Identity.AUDIT
        ) as to:
            stub = audit_pb2_grpc.AuditServiceStub(to)

            async def both_asked() -> bool:
                await stub.GetCheckpoint(audit_pb2.GetCheckpointRequest())
                return bool(one.audit.seen and other.audit.seen)

            await eventually(both_asked)
            other.server.stop()
            await other.task
            one.audit.seen = {}
            for _ in range(8):  # an idempotent call that was under way to the other is tried again by the channel
                await stub.GetCheckpoint(audit_pb2.GetCheckpointRequest())
            assert one.audit.seen
