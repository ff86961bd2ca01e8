"""A database copied whole while it is in use: from SQLite or PostgreSQL into one SQLite file, and back.

One form for both, so that a copy is opened, checked and put back on any machine, without the tools of a PostgreSQL of
the right version.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from shared import database
from shared.errors import ErrorCode, StepwedgeError
from shared.paths import ROOT

MIGRATIONS: Mapping[str, Path] = {
    name: ROOT / "services" / name / "migrations" for name in ("ingest", "audit", "console")
}
"""Where the schema of each database that a cluster keeps is told."""

_VERSION = "alembic_version"
_AT_A_TIME = 2000


def is_there(url: str) -> bool:
    """Whether there is a database to copy; one on a server is taken to be."""
    file = _file_of(url)
    return file is None or file.is_file()


def read_only(url: str) -> sa.Engine:
    """An engine of which every transaction only reads."""
    return database.reader(database.create_engine(url))


def copy(name: str, url: str, file: Path) -> None:
    """Copy the database at `url` as it is at one moment into the new SQLite file `file`, durably.

    Raises
    ------
    StepwedgeError
        FILE where there is no database; CONFIGURATION where another version of the software made its tables;
        DEPENDENCY_UNAVAILABLE where it does not answer.
    """
    if not is_there(url):
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"there is no database of {name}")
    source = _file_of(url)
    if source is not None:
        _copy_file(source, file)
    else:
        _to_file(name, url, file)
    _synchronise(file)
    _synchronise(file.parent)


def put_back(name: str, file: Path, url: str) -> None:
    """Make the database at `url`, which must not be there or hold nothing yet, of a copy.

    Raises
    ------
    StepwedgeError
        WRONG_STATE where something is there already; CONFIGURATION, DEPENDENCY_UNAVAILABLE as `copy`.
    """
    target = _file_of(url)
    if target is None:
        _from_file(name, file, url)
        return
    if target.exists():
        raise _occupied(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.restored")
    temporary.unlink(missing_ok=True)
    _copy_file(file, temporary)
    _synchronise(temporary)
    temporary.replace(target)
    _synchronise(target.parent)


def may_take(name: str, url: str) -> None:
    """Return where `put_back` could write; else raise WRONG_STATE."""
    target = _file_of(url)
    if target is not None:
        if target.exists():
            raise _occupied(name)
        return
    engine = read_only(url)
    try:
        with engine.connect() as connection:
            _refuse_rows(name, connection)
    finally:
        engine.dispose()


def _occupied(name: str) -> StepwedgeError:
    words = f"the database of {name} is there already; nothing is written over it: move it away first"
    return StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, words)


def _file_of(url: str) -> Path | None:
    parsed = make_url(url)
    return Path(str(parsed.database)) if parsed.get_backend_name() == "sqlite" else None


def _copy_file(source: Path, file: Path) -> None:
    """SQLite's own online backup: one moment of the database, whoever writes to it meanwhile."""
    try:
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        where = f"{source.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(where, uri=True)) as origin, closing(sqlite3.connect(file)) as target:
            origin.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error:
        raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, "the database cannot be copied") from None


def _to_file(name: str, url: str, file: Path) -> None:
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    source = read_only(url).execution_options(isolation_level="REPEATABLE READ")
    target = database.create_engine(f"sqlite:///{file}")
    try:
        database.upgrade(target, MIGRATIONS[name])
        with source.connect() as origin, target.begin() as copied:
            _copy_rows(name, origin, copied)
        with target.connect() as connection:
            raw = connection.connection.driver_connection
            assert isinstance(raw, sqlite3.Connection)
            connection.rollback()
            raw.execute("PRAGMA journal_mode=DELETE")
    finally:
        source.dispose()
        target.dispose()
        for side in ("-wal", "-shm", ".lock"):
            file.with_name(f"{file.name}{side}").unlink(missing_ok=True)


def _from_file(name: str, file: Path, url: str) -> None:
    source = read_only(f"sqlite:///{file}")
    target = database.create_engine(url)
    try:
        database.upgrade(target, MIGRATIONS[name])
        with source.connect() as origin, target.begin() as restored:
            _refuse_rows(name, restored)
            for table in _copy_rows(name, origin, restored):
                _set_sequence(restored, table)
    finally:
        source.dispose()
        target.dispose()


def _refuse_rows(name: str, connection: sa.Connection) -> None:
    metadata = _reflected(connection)
    for table in metadata.sorted_tables:
        if table.name != _VERSION and _holds_rows(connection, table):
            raise _occupied(name)


def _holds_rows(connection: sa.Connection, table: sa.Table) -> bool:
    return connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() is not None


def _reflected(connection: sa.Connection) -> sa.MetaData:
    metadata = sa.MetaData()
    metadata.reflect(connection)
    return metadata


def _copy_rows(name: str, source: sa.Connection, target: sa.Connection) -> list[sa.Table]:
    """Copy every row of every table; the tables."""
    origin, copied = _reflected(source), _reflected(target)
    if _revision(source, origin) != _revision(target, copied):
        words = f"the tables of {name} are of another version of this software; use the one that runs there"
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, words)
    tables = [table for table in copied.sorted_tables if table.name != _VERSION]
    for table in tables:
        for column in table.columns:
            if isinstance(column.type, sa.JSON):
                column.type = sa.JSON(none_as_null=True)
        convert = _conversion(target.dialect.name)
        for rows in _rows(source, origin.tables[table.name]):
            target.execute(sa.insert(table), [{key: convert(value) for key, value in row.items()} for row in rows])
    return tables


def _rows(connection: sa.Connection, table: sa.Table) -> Iterator[list[Mapping[str, Any]]]:
    streamed = connection.execution_options(stream_results=True, yield_per=_AT_A_TIME).execute(sa.select(table))
    for part in streamed.mappings().partitions(_AT_A_TIME):
        yield [dict(row) for row in part]


def _revision(connection: sa.Connection, metadata: sa.MetaData) -> list[str]:
    table = metadata.tables.get(_VERSION)
    return [] if table is None else sorted(connection.execute(sa.select(table.c.version_num)).scalars())


def _conversion(dialect: str) -> Callable[[Any], Any]:
    """Of a value: SQLite keeps times in UTC without a zone, PostgreSQL with one."""

    def to_sqlite(value: Any) -> Any:
        if isinstance(value, datetime) and value.tzinfo is not None:
            return value.astimezone(UTC).replace(tzinfo=None)
        return value

    def to_postgresql(value: Any) -> Any:
        if isinstance(value, datetime) and value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        return value

    return to_sqlite if dialect == "sqlite" else to_postgresql


def _set_sequence(connection: sa.Connection, table: sa.Table) -> None:
    """Let the numbers that PostgreSQL gives go on behind the highest that was copied."""
    for column in table.primary_key.columns:
        if not isinstance(column.type, sa.Integer):
            continue
        quoted = sa.func.pg_get_serial_sequence(f'"{table.name}"', column.name)
        sequence = connection.execute(sa.select(quoted)).scalar()
        if sequence is not None:
            highest = connection.execute(sa.select(sa.func.max(column))).scalar()
            connection.execute(sa.select(sa.func.setval(sequence, highest or 1, highest is not None)))


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
