#!/usr/bin/env python3
"""Verify an exported Stepwedge log with nothing but this file and Python (3.9 or newer).

    python verify.py EXPORT.zip|FOLDER [--key VKEY|FILE] [--older CHECKPOINT|EXPORT.zip|FOLDER]
                     [--witness VKEY|FILE]... [--quorum N] [--processes N] [--json]
    python verify.py proof FILE.tlog-proof --key VKEY|FILE [--record FILE] [--rotation FILE.tlog-proof]...
                     [--witness VKEY|FILE]... [--quorum N] [--json]

Everything is computed anew from the records: the leaves and the Merkle tree (RFC 6962), every tile of the tree (C2SP
tlog-tiles), the signature of the checkpoint (C2SP signed-note, Ed25519 of RFC 8032), the canonical form of each record
(RFC 8785), the producers' numbering, the digests of the manifest. With `--older`, an earlier checkpoint or export of
the same log, it shows that nothing of what was there then has been changed or removed since.

`--key` is the log's verification key, "name+hash+key", as the operator of the log gave it to you, or a file that holds
it. Without it the key of the older export counts, and without that the key inside the export itself: that shows that
the export is whole, and not who made it. Where the log has changed its key since, the first key that you trust is
enough: each change is a record, under a checkpoint that the old and the new key signed.

`--witness` names a witness by its verification key (C2SP tlog-cosignature, Ed25519); `--quorum` says how many of those
named must have cosigned the checkpoint, all of them by default.

`proof` verifies one record by a file of its own (C2SP tlog-proof). The record is the file's extra data, or `--record`;
`--rotation` is the proof of a change of the key, which `stepwedge log rotate-key` wrote.

Entries that were pruned are holes that the log itself accounts for; time stamps (RFC 3161) are held to the checkpoints
that they stamp, and their signatures are left to `openssl ts -verify`.

Exit status
    0  proved: nothing was changed, removed, inserted or reordered
    2  wrong arguments
    3  altered: a record, tile or other file is not what was signed
    4  truncated: records at the end are missing
    5  forked: the log is not a continuation of the older one
    6  bad signature: the checkpoint is not signed by the trusted key, or by a key that signs trees of its size
    7  missing witness: too few of the named witnesses cosigned the checkpoint
    8  malformed: the archive, the checkpoint, the proof or a key does not have the form that it must have
    9  unreadable: a file cannot be read
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import json
import os
import re
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

PROVED = 0
USAGE = 2
ALTERED = 3
TRUNCATED = 4
FORKED = 5
BAD_SIGNATURE = 6
MISSING_WITNESS = 7
MALFORMED = 8
UNREADABLE = 9

WORDS = {
    PROVED: "PROVED",
    USAGE: "USAGE",
    ALTERED: "ALTERED",
    TRUNCATED: "TRUNCATED",
    FORKED: "FORKED",
    BAD_SIGNATURE: "BAD_SIGNATURE",
    MISSING_WITNESS: "MISSING_WITNESS",
    MALFORMED: "MALFORMED",
    UNREADABLE: "UNREADABLE",
}
"""Exit status to the word for it."""

COSIGNED = "cosigned-checkpoint"
"""Path of an earlier checkpoint that witnesses cosigned, where the newest one has no cosignatures yet."""
EXPORT_FORMAT = "stepwedge.export/1"
RECORD_SCHEMA = "stepwedge.record/1"
PROOF_FORMAT = "c2sp.org/tlog-proof@v1"

WIDTH = 256
_HASH = 32
_MOST_PROBLEMS = 20
_MAX_NOTE = 64 * 1024
_MAX_PROOF_LINES = 63
_MAX_ENTRY = 65535
_MANY_RECORDS = 50_000  # so many are worth processes of their own
_PART = 64  # entry bundles that are read at a stretch
_LIMITS = {
    "tile": WIDTH * _HASH,
    "entries": WIDTH * (2 + _MAX_ENTRY),
    "attachments": 64 << 20,
    "manifest": 256 << 20,
    "stamps": 1 << 20,
}
_NUMBER = r"(?:0|[1-9][0-9]{0,18})"
_SAFE_PATH = re.compile(
    r"checkpoint|cosigned-checkpoint|vkey|manifest\.json|attachments/[0-9a-f]{64}"
    rf"|rotation/{_NUMBER}|stamps/{_NUMBER}\.(?:checkpoint|tsr)"
    r"|tile/(?:entries|[0-9]{1,2})/(?:x[0-9]{3}/)*[0-9]{3}(?:\.p/[0-9]{1,3})?"
)
_SAFE_FOLDER = re.compile(
    r"attachments/|rotation/|stamps/|tile/(?:(?:entries|[0-9]{1,2})/(?:x[0-9]{3}/)*(?:[0-9]{3}\.p/)?)?"
)


class VerificationError(Exception):
    """The verification cannot go on; `code` is the exit status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it comes whole out of another process."""
        return VerificationError, (self.code, self.message)


# Ed25519 (RFC 8032 section 5.1), verification only. Points are (X, Y, Z, T) in extended coordinates.

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P
_SQRT_M1 = pow(2, (_P - 1) // 4, _P)


def _add(a: Any, b: Any) -> Any:
    e = (a[1] - a[0]) * (b[1] - b[0]) % _P
    f = (a[1] + a[0]) * (b[1] + b[0]) % _P
    g = 2 * a[3] * b[3] * _D % _P
    h = 2 * a[2] * b[2] % _P
    w, x, y, z = f - e, h - g, h + g, f + e
    return w * x % _P, y * z % _P, x * y % _P, w * z % _P


def _multiply(scalar: int, point: Any) -> Any:
    result = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            result = _add(result, point)
        point = _add(point, point)
        scalar >>= 1
    return result


def _decompress(data: bytes) -> Any:
    """The point that 32 bytes encode; None where they encode none (RFC 8032 5.1.3)."""
    y = int.from_bytes(data, "little")
    sign = y >> 255
    y &= (1 << 255) - 1
    if y >= _P:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _SQRT_M1 % _P
    if (x * x - square) % _P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = _P - x
    return x, y, 1, x * y % _P


def _compress(point: Any) -> bytes:
    inverse = pow(point[2], _P - 2, _P)
    x: int = point[0] * inverse % _P
    y: int = point[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


_BASE = _decompress((4 * pow(5, _P - 2, _P) % _P).to_bytes(32, "little"))


def ed25519_verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` (64 bytes) is of `message` under the key `public` (32 bytes)."""
    if len(public) != 32 or len(signature) != 64:
        return False
    key = _decompress(public)
    scalar = int.from_bytes(signature[32:], "little")
    if key is None or _decompress(signature[:32]) is None or scalar >= _L:
        return False
    challenge = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % _L
    negative = (_P - key[0], key[1], key[2], _P - key[3])
    return _compress(_add(_multiply(scalar, _BASE), _multiply(challenge, negative))) == signature[:32]


# C2SP signed notes, verification keys and checkpoints.


def _base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise VerificationError(MALFORMED, "base64 that cannot be decoded") from None
    if base64.b64encode(data).decode() != text:
        raise VerificationError(MALFORMED, "base64 that is not in canonical form")
    return data


@dataclass(frozen=True)
class Key:
    """A verification key."""

    name: str
    id: bytes
    public: bytes
    text: str


ED25519 = 1
"""Type of a key that signs checkpoints."""
COSIGNATURE = 4
"""Type of a key that cosigns checkpoints, with a time stamp."""


def parse_key(text: str, kind: int = ED25519) -> Key:
    """Read "name+hash+key", a key of this type."""
    parts = text.split("+", 2)
    if len(parts) != 3 or not parts[0] or len(parts[0]) > 255 or re.search(r"[\s\x00-\x1f\x7f]", parts[0]):
        raise VerificationError(MALFORMED, "a verification key has the form name+hash+key")
    data = _base64(parts[2])
    if len(data) != 33 or data[0] != kind:
        raise VerificationError(MALFORMED, "the verification key is not of the type that belongs here")
    key_id = hashlib.sha256(parts[0].encode() + b"\n" + data).digest()[:4]
    if key_id.hex() != parts[1]:
        raise VerificationError(MALFORMED, "the hash of the verification key does not match it")
    return Key(parts[0], key_id, data[1:], text)


