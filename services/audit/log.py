"""The log: one sequencer that gives every record its place, and commits many at a time.

A batch is one transaction: entries, tiles of the tree, the producers' numbering and a newly signed checkpoint. Only
after its commit, and after the high-water file holds the new size and root, is anything acknowledged.
"""

import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from services.audit import bulk, record, store, tiles
from services.audit.acts import Act
from services.audit.high_water import HighWater, Mark
from services.audit.record import Prepared
from services.audit.sequences import Incarnation
from services.audit.store import Batch, Head, Lease, Store
from services.audit.subjects import Sealing, Vault
from shared import clock, logs
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from shared.transparency import merkle
from shared.transparency.note import (
    BadSignatureError,
    Checkpoint,
    MalformedNoteError,
    Note,
    Signer,
    VerificationKey,
    open_checkpoint,
)
from stepwedge.audit.v1 import audit_pb2

CLOCK_STEP_US = 1_000_000
"""A clock that moved so much against the monotonic clock was set, not slewed."""

_IDLE_SECONDS = 1.0
_ID_BYTES = 10
_CACHED_INCARNATIONS = 1024
_KEEP_CHECKPOINT_US = 60_000_000  # of those that are superseded, one a minute is kept

_logger = logs.get_logger(__name__)


class Receipt(NamedTuple):
    """What is answered for a submission."""

    indexes: list[int]
    checkpoint: str


@dataclass(slots=True)
class Submission:
    """Records that are taken together or not at all."""

    records: Sequence[Prepared] = ()
    cosigned: Head | None = None
    """A checkpoint of this log that enough witnesses cosigned, to be kept."""
    alert: audit_pb2.AlertEvent | None = None
    """What this process noticed, to be recorded."""
    stamp: store.Stamp | None = None
    """A time stamp of a checkpoint, to be kept."""
    successor: Signer | None = None
    """The key that is to sign from this batch on."""
    act: Act | None = None
    """Something to be done and recorded in one transaction."""
    done: "Future[Receipt]" = field(default_factory=Future)


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


