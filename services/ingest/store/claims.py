"""Which study is due, and whose it is for now."""

from collections.abc import Collection
from datetime import datetime, timedelta
from functools import cache

from sqlalchemy import case, func, or_, select, update
from sqlalchemy.orm import Session

from services.ingest import wrong_clock
from services.ingest.routing import ORIGINAL
from services.ingest.states import ACTIVE_STATES, InstanceState, StudyState
from services.ingest.store.arriving import CONFIRM_GRACE
from services.ingest.store.rows import UNSETTLED, Claim, Rows, has_pending_decision
from services.ingest.tables import Delivery, Instance, Making, Study
from shared import database
from shared.statements import Statement


class Claims(Rows):
    """Leases on studies."""

    def claim(
        self, owner: str, now: datetime, lease: timedelta, states: Collection[StudyState] = ACTIVE_STATES
    ) -> Claim | None:
        """Take the study in one of `states` that is due longest and that nobody holds; None where there is none."""
        with self._sessions.begin() as session:
            study = session.scalars(
                select(Study)
                .where(
                    Study.next_action_at <= now,
                    or_(Study.lease_until.is_(None), Study.lease_until < now),
                    Study.state.in_(sorted(states)),
                )
                .order_by(Study.next_action_at, Study.id)
                .limit(1)
                .with_for_update(skip_locked=True)
            ).one_or_none()
            if study is None:
                return None
            study.lease_owner = owner
            study.lease_until = now + lease
            return Claim(study.id, owner)

    def renew(self, claim: Claim, now: datetime, lease: timedelta) -> None:
        """Hold the study longer. Raises LeaseLostError."""
        with self._held(claim) as (_, study):
            study.lease_until = now + lease

    def release(self, claim: Claim, now: datetime, *, waiting_for: str = "", pause: timedelta = timedelta()) -> None:
        """Let go of the study and say when it is due next. Raises LeaseLostError.

        Parameters
        ----------
        waiting_for, pause
            The dependency without which nothing can be done now, and how long not to try; `wake` ends the pause.
        """
        with self._held(claim) as (session, study):
            study.lease_owner = None
            study.lease_until = None
            due = self._due(session, study, now)
            study.waiting_for = waiting_for if due is not None else ""
            study.next_action_at = max(due, now + pause) if due is not None else None

    def wake(self, dependency: str, now: datetime) -> int:
        """A dependency is back: what waited for it is due now. Returns how many studies did."""
        with self._sessions.begin() as session:
            result = session.execute(
                update(Study)
                .where(Study.waiting_for == dependency)
                .values(waiting_for="", next_action_at=case((Study.next_action_at.is_(None), None), else_=now))
                .execution_options(synchronize_session=False)
            )
            return int(getattr(result, "rowcount", 0))

    def set_right(self, now: datetime, lease: timedelta) -> int:
        """Have what a wrong clock dated into the future be due now, see `wrong_clock`. Returns how many studies."""
        return wrong_clock.set_right(self._engine, now, lease=lease, quiet=self._quiet, wait=self._wait)

    def next_due(self, states: Collection[StudyState] = ACTIVE_STATES) -> datetime | None:
        """When the next study in one of `states` may be claimed; None where none may."""
        with database.reader(self._engine).connect() as connection:
            ((due,),) = _next_due(frozenset(states)).rows(connection, {})
            return due  # type: ignore[no-any-return]

    def _due(self, session: Session, study: Study, now: datetime) -> datetime | None:
        if study.state not in ACTIVE_STATES:
            return None
        open_instances = session.execute(
            select(Instance.state, Instance.received_at, Instance.next_attempt_at).where(
                Instance.study_id == study.id, Instance.state.in_(UNSETTLED)
            )
        ).all()
        if open_instances:
            return min(
                _confirmed_by(received_at, now) if state == InstanceState.STORED else next_attempt_at or now
                for state, received_at, next_attempt_at in open_instances
            )
        if study.state == StudyState.RECEIVING and not has_pending_decision(session, study):
            if study.missing:
                return (study.waits_from or study.last_received_at) + self._wait
            return study.last_received_at + self._quiet
        if study.state == StudyState.DELIVERING:
            return self._delivery_due(session, study, now)
        return now

    @staticmethod
    def _delivery_due(session: Session, study: Study, now: datetime) -> datetime:
        making = session.scalars(
            select(Making.next_attempt_at).where(Making.study_id == study.id, Making.state == "PENDING")
        ).all()
        deliveries = session.execute(
            select(Delivery.next_attempt_at, Delivery.contents).where(
                Delivery.study_id == study.id, Delivery.state.in_(("PENDING", "SENT"))
            )
        ).all()
        # What needs results that are not made yet is looked at when they are.
        ready = [at for at, contents in deliveries if not making or contents == [ORIGINAL]]
        return min((at or now for at in (*making, *ready)), default=now)


def _confirmed_by(received_at: datetime, now: datetime) -> datetime:
    """When a worker confirms what the door has not; at once where the door's clock was ahead."""
    return received_at + CONFIRM_GRACE if received_at <= now + CONFIRM_GRACE else now


@cache
def _next_due(states: frozenset[StudyState]) -> Statement:
    # A study that is held is free again when its lease ends.
    free_at = case(
        (Study.lease_until.is_(None), Study.next_action_at),
        (Study.lease_until > Study.next_action_at, Study.lease_until),
        else_=Study.next_action_at,
    )
    wanted = or_(*(Study.state == state for state in sorted(states)))
    return Statement(select(func.min(free_at)).where(Study.next_action_at.is_not(None), wanted))
