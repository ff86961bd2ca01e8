"""What a worker writes of the steps of a study: redacted, assessed, failed, and sent back by a person."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from services.ingest import drift, repeats
from services.ingest.completion import Announced, Held, Missing, missing
from services.ingest.states import (
    InstanceEvent,
    InstanceState,
    StudyEvent,
    StudyState,
    next_instance_state,
    next_study_state,
)
from services.ingest.store.rows import UNSETTLED, Claim, Rows
from services.ingest.tables import (
    AnnouncedInstance,
    Announcement,
    Decision,
    Delivery,
    Failure,
    Instance,
    Making,
    Requeue,
    Study,
)
from shared.errors import ErrorCode, StepwedgeError

DAMAGED: Final = (ErrorCode.ERROR_CODE_OBJECT_CORRUPT, ErrorCode.ERROR_CODE_OBJECT_NOT_FOUND)
"""Errors of a step that say that a stored object is not what it was."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The verdict on an instance, why, and what was found."""

    verdict: int
    """`Verdict`."""
    reasons: tuple[int, ...]
    """`Reason` numbers, worst first."""
    assessment: bytes
    """`stepwedge.inference.v1.Assessment`, serialized."""


class Steps(Rows):
    """Steps from a complete study to one whose instances are all settled."""

    def complete(self, claim: Claim, now: datetime) -> Study:
        """Note that the quiet period has passed, where it has, and nothing is lacking that may still be waited for.

        Returns the study as it stands now.
        """
        with self._held(claim) as (session, study):
            forced = bool(study.forced_by) and study.forced_generation == study.generation
            quiet = now >= study.last_received_at + self._quiet
            if study.state == StudyState.RECEIVING and (quiet or forced):
                lacking = self._missing(session, study)
                study.missing = lacking.as_json() if lacking else None
                waited = now >= (study.waits_from or study.last_received_at) + self._wait
                if forced or waited or not lacking:
                    study.state = next_study_state(StudyState.RECEIVING, StudyEvent.QUIET)
            return study

    def _missing(self, session: Session, study: Study) -> Missing:
        """What a study lacks, by its objects, its announcements and the rules."""
        objects = select(
            Instance.sop_instance_uid,
            Instance.series_instance_uid,
            Instance.modality,
            Instance.view_position,
            Instance.body_part,
            Instance.procedure_code,
            Instance.study_series,
            Instance.study_instances,
            Instance.series_instances,
        ).where(Instance.study_id == study.id)
        uid = study.study_instance_uid
        came = select(Instance.sop_instance_uid).where(Instance.study_id == study.id)
        unseen = select(func.count()).where(
            AnnouncedInstance.study_instance_uid == uid, AnnouncedInstance.sop_instance_uid.not_in(came)
        )
        numbers = session.get(Announcement, uid)
        announced = Announced(
            instances=numbers.instances if numbers else 0,
            series=numbers.series if numbers else 0,
            unseen=session.scalar(unseen) or 0,
        )
        return missing(self._completion, [Held(*row) for row in session.execute(objects)], announced)

    def force(self, study_id: int, by: str, now: datetime) -> None:
        """A person asks to decide a study at once, with what it has. Raises WRONG_STATE unless it is receiving."""
        with self._sessions.begin() as session:
            study = self._locked(session, study_id)
            if study.state != StudyState.RECEIVING:
                raise StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, f"the study is {study.state}, not RECEIVING")
            study.forced_by, study.forced_generation = by, study.generation
            study.next_action_at = now

    def redacted(
        self,
        claim: Claim,
        instance_id: int,
        *,
        sha256: str,
        size_bytes: int,
        record_index: int,
        settled: Settled | None,
        now: datetime,
    ) -> None:
        """An instance has its de-identified object, and with `settled` its verdict too: it goes no further."""
        with self._held(claim) as (session, study):
            instance = _advance(session, instance_id, InstanceEvent.REDACTED)
            instance.deidentified_sha256 = sha256
            instance.deidentified_bytes = size_bytes
            instance.redacted_index = record_index
            instance.redacted_at = now
            if settled is not None:
                _settle(instance, InstanceEvent.NOT_ASSESSABLE, settled, now)
                repeats.count(session, instance)
            _succeeded(study, instance)

    def assessed(self, claim: Claim, instance_id: int, *, settled: Settled, record_index: int, now: datetime) -> None:
        """An instance has its findings and its verdict."""
        with self._held(claim) as (session, study):
            instance = session.get_one(Instance, instance_id)
            _settle(instance, InstanceEvent.ASSESSED, settled, now)
            instance.assessed_index = record_index
            repeats.count(session, instance)
            drift.count(session, instance, settled.assessment, now)
            _succeeded(study, instance)

    def not_assessable(self, claim: Claim, instance_id: int, *, settled: Settled, error: int, now: datetime) -> None:
        """It is settled that no judgement can be made on an instance."""
        with self._held(claim) as (session, _):
            instance = session.get_one(Instance, instance_id)
            _settle(instance, InstanceEvent.NOT_ASSESSABLE, settled, now)
            repeats.count(session, instance)
            instance.last_error = error
            instance.next_attempt_at = None

    def attempt_failed(
        self, claim: Claim, instance_id: int, *, error: int, attempts: int, next_attempt_at: datetime
    ) -> None:
        """A step of an instance failed and will be tried again."""
        with self._held(claim) as (session, study):
            instance = session.get_one(Instance, instance_id)
            instance.attempts = attempts
            instance.last_error = error
            instance.next_attempt_at = next_attempt_at
            study.attempts = max(study.attempts, attempts)
            study.last_error = error

    def study_attempt_failed(self, claim: Claim, *, error: int, attempts: int) -> None:
        """A step of the study as a whole failed and will be tried again."""
        with self._held(claim) as (_, study):
            study.attempts = attempts
            study.last_error = error

    def waits(self, claim: Claim, *, error: int) -> None:
        """Nothing can be done now for want of a dependency, which is no fault of the study: no attempt is counted."""
        with self._held(claim) as (_, study):
            study.last_error = error

    def give_up(self, claim: Claim, *, error: int) -> None:
        """To the dead letter; nothing of the study is deleted."""
        with self._held(claim) as (_, study):
            study.state = next_study_state(StudyState(study.state), StudyEvent.GIVEN_UP)
            study.last_error = error

    def fail(self, claim: Claim, failure: Failure) -> Failure:
        """Write down a failure before its record is handed in; the same key again gives the row that is there."""
        with self._held(claim) as (session, _):
            known = session.scalars(select(Failure).where(Failure.key == failure.key)).one_or_none()
            if known is not None:
                return known
            session.add(failure)
            session.flush()
            return failure

    def confirm_failure(self, failure_id: int, record_index: int) -> None:
        """The log has the `failed` record."""
        with self._sessions.begin() as session:
            session.get_one(Failure, failure_id).record_index = record_index

    def ask_requeue(self, study_id: int, requested_by: str, now: datetime, *, person: str = "") -> Requeue:
        """Write down that a person wants a study back in the queue. Raises WRONG_STATE unless it is a dead letter."""
        with self._sessions.begin() as session:
            study = self._locked(session, study_id)
            if study.state != StudyState.DEAD_LETTER:
                raise StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, f"the study is {study.state}, not DEAD_LETTER")
            requeue = Requeue(study_id=study_id, requested_by=requested_by, person=person, requested_at=now)
            session.add(requeue)
            session.flush()
            return requeue

    def requeue(self, requeue_id: int, record_index: int, now: datetime) -> None:
        """The log has the `requeued` record: the study goes back to work with fresh attempts."""
        with self._sessions.begin() as session:
            requeue = session.get_one(Requeue, requeue_id)
            study = self._locked(session, requeue.study_id)
            requeue.record_index = record_index
            if study.state != StudyState.DEAD_LETTER:
                return
            latest = session.scalars(
                select(Decision).where(Decision.study_id == study.id).order_by(Decision.revision.desc()).limit(1)
            ).one_or_none()
            decided = latest is not None and latest.record_index is not None and latest.generation == study.generation
            event = StudyEvent.REDELIVER if decided else StudyEvent.REQUEUED
            study.state = next_study_state(StudyState.DEAD_LETTER, event)
            study.attempts = 0
            study.last_error = 0
            study.lease_owner = None
            study.lease_until = None
            study.next_action_at = now
            session.execute(
                update(Instance)
                .where(Instance.study_id == study.id, Instance.state.in_(UNSETTLED))
                .values(attempts=0, next_attempt_at=None)
            )
            self._redact_again(session, study)
            for table in (Delivery, Making):
                session.execute(
                    update(table)
                    .where(table.study_id == study.id, table.state == "FAILED")
                    .values(state="PENDING", attempts=0, next_attempt_at=now)
                )

    @staticmethod
    def _redact_again(session: Session, study: Study) -> None:
        """Send the instances back to redaction whose de-identified object inference found damaged or gone."""
        lost = select(Failure.instance_id).where(
            Failure.study_id == study.id, Failure.step == "assess", Failure.error.in_(DAMAGED)
        )
        for instance in session.scalars(
            select(Instance).where(Instance.id.in_(lost), Instance.state == InstanceState.REDACTED)
        ):
            instance.state = next_instance_state(InstanceState.REDACTED, InstanceEvent.DERIVED_LOST)
            instance.deidentified_sha256, instance.deidentified_bytes = "", 0
            instance.redacted_index = instance.redacted_at = None


def _advance(session: Session, instance_id: int, event: InstanceEvent) -> Instance:
    instance = session.get_one(Instance, instance_id)
    instance.state = next_instance_state(InstanceState(instance.state), event)
    return instance


def _settle(instance: Instance, event: InstanceEvent, settled: Settled, now: datetime) -> None:
    instance.state = next_instance_state(InstanceState(instance.state), event)
    instance.assessment = settled.assessment
    instance.assessed_at = now
    instance.verdict = settled.verdict
    instance.reasons = list(settled.reasons)


def _succeeded(study: Study, instance: Instance) -> None:
    instance.attempts = 0
    instance.last_error = 0
    instance.next_attempt_at = None
    study.attempts = 0
    study.last_error = 0
    study.waiting_for = ""