class Log:
    """The sequencer. One thread writes; `submit` may be called from any."""

    def __init__(
        self,
        the_store: Store,
        signer: Signer,
        high_water: HighWater,
        *,
        group_commit_seconds: float = 0.005,
        group_commit_records: int = 256,
        on_commit: Callable[[int, float], None] = lambda records, seconds: None,
        on_alert: Callable[[audit_pb2.AlertEvent], None] = lambda alert: None,
        vault: Vault | None = None,
        retention: Mapping[str, str] | None = None,
    ) -> None:
        self.store = the_store
        self.origin = signer.key.name
        self._signer = signer
        self._signs_from = 0
        self._successor: Signer | None = None
        self._high_water = high_water
        self._wait = group_commit_seconds
        self._most = group_commit_records
        self._on_commit = on_commit
        self._on_alert = on_alert
        self._queue: queue.SimpleQueue[Submission | None] = queue.SimpleQueue()
        self._lease: Lease | None = None
        self._state: State | None = None
        self._acknowledged: Mark | None = None
        self._broken: StepwedgeError | None = None
        self._incarnations: dict[tuple[str, str], Incarnation] = {}
        self._self = Incarnation(Identity.AUDIT.value, str(uuid.uuid4()))
        self._clock: tuple[int, int] | None = None
        self._loaded_last = False
        self._thread = threading.Thread(target=self._run, name="sequencer", daemon=True)
        self._closing = False
        self._facets: dict[store.Facet, int] = {}
        self._vault = vault
        self._retention = dict(retention or {})

    @property
    def key(self) -> VerificationKey:
        """The key that checkpoints are signed with."""
        return self._signer.key

    def open(self) -> None:
        """Verify the end of the log and start to write, or to wait until no other process does.

        Raises
        ------
        StepwedgeError
            LOG_INCONSISTENT, CONFIGURATION (the signing key is not this log's) or DEPENDENCY_UNAVAILABLE.
        """
        if not self._become_writer():
            with self.store.reading() as connection:
                if store.head(connection) is not None:
                    verified_state(connection, [self.key], self.origin, self._marks())
        self._thread.start()

    def close(self) -> None:
        """Commit what was submitted, then stop."""
        self._closing = True
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()
        self._stand_down()
        self._high_water.close()

    def submit(self, records: Sequence[Prepared]) -> "Future[Receipt]":
        """Hand records in, all or none; the future ends when they are durable, or with a StepwedgeError."""
        return self._hand_in(Submission(records))

    def keep_cosigned(self, cosigned: Head) -> "Future[Receipt]":
        """Keep a checkpoint that enough witnesses cosigned, as the newest one."""
        return self._hand_in(Submission(cosigned=cosigned))

    def alert(self, alert: audit_pb2.AlertEvent) -> "Future[Receipt]":
        """Record something that a person who guards the log should see."""
        return self._hand_in(Submission(alert=alert))

    def keep_stamp(self, stamp: store.Stamp) -> "Future[Receipt]":
        """Keep a time stamp of a checkpoint."""
        return self._hand_in(Submission(stamp=stamp))

    def rotate(self, successor: Signer) -> "Future[Receipt]":
        """Record that `successor` signs from now on; both keys sign the checkpoint that ends with that record."""
        return self._hand_in(Submission(successor=successor))

    def perform(self, act: Act) -> "Future[Receipt]":
        """Do something to what is kept beside the leaves, and record it, in one transaction."""
        return self._hand_in(Submission(act=act))

    def _hand_in(self, submission: Submission) -> "Future[Receipt]":
        if self._closing:
            submission.done.set_exception(unavailable("the log is closing"))
        else:
            self._queue.put(submission)
        return submission.done

    @property
    def writes(self) -> bool:
        """Whether this process is the writer."""
        return self._state is not None

    @property
    def head(self) -> Head | None:
        """The newest checkpoint, where this process is the writer."""
        state = self._state
        return None if state is None else state.head

    def check(self) -> None:
        """Raise what keeps the log from taking records."""
        if self._broken is not None:
            raise self._broken
        if self._state is None:
            raise unavailable("this process does not write the log now")

    @property
    def vault(self) -> Vault | None:
        """What keeps identities, where there is a master key."""
        return self._vault

    def forget_subjects(self) -> None:
        """Read keys of subjects anew; for acts."""
        if self._vault is not None:
            self._vault.known.clear()
            self._vault.indexed.clear()

    def sign(self, size: int, root: bytes) -> str:
        """A signed checkpoint of a tree that is a prefix of the log; the caller computed its root from the log.

        Raises INVALID_REQUEST for a tree that the key before this one signed: it is destroyed.
        """
        if size < self._signs_from:
            message = f"the key of the log signs trees of {self._signs_from} entries and more; the one before is gone"
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, message)
        return str(Checkpoint(self.origin, size, root).sign([self._signer]))

    # The thread.

    def _run(self) -> None:
        while True:
            batch = self._collect()
            if batch is None:
                return
            if not batch and self._broken is not None:
                continue
            try:
                self._commit(batch)
            except StepwedgeError as error:
                self._fail(batch, error)
            except Exception as error:  # noqa: BLE001 - nothing is acknowledged, and the thread lives
                _logger.error("a batch could not be committed", **logs.describe(error))
                self._fail(batch, unavailable("the log could not commit"))

    def _collect(self) -> list[Submission] | None:
        """Wait for company until the batch is full or its time is up; an empty list when idle, None at the end."""
        try:
            first = self._queue.get(timeout=_IDLE_SECONDS)
        except queue.Empty:
            return []
        if first is None:
            return None
        batch = [first]
        count = len(first.records)
        # Alone the last time: nobody to wait for.
        deadline = time.monotonic() + (self._wait if self._loaded_last else 0)
        while count < self._most:
            try:
                following = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if following is None:
                self._queue.put(None)
                break
            batch.append(following)
            count += len(following.records)
        self._loaded_last = len(batch) > 1
        return batch

    def _fail(self, batch: Iterable[Submission], error: StepwedgeError) -> None:
        """Nothing of this batch is acknowledged, and what was read is read anew before the next."""
        self._stand_down()
        if error.code == ErrorCode.ERROR_CODE_LOG_INCONSISTENT:
            self._broken = error
            _logger.critical("the log is inconsistent and takes no more records", code=error.name)
        elif error.code != ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE:
            _logger.error("a batch was not committed", code=error.name)
            error = unavailable("the log could not commit")
        for submission in batch:
            if not submission.done.done():
                submission.done.set_exception(error)

    def _stand_down(self) -> None:
        self._state = None
        self._incarnations.clear()
        self._facets = {}
        # A batch whose end is unknown may have used numbers of this one.
        self._self = Incarnation(Identity.AUDIT.value, str(uuid.uuid4()))
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def _marks(self) -> list[Mark]:
        marks = [self._high_water.read(), self._acknowledged]
        return [mark for mark in marks if mark is not None]

    def _become_writer(self) -> bool:
        """Take the lease if it is free, and read and verify the end of the log."""
        if self._broken is not None:
            raise self._broken
        lease = self.store.try_lease()
        if lease is None:
            return False
        try:
            with lease.writing() as connection:
                if store.head(connection) is None:
                    self._begin_log(connection)
                self._check_key(connection)
                state = verified_state(connection, [self.key], self.origin, self._marks())
                self._facets = store.facets(connection)
                if self._vault is not None:
                    self._vault.settle(connection)
                for row in store.unreported(connection):
                    self._remember(Incarnation.from_row(row))
            if state.head.size and not self._marks():
                _logger.warning("no high-water mark: whether the database was put back cannot be told")
            self._high_water.write(Mark(state.head.size, state.root))
        except BaseException:
            lease.release()
            raise
        self._lease, self._state = lease, state
        _logger.info("this process writes the log", index=state.head.size)
        return True

    def _begin_log(self, connection: sa.Connection) -> None:
        """The first checkpoint: that of the empty tree."""
        if store.last_index(connection) >= 0:
            raise inconsistent("the log has entries and no checkpoint")
        store.add_key(connection, store.Key(str(self.key), 0))
        first = Head(0, self.sign(0, merkle.EMPTY_ROOT), time.time_ns() // 1000)
        store.write(connection, Batch(checkpoint=first))

    def _check_key(self, connection: sa.Connection) -> None:
        known = store.keys(connection)
        if self._successor is not None and known and known[-1].verification_key == str(self._successor.key):
            self._signer = self._successor  # its batch was committed, though the answer to the commit was lost
        self._successor = None
        if not known or known[-1].verification_key != str(self.key):
            message = "the signing key or the origin is not that of this log"
            raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, message)
        self._signs_from = known[-1].from_size

    def _remember(self, incarnation: Incarnation) -> None:
        while len(self._incarnations) >= _CACHED_INCARNATIONS:
            self._incarnations.pop(next(iter(self._incarnations)))
        self._incarnations[incarnation.producer, incarnation.name] = incarnation

    def _commit(self, batch: list[Submission]) -> None:
        if self._state is None and not self._become_writer():
            if batch:
                raise unavailable("another process writes the log")
            return
        lease, state = self._lease, self._state
        assert lease is not None
        assert state is not None
        began = time.monotonic()
        # Of one moment: a commit that takes long must not look like a clock that was set.
        now_us, monotonic_us = time.time_ns() // 1000, time.monotonic_ns() // 1000
        if not batch and not self._has_news(now_us, monotonic_us):
            return
        answers: list[tuple[Submission, list[int] | StepwedgeError]] = []
        with lease.writing() as connection:
            sealing = None if self._vault is None else self._vault.sealing(connection)
            own = self._self.copy()
            self._facets = self._facets or store.facets(connection)
            draft = Draft(connection, state, self._incarnations, now_us, own, self._facets, self._retention, sealing)
            draft.look_up(submission.records for submission in batch)
            # Acts go first: what they destroy must not be used by a record of the same batch.
            for submission in sorted(batch, key=lambda one: one.act is None):
                if not submission.done.set_running_or_notify_cancel():
                    continue  # whoever handed it in has gone
                draft.note(submission)
                try:
                    if submission.act is not None:
                        answers.append((submission, draft.perform(submission.act)))
                    else:
                        answers.append((submission, draft.take(submission.records)))
                except StepwedgeError as error:
                    answers.append((submission, error))
            draft.report(self._clock_step(now_us, monotonic_us))
            self._successor = draft.hand_over(self.key)
            following = draft.finish(self.sign)
            with bulk.one_round_trip(connection):
                store.write(connection, following.batch)
        self._after(following, now_us, monotonic_us)
        for submission, answer in answers:
            if submission.act is not None and not isinstance(answer, StepwedgeError):
                submission.act.committed()
                if submission.act.makes_facets:
                    self._facets = {}
        for submission, answer in answers:
            if isinstance(answer, StepwedgeError):
                submission.done.set_exception(answer)
            else:
                submission.done.set_result(Receipt(answer, following.state.head.note))
        self._on_commit(len(following.batch.entries), time.monotonic() - began)

    def _after(self, following: "Following", now_us: int, monotonic_us: int) -> None:
        """The batch is committed: make the mark outside the database, then go on from there."""
        if self._successor is not None:
            self._signer, self._signs_from, self._successor = self._successor, following.state.head.size, None
        mark = Mark(following.state.head.size, following.state.root)
        if following.batch.entries:
            self._high_water.write(mark)
        self._state, self._acknowledged, self._self = following.state, mark, following.own
        self._facets = {**self._facets, **following.batch.facets}
        if self._vault is not None:
            self._vault.committed(following.batch)
        self._clock = (now_us, monotonic_us)
        for incarnation in following.incarnations:
            self._incarnations.pop((incarnation.producer, incarnation.name), None)
            self._remember(incarnation)
        for alert in following.alerts:
            self._on_alert(alert)

    def _has_news(self, now_us: int, monotonic_us: int) -> bool:
        """Whether something is to be recorded though nobody submitted anything."""
        if any(one.overdue(now_us) for one in self._incarnations.values()):
            return True
        return self._clock_step(now_us, monotonic_us) != 0

    def _clock_step(self, now_us: int, monotonic_us: int) -> int:
        """How far the clock was set since the last commit, microseconds; 0 where it was not."""
        if self._clock is not None:
            wall, monotonic = self._clock
            step = now_us - wall - (monotonic_us - monotonic)
        elif self._state is not None:
            step = min(0, now_us - self._state.recorded_max_us)
        else:
            return 0
        return step if abs(step) > CLOCK_STEP_US else 0


