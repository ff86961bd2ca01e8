"""Mint what a cluster in containers needs before it starts: certificates, keys, database passwords, one folder a role.

Run once by an operator or by the `provision` container (`python -m shared.provision --root FOLDER`), and again to
renew certificates: what is valid is kept. Each role's folder is mounted into that role alone, so no service can read
another's secrets. The CA's key stays in `authority`, which no service mounts.
"""

import argparse
import ipaddress
import os
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared import keys, pki
from shared.errors import StepwedgeError
from shared.identity import Identity

SERVICE_USER = 10001
"""User and group of the service containers (deploy/Dockerfile)."""
POSTGRES_USER = 999
"""User of the official PostgreSQL image."""
PASSFILE = "pgpass"
"""libpq's password file, one line."""
POSTGRES_CERTIFICATE = "postgres.crt"
"""PostgreSQL's own certificate, which its clients trust and nothing else."""

KEYS_OF: Mapping[Identity, tuple[str, ...]] = MappingProxyType(
    {
        Identity.INGEST: (keys.PSEUDONYMS, keys.IDENTITY, keys.BLIND_INDEX),
        Identity.REDACTION: (keys.PSEUDONYMS,),
        Identity.INFERENCE: (keys.VERIFICATION,),  # that the release of its model is in the log
        Identity.AUDIT: (keys.SIGNING, keys.VERIFICATION),
        Identity.OPERATOR: (keys.VERIFICATION,),
        Identity.AUDITOR: (keys.VERIFICATION, keys.IDENTITY, keys.BLIND_INDEX),
        Identity.PACS: (),
        # Take identity.key away where the console shall show no auditor who a patient is.
        Identity.CONSOLE: (keys.VERIFICATION, keys.IDENTITY, keys.BLIND_INDEX),
    }
)
"""Which keys lie in whose folder."""

_ROTATED = frozenset({keys.SIGNING, keys.VERIFICATION})

DATABASES = (Identity.INGEST, Identity.AUDIT)
"""Services that keep state, each in a database of its own name."""


def provision(root: Path, *, names: Sequence[str] = ("localhost",), origin: str, postgres: str | None = None) -> None:
    """Make every role's folder below `root`.

    Parameters
    ----------
    root
        Below it come `authority`, `<role>/pki`, `<role>/keys`, and `postgres` where asked for.
    names
        DNS names and IP addresses under which services are reached, besides their own names.
    origin
        Name of the log.
    postgres
        Host name of the PostgreSQL server, to mint its certificate and passwords; None where there is none.
    """
    authority = root / "authority"
    service_names = [identity.value for identity in KEYS_OF]
    pki.create(authority / "pki", KEYS_OF, names=[*names, *service_names], development=False)
    keys.create(authority / "keys", origin=origin, development=False)
    if postgres is not None:
        _create_postgres_secrets(authority / "postgres", postgres)
    for role, wanted in KEYS_OF.items():
        for name in (pki.CA_CERTIFICATE, f"{role.value}.crt", f"{role.value}.key"):
            _hand_out(authority / "pki" / name, root / role.value / "pki", SERVICE_USER)
        (root / role.value / "keys").mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in wanted:
            if name in _ROTATED and (root / role.value / "keys" / name).exists():
                continue  # the log may have changed its key since: what lies here is newer than what was minted
            _hand_out(authority / "keys" / name, root / role.value / "keys", SERVICE_USER)
        _own(root / role.value, SERVICE_USER)
    _seed_audit_keys(authority / "keys", root / "data" / Identity.AUDIT.value)
    if postgres is not None:
        _hand_out_postgres_secrets(authority / "postgres", root, postgres)
    for volume in sorted((root / "data").glob("*")):
        _own(volume, SERVICE_USER)


def _seed_audit_keys(minted: Path, state: Path) -> None:
    """Lay the log's key into the volume of the log's state, where it is not: there the log may replace it."""
    if not state.is_dir():
        return
    for name in sorted(_ROTATED):
        if not (state / "keys" / name).exists():
            _hand_out(minted / name, state / "keys", SERVICE_USER)


def _hand_out(source: Path, folder: Path, user: int) -> None:
    """Copy one secret into a role's folder in one step, readable by that role alone."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = folder / f".{source.name}.{secrets.token_hex(8)}"
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(source.read_bytes())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / source.name)
    _own(folder, user)
    _own(folder / source.name, user)


def _own(path: Path, user: int) -> None:
    if os.geteuid() == 0:
        shutil.chown(path, user, user)


def _create_postgres_secrets(folder: Path, host: str) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in ("superuser", *(role.value for role in DATABASES)):
        keys.write_new(folder / f"{name}.password", secrets.token_urlsafe(32).encode(), 0o600)
    if (folder / POSTGRES_CERTIFICATE).exists():
        return
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=10))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general_name(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    keys.write_new(folder / "postgres.key", pem, 0o600)
    keys.write_new(folder / POSTGRES_CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _hand_out_postgres_secrets(source: Path, root: Path, host: str) -> None:
    for path in sorted(source.iterdir()):
        _hand_out(path, root / "postgres", POSTGRES_USER)
    for role in DATABASES:
        folder = root / role.value / "keys"
        password = (source / f"{role.value}.password").read_text("ascii")
        passfile = folder / PASSFILE
        passfile.unlink(missing_ok=True)
        keys.write_new(passfile, f"{host}:*:{role.value}:{role.value}:{password}\n".encode(), 0o600)
        _own(passfile, SERVICE_USER)
        _hand_out(source / POSTGRES_CERTIFICATE, folder, SERVICE_USER)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line; return 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m shared.provision", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder that gets one folder a role")
    parser.add_argument(
        "--name", action="append", default=[], help="DNS name or IP address that services are reached by"
    )
    parser.add_argument("--origin", default="stepwedge/audit", help="name of the log in its checkpoints")
    parser.add_argument(
        "--postgres", nargs="?", const="postgres", help="also for a PostgreSQL server of this host name"
    )
    given = parser.parse_args(arguments)
    try:
        provision(given.root, names=given.name or ["localhost"], origin=given.origin, postgres=given.postgres)
    except StepwedgeError as error:
        sys.stderr.write(f"error {error.name}: {error.message}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"error FILE: {error.strerror}: {error.filename}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
