"""Many rows in one statement: what every batch of the log writes and looks up, without the cost of a row each.

PostgreSQL gets each column as one array, and the statements of a batch in one round trip; SQLite the rows as they are.
The statements come from the tables, once for each.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from shared import statements

Row = Mapping[str, Any]

_POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call]


@contextmanager
def one_round_trip(connection: sa.Connection) -> Iterator[None]:
    """Send the statements inside together, and wait for all of them at the end; they must not return rows."""
    if connection.dialect.name != "postgresql":
        yield
        return
    with connection.connection.dbapi_connection.pipeline():  # type: ignore[union-attr]  # psycopg's
        yield


def insert(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Insert rows; each has all columns of the table."""
    _run(connection, table, rows, replace=False)


def upsert(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Insert rows, or replace those with the same primary key."""
    _run(connection, table, rows, replace=True)


def _run(connection: sa.Connection, table: sa.Table, rows: Sequence[Row], *, replace: bool) -> None:
    statement = _statement(connection.dialect.name, table, replace)
    columns = [[adapt(row[name]) for row in rows] for name, adapt in _columns(table)]
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(statement, tuple(columns))
    else:
        statements.run_many(connection, statement, list(zip(*columns, strict=True)))


@cache
def _columns(table: sa.Table) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """Name of each column, and what makes of a value what the driver takes."""
    return tuple((column.name, json.dumps if isinstance(column.type, sa.JSON) else _same) for column in table.columns)


def _same(value: Any) -> Any:
    return value


@cache
def _statement(dialect: str, table: sa.Table, replace: bool) -> str:
    quoted = {column.name: f'"{column.name}"' for column in table.columns}
    names = ", ".join(quoted.values())
    if dialect == "postgresql":
        types = [column.type.compile(_POSTGRESQL) for column in table.columns]
        # JSON travels as text; an array of it would have to be quoted twice.
        arrays = ", ".join(f"%b::{'TEXT' if kind == 'JSON' else kind}[]" for kind in types)
        picked = ", ".join(f"{name}::{kind}" for name, kind in zip(quoted.values(), types, strict=True))
        statement = f"INSERT INTO {table.name} ({names}) SELECT {picked} FROM unnest({arrays}) AS given({names})"  # noqa: S608
    else:
        statement = f"INSERT INTO {table.name} ({names}) VALUES ({', '.join('?' * len(quoted))})"  # noqa: S608
    if not replace:
        return statement
    keys = [column.name for column in table.primary_key]
    changed = ", ".join(f"{name} = excluded.{name}" for plain, name in quoted.items() if plain not in keys)
    what = f"DO UPDATE SET {changed}" if changed else "DO NOTHING"
    return f"{statement} ON CONFLICT ({', '.join(quoted[key] for key in keys)}) {what}"


def find(
    connection: sa.Connection, columns: Sequence[sa.Column[Any]], by: sa.Column[Any], values: Sequence[Any]
) -> Iterator[Sequence[Any]]:
    """Rows of a table whose column `by` is one of `values`."""
    if connection.dialect.name == "postgresql":
        if values:
            yield from connection.exec_driver_sql(_lookup(by.table, tuple(columns), by), (list(values),))
        return
    for start in range(0, len(values), 500):
        some = values[start : start + 500]
        yield from statements.run(connection, _lookup(by.table, tuple(columns), by, len(some)), some)


@cache
def _lookup(table: sa.Table, columns: tuple[sa.Column[Any], ...], by: sa.Column[Any], marks: int = 0) -> str:
    """For PostgreSQL; for SQLite with so many marks, one for each value."""
    names = ", ".join(f'"{column.name}"' for column in columns)
    array = f"= ANY(%b::{by.type.compile(_POSTGRESQL)}[])"
    wanted = f"IN ({', '.join('?' * marks)})" if marks else array
    return f'SELECT {names} FROM {table.name} WHERE "{by.name}" {wanted}'  # noqa: S608
