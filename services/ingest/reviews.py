"""What people say of decisions, and how often what was decided: the rows behind reviews and charts."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import BindParameter, Engine, func, literal, select
from sqlalchemy.orm import Session, sessionmaker

from services.ingest import spans
from services.ingest.states import StudyState
from services.ingest.tables import DecidedDay, Decision, Review, Study
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
    """Counts of a span of time; every key begins with the day (UTC), or the Monday of the week."""

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
    states: dict[str, tuple[int, datetime | None]] = field(default_factory=dict)
    """State -> how many studies are in it now, and when the one that waits longest received its last instance; None
    where none waits."""


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
        self._dialect = engine.dialect

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
        by_week: bool = False,
        sum_days: bool = False,
        states: bool = True,
    ) -> Summary:
        """Counts of what was decided and reviewed from the day of `start` to that of `before`, and where studies are.

        `devices`: only studies of these; None for all. `by_week`: a week, called after its Monday, instead of a day.
        `sum_days`: counts by device have "" for the day. `states`: whether to count where studies are now.
        """
        found = Summary()
        with self._reading.begin() as session:
            for day, reason, verdict, modalities, count in session.execute(
                self._by_day(start, before, devices, by_week=by_week)
            ):
                if reason:
                    found.reasons[day, reason] += int(count)
                else:
                    found.decisions[day, modalities, verdict] += int(count)
            for day, device, reason, verdict, count in session.execute(
                self._by_device(start, before, devices, by_week=by_week, sum_days=sum_days)
            ):
                if reason:
                    found.reasons_by_device[day, device, reason] += int(count)
                else:
                    found.by_device[day, device, verdict] += int(count)
            found.reviews.update(self._reviews(session, start, before, devices, by_week=by_week))
            if states:
                found.states.update(self._states(session, devices))
        return found

    def _reviews(
        self,
        session: Session,
        start: datetime,
        before: datetime,
        devices: Collection[int] | None,
        *,
        by_week: bool,
    ) -> dict[tuple[str, int, int], int]:
        first = start.replace(hour=0, minute=0, second=0, microsecond=0)
        day = spans.day(self._dialect, Review.reviewed_at).label("day")
        said = (
            _grouped((day, Review.decided, Review.verdict), func.count().label("count"))
            .join(Study, Study.id == Review.study_id)
            .where(Review.reviewed_at >= first, Review.reviewed_at < before, Review.record_index.is_not(None))
            .where(*_of_patients(devices))
        )
        if by_week:
            said = self._by_week(said)
        return {(on, was, now): int(count) for on, was, now, count in session.execute(said)}

    def _states(
        self, session: Session, devices: Collection[int] | None
    ) -> Iterator[tuple[str, tuple[int, datetime | None]]]:
        """Where studies are. Those that are done are all that are decided, less the few that are not done."""
        undone = (
            _grouped((Study.state,), func.count(), func.min(Study.last_received_at), func.count(Study.decided_at))
            .where(Study.state.in_([one for one in StudyState if one != StudyState.DONE]))
            .where(*_of_patients(devices))
        )
        done = select(func.sum(DecidedDay.count)).where(DecidedDay.reason == 0)
        if devices is not None:
            done = done.where(DecidedDay.device_id.in_(devices))
        decided = int(session.scalars(done).one() or 0)
        for state, count, oldest, also_decided in session.execute(undone):
            decided -= also_decided
            yield state, (count, oldest)
        if decided:
            yield StudyState.DONE, (decided, None)

    def _by_day(self, start: datetime, before: datetime, devices: Collection[int] | None, *, by_week: bool) -> Any:
        """Day or week, reason, verdict, modalities, count: days first, in the order of the table, then their weeks."""
        columns = (DecidedDay.day, DecidedDay.reason, DecidedDay.verdict, DecidedDay.modalities)
        days = _counted(columns, start, before, devices)
        return self._by_week(days) if by_week else days

    def _by_week(self, days: Any) -> Any:
        """Figures of days, which stand first, summed up by their weeks."""
        day, *others, count = days.subquery().c
        return _grouped((spans.week(self._dialect, day), *others), func.sum(count))

    def _by_device(
        self, start: datetime, before: datetime, devices: Collection[int] | None, *, by_week: bool, sum_days: bool
    ) -> Any:
        """Day, week or "", device, reason, verdict, count."""
        day: Any = spans.week(self._dialect, DecidedDay.day) if by_week else DecidedDay.day
        columns = (DecidedDay.device_id, DecidedDay.reason, DecidedDay.verdict)
        return _counted((literal("") if sum_days else day, *columns), start, before, devices)


def _counted(columns: Sequence[Any], start: datetime, before: datetime, devices: Collection[int] | None) -> Any:
    found = _grouped(columns, func.sum(DecidedDay.count).label("count")).where(
        DecidedDay.day >= start.date().isoformat(), DecidedDay.day <= before.date().isoformat(), DecidedDay.count > 0
    )
    return found if devices is None else found.where(DecidedDay.device_id.in_(devices))


def _grouped(columns: Sequence[Any], *figures: Any) -> Any:
    """Figures for each combination of the columns; a literal is no column to group by."""
    return select(*columns, *figures).group_by(*(one for one in columns if not isinstance(one, BindParameter)))


def _of_patients(devices: Collection[int] | None) -> list[Any]:
    """Conditions for studies that are no phantoms; of these devices only."""
    of_patients = [Study.constancy.is_(False)]
    return of_patients if devices is None else [*of_patients, Study.device_id.in_(devices)]