def parse_keys(text: str, kind: int = ED25519) -> list[Key]:
    """Read one key a line."""
    keys = [parse_key(line, kind) for line in text.split("\n") if line]
    if not keys:
        raise VerificationError(MALFORMED, "no verification key is given")
    return keys


@dataclass(frozen=True)
class Checkpoint:
    """A tree head, and which of the keys that were tried signed it."""

    origin: str
    size: int
    root: bytes
    signers: tuple[Key, ...]

    def signed_by(self, key: Key) -> bool:
        """Whether this key signed."""
        return any(_same(signer, key) for signer in self.signers)


def _same(one: Key, other: Key) -> bool:
    return (one.name, one.public) == (other.name, other.public)


def read_checkpoint(data: bytes) -> Checkpoint:
    """Read a checkpoint note; nobody's signature is verified."""
    text, _ = _parse_note(data)
    lines = text.split("\n")
    if len(lines) < 4 or lines.pop() or not all(lines):
        raise VerificationError(MALFORMED, "the checkpoint does not have three lines or more, none of them empty")
    if not re.fullmatch(_NUMBER, lines[1]) or int(lines[1]) >= 2**63:
        raise VerificationError(MALFORMED, "the size in the checkpoint is not a canonical number")
    root = _base64(lines[2])
    if len(root) != _HASH:
        raise VerificationError(MALFORMED, "the root in the checkpoint is not 32 bytes")
    return Checkpoint(lines[0], int(lines[1]), root, ())


def open_checkpoint(data: bytes, keys: Iterable[Key]) -> Checkpoint:
    """Read a checkpoint note and verify that one of the keys signed it; a wrong signature by any of them ends it."""
    checkpoint = read_checkpoint(data)
    text, signatures = _parse_note(data)
    signers: list[Key] = []
    for key in keys:
        signature = signatures.get((key.name, key.id))
        if signature is None or any(_same(signer, key) for signer in signers):
            continue
        if not ed25519_verify(key.public, text.encode(), signature):
            raise VerificationError(BAD_SIGNATURE, "the signature of the checkpoint is wrong")
        signers.append(key)
    if not signers:
        raise VerificationError(BAD_SIGNATURE, "the checkpoint is not signed by the trusted key")
    return Checkpoint(checkpoint.origin, checkpoint.size, checkpoint.root, tuple(signers))


@dataclass(frozen=True)
class Rotation:
    """A change of the log's key, as its record tells it."""

    index: int
    old: Key
    new: Key

    @property
    def from_size(self) -> int:
        """Size of the tree from which on the new key signs; the old one signs trees of at most this size."""
        return self.index + 1


def rotation_of(record: dict[str, Any], index: int) -> Rotation | None:
    """The rotation that a record tells of, None where it tells of something else."""
    if record["kind"] != "KEY_ROTATED":
        return None
    event = record["event"]
    if record["producer"] != "audit" or event["from_size"] != index + 1 or type(event["from_size"]) is not int:
        raise VerificationError(BAD_SIGNATURE, f"record {index} claims a change of the key that it cannot make")
    rotation = Rotation(index, parse_key(event["old_key"]), parse_key(event["new_key"]))
    if rotation.old.name != rotation.new.name or rotation.old.public == rotation.new.public:
        raise VerificationError(BAD_SIGNATURE, f"record {index} changes the key to itself or to that of another log")
    return rotation


class Terms:
    """The keys of a log one after the other, each with the sizes of the trees that it signs."""

    def __init__(self, first: Key, rotations: Sequence[Rotation]) -> None:
        self.keys = [first]
        self.rotations = list(rotations)
        for rotation in rotations:
            if not _same(rotation.old, self.keys[-1]):
                raise VerificationError(BAD_SIGNATURE, f"record {rotation.index} changes a key that did not sign then")
            if any(rotation.new.public == key.public for key in self.keys):
                raise VerificationError(BAD_SIGNATURE, f"record {rotation.index} goes back to a key that was retired")
            self.keys.append(rotation.new)

    def place(self, size: int) -> int:
        """Which of the keys has to sign a tree of this size."""
        return sum(rotation.from_size <= size for rotation in self.rotations)

    def check(self, checkpoint: Checkpoint) -> Key:
        """The key that had to sign and did. Raises where another key of the log did, outside its term."""
        place = self.place(checkpoint.size)
        for number, key in enumerate(self.keys):
            if not checkpoint.signed_by(key):
                continue
            if number > place:
                raise VerificationError(
                    BAD_SIGNATURE, f"a key signed {checkpoint.size} records before its time had come"
                )
            # With the checkpoint that ends with the record of the change, the old key takes leave.
            if number < place and self.rotations[number].from_size != checkpoint.size:
                raise VerificationError(
                    BAD_SIGNATURE,
                    f"a key that was retired at {self.rotations[number].from_size} records signed {checkpoint.size}",
                )
        if not checkpoint.signed_by(self.keys[place]):
            raise VerificationError(BAD_SIGNATURE, "the checkpoint is not signed by the key whose turn it is")
        return self.keys[place]

    def lead_from(self, trusted: Sequence[Key], size: int) -> int:
        """The first of the keys that is trusted; the keys behind it follow from it by the log's own changes."""
        for number, key in enumerate(self.keys[: self.place(size) + 1]):
            if any(_same(key, one) for one in trusted):
                return number
        raise VerificationError(
            BAD_SIGNATURE, "the checkpoint is not signed by the trusted key, nor does one lead there"
        )


def cosigned(data: bytes, witnesses: Sequence[Key]) -> list[tuple[Key, int]]:
    """Which of the witnesses cosigned a checkpoint, and when (seconds since 1970); each key counts once."""
    text, signatures = _parse_note(data)
    found: dict[bytes, tuple[Key, int]] = {}
    for witness in witnesses:
        signature = signatures.get((witness.name, witness.id))
        if signature is None:
            continue
        when = int.from_bytes(signature[:8], "big")
        message = f"cosignature/v1\ntime {when}\n{text}".encode()
        if when >= 2**63 or not ed25519_verify(witness.public, message, signature[8:]):
            raise VerificationError(BAD_SIGNATURE, f"the cosignature of {witness.name} is wrong")
        found[witness.public] = witness, when
    return list(found.values())


def _parse_note(data: bytes) -> tuple[str, dict[tuple[str, bytes], bytes]]:
    """Text and signatures of a signed note."""
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError:
        raise VerificationError(MALFORMED, "the checkpoint is not UTF-8") from None
    if len(data) > _MAX_NOTE or re.search(r"[\x00-\x09\x0b-\x1f]", whole):
        raise VerificationError(MALFORMED, "the checkpoint is too long or holds a control character")
    text, blank, lines = whole.rpartition("\n\n")
    if not blank or not lines.endswith("\n"):
        raise VerificationError(MALFORMED, "the checkpoint has no signature")
    signatures: dict[tuple[str, bytes], bytes] = {}
    for line in lines[:-1].split("\n"):
        parts = line.split(" ")
        if len(parts) != 3 or parts[0] != "\u2014" or not re.fullmatch(r"[^\s+]{1,255}", parts[1]):
            raise VerificationError(MALFORMED, "a line of the checkpoint is not a signature")
        decoded = _base64(parts[2])
        if len(decoded) < 5 or (parts[1], decoded[:4]) in signatures:
            raise VerificationError(MALFORMED, "a signature of the checkpoint is too short or there twice")
        signatures[parts[1], decoded[:4]] = decoded[4:]
    if len(signatures) > 64:
        raise VerificationError(MALFORMED, "the checkpoint has too many signatures")
    return text + "\n", signatures


# The archive: a zip file or a folder.


