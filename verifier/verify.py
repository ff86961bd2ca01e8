#!/usr/bin/env python3
"""Verify an exported Stepwedge log with nothing but this file and Python (3.9 or newer).

    python verify.py EXPORT.zip|FOLDER [--key VKEY|FILE] [--older CHECKPOINT|EXPORT.zip|FOLDER]
                     [--witness VKEY|FILE]... [--quorum N] [--json]

Everything is computed anew from the records: the leaves and the Merkle tree (RFC 6962), every tile of the tree (C2SP
tlog-tiles), the signature of the checkpoint (C2SP signed-note, Ed25519 of RFC 8032), the canonical form of each record
(RFC 8785), the producers' numbering, the digests of the manifest. With `--older`, an earlier checkpoint or export of
the same log, it shows that nothing of what was there then has been changed or removed since.

`--key` is the log's verification key, "name+hash+key", as the operator of the log gave it to you, or a file that holds
it. Without it the key of the older export counts, and without that the key inside the export itself: that shows that
the export is whole, and not who made it.

`--witness` names a witness by its verification key (C2SP tlog-cosignature, Ed25519); `--quorum` says how many of those
named must have cosigned the checkpoint, all of them by default.

Exit status
    0  proved: nothing was changed, removed, inserted or reordered
    2  wrong arguments
    3  altered: a record, tile or other file is not what was signed
    4  truncated: records at the end are missing
    5  forked: the log is not a continuation of the older one
    6  bad signature: the checkpoint is not signed by the trusted key
    7  missing witness: too few of the named witnesses cosigned the checkpoint
    8  malformed: the archive, the checkpoint or a key does not have the form that it must have
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
from collections.abc import Callable, Iterator, Sequence
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

WIDTH = 256
_HASH = 32
_MOST_PROBLEMS = 20
_MAX_NOTE = 64 * 1024
_LIMITS = {"tile": WIDTH * _HASH, "entries": WIDTH * (2 + 65535), "attachments": 64 << 20, "manifest": 256 << 20}
_SAFE_PATH = re.compile(
    r"checkpoint|cosigned-checkpoint|vkey|manifest\.json|attachments/[0-9a-f]{64}"
    r"|tile/(?:entries|[0-9]{1,2})/(?:x[0-9]{3}/)*[0-9]{3}(?:\.p/[0-9]{1,3})?"
)
_SAFE_FOLDER = re.compile(r"attachments/|tile/(?:(?:entries|[0-9]{1,2})/(?:x[0-9]{3}/)*(?:[0-9]{3}\.p/)?)?")


class VerificationError(Exception):
    """The verification cannot go on; `code` is the exit status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


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
    if len(parts) != 3 or not parts[0] or re.search(r"\s", parts[0]):
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
    """A signed tree head whose signature has been verified."""

    origin: str
    size: int
    root: bytes
    key: Key


def open_checkpoint(data: bytes, keys: list[Key]) -> Checkpoint:
    """Read a checkpoint note and verify that one of the keys signed it."""
    text, signatures = _parse_note(data)
    lines = text.split("\n")
    if len(lines) < 4 or lines.pop() or not all(lines):
        raise VerificationError(MALFORMED, "the checkpoint does not have three lines or more, none of them empty")
    if not re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1]):
        raise VerificationError(MALFORMED, "the size in the checkpoint is not a canonical number")
    root = _base64(lines[2])
    if len(root) != _HASH:
        raise VerificationError(MALFORMED, "the root in the checkpoint is not 32 bytes")
    signer = None
    for key in keys:
        signature = signatures.get((key.name, key.id))
        if signature is None:
            continue
        if not ed25519_verify(key.public, text.encode(), signature):
            raise VerificationError(BAD_SIGNATURE, "the signature of the checkpoint is wrong")
        signer = key
    if signer is None:
        raise VerificationError(BAD_SIGNATURE, "the checkpoint is not signed by the trusted key")
    return Checkpoint(lines[0], int(lines[1]), root, signer)


