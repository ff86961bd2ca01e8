"""What is answered out of the log: entries, pages, checkpoints and proofs, always of what is committed."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import sqlalchemy as sa

from services.audit import record, store
from services.audit.pruned import Pruned
from services.audit.record import attachment_digests
from services.audit.store import Filter, Head, Store, StoredEntry
from shared.errors import ErrorCode, StepwedgeError
from shared.transparency import merkle
from shared.transparency.note import BadSignatureError, Checkpoint, MalformedNoteError, Note
from stepwedge.audit.v1 import audit_pb2

MAX_PAGE = 1000
"""Most entries in a page."""
DEFAULT_PAGE = 100

_COUNTED_SECONDS = 10.0
_PAGE_BYTES = 1_500_000  # leaf and decoded record together stay below a message of 4 MiB


class InclusionProof(NamedTuple):
    """That a leaf is in a tree."""

    size: int
    leaf_hash: bytes
    path: list[bytes]
    root: bytes
    checkpoint: str


class ConsistencyProof(NamedTuple):
    """That one tree is a prefix of another."""

    to_size: int
    path: list[bytes]
    checkpoint: str


def checkpoint_of(head: Head) -> Checkpoint:
    """The checkpoint that a stored head carries. Raises LOG_INCONSISTENT where it is none."""
    try:
        return Checkpoint.parse(Note.parse(head.note.encode()).text)
    except (MalformedNoteError, BadSignatureError):
        message = "the newest checkpoint cannot be read"
        raise StepwedgeError(ErrorCode.ERROR_CODE_LOG_INCONSISTENT, message) from None


def newest(connection: sa.Connection) -> Head:
    """The newest checkpoint. Raises AUDIT_UNAVAILABLE where the log has not begun."""
    found = store.head(connection)
    if found is None:
        raise StepwedgeError(ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE, "the log has not begun")
    return found


class Reader:
    """Answers out of a store; every method blocks, and may run in any thread."""

    def __init__(self, the_store: Store, refuse: Callable[[], None] = lambda: None) -> None:
        """refuse: raises where queries cannot be trusted."""
        self._store = the_store
        self._refuse = refuse
        self._counted = 0.0

    def head(self) -> Head:
        """The newest checkpoint."""
        with self._store.reading() as connection:
            return newest(connection)

    def heads(self) -> tuple[Head, Head | None]:
        """The newest checkpoint, and the newest that enough witnesses cosigned."""
        with self._store.reading() as connection:
            return newest(connection), store.cosigned(connection)

    def entry(self, index: int) -> audit_pb2.Entry:
        """One entry. Raises ENTRY_NOT_FOUND."""
        with self._store.reading() as connection:
            if index < newest(connection).size and (rows := store.leaves(connection, index, index + 1)):
                _hold_to_tree(store.node_reader(connection), rows[0])
                return to_entry(rows[0], store.attachments(connection, attachment_digests(rows[0].leaf)))
            if index < newest(connection).size:
                if index in Pruned.of(connection):
                    message = "the entry was removed at the end of its retention; its proof stands"
                    raise StepwedgeError(ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND, message)
                raise inconsistent(f"the entry {index} is gone, and no record of pruning speaks of it")
        raise StepwedgeError(ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND, "the log has no such entry")

    def query(
        self, wanted: Filter, page_size: int, token: str, before: int | None = None
    ) -> tuple[list[audit_pb2.Entry], str]:
        """A page of entries below the index `before`, and the token of the next or "".

        Raises INVALID_REQUEST; LOG_INCONSISTENT where a check found entries or columns that are not what they were, or
        where there are fewer entries than there must be.
        """
        self._refuse()
        if page_size > MAX_PAGE:
            message = f"a page has at most {MAX_PAGE} entries"
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, message)
        limit = page_size or DEFAULT_PAGE
        after = store.decode_token(token, wanted)
        entries: list[audit_pb2.Entry] = []
        size = 0
        with self._store.reading() as connection:
            node = store.node_reader(connection)
            for row in store.query(connection, wanted, after=after, limit=limit + 1, before=before):
                if len(entries) == limit:
                    return entries, store.encode_token(wanted, entries[-1].index)
                _hold_to_tree(node, row)
                entry = to_entry(row, store.attachments(connection, attachment_digests(row.leaf)))
                size += entry.ByteSize()
                if entries and size > _PAGE_BYTES:
                    return entries, store.encode_token(wanted, entries[-1].index)
                entries.append(entry)
            self._count(connection)
        return entries, ""

    def _count(self, connection: sa.Connection) -> None:
        """Hold the number of entries against the tree at the end of a query, every few seconds at most."""
        if time.monotonic() - self._counted < _COUNTED_SECONDS:
            return
        for _ in range(3):  # PostgreSQL shows what is committed between two of these
            before = newest(connection).size - len(Pruned.of(connection))
            there = store.count(connection)
            after = newest(connection).size - len(Pruned.of(connection))
            if min(before, after) <= there <= max(before, after):
                self._counted = time.monotonic()
                return
        raise inconsistent("entries are gone that were not pruned; `stepwedge log check` tells which")

    def inclusion(self, index: int, size: int) -> InclusionProof:
        """Proof of an entry; size 0 means the newest tree. Raises ENTRY_NOT_FOUND, INVALID_REQUEST."""
        with self._store.reading() as connection:
            head = newest(connection)
            of = size_within(size, head)
            if index >= of:
                raise StepwedgeError(ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND, "the tree has no such entry")
            node = store.node_reader(connection)
            with _whole_tiles():
                path = merkle.inclusion_proof(index, of, node)
                return InclusionProof(of, node(0, index), path, merkle.root_of(of, node), head.note)

    def consistency(self, from_size: int, to_size: int) -> ConsistencyProof:
        """Proof from one tree to another; to_size 0 means the newest. Raises INVALID_REQUEST."""
        with self._store.reading() as connection:
            head = newest(connection)
            to = size_within(to_size, head)
            if not 0 < from_size <= to:
                message = "the older tree has at least one entry and at most as many as the newer"
                raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, message)
            with _whole_tiles():
                path = merkle.consistency_proof(from_size, to, store.node_reader(connection))
                return ConsistencyProof(to, path, head.note)


def _hold_to_tree(node: merkle.Node, row: StoredEntry) -> None:
    """Return where the leaf is the one in the tree's tile; else raise LOG_INCONSISTENT: it is not handed out."""
    with _whole_tiles():
        if node(0, row.index) == merkle.leaf_hash(row.leaf):
            return
    message = f"the entry {row.index} is not the one in the tree; `stepwedge verify` tells more"
    raise StepwedgeError(ErrorCode.ERROR_CODE_LOG_INCONSISTENT, message)


