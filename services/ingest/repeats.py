"""Reject and repeat analysis: how many radiographs were rejected, and how many of those were then taken again.

The words are those of AAPM Reports 151 (2015) and 305 (2023): a reject is an image of a patient that is not used, a
repeat is one more image of a view than the examination asks for; both are shares of all images of general radiography
(mammography and everything that is not projected has its own rules). Here:

- an image counts where its modality is CR or DX and it is no phantom's, on the day of its receipt;
- it is *rejected* where its own verdict is REJECT, for that verdict's reasons;
- a rejected image is *repeated* where another of the same person, body part, view and side was received within
  `WITHIN` after it. It counts once, however often it was repeated, under its own day, device and reasons.

What a radiographer deletes at the modality never arrives, and is counted there. Where an object does not say body part
and view, nobody can tell, and it is counted as that. Sums are kept as images are settled, as those of `drift`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, sessionmaker

from services.ingest import spans
from services.ingest.arrival import Arrival
from services.ingest.tables import Instance, RepeatDay, Study
from shared import database
from stepwedge.common.v1.common_pb2 import Verdict

MODALITIES: Final = frozenset({"CR", "DX"})
"""General radiography: the scope of AAPM Report 305."""
WITHIN: Final = timedelta(minutes=60)
"""Longest time between a rejected image and its repeat: one examination, and no control of the next day."""
_SUMS: Final = ("images", "rejected", "repeated", "unsaid")
_KEY: Final = ("day", "device_id", "reason")


def exposure(arrival: Arrival) -> str | None:
    """What was to be taken of whom, as a digest; None where it is no radiograph or does not say what it shows."""
    said = arrival.belonging
    if arrival.modality not in MODALITIES or not (arrival.subject and said.body_part and said.view):
        return None
    parts = (arrival.subject, said.body_part, said.view, said.laterality)
    return sha256("\0".join(parts).encode()).hexdigest()[:32]


def count(session: Session, instance: Instance) -> None:
    """Add a settled image to its day, and what it repeats to the day of that; in the transaction that settles it.

    Of an image and its repeat, the one that is settled last sees the other: a row stands from its receipt on. Rows of
    images are locked from the younger to the older and before any sum, so that no two transactions wait for each other.
    """
    if instance.modality not in MODALITIES or session.get_one(Study, instance.study_id).constancy:
        return
    session.flush()
    rejected = instance.verdict == Verdict.VERDICT_REJECT
    sums = {_place(instance): [1, int(rejected), 0, int(rejected and instance.exposure is None)]}
    if rejected:
        instance.repeated = _has_repeat(session, instance)
        for key in _places(instance)[1:]:
            sums[key] = [0, 1, 0, int(instance.exposure is None)]
        if instance.repeated:
            _add(sums, instance)
    for before in _repeated_by(session, instance):
        before.repeated = True
        _add(sums, before)
    session.flush()
    # In one order everywhere, so that two transactions never wait for each other's rows.
    rows = [dict(zip((*_KEY, *_SUMS), (*key, *values), strict=True)) for key, values in sorted(sums.items())]
    dialect: Any = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    made = dialect.insert(RepeatDay).values(rows)
    grown = {name: getattr(RepeatDay, name) + made.excluded[name] for name in _SUMS}
    session.execute(made.on_conflict_do_update(index_elements=list(_KEY), set_=grown))


_Place = tuple[str, int, int]


def _place(instance: Instance, reason: int = 0) -> _Place:
    return instance.received_at.date().isoformat(), instance.device_id or 0, reason


def _places(instance: Instance) -> list[_Place]:
    return [_place(instance), *(_place(instance, reason) for reason in sorted(set(instance.reasons)))]


def _add(sums: dict[_Place, list[int]], repeated: Instance) -> None:
    for key in _places(repeated):
        sums.setdefault(key, [0, 0, 0, 0])[2] += 1


def _others(instance: Instance) -> Any:
    # Another object under the same UID is no other image: it was sent again, changed on its way.
    return sa.select(Instance).where(
        Instance.exposure == instance.exposure, Instance.sop_instance_uid != instance.sop_instance_uid
    )


def _has_repeat(session: Session, instance: Instance) -> bool:
    if instance.exposure is None:
        return False
    later = _others(instance).where(
        Instance.received_at <= instance.received_at + WITHIN,
        sa.or_(
            Instance.received_at > instance.received_at,
            sa.and_(Instance.received_at == instance.received_at, Instance.id > instance.id),
        ),
    )
    return session.scalars(later.limit(1)).first() is not None


def _repeated_by(session: Session, instance: Instance) -> Sequence[Instance]:
    """Rejected images that this one repeats, and that were not known to be."""
    if instance.exposure is None:
        return ()
    earlier = _others(instance).where(
        Instance.received_at >= instance.received_at - WITHIN,
        sa.or_(
            Instance.received_at < instance.received_at,
            sa.and_(Instance.received_at == instance.received_at, Instance.id < instance.id),
        ),
        Instance.verdict == Verdict.VERDICT_REJECT,
        Instance.repeated.is_(False),
    )
    found: Sequence[Instance] = session.scalars(earlier.order_by(Instance.id.desc()).with_for_update()).all()
    return found


@dataclass(frozen=True, slots=True)
class Counted:
    """Images of general radiography; see the table."""

    day: str
    device_id: int
    reason: int
    images: int
    rejected: int
    repeated: int
    unsaid: int


class Repeats:
    """The sums of ingest's database. Blocks."""

    def __init__(self, engine: sa.Engine) -> None:
        self._sessions = sessionmaker(database.reader(engine))
        self._dialect = engine.dialect

    def counts(
        self,
        start: datetime,
        before: datetime,
        devices: Collection[int] | None = None,
        *,
        by_day: bool,
        by_device: bool,
        by_reason: bool,
        by_week: bool = False,
    ) -> list[Counted]:
        """Sums from the day of `start` to that of `before`; of these devices only, or of all where None.

        `by_week`: days are weeks, called after their Mondays.
        """
        day = spans.week(self._dialect, RepeatDay.day) if by_week else RepeatDay.day
        columns: list[tuple[Any, bool, Any]] = [
            (day, by_day or by_week, ""),
            (RepeatDay.device_id, by_device, 0),
            (RepeatDay.reason, True, 0),
        ]
        group = [column for column, apart, _ in columns if apart]
        shown = [column if apart else sa.literal(nothing) for column, apart, nothing in columns]
        wanted = (
            sa.select(*shown, *(sa.func.sum(getattr(RepeatDay, name)) for name in _SUMS))
            .where(RepeatDay.day >= start.date().isoformat(), RepeatDay.day <= before.date().isoformat())
            .group_by(*group)
            .order_by(*group)
        )
        if not by_reason:
            wanted = wanted.where(RepeatDay.reason == 0)
        if devices is not None:
            wanted = wanted.where(RepeatDay.device_id.in_(devices))
        with self._sessions.begin() as session:
            return [Counted(*row[:3], *(int(value) for value in row[3:])) for row in session.execute(wanted)]
