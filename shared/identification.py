"""What ties a record to a person: sealed so that the log cannot read it, and tokens that it can be found by.

Whoever sees identity (ingest) seals it under the identity key and hands the sealed bytes to the log beside the record.
The log puts a second seal around them, under a random key of the subject, and keeps only the digest in the record. To
read an identity one needs the log's consent (which is a record), the subject's key (which erasure destroys) and the
identity key (which the log does not have).

Sealed bytes: 32 random bytes (salt), then AES-256-GCM (NIST SP 800-38D) of the identity as JSON, padded to a
multiple of 256 bytes, under HKDF-SHA-256(identity key, salt); the salt makes each key single, so the nonce is zero. The
associated data bind pseudonym and idempotency key. Because of the salt the digest in the record commits to the identity
and says nothing of it, also to somebody who has the identity key and guesses.

A token is HMAC-SHA-256 of a normalised number under the key of the blind index, 16 bytes. Normalised: Unicode NFKC,
upper case, no white space; a number of digits alone without its leading zeros ("ACC 0012" is not "ACC 12", "0012" is
"12"). Who searches computes the token where the number is, so the number never reaches the log.
"""

import hmac
import json
import os
import unicodedata
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared import keys
from shared.errors import ErrorCode, StepwedgeError

FIELDS: Final = (
    *("patient_id", "issuer", "name", "birth_date", "sex", "accession_number"),
    *("study_instance_uid", "series_instance_uid", "sop_instance_uid"),
)
"""What an identity may hold; all text, as received."""

TOKEN_BYTES: Final = 16

_SALT_BYTES: Final = 32
_NONCE: Final = bytes(12)
_BLOCK: Final = 256
_LONGEST: Final = 256  # characters of one field; PS3.5 6.2 allows a name of three groups of 64


class Number(StrEnum):
    """What the blind index knows."""

    ACCESSION = "accession"
    PATIENT = "patient"
    STUDY = "study"
    """Study Instance UID as received."""


class Identities:
    """Seals and opens identities."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def load(cls, folder: Path) -> "Identities":
        """With the identity key of a keys folder; CONFIGURATION where it is absent or none."""
        return cls(keys.secret(folder, keys.IDENTITY))

    def seal(self, identity: Mapping[str, str], subject: str, key: str) -> bytes:
        """Seal an identity for the record with this subject and idempotency key; empty fields are left out."""
        kept = {name: identity[name][:_LONGEST] for name in FIELDS if identity.get(name)}
        data = json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()  # ASCII, whatever was received
        data += b" " * (-len(data) % _BLOCK)
        salt = os.urandom(_SALT_BYTES)
        return salt + AESGCM(self._derived(salt)).encrypt(_NONCE, data, _bound(subject, key))

    def open(self, sealed: bytes, subject: str, key: str) -> dict[str, str]:
        """The identity. Raises INVALID_REQUEST where it was sealed under another key or for another record."""
        salt = sealed[:_SALT_BYTES]
        try:
            data = AESGCM(self._derived(salt)).decrypt(_NONCE, sealed[_SALT_BYTES:], _bound(subject, key))
        except (InvalidTag, ValueError):
            message = "the identity was sealed under another key, or for another record"
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, message) from None
        return {str(name): str(value) for name, value in json.loads(data).items()}

    def _derived(self, salt: bytes) -> bytes:
        return HKDF(algorithm=SHA256(), length=32, salt=salt, info=b"stepwedge identity v1").derive(self._key)


class BlindIndex:
    """Makes the tokens that records are found by."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def load(cls, folder: Path) -> "BlindIndex":
        """With the key of a keys folder; CONFIGURATION where it is absent or none."""
        return cls(keys.secret(folder, keys.BLIND_INDEX))

    def token(self, kind: Number, value: str, issuer: str = "") -> bytes:
        """The token of a number, 16 bytes; with `issuer`, of a patient number of that issuer alone."""
        parts = (kind.value, normalised(value), normalised(issuer))
        framed = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
        return hmac.digest(self._key, framed, "sha256")[:TOKEN_BYTES]

    def tokens(self, identity: Mapping[str, str]) -> list[bytes]:
        """The tokens of an identity: of its numbers, and of the patient number with its issuer too."""
        return list(dict.fromkeys(self._tokens(identity)))

    def _tokens(self, identity: Mapping[str, str]) -> Iterable[bytes]:
        for kind, name in (
            (Number.ACCESSION, "accession_number"),
            (Number.PATIENT, "patient_id"),
            (Number.STUDY, "study_instance_uid"),
        ):
            if normalised(identity.get(name, "")):
                yield self.token(kind, identity[name])
        if identity.get("issuer") and normalised(identity.get("patient_id", "")):
            yield self.token(Number.PATIENT, identity["patient_id"], identity["issuer"])


def normalised(value: str) -> str:
    """The form in which numbers are compared."""
    text = "".join(unicodedata.normalize("NFKC", value).upper().split())
    return text.lstrip("0") or "0" if text.isascii() and text.isdigit() else text


def _bound(subject: str, key: str) -> bytes:
    return f"stepwedge identity v1\n{subject}\n{key}".encode()