class Following(NamedTuple):
    """What a batch makes of the log."""

    batch: Batch
    state: State
    incarnations: list[Incarnation]
    own: Incarnation
    alerts: list[audit_pb2.AlertEvent]


class Draft:
    """A batch in the making. Nothing outside it changes until it is committed."""

    def __init__(
        self,
        connection: sa.Connection,
        state: State,
        incarnations: Mapping[tuple[str, str], Incarnation],
        now_us: int,
        own: Incarnation,
        facets: Mapping[store.Facet, int],
        retention: Mapping[str, str],
        vault: Sealing | None = None,
    ) -> None:
        self._connection = connection
        self._retention = retention
        self._sealing = vault
        self._before = state
        self._known = incarnations
        self._now_us = now_us
        self._own = own
        self._touched: dict[tuple[str, str], Incarnation] = {}
        self._found: dict[bytes, tuple[int, Mapping[str, object]]] = {}
        self._range = state.range.copy()
        self._levels = [list(level) for level in state.levels]
        self._recorded_max_us = max(state.recorded_max_us, now_us)
        self._recorded_at = record.timestamp(now_us // 1_000_000, now_us % 1_000_000 * 1000)
        self._clock = clock.state()
        self._batch = Batch()
        self._alerts: list[audit_pb2.AlertEvent] = []
        self._successor: Signer | None = None
        self._random = b""
        self._facets = facets

    def look_up(self, batches: Iterable[Sequence[Prepared]]) -> None:
        """Find the idempotency keys that the log knows."""
        hashes = {store.key_hash(one.producer, one.key) for records in batches for one in records}
        for digest, entry in store.find_keys(self._connection, list(hashes)).items():
            self._found[digest] = entry.index, record.content(record.parse(entry.leaf))

    def take(self, records: Sequence[Prepared]) -> list[int]:
        """Give each record its place, or the one that it had. Raises IDEMPOTENCY_CONFLICT and takes none."""
        if self._sealing is None and any(one.sealed for one in records):
            message = "the log has no master key for the identity that came with a record"
            raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, message)
        hashes = [store.key_hash(one.producer, one.key) for one in records]
        fresh: dict[bytes, Mapping[str, object]] = {}
        for one, digest in zip(records, hashes, strict=True):
            known = self._found[digest][1] if digest in self._found else fresh.get(digest)
            if known is None:
                fresh[digest] = one.content
            elif known != one.content:
                message = "the idempotency key was used for another record"
                raise StepwedgeError(ErrorCode.ERROR_CODE_IDEMPOTENCY_CONFLICT, message)
        return [self._place(one, digest) for one, digest in zip(records, hashes, strict=True)]

    def note(self, submission: Submission) -> None:
        """Take what this process itself hands in beside records."""
        if submission.cosigned is not None:
            self._batch.cosigned = submission.cosigned
        if submission.alert is not None:
            self._alerts.append(submission.alert)
        if submission.stamp is not None:
            self._batch.stamp = submission.stamp
        if submission.successor is not None:
            self._successor = submission.successor

    def _place(self, one: Prepared, digest: bytes) -> int:
        incarnation = self._incarnation(one.producer, one.incarnation)
        if digest in self._found:
            incarnation.repeat(one.sequence, self._now_us)
            return self._found[digest][0]
        if not incarnation.take(one.sequence, self._now_us):
            self._alert(incarnation, common_code("SEQUENCE_REUSED"), one.sequence, one.sequence)
        index = self._append(one, digest, incarnation)
        self._found[digest] = index, one.content
        return index

    def _incarnation(self, producer: str, name: str) -> Incarnation:
        place = producer, name
        if place not in self._touched:
            known = self._known.get(place)
            if known is None:
                row = store.incarnation(self._connection, producer, name)
                known = Incarnation.from_row(row) if row is not None else Incarnation(producer, name)
            self._touched[place] = known.copy()
        return self._touched[place]

    def _append(self, one: Prepared, digest: bytes, incarnation: Incarnation) -> int:
        index = self._range.size
        repeats = incarnation.repeats[: record.MAX_REPEATS]
        del incarnation.repeats[: record.MAX_REPEATS]
        retention = self._retention.get(one.kind, "")
        leaf = record.leaf(
            one,
            index=index,
            entry_id=self._entry_id(),
            recorded_at=self._recorded_at,
            repeats=repeats,
            retention=retention,
            clock=self._clock,
        )
        self._range.append(merkle.leaf_hash(leaf), self._grow)
        self._batch.attachments.update(one.attachments)
        self._batch.entries.append(self._row(one, index, leaf, digest, retention))
        if one.sealed and self._sealing is not None:
            self._sealing.keep(index, one, self._batch)
        return index

    def _entry_id(self) -> str:
        if len(self._random) < _ID_BYTES:
            self._random = os.urandom(_ID_BYTES * 64)  # a system call for each would cost more than all the rest
        random, self._random = self._random[:_ID_BYTES], self._random[_ID_BYTES:]
        return uuid7(self._now_us // 1000, int.from_bytes(random, "big"))

    def _row(self, one: Prepared, index: int, leaf: bytes, digest: bytes, retention: str) -> dict[str, object]:
        members = one.members
        return {
            "index": index,
            "leaf": leaf,
            "key_hash": digest,
            "facet": self._facet(one, retention),
            "recorded_us": self._now_us,
            "recorded_max_us": self._recorded_max_us,
            "study": members.get("study"),
            "instance": members.get("instance"),
            "subject": members.get("subject"),
        }

    def _facet(self, one: Prepared, retention: str) -> int:
        found = store.facet({**one.members, "producer": one.producer, "retention": retention or None})
        number = self._facets.get(found) or self._batch.facets.get(found)
        if number is None:
            number = self._batch.facets[found] = len(self._facets) + len(self._batch.facets) + 1
        return number

    def _grow(self, height: int, index: int, node: bytes) -> None:
        """Put the root of a perfect subtree into its tile, and keep a tile that this fills or widens."""
        level, between = divmod(height, 8)
        if between:
            return
        if level == len(self._levels):
            self._levels.append([])
        row = self._levels[level]
        row.append(node)
        if level or len(row) == tiles.WIDTH:
            self._batch.tiles[level, index // tiles.WIDTH] = b"".join(row)
        if len(row) == tiles.WIDTH:
            row.clear()

    def report(self, clock_step_us: int) -> None:
        """Append the alerts: what was noticed in this batch, gaps that are overdue, a clock that was set."""
        for place, known in list(self._known.items()):
            if place not in self._touched and known.overdue(self._now_us):
                self._touched[place] = known.copy()
        for incarnation in self._touched.values():
            for gap in incarnation.overdue(self._now_us):
                gap.reported = True
                self._alert(incarnation, common_code("SEQUENCE_GAP"), gap.first, gap.last)
        if clock_step_us:
            step = audit_pb2.AlertEvent(code=common_code("CLOCK_STEP"), clock_step_ms=clock_step_us // 1000)
            self._alerts.append(step)
        for alert in self._alerts:
            self._append_alert(alert)

    def _alert(self, about: Incarnation, code: audit_pb2.AlertCode.ValueType, first: int, last: int) -> None:
        self._alerts.append(
            audit_pb2.AlertEvent(
                code=code,
                about=about.producer,
                incarnation=about.name,
                first_sequence=first,
                last_sequence=min(last, 2**53 - 1),
            )
        )

    def _append_alert(self, alert: audit_pb2.AlertEvent) -> None:
        self._append_own("alert", audit_pb2.EVENT_OUTCOME_SERIOUS_FAILURE, alert=alert)

    def hand_over(self, old: VerificationKey) -> Signer | None:
        """Append, behind everything else of the batch, that another key signs from its checkpoint on; that key."""
        if self._successor is not None:
            rotated = audit_pb2.KeyRotatedEvent(
                old_key=str(old), new_key=str(self._successor.key), from_size=self._range.size + 1
            )
            self._append_own("key-rotated", audit_pb2.EVENT_OUTCOME_SUCCESS, key_rotated=rotated)
        return self._successor

    def perform(self, act: Act) -> list[int]:
        """Do it, and record it. Raises what it raises, and then nothing of it is done."""
        with self._connection.begin_nested():
            made = act.perform(self._connection, self._now_us, self._before.head.size)
        if act.makes_facets:
            self._facets = store.facets(self._connection)
        if made is None:
            return []
        if not made.once:
            return [self._append_own(made.key, made.outcome, **made.fields)]
        digest = store.key_hash(Identity.AUDIT.value, made.key)
        self._found.update(
            (digest, (entry.index, {})) for entry in store.find_keys(self._connection, [digest]).values()
        )
        if digest not in self._found:
            index = self._append_own(made.key, made.outcome, once=True, **made.fields)
            self._found[digest] = index, {}
        return [self._found[digest][0]]

    def _append_own(
        self, key: str, outcome: audit_pb2.EventOutcome.ValueType, *, once: bool = False, **event: Any
    ) -> int:
        """Append a record that the log itself makes; its index. `key` is the whole key where `once`."""
        own = self._own
        own.take(own.highest + 1, self._now_us)
        made = audit_pb2.Record(
            idempotency_key=key if once else f"{key}/{uuid.uuid4()}",
            incarnation=own.name,
            sequence=own.highest,
            outcome=outcome,
            **event,
        )
        if not made.HasField("occurred_at"):
            made.occurred_at.FromMicroseconds(self._now_us)
        prepared = record.prepare(made, Identity.AUDIT)
        index = self._append(prepared, store.key_hash(prepared.producer, prepared.key), own)
        self._touched[own.producer, own.name] = own
        return index

    def finish(self, sign: Callable[[int, bytes], str]) -> Following:
        """Sign the new tree, and say what is to be written."""
        batch, before = self._batch, self._before
        head, root, kept_us = before.head, before.root, before.kept_us
        if batch.entries:
            root = self._range.root()
            note = sign(self._range.size, root)
            if self._successor is not None:
                note = countersigned(note, self._successor)
                batch.key = store.Key(str(self._successor.key), self._range.size, note)
            head = batch.checkpoint = Head(self._range.size, note, self._now_us)
            if before.head.size and before.head.signed_us - kept_us < _KEEP_CHECKPOINT_US:
                batch.superseded = before.head.size if before.head.signed_us != kept_us else None
            else:
                kept_us = before.head.signed_us
        batch.producers = [incarnation.row() for incarnation in self._touched.values()]
        state = State(head, root, self._range, self._levels, self._recorded_max_us, kept_us)
        return Following(batch, state, list(self._touched.values()), self._own, self._alerts)


def countersigned(note: str, signer: Signer) -> str:
    """A signed note with one more signature."""
    before = Note.parse(note.encode())
    return str(Note(before.text, (*before.signatures, signer.sign(before.text))))


def common_code(name: str) -> audit_pb2.AlertCode.ValueType:
    """An alert's code by its name."""
    return audit_pb2.AlertCode.Value(f"ALERT_CODE_{name}")


def uuid7(milliseconds: int, random: int) -> str:
    """A UUID of version 7 (RFC 9562 5.7) with 74 random bits out of `random`."""
    low = random & (1 << 62) - 1
    value = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | (random >> 62 & 0xFFF) << 64 | 0b10 << 62 | low
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
