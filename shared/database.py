"""The engines of the two databases, SQLite embedded and PostgreSQL, and their migrations.

Transactions are plain SQLAlchemy 2. On SQLite each one takes the write lock at its beginning (BEGIN IMMEDIATE), so that
it cannot fail half-way for having begun as a reader; one that only reads goes through `reader(engine)` and takes none.
An error of the database itself (it is away, locked, full) is raised as StepwedgeError; a broken constraint stays
`sqlalchemy.exc.IntegrityError`, and a wrong statement what SQLAlchemy makes of it. No error quotes the parameters.
"""

import fcntl
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.engine.interfaces import ExceptionContext

from shared.errors import ErrorCode, StepwedgeError

_READ_ONLY = "stepwedge_read_only"
_BUSY_SECONDS = 10.0
_CONNECT_SECONDS = 5
# As many connections at most as a process has threads for blocking work (shared.rpc), so that none waits for another.
_POOL: dict[str, Any] = {"pool_size": 8, "max_overflow": 24}


def create_engine(url: str) -> Engine:
    """Return an engine for `url` ("sqlite:///file" or "postgresql://...").

    SQLite: WAL with synchronous=FULL, so that a committed transaction survives a power cut; foreign keys enforced; ten
    seconds of patience with a lock; the folder of the file is made where absent. PostgreSQL: psycopg, connections tried
    before use, synchronous_commit on whatever the server's default.

    Raises
    ------
    StepwedgeError
        CONFIGURATION for a URL that is none, or of another database.
    """
    try:
        parsed = make_url(url)
    except sa.exc.ArgumentError:
        raise _configuration("a database URL cannot be read") from None
    make = {"sqlite": _sqlite, "postgresql": _postgresql}.get(parsed.get_backend_name())
    if make is None:
        raise _configuration("a database is SQLite or PostgreSQL")
    try:
        engine = make(parsed)
    except ModuleNotFoundError:
        raise _configuration("a PostgreSQL database needs the extra postgres to be installed") from None
    event.listen(engine, "handle_error", _translate)
    return engine


def reader(engine: Engine) -> Engine:
    """Return the same engine for transactions that only read; on SQLite they then never wait for a writer."""
    return engine.execution_options(**{_READ_ONLY: True})


def upgrade(engine: Engine, migrations: Path) -> None:
    """Bring the schema to the newest revision; any number of processes may do so at once, one after the other.

    Parameters
    ----------
    engine
        Where.
    migrations
        Folder with `versions/*.py`, Alembic revisions; it needs no env.py.
    """
    script = ScriptDirectory(migrations, version_locations=[migrations / "versions"])

    def to_the_newest(current: Any, _: Any) -> Any:
        return script._upgrade_revs("head", current)

    with _one_at_a_time(engine), engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(zlib.crc32(b"stepwedge migrations"))))
        with EnvironmentContext(Config(), script, fn=to_the_newest, destination_rev="head") as environment:
            environment.configure(connection=connection, transactional_ddl=True, render_as_batch=True)
            environment.run_migrations()


def ping(engine: Engine) -> None:
    """Ask the database for a sign of life; raise DEPENDENCY_UNAVAILABLE where there is none."""
    with reader(engine).connect() as connection:
        connection.execute(sa.text("SELECT 1"))


def _configuration(message: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, message)


def _sqlite(url: URL) -> Engine:
    in_memory = not url.database or url.database == ":memory:"
    if not in_memory:
        Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        url.set(drivername="sqlite+pysqlite"),
        hide_parameters=True,
        connect_args={"timeout": _BUSY_SECONDS},
        **({} if in_memory else _POOL),
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    # SQLAlchemy's recipe for real transactions: the driver must not begin any by itself.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout={int(_BUSY_SECONDS * 1000)}")
        # Changing the mode needs the file to itself, so it is not asked for where it is set already.
        if cursor.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
    finally:
        cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _postgresql(url: URL) -> Engine:
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        hide_parameters=True,
        pool_pre_ping=True,
        connect_args={"connect_timeout": _CONNECT_SECONDS},
        **_POOL,
    )
    event.listen(engine, "connect", _prepare_postgresql)
    event.listen(engine, "begin", _begin_postgresql)
    return engine


def _prepare_postgresql(connection: Any, _: object) -> None:
    connection.autocommit = True
    try:
        # Law 2: acknowledged means durable, also where the server's default is otherwise.
        connection.execute("SET synchronous_commit = on")
    finally:
        connection.autocommit = False


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get(_READ_ONLY, False):
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")


def raised(error: sqlite3.Error, statement: str) -> Exception:
    """What is raised for an error of SQLite's driver, where a statement is run past SQLAlchemy."""
    wrapped = sa.exc.DBAPIError.instance(statement, None, error, sqlite3.Error, hide_parameters=True)
    return _ours(wrapped, error) or wrapped


def _translate(context: ExceptionContext) -> None:
    """Raise our error in place of what only says that the database is not well."""
    error = None if context.is_pre_ping else _ours(context.sqlalchemy_exception, context.original_exception)
    if error is not None:
        raise error


def _ours(wrapped: BaseException | None, original: BaseException) -> StepwedgeError | None:
    if not isinstance(wrapped, sa.exc.OperationalError | sa.exc.InterfaceError):
        return None
    code = getattr(original, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL or getattr(original, "sqlstate", None) == "53100":  # disk_full
        return StepwedgeError(ErrorCode.ERROR_CODE_STORAGE_FULL, "no space is left for the database")
    if code == sqlite3.SQLITE_ERROR:  # a wrong statement, which SQLite's driver calls operational too
        return None
    return StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, "the database does not answer")


@contextmanager
def _one_at_a_time(engine: Engine) -> Iterator[None]:
    """Hold a lock beside an SQLite file; PostgreSQL has its own, taken inside the transaction."""
    file = engine.url.database
    if engine.dialect.name != "sqlite" or not file or file == ":memory:":
        yield
        return
    with Path(f"{file}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
