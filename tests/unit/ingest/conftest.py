"""A store of studies on either database, and arrivals to fill it with."""

import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.orm import Session

from services.ingest.store import MIGRATIONS, Arrival, StudyStore
from services.ingest.tables import Base, Study
from shared import database

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
QUIET = timedelta(seconds=10)
LEASE = timedelta(seconds=60)


@pytest.fixture(scope="session")
def migrated_postgres(postgres_url: str) -> Iterator[Engine]:
    """One PostgreSQL database for all tests of this folder: making one takes most of a second."""
    admin = create_engine(make_url(postgres_url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    name = f"ingest_{secrets.token_hex(8)}"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = make_url(postgres_url).set(database=name, drivername="postgresql")
    made = database.create_engine(url.render_as_string(hide_password=False))
    database.upgrade(made, MIGRATIONS)
    yield made
    made.dispose()
    admin.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An engine with the schema up to date and no rows: once SQLite, once PostgreSQL."""
    if request.param == "postgres":
        shared: Engine = request.getfixturevalue("migrated_postgres")
        with shared.begin() as connection:
            names = ", ".join(table.name for table in Base.metadata.sorted_tables)
            connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
        yield shared
        return
    made = database.create_engine(f"sqlite:///{tmp_path / 'ingest.db'}")
    database.upgrade(made, MIGRATIONS)
    yield made
    made.dispose()


@pytest.fixture
def studies(engine: Engine) -> StudyStore:
    """The store."""
    return StudyStore(engine, quiet=QUIET)


@pytest.fixture
def arrival() -> Callable[..., Arrival]:
    """Make an arrival: instance and content by name, one study unless another is named."""

    def make(instance: str = "1", content: str = "a", study: str = "1") -> Arrival:
        digest = sha256(f"{study}/{instance}/{content}".encode()).hexdigest()
        return Arrival(
            study_instance_uid=f"1.2.3.{study}",
            series_instance_uid=f"1.2.3.{study}.1",
            sop_instance_uid=f"1.2.3.1.1.{instance}",
            study=f"2.25.1{study}",
            series=f"2.25.2{study}",
            instance=f"2.25.3{instance}",
            subject="SW-AAAAAAAAAAAAAAAAAAAAAAAA",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.1.1",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            modality="DX",
            sha256=digest,
            content_sha256=digest,
            size_bytes=1000,
            commitment=digest,
            channel="DIMSE",
        )

    return make


def new_study(session: Session, uid: str, at: datetime, **said: Any) -> Study:
    """A study that began to arrive then; `said`: what else its row says."""
    times = {"first_received_at": at, "last_received_at": at}
    study = Study(study_instance_uid=uid, pseudonym=uid, **{"state": "RECEIVING", **times, **said})
    session.add(study)
    session.flush()
    return study
