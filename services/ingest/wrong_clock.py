"""Times that a clock which was wrong wrote into the future: what waits for them would wait for nothing.

A machine that starts with a wrong clock, or is set wrong for a while, dates what arrives meanwhile in the future. Once
the clock is right again, a study would be complete, tried again, or free of a dead worker's lease only at that time.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, Select, func, or_, select, update

from services.ingest.backoff import longest_pause
from services.ingest.states import ACTIVE_STATES, StudyState
from services.ingest.tables import Delivery, Instance, Making, Study
from shared import database

TOLERANCE: Final = timedelta(minutes=5)
"""How far the clocks of several machines may be apart before the slower sets right what the faster wrote."""
_AT_ONCE: Final = 500
"""Studies that are set right in one transaction; more are the next time."""


def set_right(engine: Engine, now: datetime, *, lease: timedelta, quiet: timedelta, wait: timedelta) -> int:
    """Have studies that wait for a time which nothing waits for be due now. Returns how many.

    lease: how long a worker holds a study. quiet, wait: how long a study that is being received waits for more of its
    images, and for what it is known to lack.
    """
    with database.reader(engine).connect() as connection:
        wrong = _wrong(connection, now, lease, quiet, wait, select(*_LOOKED_AT))
    if not wrong:
        return 0
    some = [row.id for row in wrong[:_AT_ONCE]]
    with engine.begin() as connection:
        held = select(*_LOOKED_AT).where(Study.id.in_(some)).with_for_update(skip_locked=True)
        rows = _wrong(connection, now, lease, quiet, wait, held)
        for row in rows:
            values: dict[str, Any] = {"next_action_at": now, "last_received_at": min(row.last_received_at, now)}
            if row.waits_from is not None:
                values["waits_from"] = min(row.waits_from, now)
            if row.lease_until is not None and row.lease_until > now + TOLERANCE + lease:
                values["lease_until"] = now  # a worker that lives renews it
            connection.execute(update(Study).where(Study.id == row.id).values(values))
            for kind in _STEPS:
                ahead = kind.study_id == row.id, kind.next_attempt_at > now + TOLERANCE
                connection.execute(update(kind).where(*ahead).values(next_attempt_at=now))
        return len(rows)


def _wrong(
    connection: Connection, now: datetime, lease: timedelta, quiet: timedelta, wait: timedelta, some: Select[Any]
) -> list[Row[Any]]:
    """Of some studies those with a time that nothing explains."""
    latest = now + TOLERANCE
    surely = or_(Study.last_received_at > latest, Study.waits_from > latest, Study.lease_until > latest + lease)
    rows = connection.execute(
        some.add_columns(surely.label("surely"))
        .where(Study.state.in_(sorted(ACTIVE_STATES)), Study.next_action_at.is_not(None))
        .where(or_(surely, Study.next_action_at > latest))
        .order_by(Study.id)
    ).all()

    def is_wrong(row: Row[Any]) -> bool:
        if row.surely:
            return True
        began = row.waits_from or row.last_received_at
        attempts = max(row.attempts, *(getattr(row, kind.__tablename__) or 0 for kind in _STEPS))
        furthest = latest + longest_pause(attempts)
        if row.state == StudyState.RECEIVING:
            furthest = max(furthest, began + TOLERANCE + (wait if row.missing else quiet))
        return bool(row.next_action_at > furthest)

    return [row for row in rows if is_wrong(row)]


_STEPS: Final = (Instance, Making, Delivery)
"""What a study waits for another attempt of."""
_LOOKED_AT: Final = (
    Study.id,
    Study.state,
    Study.attempts,
    Study.missing,
    Study.last_received_at,
    Study.waits_from,
    Study.lease_until,
    Study.next_action_at,
    *(
        select(func.max(kind.attempts)).where(kind.study_id == Study.id).scalar_subquery().label(kind.__tablename__)
        for kind in _STEPS
    ),
)
