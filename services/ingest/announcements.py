"""What peers say will come of a study, by a notification (`services.ingest.availability`) or a call.

An announcement may come before the first object of its study, or after the last; it is kept by the Study Instance UID.
"""

from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from sqlalchemy import Engine, Table, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, sessionmaker

from services.ingest.availability import MOST_INSTANCES, Told
from services.ingest.states import StudyEvent, StudyState, next_study_state
from services.ingest.tables import AnnouncedInstance, Announcement, Instance, Study
from shared import dicom
from shared.errors import ErrorCode, StepwedgeError

_AT_ONCE: Final = 500
_KEPT: Final = timedelta(days=30)
"""How long an announcement is kept of a study of which nothing came."""


class Announcements:
    """The rows. All methods block."""

    def __init__(self, engine: Engine) -> None:
        self._sessions = sessionmaker(engine)
        self._insert: Any = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert

    def announce(self, said: Told) -> bool:
        """Keep what is said; whether a study that came is looked at anew for it.

        A study that was decided already is opened for its next revision where it turns out to lack something. The same
        announcement again changes nothing.
        """
        now = datetime.now(UTC)
        with self._sessions.begin() as session:
            study = session.scalars(
                select(Study).where(Study.study_instance_uid == said.study_instance_uid).with_for_update()
            ).one_or_none()
            new = self._keep(session, said, now)
            more = self._raise_counts(session, said, now)
            if study is None:
                return False
            lacking = (more and said.instances > study.instances) or self._any_unseen(session, study, new)
            if lacking:
                _open_again(study, now)
            if study.state == StudyState.RECEIVING:
                study.next_action_at = now
            return study.state == StudyState.RECEIVING

    def _keep(self, session: Session, said: Told, now: datetime) -> list[str]:
        """Write down the instances; return those that were not announced before."""
        _forget_old(session, now)
        table = cast(Table, AnnouncedInstance.__table__)
        of_study = table.c.study_instance_uid == said.study_instance_uid
        for some in _some(sorted(said.unavailable)):
            session.execute(delete(table).where(of_study, table.c.sop_instance_uid.in_(some)))
        new: list[str] = []
        for some in _some(sorted(said.available)):
            rows = [{"study_instance_uid": said.study_instance_uid, "sop_instance_uid": uid} for uid in some]
            statement = self._insert(table).values(rows).on_conflict_do_nothing()
            new += session.scalars(statement.returning(table.c.sop_instance_uid)).all()
        return new

    def _raise_counts(self, session: Session, said: Told, now: datetime) -> bool:
        """Write down the numbers; whether more is announced than before."""
        known = session.get(Announcement, said.study_instance_uid)
        if known is None:
            session.execute(
                self._insert(Announcement)
                .values(
                    study_instance_uid=said.study_instance_uid,
                    instances=said.instances,
                    series=said.series,
                    announced_at=now,
                )
                .on_conflict_do_nothing()
            )
            return said.instances > 0
        more = said.instances > known.instances
        known.instances = said.instances or known.instances
        known.series = said.series or known.series
        known.announced_at = now
        return more

    @staticmethod
    def _any_unseen(session: Session, study: Study, uids: Collection[str]) -> bool:
        held: set[str] = set()
        for some in _some(sorted(uids)):
            held |= set(
                session.scalars(
                    select(Instance.sop_instance_uid).where(
                        Instance.study_id == study.id, Instance.sop_instance_uid.in_(some)
                    )
                )
            )
        return bool(set(uids) - held)


def _open_again(study: Study, now: datetime) -> None:
    was = StudyState(study.state)
    study.state = next_study_state(was, StudyEvent.ANNOUNCED)
    study.generation += 1
    study.missing = None
    if was in (StudyState.DELIVERING, StudyState.DONE):
        study.waits_from = now  # from here on it waits as if it had come now; while it waits, nothing prolongs it
        study.next_action_at = now


def _forget_old(session: Session, now: datetime) -> None:
    """Remove announcements of studies of which nothing came for long."""
    came = select(Study.study_instance_uid)
    old = session.scalars(
        select(Announcement.study_instance_uid)
        .where(Announcement.announced_at < now - _KEPT, Announcement.study_instance_uid.not_in(came))
        .limit(_AT_ONCE)
    ).all()
    for table in (AnnouncedInstance, Announcement) if old else ():
        session.execute(delete(table).where(table.study_instance_uid.in_(old)))


def _some(uids: list[str]) -> Iterable[list[str]]:
    return (uids[start : start + _AT_ONCE] for start in range(0, len(uids), _AT_ONCE))


def by_count(study_instance_uid: str, *, instances: int, series: int, uids: Collection[str] = ()) -> Told:
    """An announcement by call. Raises INVALID_REQUEST where it says nothing that can be."""
    wrong = not dicom.is_uid(study_instance_uid) or not all(dicom.is_uid(uid) for uid in uids)
    if wrong or len(uids) > MOST_INSTANCES or not (uids or instances or series) or max(instances, series) > 1_000_000:
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_INVALID_REQUEST,
            f"an announcement names a study and its number of instances, or at most {MOST_INSTANCES} of them",
        )
    return Told(study_instance_uid, frozenset(uids), instances=max(instances, len(set(uids))), series=series)
