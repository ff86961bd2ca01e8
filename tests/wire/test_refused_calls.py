"""Who calls what it may not is in the log: by the log itself and by a service, a flood as a few records."""

import asyncio
import hashlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from shared import pki, refusals, rpc
from shared.audit import Recorder
from shared.errors import ErrorCode, StepwedgeError, from_rpc
from shared.health import Health
from shared.identity import Identity
from shared.pki import Credentials
from shared.settings import Settings
from stepwedge.audit.v1 import audit_pb2
from stepwedge.inference.v1 import inference_pb2, inference_pb2_grpc
from tests.unit.audit.making import Producer
from tests.wire.test_audit import Running, start

DENIED = ErrorCode.ERROR_CODE_PERMISSION_DENIED


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


async def recorded(audit: Running) -> list[audit_pb2.Entry]:
    request = audit_pb2.QueryEntriesRequest(kind=audit_pb2.RECORD_KIND_REFUSED_CALL, page_size=1000)
    return list((await audit(Identity.AUDITOR).QueryEntries(request, timeout=10)).entries)


async def until(audit: Running, calls: int, seconds: float = 15.0) -> list[audit_pb2.Entry]:
    """The records, once they count so many calls."""
    deadline = time.monotonic() + seconds
    while True:
        found = await recorded(audit)
        if sum(entry.record.refused_call.count for entry in found) >= calls:
            return found
        assert time.monotonic() < deadline, "the refused calls are not in the log"
        await asyncio.sleep(0.05)


async def refused(call: Awaitable[Any]) -> ErrorCode.ValueType:
    with pytest.raises(grpc.RpcError) as raised:
        await call
    return from_rpc(raised.value).code


def fingerprint(credentials: Credentials) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(credentials.certificate.read_text())).hexdigest()


async def test_the_log_records_who_called_what_it_may_not(
    audit: Running, credentials: Callable[[Identity], Credentials]
) -> None:
    assert await refused(audit(Identity.PACS).GetEntry(audit_pb2.GetEntryRequest(index=0), timeout=10)) == DENIED
    (entry,) = await until(audit, 1)
    call = entry.record.refused_call
    assert (call.caller, call.method) == ("pacs", "stepwedge.audit.v1.AuditService/GetEntry")
    assert (call.error, call.count) == (DENIED, 1)
    assert call.certificate_sha256 == fingerprint(credentials(Identity.PACS))
    assert (entry.producer, entry.record.outcome) == ("audit", audit_pb2.EVENT_OUTCOME_SERIOUS_FAILURE)


async def test_a_record_of_another_s_act_is_recorded_as_a_refused_call(audit: Running) -> None:
    forged = Producer(Identity.INFERENCE).received(1)
    request = audit_pb2.AppendRequest(records=[forged])
    assert await refused(audit(Identity.INFERENCE).Append(request, timeout=10)) == DENIED
    (entry,) = await until(audit, 1)
    call = entry.record.refused_call
    assert (call.caller, call.method) == ("inference", "stepwedge.audit.v1.AuditService/Append")


async def test_a_flood_of_refused_calls_is_two_records_and_every_call_is_counted(
    audit: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "WINDOW_SECONDS", 3.0)
    stub = audit(Identity.PACS)
    codes = await asyncio.gather(
        *(refused(stub.GetEntry(audit_pb2.GetEntryRequest(index=0), timeout=30)) for _ in range(400))
    )
    assert set(codes) == {DENIED}
    found = await until(audit, 400)
    assert sum(entry.record.refused_call.count for entry in found) == 400
    assert len(found) <= 4
    # The last of them ended a window, and those before it were not held up by it.
    assert found[0].record.refused_call.count < 400


class Inference(inference_pb2_grpc.InferenceServiceServicer):
    """A service whose one method nobody but ingest may call."""

    async def AssessInstance(self, request: Any, context: Any) -> Any:
        return inference_pb2.AssessInstanceResponse()


@asynccontextmanager
async def service(
    settings: Settings, audit: Running | None, recorder: Any = None
) -> AsyncIterator[tuple[rpc.Server, Recorder]]:
    """A service of the cluster that records with the log, or with what is given."""
    server = rpc.Server(Identity.INFERENCE, settings, Health())
    name = "stepwedge.inference.v1.InferenceService"
    server.add(inference_pb2_grpc.add_InferenceServiceServicer_to_server, Inference(), name)
    made = recorder or Recorder(audit.channel(Identity.INFERENCE))  # type: ignore[union-attr]
    server.refusals.record_with(made)
    ready = asyncio.Event()
    task = asyncio.create_task(server.run(on_ready=ready.set))
    await asyncio.wait_for(ready.wait(), 20)
    try:
        yield server, made
    finally:
        server.stop()
        await task
        if recorder is None:
            await made.close()


