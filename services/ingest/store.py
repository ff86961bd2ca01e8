"""What happens to the rows of ingest's database; every method is one transaction, and every worker's write is fenced.

A worker holds a study by a lease. A lease can be lost (a stalled process, a stepped clock), so each write of a worker
first locks the study's row and finds its own name in it, or raises `LeaseLostError`: two workers never both move one
study. All methods block; the caller runs them in a thread.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import Connection, Engine, case, func, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, sessionmaker

from services.ingest import drift, light_rows, repeats, wrong_clock
from services.ingest.arrival import Arrival as Arrival
from services.ingest.arrival import Said
from services.ingest.completion import Announced, Held, Missing, missing
from services.ingest.devices import ANY_DEVICE, Devices, Wanted
from services.ingest.light_rows import LightRows, held
from services.ingest.policies import Policies
from services.ingest.results.material import Kind, Made
from services.ingest.routing import ORIGINAL, Sending
from services.ingest.states import (
    ACTIVE_STATES,
    InstanceEvent,
    InstanceState,
    StudyEvent,
    StudyState,
    next_instance_state,
    next_study_state,
)
from services.ingest.tables import (
    AnnouncedInstance,
    Announcement,
    Counter,
    Decision,
    DeliveredInstance,
    DeliveredResult,
    Delivery,
    Failure,
    Instance,
    Making,
    Requeue,
    Result,
    Review,
    Study,
)
from shared import database
from shared.errors import ErrorCode, StepwedgeError
from shared.settings import Completion
from shared.statements import Statement

MIGRATIONS: Final = Path(__file__).parent / "migrations"
"""For `shared.database.upgrade`."""

CONFIRM_GRACE: Final = timedelta(seconds=30)
"""How long a door has to confirm the record of what it stored before a worker does it in its place."""

_DECISIONS: Final = "decisions"
"""Name of the counter that puts decisions in the order in which they became visible."""

DAMAGED: Final = (ErrorCode.ERROR_CODE_OBJECT_CORRUPT, ErrorCode.ERROR_CODE_OBJECT_NOT_FOUND)
"""Errors of a step that say that a stored object is not what it was."""

_UNSETTLED: Final = (InstanceState.STORED.value, InstanceState.RECEIVED.value, InstanceState.REDACTED.value)


class LeaseLostError(Exception):
    """Another worker has claimed the study since; whatever was being done for it must stop here."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The verdict on an instance, why, and what was found."""

    verdict: int
    """`Verdict`."""
    reasons: tuple[int, ...]
    """`Reason` numbers, worst first."""
    assessment: bytes
    """`stepwedge.inference.v1.Assessment`, serialized."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A study that this worker may work on until the lease ends or is lost."""

    study_id: int
    owner: str


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