def cosigned(data: bytes, witnesses: list[Key]) -> list[tuple[Key, int]]:
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
        if len(parts) != 3 or parts[0] != "\u2014" or not parts[1] or "+" in parts[1]:
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


@dataclass
class Numbering:
    """The sequence numbers of one incarnation of one producer that the records account for."""

    seen: set[int] = field(default_factory=set)
    highest: int = 0
    twice: int = 0

    def take(self, number: int) -> None:
        if number in self.seen:
            self.twice += 1
        self.seen.add(number)
        if number > self.highest:
            self.highest = number

    def missing(self) -> list[list[int]]:
        """Ranges of numbers that are not accounted for."""
        ranges: list[list[int]] = []
        before = 0
        if len(self.seen) == self.highest:
            return ranges
        for number in sorted(self.seen):
            if number > before + 1:
                ranges.append([before + 1, number - 1])
            before = number
        return ranges


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


class Records:
    """Goes over the records one by one: canonical form, position, numbering, what lies beside them."""

    def __init__(self, report: Report, source: Source) -> None:
        self._report = report
        self._source = source
        self._numbering: dict[tuple[str, str], Numbering] = {}
        self.attachments: set[str] = set()
        self.in_order = True

    def take(self, leaf: bytes, position: int) -> None:
        """Check one record."""
        report = self._report
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
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.in_order = False
            report.problem(ALTERED, f"record {position} is not a record in canonical form", position)
            return
        if index != position:
            self.in_order = False
            report.problem(ALTERED, f"at position {position} lies the record {index}", position)
        report.kinds[kind] = report.kinds.get(kind, 0) + 1
        if when < report.last_recorded_at:
            report.times_set_back += 1
        report.first_recorded_at = report.first_recorded_at or when
        report.last_recorded_at = when
        numbering = self._numbering.get(place)
        if numbering is None:
            numbering = self._numbering[place] = Numbering()
        for number in numbers:
            numbering.take(number)
        if beside is not None:
            self._check_beside(*beside, position)

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
        """Report the numbering."""
        for (producer, incarnation), numbering in sorted(self._numbering.items()):
            missing = numbering.missing()
            if missing or numbering.twice:
                self._report.gaps.append(
                    {
                        "producer": producer,
                        "incarnation": incarnation,
                        "missing": missing[:_MOST_PROBLEMS],
                        "missing_count": sum(last - first + 1 for first, last in missing),
                        "used_twice": numbering.twice,
                    }
                )


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


def _read_records(source: Source, size: int, report: Report, records: Records, progress: Callable[[int], None]) -> Tree:
    """Read every bundle, check every record; the tree over what is there."""
    hashes = bytearray()
    sha256 = hashlib.sha256
    position = 0
    paths = source.paths
    # A bundle cut short, or one that grew, bears another width in its path.
    others = {path.partition(".p/")[0]: path for path in paths if path.startswith("tile/entries/")}
    for path, index, width in bundles(size):
        if path not in paths:
            path = others.get(path.partition(".p/")[0], "")
        if not path:
            continue
        entries = _entries(source.read(path))
        if entries is None:
            report.problem(ALTERED, f"{path} ends inside a record")
            records.in_order = False
            continue
        if position != index * WIDTH:
            records.in_order = False
        tile = tile_path("0", index, width)
        signed = source.read(tile) if tile in paths else b""
        for number, leaf in enumerate(entries):
            digest = sha256(b"\x00" + leaf).digest()
            hashes += digest
            if signed and signed[number * _HASH : (number + 1) * _HASH] != digest:
                report.problem(ALTERED, f"record {position} is not the one that was signed", position)
                records.in_order = False
            records.take(leaf, position)
            position += 1
        progress(position)
    return Tree(hashes)


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


