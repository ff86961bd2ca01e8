"""What is done hour by hour, and what fails: counts over ingest's database for whoever watches it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker

from services.ingest import spans
from services.ingest.tables import Failure, Study
from shared import database

LONGEST_HOURS: Final = 168


@dataclass(frozen=True, slots=True)
class Hour:
    """What was decided in one hour."""

    began: datetime
    studies: int
    images: int


@dataclass(frozen=True, slots=True)
class Failed:
    """How often a step failed with one error."""

    error: int
    """`ErrorCode`."""
    step: str
    count: int
    newest: datetime


class Activity:
    """Counts of the last hours. Blocks."""

    def __init__(self, engine: sa.Engine) -> None:
        self._sessions = sessionmaker(database.reader(engine))
        self._dialect = engine.dialect

    def of_the_last(self, hours: int, now: datetime) -> tuple[Sequence[Hour], Sequence[Failed]]:
        """Each of the last `hours` hours, oldest first, the one that is under way at the end; failures, most first."""
        this = now.replace(minute=0, second=0, microsecond=0)
        start = this - timedelta(hours=hours - 1)
        hour = spans.hour(self._dialect, Study.decided_at)
        decided = (
            sa.select(hour, sa.func.count(), sa.func.sum(Study.instances))
            .where(Study.decided_at >= start)
            .group_by(hour)
        )
        failures = (
            sa.select(Failure.error, Failure.step, sa.func.count(), sa.func.max(Failure.failed_at))
            .where(Failure.failed_at >= start)
            .group_by(Failure.error, Failure.step)
        )
        with self._sessions.begin() as session:
            done = {at: (int(studies), int(images)) for at, studies, images in session.execute(decided)}
            failed = [Failed(*row) for row in session.execute(failures)]
        every = [start + timedelta(hours=number) for number in range(hours)]
        return (
            [Hour(began, *done.get(f"{began:%Y-%m-%d %H}", (0, 0))) for began in every],
            sorted(failed, key=lambda one: (-one.count, one.error, one.step)),
        )
