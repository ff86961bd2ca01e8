"""The log: one sequencer that gives every record its place, and commits many at a time.

A batch is one transaction: entries, tiles of the tree, the producers' numbering and a newly signed checkpoint. Only
after its commit, and after the high-water file holds the new size and root, is anything acknowledged.
"""

import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future

import sqlalchemy as sa

from services.audit import bulk, store
from services.audit.acts import Act
from services.audit.draft import Draft, Following, Receipt, Submission
from services.audit.high_water import HighWater, Mark
from services.audit.record import Prepared
from services.audit.sequences import Incarnation
from services.audit.state import State, inconsistent, unavailable, verified_state
from services.audit.store import Batch, Head, Lease, Store
from services.audit.subjects import Vault
from shared import logs
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from shared.transparency import merkle
from shared.transparency.note import (
    Checkpoint,
    Signer,
    VerificationKey,
)
from stepwedge.audit.v1 import audit_pb2

CLOCK_STEP_US = 1_000_000
"""A clock that moved so much against the monotonic clock was set, not slewed."""

_IDLE_SECONDS = 1.0
_CACHED_INCARNATIONS = 1024

_logger = logs.get_logger(__name__)


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
