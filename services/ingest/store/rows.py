"""The database of ingest, and how a worker holds a study in it.

Every method of the store is one transaction, and every worker's write is fenced. A worker holds a study by a lease. A
lease can be lost (a stalled process, a stepped clock), so each write of a worker first locks the study's row and finds
its own name in it, or raises `LeaseLostError`: two workers never both move one study. All methods block; the caller
runs them in a thread.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Final

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, sessionmaker

from services.ingest.devices import Devices
from services.ingest.policies import Policies
from services.ingest.states import InstanceState
from services.ingest.tables import Decision, Study
from shared import database
from shared.settings import Completion


class LeaseLostError(Exception):
    """Another worker has claimed the study since; whatever was being done for it must stop here."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A study that this worker may work on until the lease ends or is lost."""

    study_id: int
    owner: str


UNSETTLED: Final = (InstanceState.STORED.value, InstanceState.RECEIVED.value, InstanceState.REDACTED.value)
"""States of instances for which a decision waits."""


class Rows:
    """What every part of the store stands on.

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


def has_pending_decision(session: Session, study: Study) -> bool:
    """Whether a decision on the study was written that is not yet known to be in the log."""
    return (
        session.scalar(
            select(Decision.id).where(Decision.study_id == study.id, Decision.record_index.is_(None)).limit(1)
        )
        is not None
    )