class Source:
    """Files by path; nothing is written anywhere, and no path leads out."""

    def __init__(self, place: Path) -> None:
        self._zip: zipfile.ZipFile | None = None
        self._place = place
        self.place = str(place)
        self.digests: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        if place.is_dir():
            self._list_folder()
        else:
            self._open_zip()
        for path in self._sizes:
            if not _SAFE_PATH.fullmatch(path):
                raise VerificationError(MALFORMED, "the export holds a path that does not belong in it")
        self.paths = set(self._sizes)
        """Every file."""

    def read(self, path: str) -> bytes:
        """A file, whose digest is noted."""
        kind = path.split("/")[0]
        limit = _LIMITS["entries"] if path.startswith("tile/entries/") else _LIMITS.get(kind, _MAX_NOTE)
        limit = _LIMITS["manifest"] if path == "manifest.json" else limit
        if self._sizes[path] > limit:
            raise VerificationError(MALFORMED, f"{path} is longer than it can be")
        data = self._read_zip(path, limit) if self._zip else self._read_file(path)
        if len(data) > limit:
            raise VerificationError(MALFORMED, f"{path} is longer than it can be")
        self.digests[path] = hashlib.sha256(data).hexdigest()
        return data

    def _list_folder(self) -> None:
        for folder, folders, files in os.walk(self._place, onerror=_unreadable):
            for name in [*folders, *files]:
                mode = os.lstat(os.path.join(folder, name)).st_mode  # noqa: PTH118 - fast for many files
                if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                    raise VerificationError(MALFORMED, "the export holds a link or a device")
            for name in files:
                path = Path(folder, name)
                self._sizes[path.relative_to(self._place).as_posix()] = path.stat().st_size

    def _open_zip(self) -> None:
        try:
            with self._place.open("rb") as file:
                begin = file.read(4)
            self._zip = zipfile.ZipFile(self._place)
        except OSError as error:
            raise VerificationError(UNREADABLE, f"{self._place.name} cannot be read: {error.strerror}") from None
        except (zipfile.BadZipFile, ValueError, NotImplementedError):
            if begin == b"PK\x03\x04":
                raise VerificationError(TRUNCATED, "the archive ends before its directory") from None
            raise VerificationError(MALFORMED, "not a zip archive") from None
        for info in self._zip.infolist():
            if _SAFE_FOLDER.fullmatch(info.filename) and not info.file_size:
                continue  # whoever unpacks an export and packs it again adds these; they say nothing
            kind = info.external_attr >> 16 & 0o170000
            if info.filename in self._sizes:
                raise VerificationError(MALFORMED, "the archive holds a path twice")
            if kind not in (0, stat.S_IFREG) or info.flag_bits & 1:
                raise VerificationError(MALFORMED, "the archive holds something that is not a plain file")
            self._sizes[info.filename] = info.file_size

    def _read_zip(self, path: str, limit: int) -> bytes:
        assert self._zip is not None
        try:
            with self._zip.open(path) as file:
                return file.read(limit + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError):
            raise VerificationError(ALTERED, f"{path} is damaged in the archive") from None

    def _read_file(self, path: str) -> bytes:
        try:
            return (self._place / path).read_bytes()
        except OSError as error:
            _unreadable(error)


def _unreadable(error: OSError) -> NoReturn:
    raise VerificationError(UNREADABLE, f"a file of the export cannot be read: {error.strerror}") from None


# The tree.


class Tree:
    """All nodes of the perfect subtrees over the leaves, computed from the leaf hashes."""

    def __init__(self, leaves: bytearray) -> None:
        self.size = len(leaves) // _HASH
        self.rows = [leaves]
        sha256 = hashlib.sha256
        while len(self.rows[-1]) >= 2 * _HASH:
            below = bytes(self.rows[-1])
            whole = len(below) // (2 * _HASH) * 2 * _HASH
            self.rows.append(
                bytearray().join(
                    [sha256(b"\x01" + below[i : i + 2 * _HASH]).digest() for i in range(0, whole, 2 * _HASH)]
                )
            )

    def root(self, size: int) -> bytes:
        """Root of the tree of the first `size` leaves (RFC 6962 2.1)."""
        if size == 0:
            return hashlib.sha256(b"").digest()
        root = b""
        end = size
        for height in range(size.bit_length()):
            if size >> height & 1:
                start = ((end >> height) - 1) * _HASH
                node = bytes(self.rows[height][start : start + _HASH])
                root = hashlib.sha256(b"\x01" + node + root).digest() if root else node
                end -= 1 << height
        return root

    def tile(self, level: int, index: int, width: int) -> bytes:
        """The hashes of a tile."""
        row = self.rows[8 * level] if 8 * level < len(self.rows) else b""
        return bytes(row[index * WIDTH * _HASH : (index * WIDTH + width) * _HASH])


def tile_path(level: str, index: int, width: int) -> str:
    """Path of a tile as C2SP tlog-tiles writes it."""
    digits = f"{index:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    name = "/".join([f"x{group}" for group in groups[:-1]] + groups[-1:])
    return f"tile/{level}/{name}" + (f".p/{width}" if width < WIDTH else "")


