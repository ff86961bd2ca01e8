"""Names that stand for people and objects: derived by key, the same within a key, unlinkable without it.

One 32-byte key; HKDF-SHA-256 (RFC 5869) makes a key for each purpose from it, HMAC-SHA-256 makes each pseudonym. A
pseudonym of a UID or of a person carries a short keyed check of itself, so that what we issued is known again and maps
to itself: redacting a redacted object changes nothing. Without the key a pseudonym looks random, and two keys share
nothing; a project gets a key of its own from the same secret. Whoever destroys the key has cut every link.

The key file holds one key a line, 64 hexadecimal digits: the first is used, the others were used before and are known
still (`shared.pseudonym_keys` rotates and destroys them).
"""

from __future__ import annotations

import base64
import hmac
import os
import re
import stat
from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.date_shift import MOST_DAYS, DateShift
from shared.errors import ErrorCode, StepwedgeError

KEY_BYTES: Final = 32
UID_ROOT: Final = "2.25."
SUBJECT_PREFIX: Final = "SW-"
DESTROYED: Final = "destroyed "
"""How a line of the key file begins that remembers a key by its id alone."""

_SALT: Final = b"stepwedge pseudonyms v1"
_PURPOSES: Final = (
    "uid", "uid-check", "subject", "subject-check", "text", "date-shift", "commitment", "key-id",
    "label", "label-check",
)  # fmt: skip
_MOST_OF_A_FILE: Final = 1 << 20
_CHECK_BITS: Final = 40
_BODY_BITS: Final = 122 - _CHECK_BITS
_OURS: Final = re.compile(r"2\.25\.[1-9][0-9]{22,38}")
_SUBJECT: Final = re.compile(r"SW-[A-Z2-7]{24}")
_LABEL: Final = re.compile(r"[A-Z2-7]{16}")
_LABEL_BODY: Final = 6
_LABEL_CHECK: Final = 4
_SUBJECT_BODY: Final = 10
_SUBJECT_CHECK: Final = 5


