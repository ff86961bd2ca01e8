"""C2SP signed notes with Ed25519 keys, and the checkpoints (tlog-checkpoint) that they carry."""

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.transparency.merkle import HASH_SIZE

ED25519 = 0x01
"""Signature type of a plain Ed25519 signature over the note's text."""

MAX_NOTE = 64 * 1024
"""Longest note that is read, bytes."""

MAX_SIGNATURES = 64
"""Most signature lines that are read; the specification asks for at least 16."""

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_NAME = re.compile(r"[^\s+]{1,255}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_SIGNER = "PRIVATE+KEY+"


class MalformedNoteError(ValueError):
    """A note, key or checkpoint that is not in the one form that its specification allows."""


class BadSignatureError(ValueError):
    """A note that no trusted key signed, or whose signature by a trusted key does not verify."""


def key_id(name: str, key: bytes) -> bytes:
    """First four bytes of SHA-256(name || 0x0A || signature type || public key)."""
    return sha256(name.encode() + b"\n" + key).digest()[:4]


def decode_base64(text: str) -> bytes:
    """Decode standard base64; refuse what does not encode back to the same characters."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise MalformedNoteError("not base64") from error
    if base64.b64encode(data).decode() != text:
        raise MalformedNoteError("base64 that is not in canonical form")
    return data


def checked_name(name: str) -> str:
    """A key name that may stand in a note. Raises MalformedNoteError."""
    if not _NAME.fullmatch(name) or _CONTROL.search(name):
        raise MalformedNoteError("a key name is empty, too long, or holds a space or a plus")
    return name


@dataclass(frozen=True)
class VerificationKey:
    """A public key with the name that it signs under; as text "name+hash+key"."""

    name: str
    public: bytes
    """32 bytes (RFC 8032)."""

    @property
    def id(self) -> bytes:
        """The four bytes that stand before a signature."""
        return key_id(self.name, bytes([ED25519]) + self.public)

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(bytes([ED25519]) + self.public).decode()}"

    @classmethod
    def parse(cls, text: str) -> "VerificationKey":
        """Read "name+hash+key". Raises MalformedNoteError."""
        parts = text.strip("\n").split("+", 2)
        if len(parts) != 3:
            raise MalformedNoteError("a verification key has the form name+hash+key")
        name, digest, encoded = parts
        key = decode_base64(encoded)
        if len(key) != 33 or key[0] != ED25519:
            raise MalformedNoteError("not an Ed25519 verification key")
        result = cls(checked_name(name), key[1:])
        if result.id.hex() != digest:
            raise MalformedNoteError("the hash of the verification key does not match it")
        return result

    def verify(self, text: str, signature: bytes) -> bool:
        """Whether `signature` (64 bytes) is this key's over the text."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text.encode())
        except (InvalidSignature, ValueError):
            return False
        return True


class Signer:
    """A private key with the name that it signs under."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.key = VerificationKey(checked_name(name), key.public_key().public_bytes_raw())

    @classmethod
    def load(cls, data: bytes, name: str) -> "Signer":
        """Read a PEM PKCS#8 Ed25519 key, or a note signer "PRIVATE+KEY+name+hash+key" of this name.

        Raises MalformedNoteError; the message holds nothing of the key.
        """
        text = data.decode("ascii", errors="replace").strip()
        if text.startswith(_SIGNER):
            return cls._from_note_form(text, name)
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError) as error:
            raise MalformedNoteError("the signing key is neither PEM PKCS#8 nor a note signer") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise MalformedNoteError("the signing key is not an Ed25519 key")
        return cls(name, key)

    @classmethod
    def _from_note_form(cls, text: str, name: str) -> "Signer":
        parts = text.removeprefix(_SIGNER).split("+", 2)
        if len(parts) != 3 or parts[0] != name:
            raise MalformedNoteError("the signing key is not of this log's origin")
        seed = decode_base64(parts[2])
        if len(seed) != 33 or seed[0] != ED25519:
            raise MalformedNoteError("not an Ed25519 signing key")
        signer = cls(name, Ed25519PrivateKey.from_private_bytes(seed[1:]))
        if signer.key.id.hex() != parts[1]:
            raise MalformedNoteError("the hash of the signing key does not match it")
        return signer

    def sign(self, text: str) -> "Signature":
        """Sign a note's text."""
        return Signature(self.key.name, self.key.id, self._key.sign(text.encode()))


@dataclass(frozen=True)
class Signature:
    """One signature line of a note."""

    name: str
    key_id: bytes
    """4 bytes."""
    signature: bytes
    """As the signature type defines; 64 bytes for Ed25519."""

    @property
    def line(self) -> str:
        """The line in the note, with its newline."""
        return f"\u2014 {self.name} {base64.b64encode(self.key_id + self.signature).decode()}\n"


@dataclass(frozen=True)
class Note:
    """A text and who signed it."""

    text: str
    """Ends in a newline."""
    signatures: tuple[Signature, ...]

    def __str__(self) -> str:
        return self.text + "\n" + "".join(signature.line for signature in self.signatures)

    @classmethod
    def parse(cls, data: bytes) -> "Note":
        """Read a signed note. Raises MalformedNoteError.

        Two signatures of one key (name and id) are refused: which of them would count is not defined.
        """
        if len(data) > MAX_NOTE:
            raise MalformedNoteError("the note is too long")
        try:
            whole = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise MalformedNoteError("the note is not UTF-8") from error
        if _CONTROL.search(whole):
            raise MalformedNoteError("the note holds a control character")
        text, blank, lines = whole.rpartition("\n\n")
        if not blank or not lines.endswith("\n"):
            raise MalformedNoteError("the note has no signatures behind a blank line")
        signatures = tuple(parse_signature(line) for line in lines[:-1].split("\n"))
        if len(signatures) > MAX_SIGNATURES:
            raise MalformedNoteError("the note has too many signatures")
        if len({(s.name, s.key_id) for s in signatures}) != len(signatures):
            raise MalformedNoteError("the note has two signatures of one key")
        return cls(text + "\n", signatures)

    def verify(self, keys: Iterable[VerificationKey]) -> list[VerificationKey]:
        """The given keys that signed. Raises BadSignatureError where none did, or where one's signature is wrong."""
        known = {(key.name, key.id): key for key in keys}
        signed = []
        for signature in self.signatures:
            key = known.get((signature.name, signature.key_id))
            if key is None:
                continue
            if not key.verify(self.text, signature.signature):
                raise BadSignatureError("a signature by a known key does not verify")
            signed.append(key)
        if not signed:
            raise BadSignatureError("no known key signed this note")
        return signed


def parse_signature(line: str) -> Signature:
    """Read one signature line, without its newline. Raises MalformedNoteError."""
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != "\u2014":
        raise MalformedNoteError("a signature line has the form: em dash, key name, base64")
    data = decode_base64(parts[2])
    if len(data) < 5:
        raise MalformedNoteError("a signature is too short")
    return Signature(checked_name(parts[1]), data[:4], data[4:])


@dataclass(frozen=True)
class Checkpoint:
    """A tree head: whose log, how many leaves, which root."""

    origin: str
    size: int
    root: bytes
    """32 bytes."""
    extensions: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The text that is signed."""
        lines = [self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.extensions]
        return "".join(line + "\n" for line in lines)

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """Read the text of a checkpoint note. Raises MalformedNoteError."""
        lines = text.split("\n")
        if len(lines) < 4 or lines.pop() or not all(lines) or _CONTROL.search(text):
            raise MalformedNoteError("a checkpoint has at least three lines and no empty one")
        origin, size, root = lines[:3]
        if not _SIZE.fullmatch(size) or int(size) >= 2**63:
            raise MalformedNoteError("the tree size is not a canonical decimal number")
        decoded = decode_base64(root)
        if len(decoded) != HASH_SIZE:
            raise MalformedNoteError("the root is not 32 bytes")
        return cls(origin, int(size), decoded, tuple(lines[3:]))

    def sign(self, signers: Sequence[Signer]) -> Note:
        """The signed note of this checkpoint."""
        if "\n" in self.origin or not self.origin or any(not line or "\n" in line for line in self.extensions):
            raise MalformedNoteError("an origin or an extension line is empty or holds a newline")
        return Note(self.text, tuple(signer.sign(self.text) for signer in signers))


def open_checkpoint(data: bytes, keys: Iterable[VerificationKey], origin: str | None = None) -> Checkpoint:
    """Read and verify a signed checkpoint. Raises MalformedNoteError or BadSignatureError."""
    note = Note.parse(data)
    note.verify(keys)
    checkpoint = Checkpoint.parse(note.text)
    if origin is not None and checkpoint.origin != origin:
        raise BadSignatureError("the checkpoint is of another log")
    return checkpoint
