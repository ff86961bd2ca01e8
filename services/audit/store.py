"""The tables of the log, what is read from them, and the one connection that may write."""

import base64
import fcntl
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from services.audit import bulk, record, tiles
from shared import database
from shared.errors import ErrorCode, StepwedgeError
from shared.statements import Statement
from shared.transparency import merkle
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1 import common_pb2

MIGRATIONS = Path(__file__).parent / "migrations"

_METADATA = sa.MetaData()

ENTRIES = sa.Table(
    "entries",
    _METADATA,
    sa.Column("index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("leaf", sa.LargeBinary),
    sa.Column("key_hash", sa.LargeBinary),
    sa.Column("facet", sa.Integer),
    sa.Column("recorded_us", sa.BigInteger),
    sa.Column("recorded_max_us", sa.BigInteger),  # of this entry and all before: never falls, so it can be searched
    sa.Column("study", sa.String),
    sa.Column("instance", sa.String),
    sa.Column("subject", sa.String),
)
# What many entries have in common. There are few different ones, so a query for any of them, or for any pair, walks the
# entries of the facets that match, each in the order of the log, and never one that does not match.
FACETS = sa.Table(
    "facets",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.SmallInteger),
    sa.Column("producer", sa.String),
    sa.Column("outcome", sa.SmallInteger),
    sa.Column("verdict", sa.SmallInteger),
    sa.Column("model_sha256", sa.String),
    sa.Column("actor", sa.String),
    sa.Column("retention", sa.SmallInteger),
)
SUBJECT_KEYS = sa.Table(
    "subject_keys",
    _METADATA,
    sa.Column("key_id", sa.String, primary_key=True),
    sa.Column("subject", sa.String),
    sa.Column("wrapped", sa.LargeBinary),
)
MASTER = sa.Table("identity_master", _METADATA, sa.Column("id", sa.String, primary_key=True))  # one row
IDENTITIES = sa.Table(
    "identities",
    _METADATA,
    sa.Column("index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("subject", sa.String),
    sa.Column("key_id", sa.String),
    sa.Column("sealed", sa.LargeBinary),
)
BLIND_INDEX = sa.Table(
    "blind_index",
    _METADATA,
    sa.Column("token", sa.LargeBinary, primary_key=True),
    sa.Column("study", sa.String, primary_key=True),
    sa.Column("subject", sa.String, primary_key=True),
)
ATTACHMENTS = sa.Table(
    "attachments", _METADATA, sa.Column("sha256", sa.String, primary_key=True), sa.Column("content", sa.LargeBinary)
)
# Level 0 holds full tiles only: the partial one is the hashes of the newest leaves.
TILES = sa.Table(
    "tiles",
    _METADATA,
    sa.Column("level", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("hashes", sa.LargeBinary),
)
CHECKPOINTS = sa.Table(
    "checkpoints",
    _METADATA,
    sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("note", sa.Text),
    sa.Column("signed_us", sa.BigInteger),
)
COSIGNED = sa.Table(  # one row
    "cosigned",
    _METADATA,
    sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("note", sa.Text),
    sa.Column("signed_us", sa.BigInteger),
)
KEYS = sa.Table(
    "keys",
    _METADATA,
    sa.Column("verification_key", sa.String, primary_key=True),
    sa.Column("from_size", sa.BigInteger),
    sa.Column("note", sa.Text),  # the checkpoint of that size, signed by the key before and by this one
)
STAMPS = sa.Table(
    "stamps",
    _METADATA,
    sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("note", sa.Text),
    sa.Column("token", sa.LargeBinary),
    sa.Column("stamped_us", sa.BigInteger),
)
PRODUCERS = sa.Table(
    "producers",
    _METADATA,
    sa.Column("producer", sa.String, primary_key=True),
    sa.Column("incarnation", sa.String, primary_key=True),
    sa.Column("highest", sa.BigInteger),
    sa.Column("gaps", sa.JSON),
    sa.Column("repeats", sa.JSON),
    sa.Column("unreported", sa.Boolean),
)

# A writer whose machine is gone must not keep its lock for the two hours that TCP would wait.
_NOTICE_A_LOST_HOLDER = ("tcp_keepalives_idle = 10", "tcp_keepalives_interval = 5", "tcp_keepalives_count = 3")
_WRITER_LOCK = zlib.crc32(b"stepwedge audit log writer")


class Head(NamedTuple):
    """The newest checkpoint as it is stored."""

    size: int
    note: str
    signed_us: int


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """One row of the log."""

    index: int
    leaf: bytes


class Facet(NamedTuple):
    """What many entries have in common; an absent member is None."""

    kind: int
    producer: str
    outcome: int
    verdict: int | None
    model_sha256: str | None
    actor: str | None
    retention: int | None


def facet(members: Mapping[str, Any]) -> Facet:
    """Of the members of a leaf, or of a producer's record with `producer` and `retention`."""
    event = members["event"]
    verdict, retention = event.get("verdict"), members.get("retention")
    return Facet(
        record.KINDS[members["kind"].lower()],
        members["producer"],
        _OUTCOMES[members["outcome"]],
        None if verdict is None else _VERDICTS[verdict],
        members.get("pins", {}).get("model_sha256"),
        record.actor(event),
        None if retention is None else record.RETENTION[retention],
    )


_OUTCOMES = {name.removeprefix("EVENT_OUTCOME_"): number for name, number in audit_pb2.EventOutcome.items()}
_VERDICTS = {name.removeprefix("VERDICT_"): number for name, number in common_pb2.Verdict.items()}


class Key(NamedTuple):
    """A verification key of the log and the size of the tree from which on it signs."""

    verification_key: str
    from_size: int
    note: str | None = None
    """The checkpoint of that size, signed by the key before and by this one; None for the first key."""


class Stamp(NamedTuple):
    """A checkpoint and the time-stamp token over its bytes (RFC 3161)."""

    size: int
    note: str
    token: bytes
    """The authority's answer, a DER TimeStampResp."""
    stamped_us: int


@dataclass
class Batch:
    """Everything that one commit writes."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    attachments: dict[str, bytes] = field(default_factory=dict)
    tiles: dict[tuple[int, int], bytes] = field(default_factory=dict)
    producers: list[dict[str, Any]] = field(default_factory=list)
    checkpoint: Head | None = None
    facets: dict[Facet, int] = field(default_factory=dict)
    """New ones, with their numbers."""
    subject_keys: list[dict[str, Any]] = field(default_factory=list)
    identities: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[dict[str, Any]] = field(default_factory=list)
    superseded: int | None = None
    """Size of a checkpoint that need not be kept beside the new one."""
    cosigned: Head | None = None
    """A checkpoint that enough witnesses cosigned."""
    key: Key | None = None
    """A key that takes over with this batch."""
    stamp: Stamp | None = None
    """A checkpoint that was stamped."""


@dataclass(frozen=True)
class Filter:
    """What a query asks for; None matches everything."""

    study: str | None = None
    instance: str | None = None
    subject: str | None = None
    kind: int | None = None
    producer: str | None = None
    outcome: int | None = None
    verdict: int | None = None
    model_sha256: str | None = None
    actor: str | None = None
    token: str | None = None
    """Of the blind index, hexadecimal."""
    recorded_from_us: int | None = None
    recorded_before_us: int | None = None

    def digest(self) -> str:
        """Names this filter in a page token."""
        return sha256(json.dumps(vars(self), sort_keys=True).encode()).hexdigest()[:16]


def key_hash(producer: str, key: str) -> bytes:
    """What an idempotency key is looked up by; keys of two producers never meet. 32 bytes."""
    return sha256(f"{producer}\n{key}".encode()).digest()


def encode_token(wanted: Filter, last: int) -> str:
    """Token of the page behind the entry `last`."""
    return base64.urlsafe_b64encode(f"1:{wanted.digest()}:{last}".encode()).decode()


def decode_token(token: str, wanted: Filter) -> int:
    """The entry behind which the page begins; -1 for an empty token. Raises INVALID_REQUEST."""
    if not token:
        return -1
    try:
        version, digest, last = base64.urlsafe_b64decode(token.encode()).decode("ascii").split(":")
        if (version, digest) != ("1", wanted.digest()) or not 0 <= int(last) < 2**63:
            raise ValueError
    except ValueError:
        message = "the page token is not of this query"
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, message) from None
    return int(last)


class Store:
    """The log in a database. Methods that read take a connection, so that several reads are of one moment."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._reader = database.reader(engine)

    @classmethod
    def open(cls, url: str) -> "Store":
        """Connect and bring the schema up to date."""
        engine = database.create_engine(url)
        database.upgrade(engine, MIGRATIONS)
        return cls(engine)

    @classmethod
    def open_as_it_is(cls, url: str) -> "Store":
        """Connect to read only: nothing is migrated, whatever state the tables are in."""
        return cls(database.create_engine(url))

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads."""
        with self._reader.connect() as connection, connection.begin():
            yield connection

    def ping(self) -> None:
        """Raise DEPENDENCY_UNAVAILABLE where the database does not answer."""
        database.ping(self._engine)

    def try_lease(self) -> "Lease | None":
        """Become the one process that writes; None where another one is."""
        lease = Lease(self._engine)
        return lease if lease.acquire() else None


class Lease:
    """The right to write, bound to the connection that writes: who loses one has lost the other.

    On PostgreSQL a session's advisory lock, on SQLite a lock on a file beside the database; either ends with the
    process. Two writers could still not both commit: each inserts the entry with the next index.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._file: int | None = None
        self.connection: sa.Connection | None = None

    def acquire(self) -> bool:
        """Whether the lock was free."""
        if self._engine.dialect.name == "sqlite":
            if not self._lock_file():
                return False
            self.connection = self._engine.connect()
            return True
        connection = self._engine.connect()
        connection.detach()  # a session's lock must not go back into the pool with its connection
        with connection.begin():
            for setting in _NOTICE_A_LOST_HOLDER:
                connection.exec_driver_sql(f"SET {setting}")
            taken = bool(connection.scalar(sa.select(sa.func.pg_try_advisory_lock(_WRITER_LOCK))))
        if taken:
            self.connection = connection
        else:
            connection.close()
        return taken

    def _lock_file(self) -> bool:
        file = os.open(f"{self._engine.url.database}.writer", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return False
        self._file = file
        return True

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction on the connection that holds the right to write; committed at the end."""
        if self.connection is None:
            raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, "this process does not write the log")
        with self.connection.begin():
            yield self.connection

    def release(self) -> None:
        """Give the right up."""
        if self.connection is not None:
            try:
                self.connection.invalidate()
                self.connection.close()
            except (StepwedgeError, sa.exc.SQLAlchemyError):
                pass  # the connection is what was lost
            self.connection = None
        if self._file is not None:
            os.close(self._file)
            self._file = None


def head(connection: sa.Connection) -> Head | None:
    """The newest checkpoint; None before the first."""
    row = connection.execute(sa.select(CHECKPOINTS).order_by(CHECKPOINTS.c.size.desc()).limit(1)).first()
    return None if row is None else Head(*row)


def checkpoint(connection: sa.Connection, size: int) -> str | None:
    """The checkpoint of so many entries that is stored; None where there is none."""
    found: str | None = connection.scalar(sa.select(CHECKPOINTS.c.note).where(CHECKPOINTS.c.size == size))
    return found


def cosigned(connection: sa.Connection) -> Head | None:
    """The newest checkpoint that enough witnesses cosigned; None where there is none."""
    if not sa.inspect(connection).has_table(COSIGNED.name):
        return None  # a database that is read as it is, from before there were witnesses
    row = connection.execute(sa.select(COSIGNED).order_by(COSIGNED.c.size.desc()).limit(1)).first()
    return None if row is None else Head(*row)


def last_index(connection: sa.Connection) -> int:
    """Index of the last entry that is stored; -1 where there is none."""
    found = connection.scalar(sa.select(sa.func.max(ENTRIES.c.index)))
    return -1 if found is None else int(found)


def keys(connection: sa.Connection) -> list[Key]:
    """The log's verification keys, oldest first."""
    wanted: list[sa.ColumnElement[Any]] = [KEYS.c.verification_key, KEYS.c.from_size]
    if sa.inspect(connection).has_table(STAMPS.name):  # else a database that is read as it is, from before rotation
        wanted.append(KEYS.c.note)
    return [Key(*row) for row in connection.execute(sa.select(*wanted).order_by(KEYS.c.from_size))]


def stamps(connection: sa.Connection, size: int) -> list[Stamp]:
    """The time stamps of checkpoints of at most `size` entries, oldest first."""
    if not sa.inspect(connection).has_table(STAMPS.name):
        return []
    rows = connection.execute(sa.select(STAMPS).where(STAMPS.c.size <= size).order_by(STAMPS.c.size))
    return [Stamp(row.size, row.note, bytes(row.token), row.stamped_us) for row in rows]


def count(connection: sa.Connection) -> int:
    """Number of entries that are stored; without a condition, so that a small index is counted and not the table."""
    return int(connection.scalar(sa.select(sa.func.count()).select_from(ENTRIES)) or 0)


def leaves(connection: sa.Connection, start: int, end: int) -> list[StoredEntry]:
    """Entries start <= index < end that are stored, in order."""
    wanted = sa.select(ENTRIES.c.index, ENTRIES.c.leaf).where(ENTRIES.c.index >= start, ENTRIES.c.index < end)
    return [StoredEntry(row[0], bytes(row[1])) for row in connection.execute(wanted.order_by(ENTRIES.c.index))]


def tile(connection: sa.Connection, level: int, index: int) -> bytes:
    """The hashes of a tile, as many as there are; a partial tile of level 0 is computed from its leaves."""
    wanted = sa.select(TILES.c.hashes).where(TILES.c.level == level, TILES.c.index == index)
    found = connection.scalar(wanted)
    if found is not None:
        return bytes(found)
    if level:
        return b""
    rows = leaves(connection, index * tiles.WIDTH, (index + 1) * tiles.WIDTH)
    return b"".join(merkle.leaf_hash(row.leaf) for row in rows)


def node_reader(connection: sa.Connection) -> merkle.Node:
    """Roots of perfect subtrees as the tiles give them."""
    return tiles.reader(lambda level, index: tile(connection, level, index))


def attachments(connection: sa.Connection, digests: Iterable[str]) -> dict[str, bytes]:
    """What is kept beside leaves, by SHA-256."""
    wanted = sorted(set(digests))
    if not wanted:
        return {}
    rows = connection.execute(sa.select(ATTACHMENTS).where(ATTACHMENTS.c.sha256.in_(wanted)))
    return {row.sha256: bytes(row.content) for row in rows}


def attachment_digests(connection: sa.Connection) -> list[str]:
    """Digests of everything that is kept beside leaves."""
    return list(connection.scalars(sa.select(ATTACHMENTS.c.sha256).order_by(ATTACHMENTS.c.sha256)))


def find_keys(connection: sa.Connection, hashes: Sequence[bytes]) -> dict[bytes, StoredEntry]:
    """The entries whose idempotency keys have these hashes."""
    c = ENTRIES.c
    rows = bulk.find(connection, (c.key_hash, c.index, c.leaf), c.key_hash, hashes)
    return {bytes(row[0]): StoredEntry(row[1], bytes(row[2])) for row in rows}


def incarnation(connection: sa.Connection, producer: str, name: str) -> Mapping[str, Any] | None:
    """What is known of a producer's incarnation."""
    wanted = sa.select(PRODUCERS).where(PRODUCERS.c.producer == producer, PRODUCERS.c.incarnation == name)
    found = connection.execute(wanted).mappings().first()
    return None if found is None else dict(found)


def unreported(connection: sa.Connection) -> list[Mapping[str, Any]]:
    """Incarnations with gaps that no alert was recorded for."""
    return [dict(row) for row in connection.execute(sa.select(PRODUCERS).where(PRODUCERS.c.unreported)).mappings()]


def last_recorded_us(connection: sa.Connection) -> int:
    """Latest time at which an entry was recorded, microseconds; 0 where there is none."""
    wanted = sa.select(ENTRIES.c.recorded_max_us).order_by(ENTRIES.c.index.desc()).limit(1)
    return int(connection.scalar(wanted) or 0)


_SUPERSEDED = Statement(sa.delete(CHECKPOINTS).where(CHECKPOINTS.c.size == sa.bindparam("superseded")))


def write(connection: sa.Connection, batch: Batch) -> None:
    """Write a batch; the caller commits."""
    if batch.attachments:
        rows = [{"sha256": digest, "content": content} for digest, content in batch.attachments.items()]
        bulk.upsert(connection, ATTACHMENTS, rows)
    if batch.facets:
        made = [{"id": number, **one._asdict()} for one, number in batch.facets.items()]
        connection.execute(sa.insert(FACETS), made)
    if batch.entries:
        bulk.insert(connection, ENTRIES, batch.entries)
    if batch.subject_keys:
        bulk.insert(connection, SUBJECT_KEYS, batch.subject_keys)
    if batch.identities:
        bulk.insert(connection, IDENTITIES, batch.identities)
    if batch.tokens:
        bulk.upsert(connection, BLIND_INDEX, batch.tokens)
    if batch.tiles:
        nodes = [{"level": level, "index": index, "hashes": data} for (level, index), data in batch.tiles.items()]
        bulk.upsert(connection, TILES, nodes)
    if batch.producers:
        bulk.upsert(connection, PRODUCERS, batch.producers)
    if batch.checkpoint is not None:
        if batch.superseded is not None:
            _SUPERSEDED.run(connection, [{"superseded": batch.superseded}])
        bulk.insert(connection, CHECKPOINTS, [batch.checkpoint._asdict()])
    if batch.cosigned is not None:
        connection.execute(sa.delete(COSIGNED))
        connection.execute(sa.insert(COSIGNED), [batch.cosigned._asdict()])
    if batch.key is not None:
        add_key(connection, batch.key)
    if batch.stamp is not None:
        bulk.upsert(connection, STAMPS, [batch.stamp._asdict()])


def add_key(connection: sa.Connection, key: Key) -> None:
    """Remember a verification key."""
    connection.execute(sa.insert(KEYS), [key._asdict()])


def facets(connection: sa.Connection) -> dict[Facet, int]:
    """Every facet and its number."""
    return {one: number for number, one in numbered_facets(connection)}


def numbered_facets(connection: sa.Connection) -> list[tuple[int, Facet]]:
    """As they are stored, a facet that somebody put there twice included."""
    return [(row[0], Facet(*row[1:])) for row in connection.execute(sa.select(FACETS))]


_OF_A_FACET = ("kind", "producer", "outcome", "verdict", "model_sha256", "actor")
_MOST_STUDIES = 1000
_MOST_BRANCHES = 64  # of one statement; a query with more facets goes on with the next statement


def query(
    connection: sa.Connection, wanted: Filter, *, after: int, limit: int, before: int | None = None
) -> Iterator[StoredEntry]:
    """Entries behind the index `after` (and below `before`) that match, in the order of the log, at most `limit`."""
    c = ENTRIES.c
    first, end, conditions = _within(connection, wanted)
    if first is None:
        return
    # One bound each way: of two, SQLite would search by the first and go through the rest row by row.
    conditions.append(c.index >= max(first, after + 1))
    ends = [bound for bound in (end, before) if bound is not None]
    if ends:
        conditions.append(c.index < min(ends))
    matching: list[int] | None = None
    if any(getattr(wanted, name) is not None for name in _OF_A_FACET):
        matching = [
            number
            for number, one in numbered_facets(connection)
            if all(getattr(wanted, name) in (None, getattr(one, name)) for name in _OF_A_FACET)
        ]
        if not matching:
            return
    named = [c.instance == wanted.instance] if wanted.instance is not None else []
    if wanted.study is not None:
        named.append(_by_index(c.study, not named) == wanted.study)
    if wanted.token is not None:
        studies = _studies_of_token(connection, bytes.fromhex(wanted.token))
        if isinstance(studies, list) and not studies:
            return
        named.append(_by_index(c.study, not named).in_(studies))
    if wanted.subject is not None:
        named.append(_by_index(c.subject, not named) == wanted.subject)
    indexes = _matching(connection, named, matching, conditions, limit)
    for start in range(0, len(indexes), 100):
        chosen = sa.select(c.index, c.leaf).where(c.index.in_(indexes[start : start + 100])).order_by(c.index)
        for row in connection.execute(chosen):
            yield StoredEntry(row[0], bytes(row[1]))


def _matching(
    connection: sa.Connection,
    named: Sequence[sa.ColumnElement[bool]],
    matching: Sequence[int] | None,
    conditions: Sequence[sa.ColumnElement[bool]],
    limit: int,
) -> list[int]:
    """Indexes of the entries of a page. `named`: what leads to few entries. `matching`: facets; None means all."""
    c = ENTRIES.c
    chosen = sa.select(c.index).where(*conditions).order_by(c.index).limit(limit)
    if matching is None or named:
        # The indexes on study, instance and subject carry the facet, so that what does not match is not fetched.
        only = [] if matching is None else [c.facet.op("+")(0).in_(matching)]
        return list(connection.scalars(chosen.where(*named, *only)))
    found: list[int] = []
    for start in range(0, len(matching), _MOST_BRANCHES):
        branches = [
            sa.select(chosen.where(c.facet == number).subquery().c.index)
            for number in matching[start : start + _MOST_BRANCHES]
        ]
        found.extend(connection.scalars(sa.union_all(*branches)))
    return sorted(found)[:limit]


def _by_index(column: sa.Column[Any], wanted: bool) -> sa.ColumnElement[Any]:
    """The column, or an expression of its value for which no index is searched: one index, the best, is enough."""
    return column if wanted else column.op("||")("")


def _studies_of_token(connection: sa.Connection, token: bytes) -> "list[str] | sa.Select[tuple[str]]":
    """The studies that were received with the number of this token; as a query where they are very many."""
    wanted = sa.select(BLIND_INDEX.c.study).where(BLIND_INDEX.c.token == token)
    studies = list(connection.scalars(wanted.limit(_MOST_STUDIES + 1)))
    return studies if len(studies) <= _MOST_STUDIES else wanted


def subjects_of_token(connection: sa.Connection, token: bytes) -> list[str]:
    """The subjects that were received with the number of this token."""
    wanted = sa.select(BLIND_INDEX.c.subject).where(BLIND_INDEX.c.token == token)
    return list(connection.scalars(wanted.distinct()))


def _within(connection: sa.Connection, wanted: Filter) -> tuple[int | None, int | None, list[sa.ColumnElement[bool]]]:
    """Where the entries of the asked times lie: the first (None: there is none), the end, and what else must be asked.

    `recorded_max_us` never falls, so that two searches in its order bound the entries between two moments. Only where
    the clock was set back can an entry between those bounds be of another time, or one behind them be of this one.
    Entries of that kind are few and indexed; where there is none, no row need be read to compare its time.
    """
    c = ENTRIES.c
    start_us, end_us = wanted.recorded_from_us, wanted.recorded_before_us
    first: int | None = 0
    end: int | None = None
    times: list[sa.ColumnElement[bool]] = []
    if start_us is not None:
        times.append(c.recorded_us >= start_us)
        first = _first_reaching(connection, start_us)
        if first is None:
            return None, None, []
    if end_us is not None:
        times.append(c.recorded_us < end_us)
        end = _first_reaching(connection, end_us)
    set_back = sa.select(c.index).where(c.recorded_us < c.recorded_max_us).limit(1)
    if end is not None and connection.scalar(set_back.where(c.index >= end, *times)) is not None:
        return first, None, times
    inside = [c.index >= first] + ([] if end is None else [c.index < end])
    if times and connection.scalar(set_back.where(*inside, sa.not_(sa.and_(*times)))) is not None:
        return first, end, times
    return first, end, []


def _first_reaching(connection: sa.Connection, moment_us: int) -> int | None:
    """The first entry by which the clock had reached the moment: none before it was recorded then or later."""
    c = ENTRIES.c
    wanted = sa.select(c.index).where(c.recorded_max_us >= moment_us).order_by(c.recorded_max_us, c.index).limit(1)
    found = connection.scalar(wanted)
    return None if found is None else int(found)