def _check_files(source: Source, checkpoint: Checkpoint, report: Report, attachments: set[str]) -> None:
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
    expected = {"checkpoint", "vkey", *attachments} | (source.paths & {COSIGNED})
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


def _older(text: str) -> tuple[bytes, list[Key] | None]:
    """The earlier checkpoint as it is signed, and the keys of the earlier export where it is one."""
    place = Path(text)
    try:
        if place.is_file() and place.stat().st_size <= _MAX_NOTE and not zipfile.is_zipfile(place):
            return place.read_bytes(), None
        place.stat()
    except OSError as error:
        _unreadable(error)
    source = Source(place)
    _require(source, ("checkpoint", "vkey"))
    return source.read("checkpoint"), parse_keys(_ascii(source.read("vkey")))


def _ascii(data: bytes) -> str:
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise VerificationError(MALFORMED, "a verification key is not plain text") from None


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


def _check_earlier(source: Source, tree: Tree, checkpoint: Checkpoint, keys: list[Key], report: Report) -> None:
    """The earlier checkpoint that witnesses cosigned must be of this very log."""
    earlier = open_checkpoint(source.read(COSIGNED), keys)
    if earlier.origin != checkpoint.origin:
        report.problem(FORKED, "the cosigned checkpoint is of another log")
    elif earlier.size > checkpoint.size:
        report.problem(TRUNCATED, f"witnesses cosigned {earlier.size} records, there are {checkpoint.size}")
    elif tree.root(earlier.size) != earlier.root:
        report.problem(FORKED, f"the first {earlier.size} records are not those that witnesses cosigned")


def _check_witnesses(report: Report, source: Source, given: Sequence[str], quorum: int | None) -> None:
    witnesses = [key for text in given for key in _given_keys(text, COSIGNATURE) or []]
    if not witnesses and not quorum:
        return
    needed = len({witness.public for witness in witnesses}) if quorum is None else quorum
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


def _verify(
    report: Report,
    export: str,
    key: str | None,
    older: str | None,
    witnesses: Sequence[str],
    quorum: int | None,
    progress: Callable[[int], None],
) -> None:
    before, older_keys = _older(older) if older is not None else (None, None)
    try:
        os.stat(export)  # noqa: PTH116 - for its error
    except OSError as error:
        _unreadable(error)
    source = Source(Path(export))
    _require(source, ("checkpoint", "vkey", "manifest.json"))
    given = _given_keys(key)
    keys = given or older_keys or parse_keys(_ascii(source.read("vkey")))
    source_of_key = "given" if given else "older export" if older_keys else "export"
    older_checkpoint = None if before is None else open_checkpoint(before, keys)
    checkpoint = open_checkpoint(source.read("checkpoint"), keys)
    report.origin, report.size, report.root = checkpoint.origin, checkpoint.size, checkpoint.root.hex()
    report.key, report.key_source = checkpoint.key.text, source_of_key
    # A size out of proportion to the archive must not make us count to it.
    if checkpoint.size // WIDTH > len(source.paths) + 1_000_000:
        raise VerificationError(
            TRUNCATED, f"the checkpoint covers {checkpoint.size} records and next to nothing is there"
        )
    records = Records(report, source)
    tree = _read_records(source, checkpoint.size, report, records, progress)
    _check_size(tree, checkpoint, report, records)
    if report.code == PROVED:
        _check_tiles(source, tree, checkpoint.size, report)
    if report.code in (PROVED, ALTERED):
        _check_files(source, checkpoint, report, records.attachments)
    records.finish()
    if older_checkpoint is not None:
        report.older_size = older_checkpoint.size
        if report.code == PROVED:
            _check_continuation(tree, checkpoint, older_checkpoint, report)
    if report.code == PROVED and COSIGNED in source.paths:
        _check_earlier(source, tree, checkpoint, keys, report)
    if report.code == PROVED:
        _check_witnesses(report, source, witnesses, quorum)


