"""C2SP tlog-cosignature, version 1 with Ed25519: what a witness says about a checkpoint, and when."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.transparency.note import (
    BadSignatureError,
    MalformedNoteError,
    Note,
    Signature,
    checked_name,
    decode_base64,
    key_id,
)

COSIGNATURE = 0x04
"""Signature type of a time-stamped Ed25519 cosignature."""

MAX_TIME = 2**63 - 1
"""Latest time that a cosignature may bear, seconds since 1970."""

_SIGNER = "PRIVATE+KEY+"
_TIME_BYTES = 8
_SIGNATURE_BYTES = 64


def message(text: str, seconds: int) -> bytes:
    """What is signed: two lines of header, then the whole text of the checkpoint (tlog-cosignature, Ed25519)."""
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


@dataclass(frozen=True)
class WitnessKey:
    """A witness's public key with its name; as text "name+hash+key"."""

    name: str
    public: bytes
    """32 bytes (RFC 8032)."""

    @property
    def id(self) -> bytes:
        """The four bytes that stand before a cosignature."""
        return key_id(self.name, bytes([COSIGNATURE]) + self.public)

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(bytes([COSIGNATURE]) + self.public).decode()}"

    @classmethod
    def parse(cls, text: str) -> "WitnessKey":
        """Read "name+hash+key". Raises MalformedNoteError."""
        parts = text.strip("\n").split("+", 2)
        if len(parts) != 3:
            raise MalformedNoteError("a witness's key has the form name+hash+key")
        name, digest, encoded = parts
        key = decode_base64(encoded)
        if len(key) != 33 or key[0] != COSIGNATURE:
            raise MalformedNoteError("not the key of a witness (Ed25519, type 4)")
        result = cls(checked_name(name), key[1:])
        if result.id.hex() != digest:
            raise MalformedNoteError("the hash of the witness's key does not match it")
        return result

    def time_of(self, text: str, signature: Signature) -> int:
        """When this key cosigned the text, seconds since 1970. Raises BadSignatureError where it did not."""
        if (signature.name, signature.key_id) != (self.name, self.id):
            raise BadSignatureError("the cosignature is of another key")
        data = signature.signature
        if len(data) != _TIME_BYTES + _SIGNATURE_BYTES:
            raise BadSignatureError("the cosignature has not the length of one")
        seconds = int.from_bytes(data[:_TIME_BYTES], "big")
        if seconds > MAX_TIME:
            raise BadSignatureError("the time of the cosignature is beyond what it may be")
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(data[_TIME_BYTES:], message(text, seconds))
        except (InvalidSignature, ValueError):
            raise BadSignatureError("the cosignature does not verify") from None
        return seconds


class Cosigner:
    """A witness's private key."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.key = WitnessKey(checked_name(name), key.public_key().public_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> "Cosigner":
        """Read "PRIVATE+KEY+name+hash+key". Raises MalformedNoteError; the message holds nothing of the key."""
        if not text.startswith(_SIGNER):
            raise MalformedNoteError("not the private key of a witness")
        parts = text.removeprefix(_SIGNER).rstrip("\n").split("+", 2)
        if len(parts) != 3:
            raise MalformedNoteError("the private key of a witness has the form PRIVATE+KEY+name+hash+key")
        seed = decode_base64(parts[2])
        if len(seed) != 33 or seed[0] != COSIGNATURE:
            raise MalformedNoteError("not the private key of a witness (Ed25519, type 4)")
        result = cls(parts[0], Ed25519PrivateKey.from_private_bytes(seed[1:]))
        if result.key.id.hex() != parts[1]:
            raise MalformedNoteError("the hash of the private key does not match it")
        return result

    def secret(self) -> str:
        """The private key as text, "PRIVATE+KEY+name+hash+key"."""
        seed = base64.b64encode(bytes([COSIGNATURE]) + self._key.private_bytes_raw()).decode()
        return f"{_SIGNER}{self.key.name}+{self.key.id.hex()}+{seed}"

    def cosign(self, text: str, seconds: int) -> Signature:
        """Say that at this time the checkpoint was the newest, consistent one. Raises ValueError for no such time."""
        if not 0 <= seconds <= MAX_TIME:
            raise ValueError("a cosignature cannot bear this time")
        stamped = seconds.to_bytes(_TIME_BYTES, "big") + self._key.sign(message(text, seconds))
        return Signature(self.key.name, self.key.id, stamped)


def cosigners(note: Note, keys: Iterable[WitnessKey]) -> dict[bytes, int]:
    """Public keys of the given witnesses that cosigned a note, with the time; a key counts once under any name.

    A cosignature that does not verify does not count: what a witness says wrongly is not said.
    """
    found: dict[bytes, int] = {}
    known = {(key.name, key.id): key for key in keys}
    for signature in note.signatures:
        key = known.get((signature.name, signature.key_id))
        if key is None:
            continue
        try:
            found[key.public] = key.time_of(note.text, signature)
        except BadSignatureError:
            continue
    return found
