"""The keys and certificates of a cluster: named by what tells nothing of them, and sealed under a passphrase."""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from shared import keys
from shared.errors import ErrorCode, StepwedgeError

if TYPE_CHECKING:
    from shared.settings import Settings

FORMAT = "stepwedge.keys/1"
_COST = {"n": 1 << 17, "r": 8, "p": 1}  # RFC 7914; 128 MiB and some tenths of a second for each guess
_NONCE_BYTES = 12
_LEAST_SALT = 16


@dataclass(frozen=True)
class KeyArchive:
    """Files of secrets by their place: `keys/<name>` and `pki/<name>`."""

    files: Mapping[str, bytes]

    @classmethod
    def of(cls, settings: Settings) -> KeyArchive:
        """Of a cluster's settings, without the key that must be kept apart."""
        found: dict[str, bytes] = {}
        for place, folder in (
            ("pki", settings.cluster.pki),
            ("keys", settings.cluster.keys),
            ("keys", settings.audit.keys),
        ):
            if not folder.is_dir():
                continue
            for file in sorted(folder.iterdir()):
                if file.is_file() and not file.name.startswith(".") and file.name != keys.MASTER:
                    found[f"{place}/{file.name}"] = file.read_bytes()
        return cls(found)

    def named(self) -> dict[str, str]:
        """A short name for the content of each file, by which it is known again and which tells nothing else of it."""
        return {
            place: hashlib.sha256(b"stepwedge backup\0" + data).hexdigest()[:16] for place, data in self.files.items()
        }

    def sealed(self, passphrase: bytes) -> bytes:
        """The files under a passphrase: one line of JSON, then AES-256-GCM over a tar archive; scrypt makes the key."""
        salt, nonce = secrets.token_bytes(_LEAST_SALT), secrets.token_bytes(_NONCE_BYTES)
        header = {"format": FORMAT, "salt": salt.hex(), "nonce": nonce.hex(), **_COST}
        line = json.dumps(header, sort_keys=True).encode() + b"\n"
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for place, data in self.files.items():
                member = tarfile.TarInfo(place)
                member.size, member.mode = len(data), 0o600
                archive.addfile(member, io.BytesIO(data))
        return line + AESGCM(_key(passphrase, salt)).encrypt(nonce, packed.getvalue(), line)

    @classmethod
    def opened(cls, data: bytes, passphrase: bytes) -> KeyArchive:
        """Of what `sealed` made. Raises INVALID_REQUEST for another passphrase or an altered archive."""
        line, _, sealed = data.partition(b"\n")
        try:
            header = json.loads(line)
            if header["format"] != FORMAT or {name: header[name] for name in _COST} != _COST:
                raise ValueError(header["format"])
            key = _key(passphrase, bytes.fromhex(header["salt"]))
            packed = AESGCM(key).decrypt(bytes.fromhex(header["nonce"]), sealed, line + b"\n")
        except (ValueError, KeyError, TypeError, InvalidTag):
            words = "the keys cannot be opened: another passphrase, or the file was altered"
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, words) from None
        found: dict[str, bytes] = {}
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            for member in archive.getmembers():
                content = archive.extractfile(member)
                if content is not None:
                    found[member.name] = content.read()
        return cls(found)

    def put_back(self, settings: Settings) -> list[str]:
        """Write the files that are absent into the folders of the settings, for their owner alone; their places."""
        written = []
        for place, data in self.files.items():
            kind, _, name = place.partition("/")
            if Path(name).name != name or kind not in ("pki", "keys"):
                raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "a key of the archive has no proper name")
            folder = settings.cluster.pki if kind == "pki" else _home(settings, name)
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                continue
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            written.append(place)
        return written


def _home(settings: Settings, name: str) -> Path:
    return settings.audit.keys if name in (keys.SIGNING, keys.VERIFICATION) else settings.cluster.keys


def _key(passphrase: bytes, salt: bytes) -> bytes:
    if len(salt) < _LEAST_SALT:
        raise ValueError("salt")
    return Scrypt(salt=salt, length=32, **_COST).derive(passphrase)