def size_within(asked: int, head: Head) -> int:
    """The size that is asked for, the newest for 0. Raises INVALID_REQUEST beyond it."""
    if asked > head.size:
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "the log is not that long")
    return asked or head.size


def tree_root(connection: sa.Connection, size: int) -> bytes:
    """Root of the tree of the first `size` entries. Raises LOG_INCONSISTENT where tiles are missing."""
    with _whole_tiles():
        return merkle.root_of(size, store.node_reader(connection))


def inconsistent(message: str) -> StepwedgeError:
    """The error of a log whose stored state contradicts what it signed."""
    return StepwedgeError(ErrorCode.ERROR_CODE_LOG_INCONSISTENT, message)


class _whole_tiles:  # noqa: N801 - reads as a statement
    """Turn a tile that is too short into the error that it means."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, LookupError):
            raise StepwedgeError(ErrorCode.ERROR_CODE_LOG_INCONSISTENT, "tiles of the tree are missing") from None


_RETENTION = {name.removeprefix("RETENTION_CLASS_"): number for name, number in audit_pb2.RetentionClass.items()}


def to_entry(row: StoredEntry, attachments: Mapping[str, bytes]) -> audit_pb2.Entry:
    """An entry as the contract has it. Raises LOG_INCONSISTENT where the stored leaf cannot be read."""
    try:
        members = record.parse(row.leaf)
        entry = audit_pb2.Entry(
            index=row.index,
            leaf=row.leaf,
            leaf_hash=merkle.leaf_hash(row.leaf),
            record=record.to_record(members, attachments),
            retention=_RETENTION[members.get("retention", "UNSPECIFIED")],
            identity_sha256=members.get("identity_sha256", ""),
            producer=members["producer"],
            id=members["id"],
        )
        entry.recorded_at.FromJsonString(members["recorded_at"])
        if (clock := members.get("clock")) is not None:
            entry.clock.source = audit_pb2.ClockSource.Value(f"CLOCK_SOURCE_{clock['source']}")
            entry.clock.offset_us, entry.clock.max_error_us = clock["offset_us"], clock["max_error_us"]
    except (ValueError, KeyError, TypeError, AttributeError):
        message = f"the entry {row.index} cannot be read"
        raise StepwedgeError(ErrorCode.ERROR_CODE_LOG_INCONSISTENT, message) from None
    return entry
