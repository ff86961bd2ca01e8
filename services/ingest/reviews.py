"""What people say of decisions, and how often what was decided: the rows behind reviews and charts."""

import json
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import Engine, Text, cast, func, literal, select
from sqlalchemy.orm import sessionmaker

from services.ingest.tables import Decision, Review, Study
from shared import database
from shared.errors import ErrorCode, StepwedgeError

LONGEST_NOTE: Final = 500
REASONS: Final = (
    "agreed",
    "positioning_acceptable",
    "clinically_sufficient",
    "cannot_be_repeated",
    "finding_is_wrong",
    "defect_was_missed",
    "wrong_patient_or_side",
    "other",
)
"""Codes that a reviewer chooses from; words for people are the caller's."""


@dataclass
class Summary:
    """Counts of a span of time; every key begins with the day (UTC)."""

    decisions: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """(day, modalities joined by "+", verdict) of the newest decision of each study."""
    reasons: Counter[tuple[str, int]] = field(default_factory=Counter)
    """(day, reason) of those."""
    by_device: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    """(day, row of the device or 0, verdict) of those."""
    reasons_by_device: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    """(day, row of the device or 0, reason) of those."""
    reviews: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    """(day, what was decided, what the person held to be right)."""
    states: dict[str, tuple[int, datetime]] = field(default_factory=dict)
    """State -> how many studies are in it now, and when the one that waits longest received its last instance."""


class Reviews:
    """Reviews and counts over ingest's database. All methods block.

    Parameters
    ----------
    engine
        From `shared.database.create_engine`; the schema is up to date.
    commit
        Makes the salted commitment to a digest (hexadecimal).
    """

    def __init__(self, engine: Engine, *, commit: Callable[[str], str]) -> None:
        self._sessions = sessionmaker(engine, expire_on_commit=False)
        self._reading = sessionmaker(database.reader(engine), expire_on_commit=False)
        self._commit = commit
        self._postgres = engine.dialect.name == "postgresql"

    def write(
        self, study_id: int, *, revision: int, verdict: int, reason: str, note: str, reviewer: str, role: str
    ) -> tuple[Review, Decision]:
        """Write down a review before its record is handed in; return it with the decision that it is of.

        Raises WRONG_STATE where `revision` is not the newest decision that is in the log.
        """
        with self._sessions.begin() as session:
            newest = session.scalars(
                select(Decision)
                .where(Decision.study_id == study_id, Decision.cursor.is_not(None))
                .order_by(Decision.revision.desc())
                .limit(1)
            ).one_or_none()
            if newest is None:
                raise StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, "the study is not decided yet")
            if newest.revision != revision:
                raise StepwedgeError(
                    ErrorCode.ERROR_CODE_WRONG_STATE, f"the study was decided anew: revision {newest.revision}"
                )
            review = Review(
                study_id=study_id,
                revision=revision,
                decided=newest.verdict,
                verdict=verdict,
                reason=reason,
                note=note,
                reviewer=reviewer,
                role=role,
                reviewed_at=datetime.now(UTC),
            )
            session.add(review)
            session.flush()
            return review, newest

    def confirm(self, review_id: int, record_index: int) -> Review:
        """The log has the `reviewed` record: the review is visible."""
        with self._sessions.begin() as session:
            review = session.get_one(Review, review_id)
            review.record_index = record_index
            return review

    def commitment(self, review: Review) -> str:
        """Salted commitment to the note, hexadecimal; empty where there is none."""
        return self._commit(sha256(f"{review.id}/{review.note}".encode()).hexdigest()) if review.note else ""

    def summary(
        self,
        start: datetime,
        before: datetime,
        devices: Collection[int] | None = None,
        *,
        sum_days: bool = False,
        states: bool = True,
    ) -> Summary:
        """Counts of what was decided and reviewed in a span of time, and of where studies are now.

        `devices`: only studies of these; None for all. `sum_days`: counts by device have "" for the day.
        `states`: whether to count where studies are now.
        """
        found = Summary()
        of_these = [Study.constancy.is_(False)]  # phantoms are nobody's images
        if devices is not None:
            of_these.append(Study.device_id.in_(devices))
        with self._reading.begin() as session:
            day = self._day(Study.decided_at)
            # A few combinations of reasons for each day, not a row a study: the database counts.
            device = func.coalesce(Study.device_id, 0)
            what = (Study.modalities, Study.verdict, cast(Study.reasons, Text))
            none: Any = literal("")
            # Day by device is many groups; where the days of devices are summed up, the two are counted apart.
            groupings = [(day, none, 1, 0), (none, device, 0, 1)] if sum_days else [(day, device, 1, 1)]
            for on_day, by, of_days, of_devices in groupings:
                columns = [one for one in (on_day, *what, by) if one is not none]
                counted = session.execute(
                    select(on_day, *what, by, func.count())
                    .where(Study.decided_at >= start, Study.decided_at < before, *of_these)
                    .group_by(*columns)
                )
                for on, modalities, verdict, given, made_by, count in counted:
                    reasons = json.loads(given)
                    if of_days:
                        found.decisions[on, modalities, verdict] += count
                        found.reasons.update(dict.fromkeys(((on, reason) for reason in reasons), count))
                    if of_devices:
                        found.by_device[on, made_by, verdict] += count
                        found.reasons_by_device.update(
                            dict.fromkeys(((on, made_by, reason) for reason in reasons), count)
                        )
            said = select(Review.reviewed_at, Review.decided, Review.verdict).where(
                Review.reviewed_at >= start, Review.reviewed_at < before, Review.record_index.is_not(None)
            )
            if of_these:
                said = said.join(Study, Study.id == Review.study_id).where(*of_these)
            for at, was, now in session.execute(said):
                found.reviews[at.date().isoformat(), was, now] += 1
            if not states:
                return found
            for state, count, oldest in session.execute(
                select(Study.state, func.count(), func.min(Study.last_received_at))
                .where(*of_these)
                .group_by(Study.state)
            ):
                found.states[state] = (count, oldest)
        return found

    def _day(self, column: Any) -> Any:
        """The day (UTC) of a column of times, as text."""
        if self._postgres:
            return func.to_char(func.timezone("UTC", column), "YYYY-MM-DD")
        return func.substr(cast(column, Text), 1, 10)
