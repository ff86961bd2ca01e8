"""The log as one file in any of the formats, made and checked as it is read, in memory that does not grow."""

from collections.abc import Callable, Generator, Iterator
from enum import StrEnum
from typing import NamedTuple

import sqlalchemy as sa

from services.audit import store, tiles
from services.audit.formats import comma_separated, dicom, facts, fhir
from services.audit.formats.facts import Event
from services.audit.pruned import Pruned
from services.audit.reading import checkpoint_of
from services.audit.store import Head, Store, StoredEntry
from shared.errors import ErrorCode, StepwedgeError
from shared.transparency import merkle

CHUNK = 1 << 20
"""Longest piece of the file, bytes."""


class Format(StrEnum):
    """What an export can be; the value is its name in the contract, in lower case."""

    CSV = "csv"
    """A table (RFC 4180)."""
    FHIR = "fhir"
    """FHIR R4 AuditEvent, an object a line."""
    DICOM = "dicom"
    """DICOM audit messages (PS3.15 A.5), a document a line."""


class _Writer(NamedTuple):
    head: Callable[[], bytes]
    line: Callable[[Event], bytes]


_WRITERS = {
    Format.CSV: _Writer(comma_separated.header, comma_separated.row),
    Format.FHIR: _Writer(bytes, fhir.line),
    Format.DICOM: _Writer(bytes, dicom.line),
}


def export(the_store: Store, checkpoint: Head, form: Format) -> Generator[bytes, None, None]:
    """The records that `checkpoint` covers, in pieces of at most 1 MiB.

    Such a file proves nothing by itself, so what goes into it is checked here: the tree of the exported records has the
    root of the checkpoint. A caller keeps the file only when the last piece came without an error.

    Raises
    ------
    StepwedgeError
        LOG_INCONSISTENT where entries are absent, unreadable, or not those that were signed.
    """
    writer = _WRITERS[form]
    kept = bytearray(writer.head())
    signed = checkpoint_of(checkpoint)
    tree = merkle.CompactRange()
    for row, pruned in _rows(the_store, checkpoint.size):
        if pruned:
            tree.append(pruned)
            continue
        leaf_hash = merkle.leaf_hash(row.leaf)
        tree.append(leaf_hash)
        kept += writer.line(event_of(row, leaf_hash, signed.origin))
        while len(kept) >= CHUNK:
            yield bytes(kept[:CHUNK])
            del kept[:CHUNK]
    if tree.root() != signed.root:
        raise _inconsistent("the stored entries are not those that were signed; export a bundle and verify it")
    if kept:
        yield bytes(kept)


def event_of(row: StoredEntry, leaf_hash: bytes, origin: str) -> Event:
    """The event that a stored entry records. Raises LOG_INCONSISTENT where it cannot be read."""
    try:
        return facts.read(row.leaf, leaf_hash, origin)
    except ValueError:
        raise _inconsistent(f"the entry {row.index} cannot be read") from None


def _rows(the_store: Store, size: int) -> Iterator[tuple[StoredEntry, bytes]]:
    """Every entry; of a pruned one, which has no line, the hash of its leaf."""
    for bundle in tiles.bundles_of(size):
        start = bundle.index * tiles.WIDTH
        with the_store.reading() as connection:
            rows = store.leaves(connection, start, start + bundle.width)
            if len(rows) == bundle.width:
                found = [(row, b"") for row in rows]
            else:
                found = list(_with_pruned(connection, rows, start, bundle.width))
        yield from found


def _with_pruned(
    connection: sa.Connection, rows: list[StoredEntry], start: int, width: int
) -> Iterator[tuple[StoredEntry, bytes]]:
    there, pruned = {row.index: row for row in rows}, Pruned.of(connection)
    hashes = store.tile(connection, 0, start // tiles.WIDTH)
    for index in range(start, start + width):
        place = (index - start) * merkle.HASH_SIZE
        if index in there:
            yield there[index], b""
        elif index in pruned and len(hashes) >= place + merkle.HASH_SIZE:
            yield StoredEntry(index, b""), hashes[place : place + merkle.HASH_SIZE]
        else:
            raise _inconsistent("entries that were signed are absent")


def _inconsistent(message: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_LOG_INCONSISTENT, message)
