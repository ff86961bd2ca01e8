"""What images measure from day to day: sums kept as each image is assessed, so that no image is read to see drift.

A day's row of a device and a measurement holds how many there were, their sum and the sum of their squares; mean and
standard deviation of any span of days and any set of devices follow from those. An image is counted in the transaction
that settles it, so once.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, sessionmaker

from services.ingest import spans
from services.ingest.tables import Instance, MeasuredDay, Study
from shared import database
from stepwedge.inference.v1 import inference_pb2

CONFIDENCE: Final = "confidence"
"""Name under which the Soft Dice Confidence of an image's masks is counted; its unit is 1."""
_KEY: Final = ("day", "name", "unit", "device_id")
_SUMS: Final = ("count", "total", "squares")


@dataclass(frozen=True, slots=True)
class Measured:
    """A measurement on one day."""

    day: str
    """UTC, "2026-11-22"."""
    name: str
    unit: str
    """UCUM."""
    count: int
    mean: float
    deviation: float
    """Standard deviation; 0 of one image."""


def count(session: Session, instance: Instance, assessment: bytes, now: datetime) -> None:
    """Add an assessed image to its day; called in the transaction that settles it."""
    if session.get_one(Study, instance.study_id).constancy:  # phantoms would hide what patients' images do
        return
    found = inference_pb2.Assessment.FromString(assessment)
    values = {(one.name, one.unit): one.value for one in found.measurements if math.isfinite(one.value)}
    if found.HasField("confidence"):
        values[CONFIDENCE, "1"] = found.confidence
    if not values:
        return
    day, device = now.date().isoformat(), instance.device_id or 0
    rows = [
        {"day": day, "device_id": device, "name": name, "unit": unit, "count": 1, "total": value, "squares": value**2}
        # In one order everywhere, so that two transactions never wait for each other's rows.
        for (name, unit), value in sorted(values.items())
    ]
    dialect: Any = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    made = dialect.insert(MeasuredDay).values(rows)
    sums = {name: getattr(MeasuredDay, name) + made.excluded[name] for name in _SUMS}
    session.execute(made.on_conflict_do_update(index_elements=list(_KEY), set_=sums))


class Drift:
    """The sums of ingest's database. Blocks."""

    def __init__(self, engine: sa.Engine) -> None:
        self._sessions = sessionmaker(database.reader(engine))
        self._dialect = engine.dialect

    def days(
        self, start: datetime, before: datetime, devices: Collection[int] | None = None, *, by_week: bool = False
    ) -> Iterable[Measured]:
        """Each measurement of each day from `start` to `before`, in order of name and day; `devices`: of these only.

        `by_week`: of each week, called after its Monday.
        """
        day, key = MeasuredDay.day, (MeasuredDay.name, MeasuredDay.unit, MeasuredDay.day)
        wanted = (
            sa.select(*key, *(sa.func.sum(getattr(MeasuredDay, name)).label(name) for name in _SUMS))
            .where(day >= start.date().isoformat(), day <= before.date().isoformat())
            .group_by(*key)
            .order_by(*key)
        )
        if devices is not None:
            wanted = wanted.where(MeasuredDay.device_id.in_(devices))
        if by_week:
            days = wanted.order_by(None).subquery()
            weeks = days.c.name, days.c.unit, spans.week(self._dialect, days.c.day)
            wanted = sa.select(*weeks, *(sa.func.sum(days.c[name]) for name in _SUMS)).group_by(*weeks).order_by(*weeks)
        with self._sessions.begin() as session:
            return [
                Measured(day, name, unit, int(number), total / int(number), deviation(int(number), total, squares))
                for name, unit, day, number, total, squares in session.execute(wanted)
            ]


def deviation(number: int, total: float, squares: float) -> float:
    """Standard deviation of so many values, of their sum and the sum of their squares; 0 of fewer than two."""
    if number < 2:
        return 0.0
    return math.sqrt(max(0.0, (squares - total**2 / number) / (number - 1)))
