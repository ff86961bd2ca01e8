"""A batch in the making: each record gets its place and its leaf, the tree its root, and the root its signature."""

import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from services.audit import record, store, tiles
from services.audit.acts import Act
from services.audit.record import Prepared
from services.audit.sequences import Incarnation
from services.audit.state import State
from services.audit.store import Batch, Head
from services.audit.subjects import Sealing
from shared import clock
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from shared.transparency import merkle
from shared.transparency.note import Note, Signer, VerificationKey
from stepwedge.audit.v1 import audit_pb2

_ID_BYTES = 10
_KEEP_CHECKPOINT_US = 60_000_000  # of those that are superseded, one a minute is kept


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
