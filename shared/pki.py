"""Certificates of a cluster: one CA, and for each identity one certificate that names it.

An identity stands in the URI subject alternative name (a SPIFFE ID). The certificate of a service also holds the DNS
name `<identity>.stepwedge`, by which TLS itself tells one service from another, and the names under which it is
reached. A site with a PKI of its own writes the same files.
"""

import fcntl
import ipaddress
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.errors import ErrorCode, StepwedgeError
from shared.identity import SERVICES, Identity

CA_CERTIFICATE = "ca.crt"
CA_KEY = "ca.key"
DEVELOPMENT_ORGANIZATION = "Stepwedge development"
"""Organization of a CA that production refuses."""
ORGANIZATION = "Stepwedge"

_CA_DAYS = 3650
_LEAF_DAYS = 397
_RENEWED_BEFORE = timedelta(days=30)
_BACKDATED = timedelta(minutes=10)  # clocks of the machines differ
_SERVERS = frozenset({*SERVICES, Identity.CONSOLE})


@dataclass(frozen=True)
class Credentials:
    """Where the three files lie that an identity proves itself with."""

    ca: Path
    """Certificate of the cluster's CA."""
    certificate: Path
    """Certificate of this identity."""
    key: Path
    """Its private key."""

    @classmethod
    def load(cls, folder: Path, identity: Identity) -> "Credentials":
        """Return the credentials of `identity` in `folder`; CONFIGURATION where they will not do."""
        found = cls(folder / CA_CERTIFICATE, folder / f"{identity.value}.crt", folder / f"{identity.value}.key")
        _, _, key = found.read()
        _certificate(found.ca)
        certificate = _certificate(found.certificate)
        if not _names(certificate, identity):
            raise _configuration(f"{found.certificate.name} does not name the identity {identity.value}")
        if not certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc:
            raise _configuration(f"{found.certificate.name} has expired or is not valid yet")
        if _public_key(key) != certificate.public_key():
            raise _configuration(f"{found.key.name} is not the key of {found.certificate.name}")
        return found

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Return the CA's certificate, our certificate and our key, each as PEM; CONFIGURATION where one is absent."""
        contents = []
        for path in (self.ca, self.certificate, self.key):
            try:
                contents.append(path.read_bytes())
            except OSError:
                raise _configuration(
                    f"{path.name} is absent from the PKI folder or unreadable; `stepwedge up` makes it"
                ) from None
        return contents[0], contents[1], contents[2]

    def development(self) -> bool:
        """Say whether the CA is one that was made for development."""
        return _is_development(_certificate(self.ca))


def refuse_development(credentials: Credentials, *, production: bool) -> None:
    """Raise CONFIGURATION where a production cluster would trust a CA made for development."""
    if production and credentials.development():
        raise _configuration("cluster.production is set, but the CA was made for development")


def create(
    folder: Path, identities: Iterable[Identity], *, names: Sequence[str] = ("localhost",), development: bool
) -> None:
    """Make the CA and the certificates that are absent, about to expire or wrong in `folder`; keep what is valid.

    Parameters
    ----------
    folder
        Where; made where absent.
    identities
        Whose certificates there are to be.
    names
        DNS names and IP addresses under which services are reached; 127.0.0.1 and ::1 are always among them.
    development
        Whether the CA is one for development, which says so in its subject.

    Raises
    ------
    StepwedgeError
        CONFIGURATION where something must be minted and the CA's key is not there, or the CA is of the other kind.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o750)
    with _one_at_a_time(folder):
        ca = _existing_ca(folder, development) or _create_ca(folder, development)
        for identity in identities:
            if not _is_good(folder, identity, names, ca):
                _mint(folder, identity, names, ca)


def _configuration(message: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, message)


def _existing_ca(folder: Path, development: bool) -> x509.Certificate | None:
    path = folder / CA_CERTIFICATE
    if not path.exists():
        return None
    ca = _certificate(path)
    if _is_development(ca) != development:
        raise _configuration("the PKI folder holds a CA of the other kind (development or production)")
    if ca.not_valid_after_utc < datetime.now(UTC) + _RENEWED_BEFORE:
        raise _configuration("the certificate of the CA has expired or is about to; replace the PKI folder")
    return ca


def _create_ca(folder: Path, development: bool) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    organization = DEVELOPMENT_ORGANIZATION if development else ORGANIZATION
    subject = _subject(organization, f"{organization} CA {secrets.token_hex(4)}")
    now = datetime.now(UTC)
    certificate = (
        _builder(subject, subject, key.public_key(), now, _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(folder / CA_KEY, _pem_of_key(key), 0o600)
    _write(folder / CA_CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return certificate


def _mint(folder: Path, identity: Identity, names: Sequence[str], ca: x509.Certificate) -> None:
    ca_key = _key(folder / CA_KEY)
    if ca_key is None or ca_key.public_key() != ca.public_key():
        raise _configuration(f"a certificate for {identity.value} must be minted, and the CA's key is not there")
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if identity in _SERVERS:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    certificate = (
        _builder(_subject(ORGANIZATION, identity.value), ca.subject, key.public_key(), datetime.now(UTC), _LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(identity, names)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    _write(folder / f"{identity.value}.key", _pem_of_key(key), 0o600)
    _write(folder / f"{identity.value}.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _is_good(folder: Path, identity: Identity, names: Sequence[str], ca: x509.Certificate) -> bool:
    """Say whether there is a certificate of `ca` for `identity` with these names, its key, and time left."""
    path, key = folder / f"{identity.value}.crt", _key(folder / f"{identity.value}.key")
    if key is None or not path.exists():
        return False
    certificate = _certificate(path)
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        key.public_key() == certificate.public_key()
        and certificate.not_valid_after_utc > datetime.now(UTC) + _RENEWED_BEFORE
        and set(_alternative_names(identity, names)) <= set(found)
    )


def _alternative_names(identity: Identity, names: Sequence[str]) -> list[x509.GeneralName]:
    result: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
    if identity in _SERVERS:
        for name in dict.fromkeys((identity.host, "localhost", "127.0.0.1", "::1", *names)):
            try:
                result.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                result.append(x509.DNSName(name))
    return result


def _names(certificate: x509.Certificate, identity: Identity) -> bool:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return found.get_values_for_type(x509.UniformResourceIdentifier) == [identity.uri]


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _subject(organization: str, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _is_development(ca: x509.Certificate) -> bool:
    return any(
        attribute.value == DEVELOPMENT_ORGANIZATION
        for attribute in ca.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    )


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        raise _configuration(f"{path.name} in the PKI folder is not a certificate") from None


def _public_key(pem: bytes) -> object:
    """Return the public half of a private key of any kind; None where it is none. A site's own PKI may use RSA."""
    try:
        return serialization.load_pem_private_key(pem, password=None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def _key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Put `data` in place of `path` in one step."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
