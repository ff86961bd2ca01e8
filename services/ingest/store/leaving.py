"""What a worker writes of what leaves: decisions, results made of them, deliveries."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from services.ingest.results.material import Kind, Made
from services.ingest.routing import ORIGINAL, Sending
from services.ingest.states import StudyEvent, StudyState, next_study_state
from services.ingest.store.rows import UNSETTLED, Claim, Rows, has_pending_decision
from services.ingest.tables import (
    Counter,
    Decision,
    DeliveredInstance,
    DeliveredResult,
    Delivery,
    Instance,
    Making,
    Result,
    Study,
)

_DECISIONS: Final = "decisions"
"""Name of the counter that puts decisions in the order in which they became visible."""


class Leaving(Rows):
    """Decisions, results and deliveries."""

    def write_decision(self, claim: Claim, decision: Decision) -> Decision | None:
        """Write down a decision before its record is handed in.

        None where the study changed since it was looked at, or is not ready: the caller looks again.
        """
        with self._held(claim) as (session, study):
            unsettled = session.scalar(
                select(func.count())
                .select_from(Instance)
                .where(Instance.study_id == study.id, Instance.state.in_(UNSETTLED))
            )
            ready = study.generation == decision.generation and study.state == StudyState.PROCESSING and not unsettled
            if not ready or has_pending_decision(session, study):
                return None
            decision.revision = study.revision + 1
            session.add(decision)
            session.flush()
            return decision

    def confirm_decision(
        self,
        claim: Claim,
        decision_id: int,
        record_index: int,
        sendings: Sequence[Sending],
        now: datetime,
        *,
        kinds: Sequence[Kind] = (),
        shadow: bool = False,
    ) -> Study:
        """The log has the `decided` record: the decision becomes visible, its results and its deliveries are due.

        Where an instance came in meanwhile, it is visible all the same, and the next revision is open.
        kinds: results that are made of it. shadow: whether its deliveries send nothing.
        """
        with self._held(claim) as (session, study):
            decision = session.get_one(Decision, decision_id)
            if decision.record_index is None:
                decision.record_index = record_index
                decision.cursor = self._next(session, _DECISIONS)
            study.revision = decision.revision
            study.verdict, study.reasons = decision.verdict, list(decision.reasons)
            study.decided_at = decision.decided_at
            study.attempts = 0
            study.last_error = 0
            current = study.generation == decision.generation
            event = StudyEvent.DECIDED if current else StudyEvent.SUPERSEDED
            study.state = next_study_state(StudyState(study.state), event)
            for table in (Delivery, Making):
                session.execute(
                    update(table)
                    .where(table.study_id == study.id, table.state.in_(("PENDING", "FAILED")))
                    .values(state="SUPERSEDED")
                )
            if current and kinds:
                session.add(
                    Making(
                        study_id=study.id,
                        revision=decision.revision,
                        kinds=[str(kind) for kind in kinds],
                        state="PENDING",
                        next_attempt_at=now,
                    )
                )
            if current:
                session.add_all(
                    Delivery(
                        study_id=study.id,
                        revision=decision.revision,
                        destination=sending.destination,
                        contents=list(sending.contents),
                        routes=list(sending.routes),
                        shadow=shadow,
                        state="PENDING",
                        next_attempt_at=now,
                    )
                    for sending in sendings
                )
                session.flush()
                self._perhaps_done(session, study)
            return study

    def _next(self, session: Session, name: str) -> int:
        # The row stays locked until the commit, so numbers become visible in their own order and a reader of
        # `cursor > n` misses none.
        insert = postgresql.insert(Counter) if self._postgres else sqlite.insert(Counter)
        session.execute(insert.values(name=name, value=0).on_conflict_do_nothing(index_elements=["name"]))
        session.execute(update(Counter).where(Counter.name == name).values(value=Counter.value + 1))
        return session.scalars(select(Counter.value).where(Counter.name == name)).one()

    def results_made(self, claim: Claim, making_id: int, made: Sequence[Made], now: datetime) -> None:
        """The results of a decision lie in the object store."""
        with self._held(claim) as (session, study):
            making = session.get_one(Making, making_id)
            making.state, making.made_at, making.last_error = "MADE", now, 0
            session.add_all(
                Result(
                    study_id=study.id,
                    revision=making.revision,
                    kind=one.kind,
                    sop_class_uid=one.sop_class_uid,
                    sop_instance_uid=one.sop_instance_uid,
                    series_instance_uid=one.series_instance_uid,
                    transfer_syntax_uid=one.transfer_syntax_uid,
                    sha256=one.sha256,
                    content_sha256=one.content_sha256,
                    size_bytes=one.size_bytes,
                    instance_id=one.image,
                    segments=list(one.segments),
                    made_at=now,
                )
                for one in made
            )
            study.last_error = 0
            session.flush()
            self._perhaps_done(session, study)

    def making_failed(
        self, claim: Claim, making_id: int, *, error: int, attempts: int, next_attempt_at: datetime | None
    ) -> None:
        """The results of a decision could not be made; it is tried again at `next_attempt_at`, or never where None."""
        with self._held(claim) as (session, study):
            making = session.get_one(Making, making_id)
            making.attempts, making.last_error, making.next_attempt_at = attempts, error, next_attempt_at
            if next_attempt_at is None:
                making.state = "FAILED"
            study.last_error = error

    def results_of(self, study_instance_uid: str) -> list[Result]:
        """The results that were made of a study, of every revision, in the order in which they were made."""
        wanted = (
            select(Result)
            .join(Study, Study.id == Result.study_id)
            .where(Study.study_instance_uid == study_instance_uid)
            .order_by(Result.id)
        )
        with self._reading.begin() as session:
            return list(session.scalars(wanted))

    def undelivered_results(self, claim: Claim, delivery: Delivery) -> list[Result]:
        """The results that are for a delivery and that the destination has not acknowledged yet.

        Those of its revision, and the outlines of every image: a later decision refers to those that there are.
        """
        with self._held(claim) as (session, study):
            done = select(DeliveredResult.result_id).where(DeliveredResult.destination == delivery.destination)
            return list(
                session.scalars(
                    select(Result)
                    .where(
                        Result.study_id == study.id,
                        Result.kind.in_([one for one in delivery.contents if one != ORIGINAL]),
                        or_(Result.revision == delivery.revision, Result.kind == Kind.SEG),
                        Result.id.not_in(done),
                    )
                    .order_by(Result.id)
                )
            )

    def delivered_result(self, claim: Claim, delivery: Delivery, result_id: int, now: datetime) -> None:
        """One result was acknowledged by the destination; it is never sent there again."""
        with self._held(claim) as (session, _):
            session.merge(DeliveredResult(destination=delivery.destination, result_id=result_id, delivered_at=now))
            session.get_one(Delivery, delivery.id).objects += 1

    def undelivered(self, claim: Claim, delivery: Delivery) -> list[Instance]:
        """The instances of the study that the destination has not acknowledged yet, in order of receipt."""
        if ORIGINAL not in delivery.contents:
            return []
        with self._held(claim) as (session, study):
            done = select(DeliveredInstance.instance_id).where(DeliveredInstance.destination == delivery.destination)
            return list(
                session.scalars(
                    select(Instance)
                    .where(Instance.study_id == study.id, Instance.id.not_in(done))
                    .order_by(Instance.id)
                )
            )

    def delivered_instance(self, claim: Claim, delivery: Delivery, instance_id: int, now: datetime) -> None:
        """One object was acknowledged by the destination; it is never sent there again."""
        with self._held(claim) as (session, _):
            session.merge(
                DeliveredInstance(destination=delivery.destination, instance_id=instance_id, delivered_at=now)
            )
            session.get_one(Delivery, delivery.id).objects += 1

    def sent(self, claim: Claim, delivery_id: int, now: datetime, *, objects: int | None = None) -> Delivery:
        """Every object of a delivery is acknowledged; its record is due.

        objects: how many would have been sent, where it is done in shadow mode.
        """
        with self._held(claim) as (session, _):
            delivery = session.get_one(Delivery, delivery_id)
            if delivery.state == "PENDING":
                delivery.objects = delivery.objects if objects is None else objects
                delivery.state = "SENT"
                delivery.sent_at = now
            return delivery

    def confirm_delivered(self, claim: Claim, delivery_id: int, record_index: int) -> None:
        """The log has the `delivered` record."""
        with self._held(claim) as (session, study):
            delivery = session.get_one(Delivery, delivery_id)
            delivery.state = "DELIVERED"
            delivery.record_index = record_index
            delivery.last_error = 0
            session.flush()
            self._perhaps_done(session, study)

    def delivery_failed(
        self, claim: Claim, delivery_id: int, *, error: int, attempts: int, next_attempt_at: datetime | None
    ) -> None:
        """A delivery failed; it is tried again at `next_attempt_at`, or never where that is None."""
        with self._held(claim) as (session, study):
            delivery = session.get_one(Delivery, delivery_id)
            delivery.attempts = attempts
            delivery.last_error = error
            delivery.next_attempt_at = next_attempt_at
            if next_attempt_at is None:
                delivery.state = "FAILED"
            study.last_error = error

    def _perhaps_done(self, session: Session, study: Study) -> None:
        left = any(
            session.scalar(
                select(func.count())
                .select_from(table)
                .where(table.study_id == study.id, table.state.in_(("PENDING", "SENT", "FAILED")))
            )
            for table in (Delivery, Making)
        )
        if not left and study.state == StudyState.DELIVERING:
            study.state = next_study_state(StudyState.DELIVERING, StudyEvent.DELIVERED)
            study.attempts = 0
            study.last_error = 0
