"""The whole log as one zip archive: checkpoint, keys, tiles (C2SP tlog-tiles), attachments, manifest of digests.

`verifier/verify.py` checks it with nothing else. The tree and the entries lie where tlog-tiles puts them, so other
tools of that specification read them too.
"""

import io
import time
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping
from hashlib import sha256
from typing import Any

import sqlalchemy as sa

from services.audit import record, store, tiles
from services.audit.formats import stream
from services.audit.formats.stream import Format
from services.audit.pruned import Pruned
from services.audit.reading import newest, size_within, tree_root
from services.audit.store import Head, Store, StoredEntry
from shared.errors import StepwedgeError
from stepwedge.audit.v1 import audit_pb2

FORMAT = "stepwedge.export/1"
"""Names the layout of the archive."""

FORMATS: Mapping[int, Format | None] = {
    audit_pb2.EXPORT_FORMAT_UNSPECIFIED: None,
    audit_pb2.EXPORT_FORMAT_BUNDLE: None,
    audit_pb2.EXPORT_FORMAT_CSV: Format.CSV,
    audit_pb2.EXPORT_FORMAT_FHIR: Format.FHIR,
    audit_pb2.EXPORT_FORMAT_DICOM: Format.DICOM,
}
"""Number in the contract -> format of the records; None is the archive."""

CHUNK = 1 << 20
"""Longest piece of the archive, bytes."""


class _Pieces(io.RawIOBase):
    """Where the zip writer writes: kept until it is handed on."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._kept += data
        return len(data)

    def take(self, least: int) -> Iterator[bytes]:
        """Pieces of at most CHUNK bytes, as long as `least` bytes are there."""
        while self._kept and len(self._kept) >= least:
            piece = bytes(self._kept[:CHUNK])
            del self._kept[:CHUNK]
            yield piece


def pieces(
    the_store: Store, checkpoint: Head, keys: list[store.Key], form: Format | None
) -> Generator[bytes, None, None]:
    """The archive, or the records in a format, in pieces of at most 1 MiB."""
    return export(the_store, checkpoint, keys) if form is None else stream.export(the_store, checkpoint, form)


def export(the_store: Store, checkpoint: Head, keys: list[store.Key]) -> Generator[bytes, None, None]:
    """The archive of the log as `checkpoint` covers it, in pieces of at most 1 MiB.

    Rows are taken as they are stored: whether they are right is for the verifier to say.
    """
    pieces = _Pieces()
    digests: dict[str, str] = {}
    with zipfile.ZipFile(pieces, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path, data in _files(the_store, checkpoint, keys):
            digests[path] = sha256(data).hexdigest()
            _add(archive, path, data)
            yield from pieces.take(CHUNK)
        manifest = {
            "format": FORMAT,
            "size": checkpoint.size,
            "exported_at": record.timestamp(time.time_ns() // 1_000_000_000, 0),
            "keys": [{"verification_key": key.verification_key, "from_size": key.from_size} for key in keys],
            "files": digests,
        }
        _add(archive, "manifest.json", record.encode(manifest))
    yield from pieces.take(1)


def _add(archive: zipfile.ZipFile, path: str, data: bytes) -> None:
    info = zipfile.ZipInfo(path)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o100644 << 16
    archive.writestr(info, data)


def _files(the_store: Store, checkpoint: Head, keys: list[store.Key]) -> Iterator[tuple[str, bytes]]:
    with the_store.reading() as connection:
        cosigned = store.cosigned(connection)
    if cosigned is not None and _text(cosigned) == _text(checkpoint):
        checkpoint = cosigned
    yield "checkpoint", checkpoint.note.encode()
    if cosigned is not None and cosigned.size < checkpoint.size:
        yield "cosigned-checkpoint", cosigned.note.encode()
    yield "vkey", "".join(f"{key.verification_key}\n" for key in keys if key.from_size <= checkpoint.size).encode()
    for key in keys:
        if key.note is not None and key.from_size <= checkpoint.size:
            yield f"rotation/{key.from_size}", key.note.encode()
    with the_store.reading() as connection:
        stamps = store.stamps(connection, checkpoint.size)
    for stamp in stamps:
        yield f"stamps/{stamp.size}.checkpoint", stamp.note.encode()
        yield f"stamps/{stamp.size}.tsr", stamp.token
    exported: set[str] = set()
    for bundle in tiles.bundles_of(checkpoint.size):
        start = bundle.index * tiles.WIDTH
        with the_store.reading() as connection:
            rows = store.leaves(connection, start, start + bundle.width)
            if len(rows) < bundle.width:
                rows = with_holes(connection, rows, start, start + bundle.width)
            wanted = {digest for row in rows for digest in record.attachment_digests(row.leaf)} - exported
            beside = store.attachments(connection, wanted)
        yield bundle.path, tiles.encode_bundle([row.leaf for row in rows])
        for digest, content in sorted(beside.items()):
            yield f"attachments/{digest}", content
        exported |= wanted
    for tile in tiles.tiles_of(checkpoint.size):
        with the_store.reading() as connection:
            hashes = store.tile(connection, tile.level, tile.index)
        yield tile.path, hashes[: tile.width * 32]


def with_holes(connection: sa.Connection, rows: list[StoredEntry], start: int, end: int) -> list[StoredEntry]:
    """An empty leaf where one was pruned; one that is gone otherwise stays out, for the verifier to see."""
    try:
        pruned = Pruned.of(connection)
    except StepwedgeError:
        return rows
    there = {row.index: row for row in rows}
    return [
        there.get(index) or StoredEntry(index, b"") for index in range(start, end) if index in there or index in pruned
    ]


def _text(head: Head) -> str:
    """What is signed: a checkpoint and the same one with more signatures have it in common."""
    return head.note.rpartition("\n\n")[0]


def at(
    connection: sa.Connection, size: int, sign: Callable[[int, bytes], str], *, cosigned_from: int | None = None
) -> Head:
    """A checkpoint for an export of `size` entries; 0 means the newest. A smaller one is signed anew.

    With `cosigned_from` the newest cosigned one, if it covers so many entries, counts as the newest.
    """
    head, cosigned = newest(connection), store.cosigned(connection)
    if size == 0 and cosigned is not None and cosigned_from is not None and cosigned.size >= cosigned_from:
        return cosigned
    if size in (0, head.size):
        return head
    size = size_within(size, head)
    return Head(size, sign(size, tree_root(connection, size)), time.time_ns() // 1000)