class Pseudonyms:
    """Every pseudonym under one key. Equal input gives equal output, in any process, in any order."""

    def __init__(self, key: bytes, older: Sequence[bytes] = ()) -> None:
        """key: 32 bytes. older: keys used before; what they issued is known, and nothing new is issued under them."""
        if any(len(one) != KEY_BYTES for one in (key, *older)):
            raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, f"the pseudonym key is not {KEY_BYTES} bytes")
        self._secret = key
        self._keys = {purpose: _derive(key, purpose) for purpose in _PURPOSES}
        self._older = tuple(Pseudonyms(one) for one in older)
        self._uid = lru_cache(maxsize=65536)(self._make_uid)
        self._under = lru_cache(maxsize=None)(self._make_under)

    @classmethod
    def load(cls, path: Path, key_id: str = "") -> Pseudonyms:
        """From a key file that nobody else may read; CONFIGURATION else.

        key_id: issue under this key of the file instead of under its first; CONFIGURATION where it has none of that id.
        """
        keys = read_keys(path)
        if key_id:
            if all(key_id_of(key) != key_id for key in keys):
                words = "the file has no pseudonym key of that id, or it was destroyed"
                raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, words)
            keys.sort(key=lambda key: key_id_of(key) != key_id)  # stable: the chosen one first
        return cls(keys[0], keys[1:])

    def project(self, name: str) -> Pseudonyms:
        """The pseudonyms of a project; those of two projects cannot be linked. "" is the key as it stands."""
        if not name:
            return self
        info = _frame("project", name)
        older = [_expand(one._secret, info) for one in self._older]
        return Pseudonyms(_expand(self._secret, info), older)

    @property
    def rotated(self) -> bool:
        """Whether the file has retired keys."""
        return bool(self._older)

    def naming(self, uid: str, pseudonym: str) -> Pseudonyms:
        """The pseudonyms under which the UID once got this name: a retired key's, where the file has it still.

        Late images of a study get the names that the study has, whatever was rotated since. These pseudonyms
        themselves where nothing was named so, or `pseudonym` is empty.
        """
        if not pseudonym or self.uid(uid) == pseudonym:
            return self
        found = next((place for place, one in enumerate(self._older) if one.uid(uid) == pseudonym), None)
        return self if found is None else self._under(found)

    def _make_under(self, place: int) -> Pseudonyms:
        secrets = [one._secret for one in self._older]
        return Pseudonyms(secrets.pop(place), [self._secret, *secrets])

    @property
    def key_id(self) -> str:
        """The name of the key: 8 letters or digits, made from it and telling nothing of it."""
        return base64.b32encode(self._keys["key-id"][:5]).decode()

    def uid(self, uid: str) -> str:
        """A UID for a UID: `2.25.` and a UUID of version 8 (PS3.5 B.2, RFC 9562 5.8) as a decimal number.

        82 bits name, 40 bits are a keyed check. A UID that we issued under this key is returned as it is; that another
        root's UID is taken for ours by chance has a probability of 2^-40.
        """
        return self._uid(uid)

    def is_ours(self, uid: str) -> bool:
        """Whether this key, or an older one of its file, issued the UID."""
        if not _OURS.fullmatch(uid):
            return False
        return self._issued_uid(uid) or any(one._issued_uid(uid) for one in self._older)

    def _issued_uid(self, uid: str) -> bool:
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
        """Whether this key, or an older one of its file, issued the pseudonym of a person."""
        if not _SUBJECT.fullmatch(text):
            return False
        return self._issued_subject(text) or any(one._issued_subject(text) for one in self._older)

    def _issued_subject(self, text: str) -> bool:
        raw = base64.b32decode(text[len(SUBJECT_PREFIX) :])
        body, check = raw[:_SUBJECT_BODY], raw[_SUBJECT_BODY:]
        return hmac.compare_digest(self._mac("subject-check", body)[:_SUBJECT_CHECK], check)

    def text(self, kind: str, value: str) -> str:
        """A short pseudonym, 16 letters or digits, of a value of some kind ("station", "accession")."""
        return base64.b32encode(self._mac("text", _frame(kind, value))[:10]).decode()

    def label(self, kind: str, value: str) -> str:
        """As `text`, but a label that this key issued is returned as it is; fits an AE title."""
        if self.is_label(value):
            return value
        body = self._mac("label", _frame(kind, value))[:_LABEL_BODY]
        return base64.b32encode(body + self._mac("label-check", body)[:_LABEL_CHECK]).decode()

    def is_label(self, text: str) -> bool:
        """Whether this key, or an older one of its file, issued the label."""
        return self._issued_label(text) or any(one._issued_label(text) for one in self._older)

    def _issued_label(self, text: str) -> bool:
        if not _LABEL.fullmatch(text):
            return False
        raw = base64.b32decode(text)
        body, check = raw[:_LABEL_BODY], raw[_LABEL_BODY:]
        return hmac.compare_digest(self._mac("label-check", body)[:_LABEL_CHECK], check)

    def date_shift_days(self, subject_key: str) -> int:
        """Days to move every date of a person by: back by 1 to `MOST_DAYS` days, so below zero."""
        return -1 - int.from_bytes(self._mac("date-shift", subject_key.encode())[:8], "big") % MOST_DAYS

    def date_shift(self, subject_key: str, anchor: date | None, *, done: bool = False) -> DateShift:
        """How the dates of an object of this person move; anchor: see `shared.date_shift.anchor`."""
        return DateShift(self.date_shift_days(subject_key), anchor, done)

    def commitment(self, sha256_hex: str) -> str:
        """A salted commitment to a digest: it binds us to the object and links it to nothing (PS3.15 E.3.9)."""
        return self._mac("commitment", sha256_hex.encode()).hex()

    def _mac(self, purpose: str, message: bytes) -> bytes:
        return hmac.digest(self._keys[purpose], message, "sha256")


def read_keys(path: Path) -> list[bytes]:
    """The keys of a key file, the one in use first. Raises CONFIGURATION where it cannot be read, or by everybody."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - the descriptor that was checked
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_MOST_OF_A_FILE)
    except OSError:
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "the pseudonym key cannot be read") from None
    if stat.S_IMODE(mode) & 0o007:
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "the pseudonym key is readable by everybody")
    lines = [line.split("#")[0].strip() for line in text.decode("ascii", "replace").splitlines()]
    try:
        keys = [bytes.fromhex(line) for line in lines if line and not line.startswith(DESTROYED)]
    except ValueError:
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "the pseudonym key is not hexadecimal") from None
    if not keys:
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "there is no pseudonym key in its file")
    return keys


def key_id_of(key: bytes) -> str:
    """The id of a key, as `Pseudonyms.key_id`."""
    return Pseudonyms(key).key_id


def _derive(key: bytes, purpose: str) -> bytes:
    return _expand(key, purpose.encode())


def _expand(key: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=sha256().digest_size, salt=_SALT, info=info).derive(key)


def _frame(*parts: str) -> bytes:
    """The parts with their lengths, so that ("ab", "c") and ("a", "bc") differ."""
    return b"".join(len(raw).to_bytes(4, "big") + raw for raw in (part.encode() for part in parts))