class StudyStore:
    """The rows of studies, instances, decisions and deliveries.

    Parameters
    ----------
    engine
        From `shared.database.create_engine`; the schema is up to date.
    quiet
        A study is complete when nothing arrived for it for so long.
    rooms
        See `Devices`.
    settings
        What makes a study complete, beside that.
    sites
        Station Name or calling AE title -> site; "" for all that are not named.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        quiet: timedelta,
        rooms: Mapping[str, str] = MappingProxyType({}),
        sites: Mapping[str, str] = MappingProxyType({}),
        settings: Completion = Completion(),  # noqa: B008 - frozen
    ) -> None:
        self._completion = settings
        self._wait = timedelta(seconds=settings.wait_seconds)
        self._sites = sites
        self.policies = Policies(engine)
        self.devices = Devices(engine, rooms)
        self._engine = engine
        self._quiet = quiet
        self._sessions = sessionmaker(engine, expire_on_commit=False)
        self._reading = sessionmaker(database.reader(engine), expire_on_commit=False)
        self._postgres = engine.dialect.name == "postgresql"

    @property
    def engine(self) -> Engine:
        """Of the database."""
        return self._engine

    @property
    def one_writer(self) -> bool:
        """Whether transactions that write come one after the other, so that it pays to do several things in one."""
        return not self._postgres

    def check(self) -> None:
        """One round trip to the database. Raises DEPENDENCY_UNAVAILABLE where it does not answer."""
        database.ping(self._engine)

    # -- the door -------------------------------------------------------------------------------------------------

    def receive(self, arrival: Arrival, now: datetime) -> tuple[Instance, bool]:
        """Make one arrival durable as a row; see `receive_many`."""
        return self.receive_many([arrival], now)[0]

    def receive_many(
        self, arrivals: Sequence[Arrival], now: datetime, confirmed: Mapping[int, int] = MappingProxyType({})
    ) -> list[tuple[Instance, bool]]:
        """Make arrivals durable as rows; return each, and whether the same object was there before.

        The same (SOP Instance UID, digest) is the same row. Another digest under a known SOP Instance UID is a row of
        its own, and it and the others are flagged as in conflict (law 3). `confirmed` goes with the same transaction,
        see `confirm_received`. Several arrivals at once are for SQLite, which has one writer; on PostgreSQL two such
        transactions could wait for each other.
        """
        devices = [self.devices.row_of(arrival.device) for arrival in arrivals]
        usual = self._receive_usual(arrivals, devices, now, confirmed)
        if usual is not None:
            return usual
        with self._sessions.begin() as session, session.no_autoflush:
            light_rows.confirm(session.connection(), confirmed, now)
            known = self._known(session, sorted({arrival.sop_instance_uid for arrival in arrivals}))
            received: list[tuple[Instance, bool]] = []
            for arrival, device in zip(arrivals, devices, strict=True):
                others = known.setdefault(arrival.sop_instance_uid, [])
                same = next((one for one in others if _same(one, arrival)), None)
                if same is not None:
                    received.append((same, True))
                    continue
                study = self._open_study(session, arrival, now)
                instance = self._instance_of(study, arrival, device, conflict=bool(others), now=now)
                session.add(instance)
                if others:
                    session.flush()
                    self._flag_conflict(session, others, study, now)
                others.append(instance)
                received.append((instance, False))
            session.flush()
            return received

    def _receive_usual(
        self, arrivals: Sequence[Arrival], devices: Sequence[int | None], now: datetime, confirmed: Mapping[int, int]
    ) -> list[tuple[Instance, bool]] | None:
        """As `receive_many`, where all are new instances of known studies; None, and no row made, else."""
        uids = sorted({arrival.sop_instance_uid for arrival in arrivals})
        if len(uids) < len(arrivals):
            return None
        with self._engine.begin() as connection:
            for uid in uids:
                self._lock_instance_uid(connection, uid)
            if held(connection, uids):
                return None
            light_rows.confirm(connection, confirmed, now)  # before a study is read: it changes that
            light = LightRows(connection)
            studies = [light.study(arrival.study_instance_uid) for arrival in arrivals]
            if None in studies:
                return None
            received = []
            for arrival, device, study in zip(arrivals, devices, studies, strict=True):
                assert study is not None
                instance = self._instance_of(study, arrival, device, conflict=False, now=now)
                light.add(instance)
                received.append((instance, False))
            light.flush()
            return received

    def _instance_of(
        self, study: Study, arrival: Arrival, device: int | None, *, conflict: bool, now: datetime
    ) -> Instance:
        """A new instance of a study, and what it changes of that."""
        instance = _new_instance(study, arrival, conflict=conflict, now=now)
        instance.device_id = device
        instance.site = self._site(arrival.device)
        study.device_id = study.device_id or device
        study.constancy = arrival.constancy and (study.constancy or study.instances == 0)
        self._arrived(study, now)
        study.instances += 1
        study.modalities = "+".join(sorted({*study.modalities.split("+"), arrival.modality} - {""}))[:200]
        return instance

    def _site(self, said: Said) -> str:
        named = (said.equipment.station, said.calling_ae_title)
        return next((self._sites[name] for name in named if name in self._sites), self._sites.get("", ""))

    def confirm_received(self, indexes: Mapping[int, int], now: datetime) -> None:
        """The log has the `received` records of these instances (row to index): they go to work."""
        with self._engine.begin() as connection:
            light_rows.confirm(connection, indexes, now)

    def _known(self, session: Session, uids: Sequence[str]) -> dict[str, list[Instance]]:
        """The rows under these SOP Instance UIDs, which are locked until the transaction ends."""
        for uid in uids:
            self._lock_instance_uid(session.connection(), uid)
        if not held(session.connection(), uids):
            return {}
        known: dict[str, list[Instance]] = {}
        rows = select(Instance).where(Instance.sop_instance_uid.in_(uids)).order_by(Instance.id)
        for instance in session.scalars(rows):
            known.setdefault(instance.sop_instance_uid, []).append(instance)
        return known

    def unconfirmed(self) -> list[int]:
        """Instances whose `received` record was never confirmed, oldest first; read once at the start of a process."""
        with self._reading.begin() as session:
            return list(
                session.scalars(select(Instance.id).where(Instance.state == InstanceState.STORED).order_by(Instance.id))
            )

    def instance(self, instance_id: int) -> tuple[Instance, Study]:
        """One instance and its study."""
        with self._reading.begin() as session:
            instance = session.get_one(Instance, instance_id)
            return instance, session.get_one(Study, instance.study_id)

    def name_of(self, study_instance_uid: str) -> str:
        """The de-identified UID that a study has already; empty where nothing of it came yet."""
        with self._reading.begin() as session:
            wanted = select(Study.pseudonym).where(Study.study_instance_uid == study_instance_uid)
            return session.scalars(wanted).one_or_none() or ""

    def _lock_instance_uid(self, connection: Connection, uid: str) -> None:
        # Two objects under one SOP Instance UID in two studies lock no common row; SQLite has one writer anyway.
        if self._postgres:
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:uid, 0))"), {"uid": uid})

    def _open_study(self, session: Session, arrival: Arrival, now: datetime) -> Study:
        wanted = select(Study).where(Study.study_instance_uid == arrival.study_instance_uid).with_for_update()
        study = session.scalars(wanted).one_or_none()
        if study is not None:
            return study
        insert = postgresql.insert(Study) if self._postgres else sqlite.insert(Study)
        session.execute(
            insert.values(
                study_instance_uid=arrival.study_instance_uid,
                pseudonym=arrival.study,
                state=StudyState.RECEIVING,
                generation=0,
                revision=0,
                first_received_at=now,
                last_received_at=now,
                waiting_for="",
                attempts=0,
                last_error=0,
                verdict=0,
                reasons=[],
                modalities="",
                instances=0,
                forced_by="",
                forced_generation=0,
                constancy=False,
            ).on_conflict_do_nothing(index_elements=["study_instance_uid"])
        )
        return session.scalars(wanted).one()

    def _arrived(self, study: Study, now: datetime) -> None:
        study.state = next_study_state(StudyState(study.state), StudyEvent.INSTANCE)
        study.generation += 1
        study.last_received_at = max(study.last_received_at, now)
        study.waits_from, study.missing = None, None
        if study.state in ACTIVE_STATES and (study.next_action_at is None or study.next_action_at > now):
            # The door confirms it much sooner; this is for the case that the door dies now.
            study.next_action_at = now + CONFIRM_GRACE

    def _flag_conflict(self, session: Session, known: Sequence[Instance], study: Study, now: datetime) -> None:
        for other in known:
            if other.conflict:
                continue
            other.conflict = True
            if other.study_id != study.id:
                theirs = self._locked(session, other.study_id)
                self._arrived(theirs, now)
                if theirs.state in ACTIVE_STATES:
                    theirs.next_action_at = now

    # -- the hallway: claims --------------------------------------------------------------------------------------

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
                Instance.study_id == study.id, Instance.state.in_(_UNSETTLED)
            )
        ).all()
        if open_instances:
            return min(
                _confirmed_by(received_at, now) if state == InstanceState.STORED else next_attempt_at or now
                for state, received_at, next_attempt_at in open_instances
            )
        if study.state == StudyState.RECEIVING and not self._has_pending_decision(session, study):
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

    @staticmethod
    def _has_pending_decision(session: Session, study: Study) -> bool:
        return (
            session.scalar(
                select(Decision.id).where(Decision.study_id == study.id, Decision.record_index.is_(None)).limit(1)
            )
            is not None
        )

    @contextmanager
    def _held(self, claim: Claim) -> Iterator[tuple[Session, Study]]:
        with self._sessions.begin() as session:
            study = self._locked(session, claim.study_id)
            if study.lease_owner != claim.owner:
                raise LeaseLostError
            yield session, study

    @staticmethod
    def _locked(session: Session, study_id: int) -> Study:
        return session.scalars(select(Study).where(Study.id == study_id).with_for_update()).one()

    # -- the hallway: steps ---------------------------------------------------------------------------------------

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

    # -- the hallway: failures ------------------------------------------------------------------------------------

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

    # -- the hallway: decisions -----------------------------------------------------------------------------------

    def write_decision(self, claim: Claim, decision: Decision) -> Decision | None:
        """Write down a decision before its record is handed in.

        None where the study changed since it was looked at, or is not ready: the caller looks again.
        """
        with self._held(claim) as (session, study):
            unsettled = session.scalar(
                select(func.count())
                .select_from(Instance)
                .where(Instance.study_id == study.id, Instance.state.in_(_UNSETTLED))
            )
            ready = study.generation == decision.generation and study.state == StudyState.PROCESSING and not unsettled
            if not ready or self._has_pending_decision(session, study):
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

    # -- the hallway: results -------------------------------------------------------------------------------------

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

    # -- the hallway: deliveries ----------------------------------------------------------------------------------

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

    # -- people ---------------------------------------------------------------------------------------------------

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
                .where(Instance.study_id == study.id, Instance.state.in_(_UNSETTLED))
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
                instances=rows(Instance, Instance.state.in_(_UNSETTLED)) if only_unsettled else rows(Instance),
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


def _same(one: Instance, arrival: Arrival) -> bool:
    # By its bytes too: a row from before 0012 may have the digest of its content in the form that it had then.
    return one.content_sha256 == arrival.content_sha256 or one.sha256 == arrival.sha256


def _new_instance(study: Study, arrival: Arrival, *, conflict: bool, now: datetime) -> Instance:
    return Instance(
        study_id=study.id,
        sop_instance_uid=arrival.sop_instance_uid,
        series_instance_uid=arrival.series_instance_uid,
        pseudonym=arrival.instance,
        series_pseudonym=arrival.series,
        view_position=arrival.belonging.view,
        body_part=arrival.belonging.body_part,
        procedure_code=arrival.belonging.procedure,
        study_series=arrival.belonging.study_series,
        study_instances=arrival.belonging.study_instances,
        series_instances=arrival.belonging.series_instances,
        laterality=arrival.belonging.laterality,
        exposure=repeats.exposure(arrival),
        subject=arrival.subject,
        sop_class_uid=arrival.sop_class_uid,
        transfer_syntax_uid=arrival.transfer_syntax_uid,
        modality=arrival.modality,
        sha256=arrival.sha256,
        content_sha256=arrival.content_sha256,
        size_bytes=arrival.size_bytes,
        commitment=arrival.commitment,
        channel=arrival.channel,
        called_ae_title=arrival.device.called_ae_title[:16],
        person=arrival.person,
        conflict=conflict,
        conflict_at_receipt=conflict,
        state=InstanceState.STORED,
        received_at=now,
    )


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
