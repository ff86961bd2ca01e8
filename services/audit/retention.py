"""How long entries are kept: retention classes, legal holds, and pruning that leaves every proof as it was.

What is pruned is the leaf. Its hash stays in the tile of level 0, so the tree and every proof of what is kept stand;
only entries in full tiles are pruned, whose hashes are stored. The record PRUNED says which entries went, and a
verifier takes a hole for legitimate only where such a record, which itself stays as long as the log, speaks of it.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import sqlalchemy as sa

from services.audit import record, store, tiles
from services.audit.acts import Caller, Own, trusted
from services.audit.store import ATTACHMENTS, BLIND_INDEX, ENTRIES, IDENTITIES, SUBJECT_KEYS
from shared.errors import ErrorCode, StepwedgeError
from shared.transparency.cosignature import WitnessKey, cosigners
from shared.transparency.note import Note
from stepwedge.audit.v1 import audit_pb2

LASTING = "LOG"
"""The class of what explains the log itself; it ends with the log."""

_LASTING_KINDS = frozenset({"erased", "hold", "pruned", "key_rotated"})
_LONGER: Mapping[str, str] = {"model_released": "Y10", "model_served": "Y10", "constancy": "Y10", "alert": "Y10"}
MONTHS: Mapping[str, int] = {"M6": 6, "Y6": 72, "Y10": 120, "Y15": 180}
"""Retention class to calendar months."""

MOST = 10_000
"""Entries that one transaction removes at most."""
_ROWS = 2000


def classes(default: str, chosen: Mapping[str, str]) -> dict[str, str]:
    """The class of each kind of record.

    Parameters
    ----------
    default
        For the kinds that are not chosen; those that describe models, constancy or alerts are kept ten years at least.
    chosen
        Kind to class, out of the settings.

    Raises
    ------
    StepwedgeError
        CONFIGURATION for a kind that there is none of, or one that is kept as long as the log.
    """
    if wrong := sorted(name for name in chosen if name not in record.KINDS or name in _LASTING_KINDS):
        message = f"audit.retention names kinds that have no class to choose: {', '.join(wrong)}"
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, message)
    made = {}
    for kind in record.KINDS:
        longer = max(default, _LONGER.get(kind, default), key=lambda one: MONTHS[one])
        made[kind] = LASTING if kind in _LASTING_KINDS else chosen.get(kind, longer)
    return made


def over_before(retention: str, now_us: int) -> int:
    """Entries of the class that were recorded before this time (microseconds) need not be kept any longer."""
    now = datetime.fromtimestamp(now_us // 1_000_000, UTC)
    months = now.year * 12 + now.month - 1 - MONTHS[retention]
    year, month = divmod(months, 12)
    day = now.day
    while True:
        try:  # the end of a month that is shorter
            return int(now.replace(year=year, month=month + 1, day=day).timestamp()) * 1_000_000
        except ValueError:
            day -= 1


def agreed_us(connection: sa.Connection, now_us: int, witnesses: Sequence[WitnessKey]) -> int:
    """The time by which retention is over: the log's clock, and where it has witnesses no later than theirs.

    Whoever rules the log's machine rules its clock, and could have everything pruned by setting it forward. The newest
    cosignature bears the time of another machine; before there is one, nothing is over.
    """
    if not witnesses:
        return now_us
    found = store.cosigned(connection)
    times = {} if found is None else cosigners(Note.parse(found.note.encode()), witnesses)
    return min(now_us, max(times.values(), default=0) * 1_000_000)


@dataclass(frozen=True, slots=True)
class Held:
    """A hold that stands."""

    hold: str
    study: str
    subject: str
    index: int


@dataclass
class Holds:
    """The holds that stand."""

    by_id: dict[str, Held] = field(default_factory=dict)

    def studies(self, connection: sa.Connection) -> set[str]:
        """Every study that is kept: held itself, or of a held subject."""
        kept = {one.study for one in self.by_id.values() if one.study}
        subjects = [one.subject for one in self.by_id.values() if one.subject]
        c = ENTRIES.c
        wanted = sa.select(c.study).where(c.subject.in_(subjects), c.study.is_not(None)).distinct()
        return kept | set(connection.scalars(wanted)) if subjects else kept

    @property
    def subjects(self) -> set[str]:
        """Every subject that is held itself."""
        return {one.subject for one in self.by_id.values() if one.subject}

    def keep_subject(self, connection: sa.Connection, subject: str) -> bool:
        """Whether the subject is held, or one of its studies."""
        if subject in self.subjects:
            return True
        studies = [one.study for one in self.by_id.values() if one.study]
        c = ENTRIES.c
        wanted = sa.select(c.index).where(c.subject == subject, c.study.in_(studies)).limit(1)
        return bool(studies) and connection.scalar(wanted) is not None


def _of_kind(connection: sa.Connection, kind: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The entries of a rare kind that stays as long as the log, each held to the tree."""
    node = store.node_reader(connection)
    for row in store.query(connection, store.Filter(kind=kind), after=-1, limit=2**31 - 1):
        yield row.index, trusted(node, row)


