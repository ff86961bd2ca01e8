"""The engines and their migrations, on SQLite and on a real PostgreSQL."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from shared import database
from shared.errors import ErrorCode, StepwedgeError
from shared.paths import ROOT

_FIRST = """
import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

def upgrade():
    op.create_table("thing", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text, unique=True))
    op.execute("INSERT INTO thing (id, name) VALUES (1, 'first')")
"""
_SECOND = """
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

def upgrade():
    with op.batch_alter_table("thing") as table:
        table.add_column(sa.Column("size", sa.Integer, nullable=False, server_default="7"))
"""
_BROKEN = """
from alembic import op

revision = "0002"
down_revision = "0001"

def upgrade():
    op.execute("INSERT INTO thing (id, name) VALUES (2, 'second')")
    op.execute("INSERT INTO absent (id) VALUES (1)")
"""


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    versions = tmp_path / "migrations with a blank and 100%" / "versions"
    versions.mkdir(parents=True)
    (versions / "0001_first.py").write_text(_FIRST)
    return versions.parent


def _rows(engine: sa.Engine) -> list[tuple[object, ...]]:
    with database.reader(engine).connect() as connection:
        return [tuple(row) for row in connection.execute(sa.text("SELECT * FROM thing ORDER BY id"))]


def test_an_empty_database_is_brought_to_the_newest_revision_and_a_second_start_changes_nothing(
    database_url: str, migrations: Path
) -> None:
    engine = database.create_engine(database_url)
    database.upgrade(engine, migrations)
    database.upgrade(engine, migrations)
    assert _rows(engine) == [(1, "first")]
    (migrations / "versions" / "0002_second.py").write_text(_SECOND)
    database.upgrade(engine, migrations)
    assert _rows(engine) == [(1, "first", 7)]
    engine.dispose()


def test_a_migration_that_fails_leaves_nothing_half_done(database_url: str, migrations: Path) -> None:
    engine = database.create_engine(database_url)
    database.upgrade(engine, migrations)
    (migrations / "versions" / "0002_broken.py").write_text(_BROKEN)
    with pytest.raises((sa.exc.DBAPIError, StepwedgeError)):
        database.upgrade(engine, migrations)
    assert _rows(engine) == [(1, "first")]
    (migrations / "versions" / "0002_broken.py").write_text(_SECOND)
    database.upgrade(engine, migrations)
    assert _rows(engine) == [(1, "first", 7)]
    engine.dispose()


def test_several_processes_may_start_at_once_on_an_empty_database(database_url: str, migrations: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from shared import database;"
        "database.upgrade(database.create_engine(sys.argv[1]), Path(sys.argv[2]))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, database_url, str(migrations)], cwd=ROOT) for _ in range(4)
    ]
    assert [process.wait(60) for process in started] == [0, 0, 0, 0]
    engine = database.create_engine(database_url)
    assert _rows(engine) == [(1, "first")]
    engine.dispose()


def test_a_commit_survives_and_a_broken_constraint_stays_an_integrity_error(
    database_url: str, migrations: Path
) -> None:
    engine = database.create_engine(database_url)
    database.upgrade(engine, migrations)
    with pytest.raises(sa.exc.IntegrityError) as raised, engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO thing (id, name) VALUES (2, :name)"), {"name": "first"})
    assert "parameters hidden" in str(raised.value)
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO thing (id, name) VALUES (2, :name)"), {"name": "second"})
    engine.dispose()
    again = database.create_engine(database_url)
    assert _rows(again) == [(1, "first"), (2, "second")]
    again.dispose()


def test_a_reader_cannot_write_on_postgresql_and_does_not_wait_for_a_writer_on_either(
    database_url: str, migrations: Path
) -> None:
    engine = database.create_engine(database_url)
    database.upgrade(engine, migrations)
    with engine.begin() as writer:
        writer.execute(sa.text("INSERT INTO thing (id, name) VALUES (2, 'second')"))
        seen: list[object] = []
        thread = threading.Thread(target=lambda: seen.extend(_rows(engine)))
        thread.start()
        thread.join(5)
        assert seen == [(1, "first")]
    if engine.dialect.name == "postgresql":
        with pytest.raises(sa.exc.DBAPIError), database.reader(engine).begin() as connection:
            connection.execute(sa.text("DELETE FROM thing"))
    engine.dispose()


def test_writers_of_several_threads_take_turns_and_none_is_refused(database_url: str, migrations: Path) -> None:
    engine = database.create_engine(database_url)
    database.upgrade(engine, migrations)

    def add() -> None:
        for _ in range(20):
            with engine.begin() as connection:
                connection.execute(sa.text("UPDATE thing SET id = id + 1 WHERE name = 'first'"))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert _rows(engine) == [(81, "first")]
    engine.dispose()


def test_sqlite_is_durable_and_checks_foreign_keys(tmp_path: Path) -> None:
    engine = database.create_engine(f"sqlite:///{tmp_path / 'new folder' / 'x.db'}")
    with engine.connect() as connection:
        pragmas = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert pragmas == ["wal", 2, 1, 10_000]
    engine.dispose()


@pytest.mark.postgres
def test_postgresql_commits_synchronously_whatever_the_server_says(postgres_url: str) -> None:
    with database.create_engine(postgres_url).begin() as connection:
        connection.execute(sa.text("ALTER ROLE CURRENT_USER SET synchronous_commit = off"))
    engine = database.create_engine(postgres_url)
    with engine.begin() as connection:
        assert connection.execute(sa.text("SHOW synchronous_commit")).scalar() == "on"
        connection.execute(sa.text("ALTER ROLE CURRENT_USER RESET synchronous_commit"))
    engine.dispose()


@pytest.mark.postgres
def test_connections_that_postgresql_cut_fail_transiently_once_and_are_replaced(postgres_url: str) -> None:
    engine = database.create_engine(postgres_url)
    cut = sa.text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
        "AND backend_type = 'client backend'"
    )
    with engine.connect() as victim:
        victim.execute(sa.text("SELECT 1"))
        with database.create_engine(postgres_url).connect() as administrator:
            administrator.execute(cut)
        with pytest.raises(StepwedgeError, match="DEPENDENCY_UNAVAILABLE") as raised:
            victim.execute(sa.text("SELECT 1"))
    assert not raised.value.permanent
    database.ping(engine)
    engine.dispose()


@pytest.mark.parametrize(
    ("package", "program"),
    [
        ("psycopg", "from shared import database; database.create_engine('postgresql://h/d')"),
        (
            "boto3",
            "from shared import objects; from shared.settings import Objects;"
            "objects.open_store(Objects(kind='s3', original='s3://one', deidentified='s3://two'), [])",
        ),
    ],
)
def test_a_store_whose_library_is_not_installed_is_a_configuration_error(package: str, program: str) -> None:
    absent = f"import sys; sys.modules['{package}'] = None;"
    ended = subprocess.run(
        [sys.executable, "-c", absent + program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "StepwedgeError: CONFIGURATION" in ended.stderr
    assert "extra" in ended.stderr


def test_a_database_that_is_away_is_a_transient_error_without_its_address(free_port) -> None:  # type: ignore[no-untyped-def]
    engine = database.create_engine(f"postgresql://someone:secret@127.0.0.1:{free_port()}/nowhere")
    with pytest.raises(StepwedgeError) as raised:
        database.ping(engine)
    assert raised.value.name == "DEPENDENCY_UNAVAILABLE"
    assert not raised.value.permanent
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["nonsense", "mysql://host/db", "", "sqlite"])
def test_a_url_that_is_none_of_ours_is_a_configuration_error(url: str) -> None:
    with pytest.raises(StepwedgeError) as raised:
        database.create_engine(url)
    assert raised.value.code == ErrorCode.ERROR_CODE_CONFIGURATION


def test_a_full_disk_is_said_to_be_one(tmp_path: Path) -> None:
    engine = database.create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE t (x BLOB)"))
    with engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=3")
        with pytest.raises(StepwedgeError) as raised:
            connection.execute(sa.text("INSERT INTO t VALUES (zeroblob(1000000))"))
    assert raised.value.name == "STORAGE_FULL"
    engine.dispose()
