"""The file of the log's signing key, and how another takes its place: made beside it, used, and only then put there.

At every moment the folder holds the key that the log's database names as its newest, under the one name or the other,
so that a rotation that breaks off anywhere is finished, or forgotten, at the next start.
"""

import fcntl
import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared import keys, logs
from shared.errors import ErrorCode, StepwedgeError
from shared.transparency.note import MalformedNoteError, Signer

NEXT = "audit-signing.key.next"
"""A key that may be about to sign; beside `shared.keys.SIGNING`."""

_logger = logs.get_logger(__name__)


def signer(folder: Path, origin: str, newest: str | None) -> Signer:
    """The signer of the log, where `newest` is the key that its database names; a rotation is brought to its end.

    A next key that the database does not name is left: another process may be about to use it.

    Raises CONFIGURATION where the key is absent or none.
    """
    following = _load(folder / NEXT, origin)
    if following is not None and newest == str(following.key):
        take_over(folder, following)
        _logger.warning("a rotation of the signing key that broke off was brought to its end")
        return following
    return Signer(origin, keys.signing_key(folder))


def make_next(folder: Path, origin: str) -> Signer:
    """Make the key that is to sign next. Raises CONFIGURATION where the folder cannot be written."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        for name in (keys.SIGNING, keys.VERIFICATION):
            with (folder / name).open("r+b"):
                pass  # both will be written: better told now than when the new key signs
        if (folder / NEXT).exists():
            _destroy(folder / NEXT)
        keys.write_new(folder / NEXT, pem, 0o600)
    except OSError:
        message = "the folder of the keys cannot be written: run the audit service with it writable to rotate its key"
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, message) from None
    return Signer(origin, key)


def take_over(folder: Path, following: Signer) -> None:
    """Put the next key in the place of the old one, whose bytes are overwritten, and add it to the public file.

    Raises OSError; what is not done is done at the next start.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # a process that starts now may want to do the same
        lines = (folder / keys.VERIFICATION).read_text("ascii").splitlines()
        if str(following.key) not in lines:
            _write(folder / keys.VERIFICATION, "".join(f"{line}\n" for line in [*lines, str(following.key)]).encode())
        if (folder / NEXT).exists():
            _overwrite(folder / keys.SIGNING)
            (folder / NEXT).replace(folder / keys.SIGNING)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _load(file: Path, origin: str) -> Signer | None:
    try:
        return Signer.load(file.read_bytes(), origin)
    except FileNotFoundError:
        return None
    except (OSError, MalformedNoteError):
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, f"the key {NEXT} cannot be read") from None


def _overwrite(file: Path) -> None:
    """Overwrite a key's bytes where they lie. On storage that writes elsewhere this reaches no older copy."""
    descriptor = os.open(file, os.O_WRONLY)
    try:
        os.pwrite(descriptor, bytes(os.fstat(descriptor).st_size), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _destroy(file: Path) -> None:
    _overwrite(file)
    file.unlink()


def _write(file: Path, data: bytes) -> None:
    temporary = file.with_name(f".{file.name}.new")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.chmod(0o644)
    temporary.replace(file)
