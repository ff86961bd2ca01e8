"""The secrets of a cluster that are not certificates: those of pseudonyms and identity, and the log's signing key.

`create` makes them on the first run of a development cluster; a service never makes any. What it made for development
is marked in the folder, and a production cluster refuses the mark.
"""

import base64
import hashlib
import os
import secrets
import stat
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.errors import ErrorCode, StepwedgeError

PSEUDONYMS = "pseudonyms.key"
"""32 random bytes in hexadecimal; ingest and redaction only."""
SIGNING = "audit-signing.key"
"""Ed25519 private key, PEM PKCS #8; audit only."""
VERIFICATION = "audit.vkey"
"""The log's public key in the form of C2SP signed-note: "<name>+<hash>+<key>"."""
IDENTITY = "identity.key"
"""32 random bytes in hexadecimal: seals identities; ingest, the auditor and the console only, never the log."""
BLIND_INDEX = "blind-index.key"
"""32 random bytes in hexadecimal: turns numbers into what the log is searched by; never the log."""
MASTER = "identity-master.key"
"""32 random bytes in hexadecimal: wraps the key of each subject; audit only, which makes it, and replaces it at every
erasure."""
_DEVELOPMENT_MARK = "DEVELOPMENT"

_ED25519 = b"\x01"  # C2SP signed-note, signature type


def create(folder: Path, *, origin: str = "stepwedge/audit", development: bool) -> None:
    """Make the keys that are absent in `folder` (0700; each key 0600); what is there is kept.

    Parameters
    ----------
    folder
        Where.
    origin
        Name of the log, as in its checkpoints.
    development
        Mark the folder, so that `settings.cluster.production` refuses it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if development and not (folder / PSEUDONYMS).exists() and not (folder / SIGNING).exists():
        write_new(folder / _DEVELOPMENT_MARK, b"made for development; production refuses this folder\n", 0o644)
    for name in (PSEUDONYMS, IDENTITY, BLIND_INDEX):
        write_new(folder / name, secrets.token_hex(32).encode() + b"\n", 0o600)
    if not (folder / SIGNING).exists():
        pem = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_new(folder / SIGNING, pem, 0o600)
    if not (folder / VERIFICATION).exists():
        # Else the signing key is not looked at: the log may have been stopped while it replaced it, and mends that.
        write_new(folder / VERIFICATION, (verification_key(signing_key(folder), origin) + "\n").encode(), 0o644)


def refuse_development(folder: Path, *, production: bool) -> None:
    """Raise CONFIGURATION where a production cluster would use keys made for development."""
    if production and (folder / _DEVELOPMENT_MARK).exists():
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_CONFIGURATION, "cluster.production is set, but the keys were made for development"
        )


def signing_key(folder: Path) -> Ed25519PrivateKey:
    """Return the log's signing key; CONFIGURATION where it is absent or none."""
    try:
        key = serialization.load_pem_private_key((folder / SIGNING).read_bytes(), password=None)
    except (OSError, ValueError):
        raise _unreadable(SIGNING) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _unreadable(SIGNING)
    return key


def pseudonym_secret(folder: Path) -> bytes:
    """Return the 32 bytes of the pseudonym key in use; CONFIGURATION where it is absent or none."""
    try:
        lines = (folder / PSEUDONYMS).read_text("ascii").split("\n")  # those behind the first were in use before
        secret = bytes.fromhex(lines[0].strip())
    except (OSError, ValueError):
        raise _unreadable(PSEUDONYMS) from None
    if len(secret) != 32:
        raise _unreadable(PSEUDONYMS)
    return secret


def secret(folder: Path, name: str) -> bytes:
    """Return the 32 bytes of a key in hexadecimal; CONFIGURATION where it is absent, none, or open to everybody."""
    try:
        with (folder / name).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            key = bytes.fromhex(file.read(4096).decode("ascii").strip())
    except (OSError, ValueError):
        raise _unreadable(name) from None
    if len(key) != 32:
        raise _unreadable(name)
    if stat.S_IMODE(mode) & 0o007:
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, f"the key {name} is readable by everybody")
    return key


def verification_key(key: Ed25519PrivateKey, origin: str) -> str:
    """Return the public half of `key` as C2SP signed-note writes it: "<name>+<hash>+<key>".

    The hash is the first four bytes of SHA-256(name, newline, type, public key), in hexadecimal.
    """
    public = _ED25519 + key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    key_id = hashlib.sha256(origin.encode() + b"\n" + public).hexdigest()[:8]
    return f"{origin}+{key_id}+{base64.b64encode(public).decode()}"


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Write `data` to `path` durably and all at once, unless there is a file already."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)


def _unreadable(name: str) -> StepwedgeError:
    return StepwedgeError(
        ErrorCode.ERROR_CODE_CONFIGURATION, f"the key {name} is absent or unreadable; `stepwedge up` makes it"
    )
