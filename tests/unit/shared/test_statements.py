"""Statements that SQLite's driver runs by itself give what SQLAlchemy gives, on SQLite and on a real PostgreSQL."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.ingest.tables import Utc
from shared import database
from shared.errors import ErrorCode, StepwedgeError
from shared.statements import Statement

THINGS = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, unique=True),
    sa.Column("at", Utc),
    sa.Column("about", sa.JSON),
    sa.Column("good", sa.Boolean),
    sa.Column("raw", sa.LargeBinary),
)
INSERT = Statement(
    sa.insert(THINGS)
    .values({one.name: sa.bindparam(one.name, type_=one.type) for one in THINGS.columns})
    .returning(THINGS.c.id, THINGS.c.at)
)
FIND = Statement(sa.select(THINGS).where(THINGS.c.id == sa.bindparam("wanted"), THINGS.c.name != "nobody").limit(1))
RENAME = Statement(sa.update(THINGS).where(THINGS.c.id == sa.bindparam("wanted")).values(name=sa.bindparam("called")))
AT = datetime(2026, 11, 22, 12, 30, 0, 5, tzinfo=UTC)
ROW = {"id": 1, "name": "first", "at": AT, "about": {"a": [1, None]}, "good": True, "raw": b"\x00\xff"}


@pytest.fixture
def engine(database_url: str) -> sa.Engine:
    made = database.create_engine(database_url)
    THINGS.metadata.create_all(made)
    return made


def test_values_of_every_type_come_back_as_sqlalchemy_gives_them(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        assert INSERT.rows(connection, ROW) == [(1, AT)]
        assert FIND.rows(connection, {"wanted": 1}) == [tuple(ROW.values())]
        assert FIND.rows(connection, {"wanted": 2}) == []
        assert [tuple(row) for row in connection.execute(sa.select(THINGS))] == [tuple(ROW.values())]
    engine.dispose()


def test_one_statement_changes_many_rows_in_the_transaction_that_it_is_in(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        for number in (1, 2):
            INSERT.rows(connection, {**ROW, "id": number, "name": str(number)})
    with engine.connect() as connection:
        RENAME.run(connection, [{"wanted": 1, "called": "one"}, {"wanted": 2, "called": "two"}])
        connection.rollback()
        RENAME.run(connection, [{"wanted": 2, "called": "second"}])
        connection.commit()
        assert list(connection.scalars(sa.select(THINGS.c.name).order_by(THINGS.c.id))) == ["1", "second"]
    engine.dispose()


def test_a_broken_constraint_is_an_integrity_error(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        INSERT.rows(connection, ROW)
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        INSERT.rows(connection, {**ROW, "id": 2})
    engine.dispose()


def test_a_database_that_cannot_be_written_is_a_transient_error(tmp_path: Path) -> None:
    engine = database.create_engine(f"sqlite:///{tmp_path / 'things.db'}")
    THINGS.metadata.create_all(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
        with pytest.raises(StepwedgeError) as caught:
            INSERT.rows(connection, ROW)
    assert caught.value.code == ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE
    engine.dispose()


def test_a_full_disk_is_said_to_be_one(tmp_path: Path) -> None:
    engine = database.create_engine(f"sqlite:///{tmp_path / 'things.db'}")
    THINGS.metadata.create_all(engine)
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StepwedgeError) as caught:
            INSERT.rows(connection, {**ROW, "raw": bytes(1 << 20)})
    assert caught.value.code == ErrorCode.ERROR_CODE_STORAGE_FULL
    engine.dispose()


def test_a_wrong_statement_is_no_fault_of_the_database(tmp_path: Path) -> None:
    engine = database.create_engine(f"sqlite:///{tmp_path / 'nothing.db'}")
    with pytest.raises(sa.exc.OperationalError), engine.connect() as connection:
        FIND.rows(connection, {"wanted": 1})
    engine.dispose()