def holds(connection: sa.Connection) -> Holds:
    """The holds that stand, out of the records of them. Raises LOG_INCONSISTENT where one was tampered with."""
    found = Holds()
    for index, members in _of_kind(connection, audit_pb2.RECORD_KIND_HOLD):
        event = members["event"]
        if event["act"] == "SET":
            held = Held(event["hold"], members.get("study", ""), members.get("subject", ""), index)
            found.by_id[held.hold] = held
        else:
            found.by_id.pop(event["hold"], None)
    return found


def size_of(connection: sa.Connection) -> int:
    """Number of entries of the log; 0 before it began."""
    head = store.head(connection)
    return 0 if head is None else head.size


def pruned_ranges(connection: sa.Connection) -> list[tuple[int, int]]:
    """Every range (first, last) that a record of pruning speaks of, in order. Raises LOG_INCONSISTENT."""
    found: list[tuple[int, int]] = []
    for _, members in _of_kind(connection, audit_pb2.RECORD_KIND_PRUNED):
        event = members["event"]
        ranges = event.get("ranges", [])
        if beside := event.get("attachment"):
            kept = store.attachments(connection, [beside["sha256"]])
            ranges = json.loads(kept.get(beside["sha256"], b"[]"))
        found.extend((one["first"], one["last"]) for one in ranges)
    return sorted(found)


class Hold:
    """Set a hold, or release one."""

    makes_facets: ClassVar[bool] = False

    def __init__(self, caller: Caller, *, study: str = "", subject: str = "", release: str = "") -> None:
        self._caller = caller
        self._about = {name: value for name, value in (("study", study), ("subject", subject)) if value}
        self._release = release
        self.hold = release or str(uuid.uuid4())

    def perform(self, connection: sa.Connection, now_us: int, size: int) -> Own:
        """See `Act`. Raises INVALID_REQUEST, or ENTRY_NOT_FOUND where no such hold stands."""
        act, about = audit_pb2.HOLD_ACT_SET, self._about
        if self._release:
            standing = holds(connection).by_id.get(self._release)
            if standing is None:
                raise StepwedgeError(ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND, "no such hold stands")
            act = audit_pb2.HOLD_ACT_RELEASED
            about = {name: getattr(standing, name) for name in ("study", "subject") if getattr(standing, name)}
        elif len(about) != 1:
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "a hold is on a study or on a subject")
        event = audit_pb2.HoldEvent(act=act, hold=self.hold, **self._caller.fields())
        return Own("hold", audit_pb2.EVENT_OUTCOME_SUCCESS, {**about, "hold": event})

    def committed(self) -> None:
        """See `Act`."""


class Expired(NamedTuple):
    """What may go now."""

    indexes: list[int]
    held: int
    more: bool


