"""Times that a clock which was wrong wrote into the future: what waits for them would wait for nothing.

A machine that starts with a wrong clock, or is set wrong for a while, dates what arrives meanwhile in the future. Once
the clock is right again, a study would be complete, tried again, or free of a dead worker's lease only at that time.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Engine, or_, select, update

from services.ingest.states import ACTIVE_STATES
from services.ingest.tables import Delivery, Instance, Making, Study
from shared import database

TOLERANCE: Final = timedelta(minutes=5)
"""How far the clocks of several machines may be apart before the slower sets right what the faster wrote."""


def set_right(engine: Engine, now: datetime, *, lease: timedelta, longest: timedelta) -> int:
    """Have studies that wait for a time which nothing waits for be due now. Returns how many.

    lease: how long a worker holds a study. longest: how far ahead the next step of a study may be dated.
    """
    latest, furthest = now + TOLERANCE, now + TOLERANCE + longest
    wrong = (
        select(Study.id, Study.last_received_at, Study.waits_from, Study.lease_until)
        .where(
            Study.state.in_(sorted(ACTIVE_STATES)),
            Study.next_action_at.is_not(None),
            or_(
                Study.next_action_at > furthest,
                Study.last_received_at > latest,
                Study.waits_from > latest,
                Study.lease_until > latest + lease,
            ),
        )
        .order_by(Study.id)
    )
    with database.reader(engine).connect() as connection:
        if connection.execute(wrong.limit(1)).first() is None:
            return 0
    with engine.begin() as connection:
        rows = connection.execute(wrong.with_for_update(skip_locked=True)).all()
        for row in rows:
            values: dict[str, Any] = {"next_action_at": now, "last_received_at": min(row.last_received_at, now)}
            if row.waits_from is not None:
                values["waits_from"] = min(row.waits_from, now)
            if row.lease_until is not None and row.lease_until > latest + lease:
                values["lease_until"] = now  # a worker that lives renews it
            connection.execute(update(Study).where(Study.id == row.id).values(values))
            for kind in (Instance, Making, Delivery):
                ahead = kind.study_id == row.id, kind.next_attempt_at > latest
                connection.execute(update(kind).where(*ahead).values(next_attempt_at=now))
        return len(rows)
