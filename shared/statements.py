"""Statements that run for every object: on SQLite by the driver itself, compiled once.

What SQLAlchemy does around an execution takes ten times as long as SQLite takes for a statement that finds its row by
an index. PostgreSQL has a round trip for each anyway, and gets them from SQLAlchemy as any other.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Dialect

from shared import database

Values = Mapping[str, Any]
_Convert = Callable[[Any], Any] | None


class _Compiled(NamedTuple):
    text: str
    parameters: Sequence[tuple[str, _Convert]]
    """Names in their order, and what makes of a value what the driver takes."""
    constants: Values
    columns: Sequence[_Convert]
    """What makes of a column's value what its type gives."""

    def arguments(self, values: Values) -> list[Any]:
        """The parameters of one execution."""
        every = {**self.constants, **values}
        return [every[name] if convert is None else convert(every[name]) for name, convert in self.parameters]

    def row(self, found: Sequence[Any]) -> tuple[Any, ...]:
        """A row that the driver gave."""
        pairs = zip(self.columns, found, strict=True)
        return tuple(value if convert is None else convert(value) for convert, value in pairs)


class Statement:
    """One statement of SQLAlchemy; its `bindparam`s without a value get one with each execution.

    On SQLite none may be a list (IN): how long that is would be a part of the statement.
    """

    def __init__(self, statement: sa.Executable) -> None:
        self._statement: Final[Any] = statement
        self._compiled: _Compiled | None = None

    def rows(self, connection: sa.Connection, values: Values) -> list[tuple[Any, ...]]:
        """The rows that it returns. Raises as any execution does, see `shared.database`."""
        if connection.dialect.name != "sqlite":
            return [tuple(row) for row in connection.execute(self._statement, values)]
        made = self._for(connection.dialect)
        return [made.row(found) for found in run(connection, made.text, made.arguments(values))]

    def run(self, connection: sa.Connection, values: Sequence[Values]) -> None:
        """Once for each of `values`; returns no rows."""
        if connection.dialect.name != "sqlite":
            connection.execute(self._statement, values[0] if len(values) == 1 else list(values))
            return
        made = self._for(connection.dialect)
        run_many(connection, made.text, [made.arguments(one) for one in values])

    def _for(self, dialect: Dialect) -> _Compiled:
        if self._compiled is None:
            made = self._statement.compile(dialect=dialect)
            returned = getattr(self._statement, "exported_columns", ())
            self._compiled = _Compiled(
                str(made),
                [
                    (name, made.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
                    for name in made.positiontup
                ],
                {name: bind.effective_value for name, bind in made.binds.items() if not bind.required},
                [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in returned],
            )
        return self._compiled


def run(connection: sa.Connection, text: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Run a statement of SQLite's own; the rows that it returns, as SQLite keeps them."""
    cursor = _cursor(connection)
    try:
        return cursor.execute(text, parameters).fetchall()
    except sqlite3.Error as error:
        raise database.raised(error, text) from None


def run_many(connection: sa.Connection, text: str, rows: Sequence[Sequence[Any]]) -> None:
    """Run it once for each of these rows of parameters."""
    cursor = _cursor(connection)
    try:
        if len(rows) == 1:
            cursor.execute(text, rows[0])
        else:
            cursor.executemany(text, rows)
    except sqlite3.Error as error:
        raise database.raised(error, text) from None


def _cursor(connection: sa.Connection) -> sqlite3.Cursor:
    if not connection.in_transaction():
        connection.begin()  # as SQLAlchemy does
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver.cursor()
