"""Names that stand for people and objects: derived by key, the same within a key, unlinkable without it.

One 32-byte key; HKDF-SHA-256 (RFC 5869) makes a key for each purpose from it, HMAC-SHA-256 makes each pseudonym. A
pseudonym of a UID or of a person carries a short keyed check of itself, so that what we issued is known again and maps
to itself: redacting a redacted object changes nothing. Without the key a pseudonym looks random, and two keys share
nothing. Whoever destroys the key has cut every link.
"""

from __future__ import annotations

import base64
import hmac
import os
import re
import stat
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.errors import ErrorCode, StepwedgeError

KEY_BYTES: Final = 32
UID_ROOT: Final = "2.25."
SUBJECT_PREFIX: Final = "SW-"

_SALT: Final = b"stepwedge pseudonyms v1"
_PURPOSES: Final = ("uid", "uid-check", "subject", "subject-check", "text", "date-shift", "commitment")
_CHECK_BITS: Final = 40
_BODY_BITS: Final = 122 - _CHECK_BITS
_OURS: Final = re.compile(r"2\.25\.[1-9][0-9]{22,38}")
_SUBJECT: Final = re.compile(r"SW-[A-Z2-7]{24}")
_SUBJECT_BODY: Final = 10
_SUBJECT_CHECK: Final = 5
_SHIFT_DAYS: Final = 3652  # ten years


class Pseudonyms:
    """Every pseudonym under one key. Equal input gives equal output, in any process, in any order."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, f"the pseudonym key is not {KEY_BYTES} bytes")
        self._keys = {purpose: _derive(key, purpose) for purpose in _PURPOSES}
        self._uid = lru_cache(maxsize=65536)(self._make_uid)

    @classmethod
    def load(cls, path: Path) -> Pseudonyms:
        """From a file that holds the key as 64 hexadecimal digits and that nobody else may read; CONFIGURATION else."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:  # noqa: PTH123 - the descriptor that was checked
                mode = os.fstat(file.fileno()).st_mode
                text = file.read(4 * KEY_BYTES)
        except OSError:
            raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "the pseudonym key cannot be read") from None
        if stat.S_IMODE(mode) & 0o007:
            raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "the pseudonym key is readable by everybody")
        try:
            key = bytes.fromhex(text.decode("ascii").strip())
        except ValueError:
            raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "the pseudonym key is not hexadecimal") from None
        return cls(key)

    def uid(self, uid: str) -> str:
        """A UID for a UID: `2.25.` and a UUID of version 8 (PS3.5 B.2, RFC 9562 5.8) as a decimal number.

        82 bits name, 40 bits are a keyed check. A UID that we issued under this key is returned as it is; that another
        root's UID is taken for ours by chance has a probability of 2^-40.
        """
        return self._uid(uid)

    def is_ours(self, uid: str) -> bool:
        """Whether this key issued the UID."""
        if not _OURS.fullmatch(uid):
            return False
        number = int(uid[len(UID_ROOT) :])
        if number >> 128 or (number >> 76) & 0xF != 8 or (number >> 62) & 0b11 != 0b10:
            return False
        bits = ((number >> 80) << 74) | (((number >> 64) & 0xFFF) << 62) | (number & ((1 << 62) - 1))
        body = bits >> _CHECK_BITS
        return hmac.compare_digest(
            self._check(body).to_bytes(5, "big"), (bits & ((1 << _CHECK_BITS) - 1)).to_bytes(5, "big")
        )

    def _make_uid(self, uid: str) -> str:
        if self.is_ours(uid):
            return uid
        body = int.from_bytes(self._mac("uid", uid.encode())[:16], "big") >> (128 - _BODY_BITS)
        bits = (body << _CHECK_BITS) | self._check(body)
        number = (
            ((bits >> 74) << 80) | (8 << 76) | (((bits >> 62) & 0xFFF) << 64) | (0b10 << 62) | (bits & ((1 << 62) - 1))
        )
        return f"{UID_ROOT}{number}"

    def _check(self, body: int) -> int:
        return int.from_bytes(self._mac("uid-check", body.to_bytes(11, "big"))[:5], "big")

    def subject(self, patient_id: str, issuer: str = "") -> str:
        """A person: `SW-` and 24 letters or digits. A pseudonym that this key issued is returned as it is.

        An empty Patient ID names nobody: all such objects share one pseudonym of the issuer.
        """
        if self.is_subject(patient_id):
            return patient_id
        body = self._mac("subject", _frame(issuer, patient_id))[:_SUBJECT_BODY]
        return SUBJECT_PREFIX + base64.b32encode(body + self._mac("subject-check", body)[:_SUBJECT_CHECK]).decode()

    def is_subject(self, text: str) -> bool:
        """Whether this key issued the pseudonym of a person."""
        if not _SUBJECT.fullmatch(text):
            return False
        raw = base64.b32decode(text[len(SUBJECT_PREFIX) :])
        body, check = raw[:_SUBJECT_BODY], raw[_SUBJECT_BODY:]
        return hmac.compare_digest(self._mac("subject-check", body)[:_SUBJECT_CHECK], check)

    def text(self, kind: str, value: str) -> str:
        """A short pseudonym, 16 letters or digits, of a value of some kind ("station", "accession")."""
        return base64.b32encode(self._mac("text", _frame(kind, value))[:10]).decode()

    def date_shift_days(self, subject_key: str) -> int:
        """Days to move every date of a person by: never 0, at most ten years either way."""
        number = int.from_bytes(self._mac("date-shift", subject_key.encode())[:8], "big") % (2 * _SHIFT_DAYS)
        return number - _SHIFT_DAYS if number < _SHIFT_DAYS else number - _SHIFT_DAYS + 1

    def commitment(self, sha256_hex: str) -> str:
        """A salted commitment to a digest: it binds us to the object and links it to nothing (PS3.15 E.3.9)."""
        return self._mac("commitment", sha256_hex.encode()).hex()

    def _mac(self, purpose: str, message: bytes) -> bytes:
        return hmac.digest(self._keys[purpose], message, "sha256")


def _derive(key: bytes, purpose: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=sha256().digest_size, salt=_SALT, info=purpose.encode()).derive(key)


def _frame(*parts: str) -> bytes:
    """The parts with their lengths, so that ("ab", "c") and ("a", "bc") differ."""
    return b"".join(len(raw).to_bytes(4, "big") + raw for raw in (part.encode() for part in parts))