@dataclass(frozen=True)
class Wish:
    """What is asked to be removed."""

    before_us: int | None = None
    classes: tuple[str, ...] = ()
    of_kind: Mapping[str, str] = field(default_factory=dict)
    """Class of the entries that bear none in themselves, by kind."""

    def too_early(self, now_us: int) -> bool:
        """Whether the time that was named lies within the retention of what was named."""
        if self.before_us is None:
            return False
        asked = self.classes or tuple(MONTHS)
        ends = [over_before(one, now_us) for one in asked if one in MONTHS]
        # Of all classes at once, each goes as far as it may; of some by name, each must be over.
        return LASTING in asked or self.before_us > (min(ends) if self.classes else max(ends))

    def cutoffs(self, now_us: int) -> dict[str, int]:
        """Class to the time before which its entries may go."""
        before = now_us if self.before_us is None else self.before_us
        asked = self.classes or tuple(MONTHS)
        return {one: min(before, over_before(one, now_us)) for one in asked if one in MONTHS}


def expired(connection: sa.Connection, wish: Wish, now_us: int, size: int, *, most: int = MOST) -> Expired:
    """The first entries that may go: the class is over by what the leaf itself says, and no hold keeps them.

    Raises LOG_INCONSISTENT where an entry that would go is not the one in the tree.
    """
    cutoffs = wish.cutoffs(now_us)
    standing = holds(connection)
    studies, subjects = standing.studies(connection), standing.subjects
    numbers = {record.RETENTION[name] for name in cutoffs}
    facets = [
        number
        for number, one in store.numbered_facets(connection)
        if (one.retention in numbers or one.retention is None) and one.kind not in _LASTING_NUMBERS
    ]
    last = size // tiles.WIDTH * tiles.WIDTH  # of what lies in full tiles the hashes are stored
    found: list[int] = []
    held = 0
    node = store.node_reader(connection)
    for index, leaf in _candidates(connection, facets, max(cutoffs.values(), default=0), last):
        # Whoever may write rows must not make the log remove, in its own name, what only looks as if it were over.
        members = trusted(node, store.StoredEntry(index, leaf))
        name = members.get("retention") or wish.of_kind.get(members["kind"].lower(), LASTING)
        if name not in cutoffs or microseconds(members["recorded_at"]) >= cutoffs[name]:
            continue
        if members.get("study") in studies or members.get("subject") in subjects:
            held += 1
            continue
        if len(found) == most:
            return Expired(found, held, more=True)
        found.append(index)
    return Expired(found, held, more=False)


_LASTING_NUMBERS = frozenset(record.KINDS[kind] for kind in _LASTING_KINDS)


def _candidates(
    connection: sa.Connection, facets: Sequence[int], before_us: int, end: int
) -> Iterator[tuple[int, bytes]]:
    c = ENTRIES.c
    last = -1
    while True:
        wanted = sa.select(c.index, c.leaf, c.recorded_max_us).where(c.index > last, c.facet.in_(facets))
        rows = connection.execute(wanted.order_by(c.index).limit(_ROWS)).all()
        for row in rows:
            last = row[0]
            late = row.recorded_max_us >= before_us
            if last >= end or (late and not _set_back(connection, last, before_us, end)):
                return
            yield last, bytes(row.leaf)
        if not rows:
            return


def _set_back(connection: sa.Connection, index: int, before_us: int, end: int) -> bool:
    """Whether an entry from before the moment lies behind one from after it, because the clock was set back."""
    c = ENTRIES.c
    late = sa.select(c.index).where(
        c.recorded_us < c.recorded_max_us, c.index >= index, c.index < end, c.recorded_us < before_us
    )
    return connection.scalar(late.limit(1)) is not None


def microseconds(moment: str) -> int:
    """A time of a record as a number."""
    whole, _, rest = moment.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(f"{whole}+00:00").timestamp())
    return seconds * 1_000_000 + int(rest[:6].ljust(6, "0"))