def caller(server: rpc.Server, credentials: Credentials) -> tuple[grpc.aio.Channel, Any]:
    to = rpc.channel(server.address, credentials, server=Identity.INFERENCE)
    return to, inference_pb2_grpc.InferenceServiceStub(to)


async def test_a_service_records_in_the_log_whom_it_refused(
    settings: Settings, audit: Running, credentials: Callable[[Identity], Credentials]
) -> None:
    async with service(settings, audit) as (server, _):
        to, stub = caller(server, credentials(Identity.PACS))
        assert await refused(stub.AssessInstance(inference_pb2.AssessInstanceRequest(), timeout=10)) == DENIED
        (entry,) = await until(audit, 1)
        await to.close()
    call = entry.record.refused_call
    assert (entry.producer, call.caller) == ("inference", "pacs")
    assert call.method == "stepwedge.inference.v1.InferenceService/AssessInstance"


async def test_a_certificate_without_an_identity_is_recorded_by_its_digest(
    settings: Settings, audit: Running, tmp_path: Path, pki_folder: Path
) -> None:
    nobody = _nobody(pki_folder, tmp_path)
    async with service(settings, audit) as (server, _):
        ca, key, certificate = (pki_folder / "ca.crt").read_bytes(), nobody[1], nobody[0]
        to = grpc.aio.secure_channel(
            server.address,
            grpc.ssl_channel_credentials(ca, key, certificate),
            options=[("grpc.ssl_target_name_override", Identity.INFERENCE.host)],
        )
        stub = inference_pb2_grpc.InferenceServiceStub(to)
        code = await refused(stub.AssessInstance(inference_pb2.AssessInstanceRequest(), timeout=10))  # type: ignore[arg-type]
        assert code == ErrorCode.ERROR_CODE_UNAUTHENTICATED
        (entry,) = await until(audit, 1)
        await to.close()
    call = entry.record.refused_call
    assert (call.caller, call.error) == ("", ErrorCode.ERROR_CODE_UNAUTHENTICATED)
    assert call.certificate_sha256 == hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.decode())).hexdigest()


def _nobody(pki_folder: Path, folder: Path) -> tuple[bytes, bytes]:
    """A certificate of the cluster's CA with no name of the cluster in it, and its key."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    ca = x509.load_pem_x509_certificate((pki_folder / "ca.crt").read_bytes())
    ca_key = serialization.load_pem_private_key((pki_folder / "ca.key").read_bytes(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://elsewhere/x")]), True)
        .sign(ca_key, hashes.SHA256())  # type: ignore[arg-type]
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM), private


class Away:
    """A log that does not take records until it is let."""

    def __init__(self) -> None:
        self.taken: list[audit_pb2.RefusedCallEvent] = []
        self.back = False
        self.tried: list[str] = []

    async def record(self, *, key: str, outcome: Any, event: Any, occurred_at: Any = None) -> int:
        self.tried.append(key)
        if not self.back:
            raise StepwedgeError(ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE, "away")
        self.taken.append(event)
        return len(self.taken)


async def test_a_log_that_is_away_neither_holds_a_refusal_up_nor_loses_it(
    settings: Settings, credentials: Callable[[Identity], Credentials], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "_PAUSE_SECONDS", 0.05)
    away = Away()
    async with service(settings, None, away) as (server, _):
        to, stub = caller(server, credentials(Identity.PACS))
        began = time.monotonic()
        for _ in range(20):
            assert await refused(stub.AssessInstance(inference_pb2.AssessInstanceRequest(), timeout=10)) == DENIED
        assert time.monotonic() - began < 5
        assert away.taken == []
        away.back = True
        await to.close()
    # The process stopped meanwhile: what it had noted is recorded before it ends.
    assert sum(event.count for event in away.taken) == 20
    assert len({key for key in away.tried if away.tried.count(key) > 1}) <= 1, "tried again under the same key"


async def test_however_many_certificates_call_the_kinds_that_are_kept_are_bounded() -> None:
    class Context:
        def __init__(self, number: int) -> None:
            self._number = number

        def auth_context(self) -> dict[str, list[bytes]]:
            return {"x509_pem_cert": [str(self._number).encode()]}

    noted = refusals.Refusals()
    for number in range(10_000):
        noted.note(None, Context(number), "/stepwedge.audit.v1.AuditService/Append", DENIED)
    assert len(noted._counts) <= refusals._MOST + 1
    assert sum(one.count for one in noted._counts.values()) == 10_000


def test_the_certificates_of_the_tests_are_where_they_are_looked_for(pki_folder: Path) -> None:
    assert pki.Credentials.load(pki_folder, Identity.PACS).ca == pki_folder / "ca.crt"