def _check_continuation(tree: Tree, checkpoint: Checkpoint, before: Checkpoint, report: Report) -> None:
    if before.origin != checkpoint.origin:
        report.problem(FORKED, "the older checkpoint is of another log")
    elif before.size > checkpoint.size:
        report.problem(TRUNCATED, f"the log had {before.size} records and has {checkpoint.size}", checkpoint.size)
    elif tree.root(before.size) != before.root:
        report.problem(FORKED, f"the first {before.size} records are not those of the older checkpoint")


def verify(
    export: str,
    *,
    key: str | None = None,
    older: str | None = None,
    witnesses: Sequence[str] = (),
    quorum: int | None = None,
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
    progress
        Called now and then with the number of records that were read.
    """
    report = Report()
    try:
        _verify(report, export, key, older, witnesses, quorum, progress)
    except VerificationError as failure:
        report.problem(failure.code, failure.message)
        report.code = failure.code
    except Exception as error:  # noqa: BLE001 - whatever the export holds, the answer is a report
        report.code = MALFORMED
        report.problem(MALFORMED, f"the export cannot be interpreted ({type(error).__name__})")
    return report


def summary(report: Report) -> str:
    """The report in a line or two for a person."""
    if report.code != PROVED:
        first = report.problems[0]["message"] if report.problems else ""
        more = len(report.problems) - 1
        return f"{WORDS[report.code]}: {first}" + (f" (and {more} more; --json lists them)" if more > 0 else "")
    whose = {
        "given": "the key that you gave",
        "older export": "the key of the older export",
        "export": "the key inside the export itself; give the log's key with --key to know who signed",
    }[report.key_source]
    lines = [
        f"PROVED: {report.size} records of {report.origin}: none was changed, removed, inserted or reordered"
        + ("" if report.older_size is None else f", and the first {report.older_size} are those of the older one"),
        f"root {report.root}, signed with {whose}",
    ]
    if report.witnesses:
        lines.append("cosigned by " + ", ".join(witness["name"] for witness in report.witnesses))
    missing = sum(gap["missing_count"] for gap in report.gaps)
    twice = sum(gap["used_twice"] for gap in report.gaps)
    if missing or twice:
        lines.append(f"note: the producers' numbering misses {missing} records and uses {twice} numbers twice (--json)")
    if report.times_set_back:
        lines.append(f"note: the clock of the log went back {report.times_set_back} times")
    return "\n".join(lines)


def _progress() -> Callable[[int], None]:
    if not sys.stderr.isatty():
        return lambda records: None

    def show(records: int) -> None:
        if records % (WIDTH * 64) == 0:
            print(f"\r{records} records", end="", file=sys.stderr, flush=True)

    return show


def main(arguments: list[str] | None = None) -> int:
    """The command; the exit status."""
    parser = argparse.ArgumentParser(
        prog="verify.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("export", metavar="EXPORT", help="zip file or folder")
    parser.add_argument("--key", metavar="VKEY|FILE", help="the log's verification key")
    parser.add_argument("--older", metavar="CHECKPOINT|EXPORT", help="an earlier checkpoint or export of the same log")
    parser.add_argument(
        "--witness", metavar="VKEY|FILE", action="append", default=[], help="the verification key of a witness"
    )
    parser.add_argument("--quorum", metavar="N", type=int, help="how many of the witnesses must have cosigned")
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")
    given = parser.parse_args(arguments)
    if given.quorum is not None and not 0 <= given.quorum <= len(given.witness):
        parser.error("--quorum is more than the witnesses that are named")
    report = verify(
        given.export,
        key=given.key,
        older=given.older,
        witnesses=given.witness,
        quorum=given.quorum,
        progress=_progress(),
    )
    if given.json:
        print(json.dumps(report.as_json(), indent=2, sort_keys=True))
    else:
        print(summary(report), file=sys.stdout if report.code == PROVED else sys.stderr)
    return report.code


if __name__ == "__main__":
    sys.exit(main())