def bundles(size: int) -> Iterator[tuple[str, int, int]]:
    """(path, index, width) of every entry bundle."""
    for index in range(-(-size // WIDTH)):
        width = min(WIDTH, size - index * WIDTH)
        yield tile_path("entries", index, width), index, width


def hash_tiles(size: int) -> Iterator[tuple[str, int, int, int]]:
    """(path, level, index, width) of every hash tile."""
    level = 0
    while size:
        for index in range(-(-size // WIDTH)):
            width = min(WIDTH, size - index * WIDTH)
            yield tile_path(str(level), index, width), level, index, width
        size //= WIDTH
        level += 1


# The records.


Ranges = list[tuple[int, int]]
"""First and last, in order; two of them may touch or overlap."""


def _ranges(numbers: Iterable[int]) -> tuple[Ranges, int]:
    """Numbers as ranges, and how many of them came again."""
    found: Ranges = []
    again = 0
    for number in sorted(numbers):
        if found and number <= found[-1][1]:
            again += 1
        elif found and number == found[-1][1] + 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return found, again


def _missing(ranges: Ranges) -> tuple[list[list[int]], int]:
    """The numbers from 1 on that sorted ranges leave out, and how many lie in more than one of them."""
    missing: list[list[int]] = []
    again, reached = 0, 0
    for first, last in ranges:
        if first > reached + 1:
            missing.append([reached + 1, first - 1])
        again += max(0, min(last, reached) - first + 1)
        reached = max(reached, last)
    return missing, again


@dataclass
class Report:
    """What came of a verification."""

    code: int = PROVED
    problems: list[dict[str, Any]] = field(default_factory=list)
    origin: str = ""
    size: int = 0
    root: str = ""
    key: str = ""
    key_source: str = ""
    older_size: int | None = None
    kinds: dict[str, int] = field(default_factory=dict)
    gaps: list[dict[str, Any]] = field(default_factory=list)
    first_recorded_at: str = ""
    last_recorded_at: str = ""
    times_set_back: int = 0
    witnesses: list[dict[str, Any]] = field(default_factory=list)
    cosigned_size: int | None = None
    """Records under the checkpoint that the witnesses cosigned; None where none was asked for, or too few did."""
    pruned: int = 0
    """Entries that are holes, accounted for by the log."""
    rotations: list[dict[str, Any]] = field(default_factory=list)
    stamps: list[dict[str, Any]] = field(default_factory=list)
    index: int | None = None
    """Of the one record that a proof is of."""
    leaf_hash: str = ""
    record: dict[str, Any] | None = None

    def problem(self, code: int, message: str, index: int | None = None) -> None:
        """Note a problem; the first one gives the exit status."""
        if self.code == PROVED:
            self.code = code
        if len(self.problems) < _MOST_PROBLEMS:
            found = {"result": WORDS[code], "message": message}
            self.problems.append(found if index is None else {**found, "index": index})

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "result": WORDS[self.code],
            "exit_status": self.code,
            **{k: v for k, v in vars(self).items() if k != "code"},
        }


def _no_float(_: str) -> NoReturn:
    raise ValueError("a floating-point number")


_decoder = json.JSONDecoder(parse_float=_no_float, parse_constant=_no_float)
_encoder = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def canonical(data: bytes) -> Any:
    """The value of canonical JSON. Raises ValueError for any other form of it: whoever encodes it gets these bytes."""
    text = data.decode("utf-8")
    value = _decoder.decode(text)
    if _encoder.encode(value) != text:
        raise ValueError("not in canonical form")
    return value


def _attachment_of(member: dict[str, Any]) -> tuple[str, int] | None:
    beside = member["event"].get("attachment")
    return None if beside is None else (beside["sha256"], beside["size"])


@dataclass
class Part:
    """What is found in bundles that follow one another: enough to put the parts together in order."""

    start: int
    """Where the first bundle that is there begins."""
    hashes: bytearray = field(default_factory=bytearray)
    digests: dict[str, str] = field(default_factory=dict)
    problems: list[tuple[int, str, int | None]] = field(default_factory=list)
    in_order: bool = True
    """Whether every record is one, lies where it says, and no bundle between is missing."""
    kinds: dict[str, int] = field(default_factory=dict)
    times: tuple[str, str] = ("", "")
    """When the first was recorded, and the last."""
    times_set_back: int = 0
    numbers: dict[tuple[str, str], tuple[Ranges, int]] = field(default_factory=dict)
    attachments: list[tuple[str, int, int]] = field(default_factory=list)
    """Digest, length and record of what lies beside."""
    rotations: list[Rotation] = field(default_factory=list)
    holes: list[int] = field(default_factory=list)
    prunings: list[tuple[int, list[Any] | str]] = field(default_factory=list)
    """Index of the record, and the ranges that it says were pruned or the digest of a list of them."""

    def problem(self, code: int, message: str, index: int | None = None) -> None:
        """Note a problem."""
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append((code, message, index))


class _Reading:
    """Goes over the records of some bundles one by one: canonical form, position, numbering, what lies beside."""

    def __init__(self, start: int) -> None:
        self.part = Part(start)
        self._numbers: dict[tuple[str, str], list[int]] = {}

    def bundle(self, source: Source, path: str, index: int, width: int) -> None:
        """Read one bundle, and the tile over it."""
        part = self.part
        position = index * WIDTH
        data = source.read(path)
        entries = _entries(data)
        if entries is None:
            part.problem(ALTERED, f"{path} ends inside a record")
            part.in_order = False
            return
        if entries and part.start + len(part.hashes) // _HASH != position:
            part.in_order = False
        tile = tile_path("0", index, width)
        signed = source.read(tile) if tile in source.paths else b""
        sha256 = hashlib.sha256
        for number, leaf in enumerate(entries):
            there = signed[number * _HASH : (number + 1) * _HASH]
            if not leaf and len(there) == _HASH and width == WIDTH:
                part.holes.append(position)
                part.hashes += there
                position += 1
                continue
            digest = sha256(b"\x00" + leaf).digest()
            part.hashes += digest
            if signed and there != digest:
                part.problem(ALTERED, f"record {position} is not the one that was signed", position)
                part.in_order = False
            self._take(leaf, position)
            position += 1

    def _take(self, leaf: bytes, position: int) -> None:
        """Check one record."""
        part = self.part
        try:
            record = canonical(leaf)
            if record["schema"] != RECORD_SCHEMA:
                raise ValueError("of another schema")
            kind, when, index = record["kind"], record["recorded_at"], record["index"]
            place = record["producer"], record["incarnation"]
            numbers = [record["sequence"], *record.get("repeats", ())]
            beside = _attachment_of(record)
            if not (type(kind) is type(when) is str and all(type(number) is int for number in [index, *numbers])):
                raise TypeError
            if kind in _OF_THE_LOG:
                self._of_the_log(record, position)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            part.in_order = False
            part.problem(ALTERED, f"record {position} is not a record in canonical form", position)
            return
        if index != position:
            part.in_order = False
            part.problem(ALTERED, f"at position {position} lies the record {index}", position)
        part.kinds[kind] = part.kinds.get(kind, 0) + 1
        first, last = part.times
        if when < last:
            part.times_set_back += 1
        part.times = first or when, when
        seen = self._numbers.get(place)
        if seen is None:
            seen = self._numbers[place] = []
        seen.extend(numbers)
        if beside is not None:
            part.attachments.append((*beside, position))

    def _of_the_log(self, record: dict[str, Any], position: int) -> None:
        """Take what the log says of itself: a change of its key, entries that it pruned."""
        try:
            rotation = rotation_of(record, position)
        except VerificationError as failure:
            self.part.problem(failure.code, failure.message, position)
            return
        if rotation is not None:
            self.part.rotations.append(rotation)
        elif record["producer"] == "audit" and record["outcome"] == "SUCCESS":
            event = record["event"]
            beside = event.get("attachment")
            self.part.prunings.append((position, event.get("ranges", []) if beside is None else beside["sha256"]))

    def done(self) -> Part:
        """What was found."""
        self.part.numbers = {place: _ranges(numbers) for place, numbers in self._numbers.items()}
        return self.part


_OF_THE_LOG = ("KEY_ROTATED", "PRUNED")

Work = tuple[str, int, int]
"""Path of a bundle, its index, its width."""


def read_part(source: Source, work: Sequence[Work]) -> Part:
    """Read bundles that follow one another."""
    reading = _Reading(work[0][1] * WIDTH)
    before, source.digests = source.digests, {}
    try:
        for path, index, width in work:
            reading.bundle(source, path, index, width)
    except VerificationError as failure:
        reading.part.problem(failure.code, failure.message)
        reading.part.in_order = False
    reading.part.digests, source.digests = source.digests, before
    return reading.done()


_opened: Source | None = None  # in a process that reads parts: the export


def _open_here(place: str) -> None:
    global _opened
    _opened = Source(Path(place))


def _read_here(work: Sequence[Work]) -> Part:
    assert _opened is not None
    return read_part(_opened, work)


def _parts(source: Source, works: Sequence[Sequence[Work]], processes: int) -> Iterator[Part]:
    """Every part in order, by several processes where that is asked for and possible."""
    if processes > 1 and len(works) > 1:
        try:
            pool = ProcessPoolExecutor(min(processes, len(works)), initializer=_open_here, initargs=(source.place,))
        except (OSError, ImportError, ValueError, NotImplementedError):
            pool = None  # a machine without semaphores: alone, then
        if pool is not None:
            with pool:
                yield from pool.map(_read_here, works)
            return
    for work in works:
        yield read_part(source, work)


class Records:
    """What all the records say together."""

    def __init__(self, report: Report, source: Source) -> None:
        self._report = report
        self._source = source
        self._numbers: dict[tuple[str, str], tuple[Ranges, int]] = {}
        self._holes: list[int] = []
        self._prunings: list[tuple[int, list[Any] | str]] = []
        self.hashes = bytearray()
        self.attachments: set[str] = set()
        self.rotations: list[Rotation] = []
        self.in_order = True

    def add(self, part: Part) -> None:
        """Put the next part behind the others."""
        report = self._report
        if (part.hashes and part.start != len(self.hashes) // _HASH) or not part.in_order:
            self.in_order = False
        self.hashes += part.hashes
        self._source.digests.update(part.digests)
        for problem in part.problems:
            report.problem(*problem)
        for kind, count in part.kinds.items():
            report.kinds[kind] = report.kinds.get(kind, 0) + count
        first, last = part.times
        if last:
            report.times_set_back += part.times_set_back + (first < report.last_recorded_at)
            report.first_recorded_at = report.first_recorded_at or first
            report.last_recorded_at = last
        for place, (ranges, again) in part.numbers.items():
            before = self._numbers.get(place, ([], 0))
            self._numbers[place] = before[0] + ranges, before[1] + again
        self.rotations += part.rotations
        self._holes += part.holes
        self._prunings += part.prunings
        for digest, size, position in part.attachments:
            self._check_beside(digest, size, position)

    def _check_beside(self, digest: str, size: int, position: int) -> None:
        path = f"attachments/{digest}"
        if path in self.attachments:
            return
        self.attachments.add(path)
        if path not in self._source.paths:
            self._report.problem(ALTERED, f"what belongs to record {position} is missing", position)
            return
        data = self._source.read(path)
        if hashlib.sha256(data).hexdigest() != digest or len(data) != size:
            self._report.problem(ALTERED, f"what belongs to record {position} was changed", position)

    def finish(self) -> None:
        """Report the holes and the numbering."""
        self._report.pruned = len(self._holes)
        self._account_for_holes()
        for (producer, incarnation), (ranges, again) in sorted(self._numbers.items()):
            missing, twice = _missing(sorted(ranges))
            count = sum(last - first + 1 for first, last in missing)
            if (missing or again + twice) and (count > len(self._holes) or again + twice):
                self._report.gaps.append(
                    {
                        "producer": producer,
                        "incarnation": incarnation,
                        "missing": missing[:_MOST_PROBLEMS],
                        "missing_count": count,
                        "used_twice": again + twice,
                    }
                )

    def _account_for_holes(self) -> None:
        """Hold every hole against the records, behind it, that say what was pruned."""
        if not self._holes:
            return
        covered: list[tuple[int, int, int]] = []
        for index, said in self._prunings:
            try:
                ranges = canonical(self._source.read(f"attachments/{said}")) if isinstance(said, str) else said
                covered += [(int(one["first"]), int(one["last"]), index) for one in ranges]
            except (ValueError, KeyError, TypeError, RecursionError):
                self._report.problem(ALTERED, f"what record {index} says was pruned cannot be read", index)
        covered.sort()
        position, reach = 0, list[tuple[int, int]]()
        for hole in self._holes:
            while position < len(covered) and covered[position][0] <= hole:
                reach.append(covered[position][1:])
                position += 1
            reach = [one for one in reach if one[0] >= hole]
            if not any(index > hole for _, index in reach):
                self._report.problem(ALTERED, f"record {hole} is not there, and the log does not say that", hole)


def _entries(data: bytes) -> list[bytes] | None:
    """The entries of a bundle (uint16 length before each); None where it ends inside one."""
    result = []
    position, end = 0, len(data)
    while position < end:
        start = position + 2
        position = start + int.from_bytes(data[position:start], "big")
        if start > end or position > end:
            return None
        result.append(data[start:position])
    return result


def _read_records(
    source: Source, size: int, report: Report, processes: int, progress: Callable[[int], None]
) -> tuple[Tree, Records]:
    """Read every bundle, check every record; the tree over what is there."""
    records = Records(report, source)
    paths = source.paths
    # A bundle cut short, or one that grew, bears another width in its path.
    others = {path.partition(".p/")[0]: path for path in paths if path.startswith("tile/entries/")}
    work: list[Work] = []
    for path, index, width in bundles(size):
        found = path if path in paths else others.get(path.partition(".p/")[0])
        if found:
            work.append((found, index, width))
    works = [work[start : start + _PART] for start in range(0, len(work), _PART)]
    for part in _parts(source, works, processes if size >= _MANY_RECORDS else 1):
        records.add(part)
        progress(len(records.hashes) // _HASH)
    return Tree(records.hashes), records


def _check_size(tree: Tree, checkpoint: Checkpoint, report: Report, records: Records) -> None:
    if tree.size < checkpoint.size:
        missing = checkpoint.size - tree.size
        if records.in_order:
            # What is there is whole and in its place: the end was cut off.
            report.problem(TRUNCATED, f"{missing} of {checkpoint.size} records are missing at the end", tree.size)
        else:
            report.problem(ALTERED, f"{missing} of {checkpoint.size} records are missing")
    elif tree.size > checkpoint.size:
        report.problem(ALTERED, f"there are {tree.size - checkpoint.size} records more than were signed")
    elif tree.root(tree.size) != checkpoint.root:
        report.problem(ALTERED, "the records do not give the root that was signed")


def _check_tiles(source: Source, tree: Tree, size: int, report: Report) -> None:
    for path, level, index, width in hash_tiles(size):
        if path not in source.paths:
            report.problem(ALTERED, f"{path} is missing")
        elif source.read(path) != tree.tile(level, index, width):
            report.problem(ALTERED, f"{path} does not follow from the records")


def _check_files(source: Source, checkpoint: Checkpoint, report: Report, records: Records) -> None:
    """Hold the manifest against the files, and the files against what a log of this size has."""
    try:
        manifest = canonical(source.read("manifest.json"))
        if manifest["format"] != EXPORT_FORMAT or not isinstance(manifest["files"], dict):
            raise ValueError("of another format")
        listed, size = manifest["files"], manifest["size"]
    except (ValueError, KeyError, TypeError, RecursionError):
        report.problem(MALFORMED, "manifest.json is not a manifest in canonical form")
        return
    if size != checkpoint.size:
        report.problem(ALTERED, "the manifest names another size than the checkpoint")
    expected = {"checkpoint", "vkey", *records.attachments} | (source.paths & {COSIGNED})
    expected.update(f"rotation/{rotation.from_size}" for rotation in records.rotations)
    expected.update(path for path in source.paths if path.startswith("stamps/"))
    expected.update(path for path, *_ in bundles(checkpoint.size))
    expected.update(path for path, *_ in hash_tiles(checkpoint.size))
    there = source.paths - {"manifest.json"}
    for path in sorted(there - expected)[:_MOST_PROBLEMS]:
        report.problem(ALTERED, f"{path} does not belong to this log")
    for path in sorted((set(listed) ^ there) - (there - expected))[:_MOST_PROBLEMS]:
        report.problem(ALTERED, f"{path} is {'not in the manifest' if path in there else 'missing'}")
    for path in sorted(there & set(listed)):
        if path not in source.digests:
            source.read(path)
        if source.digests[path] != listed[path]:
            report.problem(ALTERED, f"{path} is not the file that the manifest names")


# The whole.


class Older:
    """An earlier checkpoint or export, which the log has to continue."""

    def __init__(self, text: str) -> None:
        place = Path(text)
        self.keys: list[Key] = []
        """Those of the earlier export, where it is one."""
        try:
            if place.is_file() and place.stat().st_size <= _MAX_NOTE and not zipfile.is_zipfile(place):
                self.note = place.read_bytes()
                return
            place.stat()
        except OSError as error:
            _unreadable(error)
        source = Source(place)
        _require(source, ("checkpoint", "vkey"))
        self.note = source.read("checkpoint")
        self.keys = parse_keys(_ascii(source.read("vkey")))

    def hold_against(
        self, tree: Tree, checkpoint: Checkpoint, keys: list[Key], terms: Terms | None, report: Report
    ) -> None:
        """Check that the log continues it. `terms` where the log's own account of its keys could be trusted so far."""
        before = open_checkpoint(self.note, [*keys, *(terms.keys if terms else ())])
        report.older_size = before.size
        if report.code != PROVED:
            return
        if before.origin != checkpoint.origin:
            report.problem(FORKED, "the older checkpoint is of another log")
        elif before.size > checkpoint.size:
            report.problem(TRUNCATED, f"the log had {before.size} records and has {checkpoint.size}", checkpoint.size)
        elif tree.root(before.size) != before.root:
            report.problem(FORKED, f"the first {before.size} records are not those of the older checkpoint")
        elif terms is not None:
            terms.check(before)


def _ascii(data: bytes, what: str = "a verification key") -> str:
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise VerificationError(MALFORMED, f"{what} is not plain text") from None


def _require(source: Source, paths: tuple[str, ...]) -> None:
    for path in paths:
        if path not in source.paths:
            raise VerificationError(MALFORMED, f"the export holds no {path}")


def _given_keys(text: str | None, kind: int = ED25519) -> list[Key] | None:
    if text is None:
        return None
    place = Path(text)
    # A key holds two plus signs; what holds none was meant as a file, which is then not there or no file.
    meant_as_file = "+" not in text and (os.sep in text or place.suffix == ".vkey")
    try:
        return parse_keys(_ascii(place.read_bytes()) if meant_as_file or place.is_file() else text, kind)
    except OSError as error:
        raise VerificationError(UNREADABLE, f"{place.name} cannot be read: {error.strerror}") from None


def _check_earlier(source: Source, tree: Tree, checkpoint: Checkpoint, terms: Terms, report: Report) -> None:
    """The earlier checkpoint that witnesses cosigned must be of this very log."""
    earlier = open_checkpoint(source.read(COSIGNED), terms.keys)
    if earlier.origin != checkpoint.origin:
        report.problem(FORKED, "the cosigned checkpoint is of another log")
    elif earlier.size > checkpoint.size:
        report.problem(TRUNCATED, f"witnesses cosigned {earlier.size} records, there are {checkpoint.size}")
    elif tree.root(earlier.size) != earlier.root:
        report.problem(FORKED, f"the first {earlier.size} records are not those that witnesses cosigned")
    else:
        terms.check(earlier)


def _named(given: Sequence[str], logs: Iterable[Key]) -> list[Key]:
    """The witnesses that are named. One key for two cosigners, or for a log and a cosigner, is none (C2SP)."""
    witnesses = [key for text in given for key in _given_keys(text, COSIGNATURE) or []]
    different = {str(witness.public): witness for witness in witnesses}
    if any(different[str(witness.public)].name != witness.name for witness in witnesses):
        raise VerificationError(MALFORMED, "two witnesses share one key: their cosignatures cannot be told apart")
    if {witness.public for witness in witnesses} & {key.public for key in logs}:
        raise VerificationError(MALFORMED, "a witness has the key of the log that it is to watch")
    return list(different.values())


def _check_witnesses(report: Report, source: Source, witnesses: list[Key], quorum: int | None) -> None:
    if not witnesses and not quorum:
        return
    needed = len(witnesses) if quorum is None else quorum
    found = cosigned(source.read("checkpoint"), witnesses)
    size, earlier = report.size, False
    if len(found) < needed and COSIGNED in source.paths:
        before = cosigned(source.read(COSIGNED), witnesses)
        if len(before) >= needed:
            found, size, earlier = before, int(source.read(COSIGNED).split(b"\n", 2)[1]), True
    report.witnesses = [{"name": witness.name, "time": when} for witness, when in found]
    if len(found) < needed:
        report.problem(MISSING_WITNESS, f"{len(found)} of the named witnesses cosigned the checkpoint, not {needed}")
        return
    report.cosigned_size = size
    if earlier:
        message = f"the witnesses cosigned the first {size} of {report.size} records and nothing after them"
        report.problem(MISSING_WITNESS, message, size)


def _check_keys(
    source: Source, tree: Tree, records: Records, checkpoint: Checkpoint, trusted: list[Key], report: Report
) -> tuple[Terms, Checkpoint]:
    """Follow the log's changes of its key, from the first that is trusted to the one that signed."""
    rotations = records.rotations
    terms = Terms(rotations[0].old if rotations else checkpoint.signers[0], rotations)
    checkpoint = open_checkpoint(source.read("checkpoint"), terms.keys)
    report.key = terms.check(checkpoint).text
    terms.lead_from(trusted, checkpoint.size)
    for rotation in rotations:
        path, size = f"rotation/{rotation.from_size}", rotation.from_size
        if path not in source.paths:
            raise VerificationError(BAD_SIGNATURE, f"no checkpoint of {size} records shows that both keys agreed")
        both = open_checkpoint(source.read(path), [rotation.old, rotation.new])
        if len(both.signers) != 2 or (both.origin, both.size) != (checkpoint.origin, size):
            raise VerificationError(
                BAD_SIGNATURE, f"the change of the key at {size} records is not signed by both keys"
            )
        if tree.root(size) != both.root:
            raise VerificationError(FORKED, f"the first {size} records are not those at which the key was changed")
        report.rotations.append({"from_size": size, "old_key": rotation.old.text, "new_key": rotation.new.text})
    return terms, checkpoint


def _verify(
    report: Report,
    export: str,
    key: str | None,
    older: str | None,
    witnesses: Sequence[str],
    quorum: int | None,
    processes: int,
    progress: Callable[[int], None],
) -> None:
    before = Older(older) if older is not None else None
    try:
        os.stat(export)  # noqa: PTH116 - for its error
    except OSError as error:
        _unreadable(error)
    source = Source(Path(export))
    _require(source, ("checkpoint", "vkey", "manifest.json"))
    inside = parse_keys(_ascii(source.read("vkey")))
    given = _given_keys(key)
    older_keys = before.keys if before is not None else []
    trusted = given or older_keys or inside[:1]
    report.key_source = "given" if given else "older export" if older_keys else "export"
    named = _named(witnesses, [*trusted, *inside])
    changes = any(path.startswith("rotation/") for path in source.paths)
    # Until the records tell of a change of the key, only a trusted one may have signed.
    checkpoint = open_checkpoint(source.read("checkpoint"), [*trusted, *inside] if changes else trusted)
    report.origin, report.size, report.root = checkpoint.origin, checkpoint.size, checkpoint.root.hex()
    report.key = checkpoint.signers[0].text
    # A size out of proportion to the archive must not make us count to it.
    if checkpoint.size // WIDTH > len(source.paths) + 1_000_000:
        raise VerificationError(
            TRUNCATED, f"the checkpoint covers {checkpoint.size} records and next to nothing is there"
        )
    tree, records = _read_records(source, checkpoint.size, report, processes, progress)
    records.finish()
    _check_size(tree, checkpoint, report, records)
    if report.code == PROVED:
        _check_tiles(source, tree, checkpoint.size, report)
    if report.code in (PROVED, ALTERED):
        _check_files(source, checkpoint, report, records)
    terms = None
    if report.code == PROVED:
        terms, checkpoint = _check_keys(source, tree, records, checkpoint, trusted, report)
    if before is not None:
        before.hold_against(tree, checkpoint, trusted, terms, report)
    if report.code == PROVED and terms is not None:
        if COSIGNED in source.paths:
            _check_earlier(source, tree, checkpoint, terms, report)
        _check_stamps(source, tree, checkpoint, terms, report)
    if report.code == PROVED:
        _check_witnesses(report, source, named, quorum)


# Time stamps (RFC 3161): what they are about, not who made them.

_SIGNED_DATA = bytes.fromhex("2a864886f70d010702")  # 1.2.840.113549.1.7.2
_TST_INFO = bytes.fromhex("2a864886f70d0109100104")  # 1.2.840.113549.1.9.16.1.4
_DIGESTS = {
    bytes.fromhex("608648016503040201"): "sha256",
    bytes.fromhex("608648016503040202"): "sha384",
    bytes.fromhex("608648016503040203"): "sha512",
}
"""DER of the object identifiers of NIST's SHA-2."""


def _der(data: bytes) -> list[tuple[int, bytes]]:
    """Tags and contents of the elements that follow one another in DER (X.690 8.1, 10.1). Raises ValueError."""
    found = []
    position = 0
    while position < len(data):
        tag, length = data[position], data[position + 1] if position + 1 < len(data) else 0x80
        position += 2
        if tag & 0x1F == 0x1F or length == 0x80 or length > 0x84:
            raise ValueError("a tag or a length that DER does not have here")
        if length > 0x80:
            octets = length - 0x80
            length = int.from_bytes(data[position : position + octets], "big")
            position += octets
        if position + length > len(data):
            raise ValueError("an element that ends behind the data")
        found.append((tag, data[position : position + length]))
        position += length
    return found


def read_stamp(response: bytes) -> tuple[str, bytes, str]:
    """Digest algorithm, digest and time of a TimeStampResp (RFC 3161 2.4.2). Its signature is not looked at."""
    try:
        ((_, whole),) = _der(response)
        status, token = _der(whole)
        if _der(status[1])[0] not in ((2, b"\x00"), (2, b"\x01")):
            raise ValueError("not granted")
        content_type, content = _der(token[1])
        ((_, signed_data),) = _der(content[1])
        encapsulated = _der(_der(signed_data)[2][1])
        if content_type[1] != _SIGNED_DATA or encapsulated[0][1] != _TST_INFO:
            raise ValueError("not a time stamp")
        ((_, octets),) = _der(encapsulated[1][1])
        ((_, info),) = _der(octets)
        parts = _der(info)
        algorithm, digest = _der(parts[2][1])
        name = _DIGESTS[_der(algorithm[1])[0][1]]
        moment = next(content for tag, content in parts[3:] if tag == 0x18).decode("ascii")
        at = re.fullmatch(r"([0-9]{4})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2}(?:\.[0-9]{1,9})?)Z", moment)
        if at is None:
            raise ValueError("no time")
    except (ValueError, IndexError, KeyError, StopIteration, RecursionError):
        raise VerificationError(MALFORMED, "a time stamp is not a granted answer of RFC 3161 with SHA-2") from None
    return name, digest[1], "{}-{}-{}T{}:{}:{}Z".format(*at.groups())


def _check_stamps(source: Source, tree: Tree, checkpoint: Checkpoint, terms: Terms, report: Report) -> None:
    """Hold every stamped checkpoint against the log, and every stamp against its checkpoint."""
    names = {path.rpartition(".")[0] for path in source.paths if path.startswith("stamps/")}
    for name in sorted(names, key=lambda one: int(one.partition("/")[2])):
        note, response = f"{name}.checkpoint", f"{name}.tsr"
        if not {note, response} <= source.paths:
            report.problem(ALTERED, f"{name} is a checkpoint without its stamp, or a stamp without its checkpoint")
            return
        data = source.read(note)
        stamped = open_checkpoint(data, terms.keys)
        if stamped.size > checkpoint.size:
            report.problem(TRUNCATED, f"{stamped.size} records were stamped, there are {checkpoint.size}")
            return
        if stamped.origin != checkpoint.origin or tree.root(stamped.size) != stamped.root:
            report.problem(FORKED, f"the first {stamped.size} records are not those that were stamped")
            return
        terms.check(stamped)
        algorithm, digest, moment = read_stamp(source.read(response))
        if hashlib.new(algorithm, data).digest() != digest:
            report.problem(ALTERED, f"the stamp {response} is not of the checkpoint beside it")
            return
        report.stamps.append({"size": stamped.size, "time": moment, "file": response, "data": note})


# One record by a file of its own (C2SP tlog-proof).


@dataclass
class Proof:
    """What a tlog-proof holds."""

    index: int
    path: list[bytes]
    note: bytes
    extra: bytes | None


def parse_proof(data: bytes) -> Proof:
    """Read a proof; anything but its one form is malformed."""
    head, blank, note = data.partition(b"\n\n")
    lines = _ascii(head, "the proof").split("\n")
    if not blank or re.search(r"[\x00-\x09\x0b-\x1f\x7f]", "".join(lines)) or lines.pop(0) != PROOF_FORMAT:
        raise VerificationError(MALFORMED, f"the file is not a {PROOF_FORMAT}")
    extra = None
    if lines and lines[0].startswith("extra "):
        extra = _base64(lines.pop(0)[6:])
        if not 0 < len(extra) <= _MAX_ENTRY:
            raise VerificationError(MALFORMED, "the extra data is empty or too long")
    index = re.fullmatch(rf"index ({_NUMBER})", lines.pop(0)) if lines else None
    if index is None or int(index[1]) >= 2**63:
        raise VerificationError(MALFORMED, "the index is absent or not a canonical number")
    if len(lines) > _MAX_PROOF_LINES:
        raise VerificationError(MALFORMED, f"the proof has more than {_MAX_PROOF_LINES} hashes")
    path = [_base64(line) for line in lines]
    if any(len(one) != _HASH for one in path):
        raise VerificationError(MALFORMED, "a hash of the proof is not 32 bytes")
    return Proof(int(index[1]), path, note, extra)


def root_by_path(digest: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that an inclusion proof leads to (RFC 9162 2.1.3.2); malformed where it is not of this place."""
    if index >= size:
        raise VerificationError(MALFORMED, "the index lies beyond the tree of the checkpoint")
    position, last = index, size - 1
    for sibling in path:
        if last == 0:
            raise VerificationError(MALFORMED, "the proof has more hashes than its place in the tree needs")
        if position & 1 or position == last:
            digest = hashlib.sha256(b"\x01" + sibling + digest).digest()
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            digest = hashlib.sha256(b"\x01" + digest + sibling).digest()
        position >>= 1
        last >>= 1
    if last:
        raise VerificationError(MALFORMED, "the proof has fewer hashes than its place in the tree needs")
    return digest


def _read_small(text: str, limit: int = 256 * 1024) -> bytes:
    try:
        with Path(text).open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise VerificationError(UNREADABLE, f"{Path(text).name} cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise VerificationError(MALFORMED, f"{Path(text).name} is too long")
    return data


def _included(proof: Proof, keys: Sequence[Key], leaf: bytes) -> Checkpoint:
    """The checkpoint of a proof, that one of the keys signed and that holds the leaf at its index."""
    checkpoint = open_checkpoint(proof.note, keys)
    digest = hashlib.sha256(b"\x00" + leaf).digest()
    if root_by_path(digest, proof.index, checkpoint.size, proof.path) != checkpoint.root:
        raise VerificationError(ALTERED, f"the record is not the one that was logged at {proof.index}")
    return checkpoint


def _terms_by_proofs(trusted: list[Key], files: Sequence[str]) -> Terms:
    """The keys that proofs of changes lead to from a trusted one."""
    found = []
    for text in files:
        proof = parse_proof(_read_small(text))
        if proof.extra is None:
            raise VerificationError(MALFORMED, "the proof of a change of the key does not hold its record")
        try:
            rotation = rotation_of(canonical(proof.extra), proof.index)
        except (ValueError, KeyError, TypeError, RecursionError):
            rotation = None
        if rotation is None:
            raise VerificationError(MALFORMED, f"{Path(text).name} is not the proof of a change of the key")
        both = _included(proof, [rotation.old, rotation.new], proof.extra)
        if len(both.signers) != 2 or both.size != rotation.from_size or both.origin != rotation.old.name:
            raise VerificationError(BAD_SIGNATURE, "a change of the key is not signed by both keys")
        found.append(rotation)
    found.sort(key=lambda rotation: rotation.index)
    terms = Terms(found[0].old if found else trusted[0], found)
    if not any(_same(terms.keys[0], key) for key in trusted):
        raise VerificationError(BAD_SIGNATURE, "the changes of the key do not begin at the trusted key")
    return terms


def verify_proof(
    file: str,
    *,
    key: str,
    record: str | None = None,
    rotations: Sequence[str] = (),
    witnesses: Sequence[str] = (),
    quorum: int | None = None,
) -> Report:
    """Verify the proof of one record.

    Parameters
    ----------
    file
        The proof (C2SP tlog-proof).
    key
        The trusted verification key, or a file that holds it.
    record
        File of the record, where it is not the extra data of the proof.
    rotations
        Proofs of changes of the key, each from the one before.
    witnesses, quorum
        As for `verify`.
    """
    report = Report(key_source="given")
    try:
        _verify_proof(report, file, key, record, rotations, witnesses, quorum)
    except VerificationError as failure:
        report.problem(failure.code, failure.message)
        report.code = failure.code
    except Exception as error:  # noqa: BLE001 - whatever the file holds, the answer is a report
        report.code = MALFORMED
        report.problem(MALFORMED, f"the proof cannot be interpreted ({type(error).__name__})")
    return report


def _verify_proof(
    report: Report,
    file: str,
    key: str,
    record: str | None,
    rotations: Sequence[str],
    witnesses: Sequence[str],
    quorum: int | None,
) -> None:
    trusted = _given_keys(key) or []
    proof = parse_proof(_read_small(file))
    leaf = proof.extra if record is None else _read_small(record)
    if leaf is None:
        raise VerificationError(USAGE, "the proof does not hold its record: name a file of it with --record")
    if proof.extra is not None and leaf != proof.extra:
        raise VerificationError(ALTERED, "the record is not the one that the proof holds")
    if rotations:
        terms = _terms_by_proofs(trusted, rotations)
        checkpoint = _included(proof, terms.keys, leaf)
        report.key = terms.check(checkpoint).text
        named = _named(witnesses, terms.keys)
    else:
        checkpoint = _included(proof, trusted, leaf)
        report.key = checkpoint.signers[0].text
        named = _named(witnesses, trusted)
    if all(signer.name != checkpoint.origin for signer in checkpoint.signers):
        raise VerificationError(BAD_SIGNATURE, "the checkpoint is of another log than the key that signed it")
    report.origin, report.size, report.root = checkpoint.origin, checkpoint.size, checkpoint.root.hex()
    report.index, report.leaf_hash = proof.index, hashlib.sha256(b"\x00" + leaf).hexdigest()
    try:
        report.record = canonical(leaf)
        told = report.record["index"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise VerificationError(ALTERED, "what was logged is not a record in canonical form") from None
    if told != proof.index:
        raise VerificationError(ALTERED, f"the record says that it is {told}, and lies at {proof.index}")
    found = cosigned(proof.note, named)
    needed = len(named) if quorum is None else quorum
    report.witnesses = [{"name": witness.name, "time": when} for witness, when in found]
    if len(found) < needed:
        report.problem(MISSING_WITNESS, f"{len(found)} of the named witnesses cosigned the checkpoint, not {needed}")
    elif named:
        report.cosigned_size = checkpoint.size


def verify(
    export: str,
    *,
    key: str | None = None,
    older: str | None = None,
    witnesses: Sequence[str] = (),
    quorum: int | None = None,
    processes: int = 1,
    progress: Callable[[int], None] = lambda records: None,
) -> Report:
    """Verify an export.

    Parameters
    ----------
    export
        Zip file or folder.
    key
        The trusted verification key, or a file that holds it.
    older
        An earlier checkpoint (file) or export (zip file or folder) of the same log.
    witnesses
        Verification keys of witnesses, or files that hold them.
    quorum
        How many of them must have cosigned; all by default.
    processes
        How many may read the records of a long log side by side.
    progress
        Called now and then with the number of records that were read.
    """
    report = Report()
    try:
        _verify(report, export, key, older, witnesses, quorum, processes, progress)
    except VerificationError as failure:
        report.problem(failure.code, failure.message)
        report.code = failure.code
    except Exception as error:  # noqa: BLE001 - whatever the export holds, the answer is a report
        report.code = MALFORMED
        report.problem(MALFORMED, f"the export cannot be interpreted ({type(error).__name__})")
    return report


def summary(report: Report) -> str:
    """The report in some lines for a person: what was proved, and what was not."""
    if report.code != PROVED:
        first = report.problems[0]["message"] if report.problems else ""
        more = len(report.problems) - 1
        return f"{WORDS[report.code]}: {first}" + (f" (and {more} more; --json lists them)" if more > 0 else "")
    whose = {
        "given": "the key that you gave" if not report.rotations else "a key that follows from the one that you gave",
        "older export": "the key of the older export",
        "export": "the key inside the export itself; give the log's key with --key to know who signed",
    }[report.key_source]
    if report.index is not None and report.record is not None:
        return "\n".join(_summary_of_proof(report, whose))
    lines = [
        f"PROVED: {report.size} records of {report.origin}: none was changed, removed, inserted or reordered"
        + ("" if report.older_size is None else f", and the first {report.older_size} are those of the older one"),
        f"root {report.root}, signed with {whose}",
    ]
    for rotation in report.rotations:
        lines.append(f"the key was changed at {rotation['from_size']} records; the old and the new key signed that")
    if report.pruned:
        lines.append(f"{report.pruned} of them were pruned when their time was over; the log accounts for each")
    lines += _outside(report)
    missing = sum(gap["missing_count"] for gap in report.gaps)
    twice = sum(gap["used_twice"] for gap in report.gaps)
    if missing or twice:
        lines.append(f"note: the producers' numbering misses {missing} records and uses {twice} numbers twice (--json)")
    if report.times_set_back:
        lines.append(f"note: the clock of the log went back {report.times_set_back} times")
    if not report.witnesses and report.older_size is None:
        lines.append(
            "not proved: that there is no other history of this log. Whoever holds its key can write it anew; "
            "a witness (--witness) or a checkpoint that you kept (--older) shows that"
        )
    lines.append("not proved: that what was recorded is true, and that everything that was done was recorded")
    return "\n".join(lines)


def _summary_of_proof(report: Report, whose: str) -> list[str]:
    record = report.record or {}
    return [
        f"PROVED: record {report.index} of {report.origin} ({record.get('kind')} by {record.get('producer')}, recorded "
        f"{record.get('recorded_at')}) is in the log of {report.size} records",
        f"root {report.root}, signed with {whose}",
        *_outside(report),
        "not proved: anything about the other records"
        + ("" if report.witnesses else ", or that nobody sees another log"),
    ]


def _outside(report: Report) -> list[str]:
    """What was said by others than the log."""
    lines = []
    if report.witnesses:
        lines.append("cosigned by " + ", ".join(witness["name"] for witness in report.witnesses))
    if report.stamps:
        last = report.stamps[-1]
        lines.append(
            f"{len(report.stamps)} time stamps are of checkpoints of this log, the last of {last['size']} records, "
            f"{last['time']}; who made them is for OpenSSL to say, with the authority's certificate: "
            f"openssl ts -verify -in {last['file']} -data {last['data']} -CAfile tsa.pem"
        )
    return lines


def _progress() -> Callable[[int], None]:
    if not sys.stderr.isatty():
        return lambda records: None

    def show(records: int) -> None:
        if records % (WIDTH * 64) == 0:
            print(f"\r{records} records", end="", file=sys.stderr, flush=True)

    return show


def _arguments(of_proof: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="verify.py proof" if of_proof else "verify.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    key_help = "the log's verification key"
    if of_proof:
        parser.add_argument("file", metavar="FILE", help="the proof (C2SP tlog-proof)")
        parser.add_argument("--key", metavar="VKEY|FILE", required=True, help=key_help)
        parser.add_argument("--record", metavar="FILE", help="the record, where the proof does not hold it")
        parser.add_argument(
            "--rotation", metavar="FILE", action="append", default=[], help="the proof of a change of the key"
        )
    else:
        parser.add_argument("export", metavar="EXPORT", help="zip file or folder")
        parser.add_argument("--key", metavar="VKEY|FILE", help=key_help)
        parser.add_argument("--older", metavar="CHECKPOINT|EXPORT", help="an earlier checkpoint or export of the log")
        parser.add_argument("--processes", metavar="N", type=int, help="how many may read; default: the processors")
    parser.add_argument(
        "--witness", metavar="VKEY|FILE", action="append", default=[], help="the verification key of a witness"
    )
    parser.add_argument("--quorum", metavar="N", type=int, help="how many of the witnesses must have cosigned")
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    of_proof = words[:1] == ["proof"]
    parser = _arguments(of_proof)
    given = parser.parse_args(words[1:] if of_proof else words)
    if given.quorum is not None and not 0 <= given.quorum <= len(given.witness):
        parser.error("--quorum is more than the witnesses that are named")
    if of_proof:
        report = verify_proof(
            given.file,
            key=given.key,
            record=given.record,
            rotations=given.rotation,
            witnesses=given.witness,
            quorum=given.quorum,
        )
    else:
        report = verify(
            given.export,
            key=given.key,
            older=given.older,
            witnesses=given.witness,
            quorum=given.quorum,
            processes=given.processes or min(os.cpu_count() or 1, 8),
            progress=_progress(),
        )
    if given.json:
        print(json.dumps(report.as_json(), indent=2, sort_keys=True))
    else:
        print(summary(report), file=sys.stdout if report.code == PROVED else sys.stderr)
    return report.code


if __name__ == "__main__":
    sys.exit(main())
