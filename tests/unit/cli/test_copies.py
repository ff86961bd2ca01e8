"""A database copied while it is used, into one file and back, from and to both kinds of database."""

import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from cli import copies
from services.ingest.tables import Base, Counter, Instance, Study
from shared import database
from shared.errors import StepwedgeError

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def filled(url: str) -> sa.Engine:
    """A database of ingest with a study, and a number that grows."""
    engine = database.create_engine(url)
    database.upgrade(engine, copies.MIGRATIONS["ingest"])
    with sa.orm.Session(engine) as session, session.begin():
        study = Study(
            study_instance_uid="1.2.3", pseudonym="2.25.1", state="DONE", first_received_at=NOW, last_received_at=NOW,
            reasons=[3, 1], modalities="DX",
        )  # fmt: skip
        session.add(study)
        session.add(Counter(name="cursor", value=7))
    return engine


def everything(url: str) -> dict[str, list[tuple[object, ...]]]:
    engine = database.create_engine(url)
    with engine.connect() as connection:
        found = {
            name: sorted(
                (
                    tuple(str(v) if isinstance(v, list) else v for v in row)
                    for row in connection.execute(sa.select(table))
                ),
                key=repr,
            )
            for name, table in Base.metadata.tables.items()
        }
    engine.dispose()
    return found


def test_a_copy_holds_every_row_and_goes_back_into_either_kind_of_database(database_url: str, tmp_path: Path) -> None:
    filled(database_url).dispose()
    copies.copy("ingest", database_url, tmp_path / "copy.db")
    assert [path.name for path in tmp_path.glob("copy.db*")] == ["copy.db"]  # one file, nothing beside it
    assert everything(f"sqlite:///{tmp_path / 'copy.db'}") == everything(database_url)

    back = f"sqlite:///{tmp_path / 'back.db'}"
    copies.may_take("ingest", back)
    copies.put_back("ingest", tmp_path / "copy.db", back)
    assert everything(back) == everything(database_url)


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.postgres
def test_a_copy_of_sqlite_goes_on_in_postgresql_with_the_next_number(database_url: str, tmp_path: Path) -> None:
    engine = filled(f"sqlite:///{tmp_path / 'from.db'}")
    engine.dispose()
    copies.put_back("ingest", tmp_path / "from.db", database_url)
    assert everything(database_url) == everything(f"sqlite:///{tmp_path / 'from.db'}")
    target = database.create_engine(database_url)
    with sa.orm.Session(target) as session, session.begin():
        study = Study(
            study_instance_uid="1.2.4", pseudonym="2.25.2", state="DONE", first_received_at=NOW, last_received_at=NOW
        )
        session.add(study)
        session.flush()
        assert study.id == 2
    target.dispose()


def test_nothing_is_written_over_a_database_that_is_there(database_url: str, tmp_path: Path) -> None:
    filled(database_url).dispose()
    copies.copy("ingest", database_url, tmp_path / "copy.db")
    with pytest.raises(StepwedgeError, match="WRONG_STATE"):
        copies.may_take("ingest", database_url)
    with pytest.raises(StepwedgeError, match="WRONG_STATE"):
        copies.put_back("ingest", tmp_path / "copy.db", database_url)


def test_a_copy_made_while_rows_come_in_is_of_one_moment(database_url: str, tmp_path: Path) -> None:
    engine = filled(database_url)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with sa.orm.Session(engine) as session, session.begin():  # a study and its instance, or neither
                study = Study(
                    study_instance_uid=f"1.9.{number}", pseudonym=f"2.25.9{number}", state="RECEIVING",
                    first_received_at=NOW, last_received_at=NOW,
                )  # fmt: skip
                session.add(study)
                session.flush()
                session.add(
                    Instance(
                        study_id=study.id,
                        sop_instance_uid=f"1.8.{number}",
                        series_instance_uid="1",
                        pseudonym="p",
                        series_pseudonym="s",
                        subject="x",
                        sop_class_uid="1",
                        transfer_syntax_uid="1",
                        modality="DX",
                        sha256="a" * 64,
                        content_sha256="b" * 64,
                        size_bytes=1,
                        commitment="c" * 64,
                        channel="dimse",
                        state="RECEIVED",
                        received_at=NOW,
                    )
                )

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            file = tmp_path / f"{number}.db"
            copies.copy("ingest", database_url, file)
            with closing(sqlite3.connect(file)) as opened:
                assert opened.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                studies = opened.execute("SELECT count(*) FROM studies").fetchone()[0]
                instances = opened.execute("SELECT count(*) FROM instances").fetchone()[0]
            assert instances == studies - 1
    finally:
        stop.set()
        writer.join()
        engine.dispose()


def test_a_database_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StepwedgeError, match="FILE: there is no database of audit"):
        copies.copy("audit", f"sqlite:///{tmp_path / 'none.db'}", tmp_path / "copy.db")
