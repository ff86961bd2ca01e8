"""What a door writes: objects that came in, and that the log has the record of it."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from sqlalchemy import Connection, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from services.ingest import light_rows, repeats
from services.ingest.arrival import Arrival, Said
from services.ingest.light_rows import LightRows, held
from services.ingest.states import ACTIVE_STATES, InstanceState, StudyEvent, StudyState, next_study_state
from services.ingest.store.rows import Rows
from services.ingest.tables import Instance, Study

CONFIRM_GRACE: Final = timedelta(seconds=30)
"""How long a door has to confirm the record of what it stored before a worker does it in its place."""


class Arriving(Rows):
    """Arrivals into rows."""

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
