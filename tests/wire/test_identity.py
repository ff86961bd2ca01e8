"""Who a certificate says one is, on a real connection: one SPIFFE ID of this cluster, and nothing that looks alike."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared import pki, rpc
from shared.errors import from_rpc
from shared.health import Health
from shared.identity import Identity
from shared.settings import Settings

URI, DNS = x509.UniformResourceIdentifier, x509.DNSName


def _mint(pki_folder: Path, to: Path, names: list[x509.GeneralName], *, server: bool = False, days: int = 1) -> Any:
    """A certificate of the cluster's real CA with these names."""
    ca = x509.load_pem_x509_certificate((pki_folder / "ca.crt").read_bytes())
    ca_key: Any = serialization.load_pem_private_key((pki_folder / "ca.key").read_bytes(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "auditor")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=3))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(ca_key, hashes.SHA256())
    (to / "c.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (to / "c.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pki.Credentials(pki_folder / "ca.crt", to / "c.crt", to / "c.key")


@pytest.fixture
def ask(make_settings: Callable[[str], Settings]) -> Any:
    @asynccontextmanager
    async def served() -> AsyncIterator[rpc.Server]:
        server = rpc.Server(Identity.AUDIT, make_settings(""), Health())
        ready = asyncio.Event()
        task = asyncio.create_task(server.run(on_ready=ready.set))
        await asyncio.wait_for(ready.wait(), 10)
        yield server
        server.stop()
        await asyncio.wait_for(task, 10)

    async def asked(credentials: pki.Credentials) -> str:
        """The name of the error that a health check of this client gets, or "OK"."""
        async with served() as server, rpc.channel(server.address, credentials, server=Identity.AUDIT) as channel:
            call = channel.unary_unary("/grpc.health.v1.Health/Check", None, None)
            try:
                await call(b"", timeout=5)
            except grpc.RpcError as error:
                return from_rpc(error).name
            return "OK"

    return asked


async def test_each_identity_of_the_cluster_is_known(ask: Any, pki_folder: Path) -> None:
    for who in (Identity.PACS, Identity.AUDITOR, Identity.INGEST):
        assert await ask(pki.Credentials.load(pki_folder, who)) == "OK"


@pytest.mark.parametrize(
    "names",
    [
        [],
        [DNS("auditor.stepwedge")],
        [DNS("spiffe://stepwedge/auditor")],
        [URI("spiffe://elsewhere/auditor")],
        [URI("spiffe://stepwedge/nobody")],
        [URI("spiffe://stepwedge/auditor/more")],
        [URI("spiffe://stepwedge/")],
        [URI("https://stepwedge/auditor")],
        [URI("SPIFFE://STEPWEDGE/AUDITOR")],
        [URI("spiffe://stepwedge/auditor"), URI("spiffe://stepwedge/operator")],
        [URI("https://example.org/"), URI("spiffe://stepwedge/auditor")],
    ],
    ids=str,
)
async def test_a_certificate_of_our_ca_that_does_not_name_exactly_one_identity_is_unauthenticated(
    ask: Any, pki_folder: Path, tmp_path: Path, names: list[x509.GeneralName]
) -> None:
    assert await ask(_mint(pki_folder, tmp_path, names)) == "UNAUTHENTICATED"


async def test_a_certificate_that_has_expired_or_is_for_servers_only_opens_no_connection(
    ask: Any, pki_folder: Path, tmp_path: Path
) -> None:
    auditor = [URI(Identity.AUDITOR.uri)]
    assert await ask(_mint(pki_folder, tmp_path, auditor)) == "OK"
    assert await ask(_mint(pki_folder, tmp_path, auditor, days=-1)) == "DEPENDENCY_UNAVAILABLE"
    assert await ask(_mint(pki_folder, tmp_path, auditor, server=True)) == "DEPENDENCY_UNAVAILABLE"
