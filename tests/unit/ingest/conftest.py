"""A store of studies on either database, and arrivals to fill it with."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
from sqlalchemy import Engine

from services.ingest.store import MIGRATIONS, Arrival, StudyStore
from shared import database

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
QUIET = timedelta(seconds=10)
LEASE = timedelta(seconds=60)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine with the schema up to date."""
    made = database.create_engine(database_url)
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
