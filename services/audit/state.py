"""The end of the log as it is stored, held against what was signed and against what was once acknowledged."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from services.audit import store, tiles
from services.audit.high_water import Mark
from services.audit.store import Head
from shared.errors import ErrorCode, StepwedgeError
from shared.transparency import merkle
from shared.transparency.note import (
    BadSignatureError,
    Checkpoint,
    MalformedNoteError,
    VerificationKey,
    open_checkpoint,
)


def inconsistent(message: str) -> StepwedgeError:
    """The error of a log whose stored state contradicts what it signed."""
    return StepwedgeError(ErrorCode.ERROR_CODE_LOG_INCONSISTENT, message)


def unavailable(message: str) -> StepwedgeError:
    """The error of a log that cannot take a record now."""
    return StepwedgeError(ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE, message)


@dataclass
class State:
    """What the sequencer must know of the log to go on from its end."""

    head: Head
    root: bytes
    range: merkle.CompactRange
    levels: list[list[bytes]]
    """For each level of tiles the hashes of its partial tile."""
    recorded_max_us: int
    kept_us: int
    """When the newest checkpoint that is kept for good was signed."""


def verified_state(
    connection: sa.Connection, trusted: Sequence[VerificationKey], origin: str, marks: Iterable[Mark]
) -> State:
    """Read the end of the log and hold it against its signed checkpoint and against `marks`.

    Raises
    ------
    StepwedgeError
        LOG_INCONSISTENT where they do not agree, or where the log is shorter than a mark.
    """
    newest = store.head(connection)
    if newest is None:
        raise inconsistent("the log has entries and no checkpoint")
    try:
        checkpoint = open_checkpoint(newest.note.encode(), trusted, origin)
    except (MalformedNoteError, BadSignatureError):
        raise inconsistent("the newest checkpoint is not signed by this log's key") from None
    size = checkpoint.size
    if size != newest.size or store.last_index(connection) != size - 1:
        raise inconsistent(f"the newest checkpoint does not cover what is stored (size {size})")
    levels = _partial_tiles(connection, size)
    edge = tiles.reader(lambda level, _: b"".join(levels[level]))
    try:
        compact = merkle.CompactRange(size, [edge(height, index) for height, index in merkle.subtrees(size)])
    except (LookupError, ValueError):
        raise inconsistent("tiles of the tree are missing") from None
    if compact.root() != checkpoint.root:
        raise inconsistent("the stored tree does not have the root that was signed")
    _hold_against(connection, checkpoint, marks)
    recorded = store.last_recorded_us(connection)
    return State(newest, checkpoint.root, compact, levels, recorded, newest.signed_us)


def _partial_tiles(connection: sa.Connection, size: int) -> list[list[bytes]]:
    """Hashes of the rightmost, partial tile of each level."""
    levels = []
    level = 0
    while True:
        width = size % tiles.WIDTH
        data = store.tile(connection, level, size // tiles.WIDTH) if width else b""
        data = data[: width * merkle.HASH_SIZE]
        levels.append([data[i : i + merkle.HASH_SIZE] for i in range(0, len(data), merkle.HASH_SIZE)])
        size //= tiles.WIDTH
        level += 1
        if not size:
            return levels


def _hold_against(connection: sa.Connection, checkpoint: Checkpoint, marks: Iterable[Mark]) -> None:
    nodes = store.node_reader(connection)
    for mark in marks:
        if mark.size > checkpoint.size:
            raise inconsistent(f"the log holds {checkpoint.size} entries and once had {mark.size}")
        try:
            root = merkle.root_of(mark.size, nodes)
        except LookupError:
            raise inconsistent("tiles of the tree are missing") from None
        if root != mark.root:
            raise inconsistent(f"the first {mark.size} entries are not those that were once signed")