def ranges(indexes: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending indexes as ranges (first, last)."""
    ordered = list(indexes)
    if not ordered:
        return []
    breaks = [position for position, (one, following) in enumerate(pairwise(ordered)) if following != one + 1]
    starts, ends = [0, *(place + 1 for place in breaks)], [*breaks, len(ordered) - 1]
    return [(ordered[first], ordered[last]) for first, last in zip(starts, ends, strict=True)]


class Prune:
    """Remove entries whose retention is over."""

    makes_facets: ClassVar[bool] = False

    def __init__(
        self,
        caller: Caller,
        wish: Wish,
        forget: Callable[[], None] = lambda: None,
        witnesses: Sequence[WitnessKey] = (),
    ) -> None:
        """forget: what is remembered of the keys of subjects, of which some may go. witnesses: see `agreed_us`."""
        self._witnesses = witnesses
        self._caller = caller
        self._forget = forget
        self._wish = wish
        self.removed = 0
        self.held = 0
        self.more = False
        self.refused = False

    def perform(self, connection: sa.Connection, now_us: int, size: int) -> Own | None:
        """See `Act`."""
        now_us = agreed_us(connection, now_us, self._witnesses)
        before_us = now_us if self._wish.before_us is None else self._wish.before_us
        event = audit_pb2.PrunedEvent(
            requested_by=self._caller.identity.value,
            person=self._caller.person,
            before=record.timestamp(before_us // 1_000_000, before_us % 1_000_000 * 1000),
            classes=[audit_pb2.RetentionClass.Value(f"RETENTION_CLASS_{name}") for name in self._wish.classes],
        )
        if self._wish.too_early(now_us):
            self.refused = True
            event.refusal = ErrorCode.ERROR_CODE_RETAINED
            return Own("pruned", audit_pb2.EVENT_OUTCOME_SERIOUS_FAILURE, {"pruned": event})
        found = expired(connection, self._wish, now_us, size)
        self.removed, self.held, self.more = len(found.indexes), found.held, found.more
        if not found.indexes:
            return None
        _remove(connection, found.indexes)
        self._forget()
        event.removed, event.held = self.removed, self.held
        for first, last in ranges(found.indexes):
            event.ranges.add(first=first, last=last)
        return Own("pruned", audit_pb2.EVENT_OUTCOME_SUCCESS, {"pruned": event})

    def committed(self) -> None:
        """See `Act`."""


def _remove(connection: sa.Connection, indexes: Sequence[int]) -> None:
    """Remove the entries, and what nothing that is left refers to."""
    c = ENTRIES.c
    studies: set[str] = set()
    beside: dict[str, str] = {}
    for start in range(0, len(indexes), 500):
        some = indexes[start : start + 500]
        for study, leaf in connection.execute(sa.select(c.study, c.leaf).where(c.index.in_(some))):
            studies.add(study)
            beside.update((digest, study) for digest in record.attachment_digests(bytes(leaf)))
        for table in (ENTRIES, IDENTITIES):
            connection.execute(sa.delete(table).where(table.c.index.in_(some)))
    # Revisions of a decision may share a list: it goes with the last of them, all of which are of one study.
    for digest, study in beside.items():
        leaves = connection.scalars(sa.select(c.leaf).where(c.study == study))
        if not any(digest in record.attachment_digests(bytes(leaf)) for leaf in leaves):
            connection.execute(sa.delete(ATTACHMENTS).where(ATTACHMENTS.c.sha256 == digest))
    for study in studies - {None}:
        if connection.scalar(sa.select(c.index).where(c.study == study).limit(1)) is None:
            connection.execute(sa.delete(BLIND_INDEX).where(BLIND_INDEX.c.study == study))
    left = sa.select(IDENTITIES.c.index).where(IDENTITIES.c.key_id == SUBJECT_KEYS.c.key_id)
    connection.execute(sa.delete(SUBJECT_KEYS).where(~left.exists()))
