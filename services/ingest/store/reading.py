"""What is asked about studies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import func, select

from services.ingest.devices import ANY_DEVICE, Wanted
from services.ingest.states import StudyState
from services.ingest.store.rows import UNSETTLED, Rows
from services.ingest.tables import Decision, Delivery, Failure, Instance, Making, Requeue, Result, Review, Study
from shared.errors import ErrorCode, StepwedgeError


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A study and everything of it, detached from the database."""

    study: Study
    instances: Sequence[Instance]
    decisions: Sequence[Decision]
    deliveries: Sequence[Delivery]
    failures: Sequence[Failure] = field(default_factory=tuple)
    requeues: Sequence[Requeue] = field(default_factory=tuple)
    reviews: Sequence[Review] = field(default_factory=tuple)
    makings: Sequence[Making] = field(default_factory=tuple)
    results: Sequence[Result] = field(default_factory=tuple)

    def without_echoes(self) -> "Snapshot":
        """The study without results of ours that a peer sent back: a decision on those would go round for ever."""
        ours = {result.sop_instance_uid for result in self.results}
        kept = [instance for instance in self.instances if instance.sop_instance_uid not in ours]
        return replace(self, instances=kept) if kept and ours else self

    @property
    def pending_decision(self) -> Decision | None:
        """The decision that was written but is not yet known to be in the log."""
        return next((decision for decision in self.decisions if decision.record_index is None), None)


class Reading(Rows):
    """Studies as they stand."""

    def find(self, *, study_instance_uid: str = "", pseudonym: str = "") -> int:
        """The row of a study by one of its two names. Raises STUDY_NOT_FOUND."""
        column, value = (
            (Study.study_instance_uid, study_instance_uid) if study_instance_uid else (Study.pseudonym, pseudonym)
        )
        with self._reading.begin() as session:
            found = session.scalars(select(Study.id).where(column == value).order_by(Study.id).limit(1)).one_or_none()
        if found is None:
            raise StepwedgeError(ErrorCode.ERROR_CODE_STUDY_NOT_FOUND, "no study of this name has been received")
        return found

    def snapshot(self, study_id: int, *, only_unsettled: bool = False) -> Snapshot:
        """A study with everything of it, each list in its own order; of its instances all, or those still to settle."""
        with self._reading.begin() as session:

            def rows(table: Any, *conditions: Any) -> list[Any]:
                query = select(table).where(table.study_id == study_id, *conditions).order_by(table.id)
                return list(session.scalars(query))

            return Snapshot(
                study=session.get_one(Study, study_id),
                instances=rows(Instance, Instance.state.in_(UNSETTLED)) if only_unsettled else rows(Instance),
                decisions=rows(Decision),
                deliveries=rows(Delivery),
                failures=rows(Failure),
                requeues=rows(Requeue),
                reviews=rows(Review),
                makings=rows(Making),
                results=rows(Result),
            )

    def page(
        self,
        *,
        state: StudyState | None,
        verdict: int = 0,
        before: int | None,
        size: int,
        wanted: Wanted = ANY_DEVICE,
    ) -> list[Study]:
        """Studies, newest first, with a row number below `before`; `verdict` 0 for any."""
        query = select(Study).order_by(Study.id.desc()).limit(size)
        if not wanted.anything:
            of_these = self.devices.matching(wanted)
            if not of_these:  # no database looks for nothing without looking at everything
                return []
            query = query.where(Study.device_id.in_(of_these))
        # Of what is under way there is little: its index is the one to look in, and a sum is found in none.
        if state is not None:
            query = query.where(Study.state == state)
        if verdict:
            few = state is not None and state != StudyState.DONE
            query = query.where((Study.verdict + 0 if few else Study.verdict) == verdict)
        if before is not None:
            query = query.where(Study.id < before)
        with self._reading.begin() as session:
            return list(session.scalars(query))

    def decisions_after(self, cursor: int, limit: int) -> list[tuple[Decision, Study]]:
        """Visible decisions with a cursor above `cursor`, in the order in which they became visible."""
        query = (
            select(Decision, Study)
            .join(Study, Study.id == Decision.study_id)
            .where(Decision.cursor > cursor)
            .order_by(Decision.cursor)
            .limit(limit)
        )
        with self._reading.begin() as session:
            return [(decision, study) for decision, study in session.execute(query)]

    def newest_cursor(self) -> int:
        """The cursor of the newest visible decision; 0 where there is none."""
        with self._reading.begin() as session:
            return session.scalar(select(func.max(Decision.cursor))) or 0

    def figures(self, now: datetime) -> tuple[Mapping[str, int], int, float]:
        """Studies by state; how many are due; the age of the longest due in seconds."""
        with self._reading.begin() as session:
            by_state = {
                str(state): int(count)
                for state, count in session.execute(select(Study.state, func.count()).group_by(Study.state))
            }
            due, oldest = session.execute(
                select(func.count(), func.min(Study.next_action_at)).where(Study.next_action_at <= now)
            ).one()
        age = (now - oldest).total_seconds() if oldest is not None else 0.0
        return by_state, int(due), age
