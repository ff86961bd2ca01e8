"""Hours, days and weeks (UTC) as both databases tell them from a time, so that they count and no row is read."""

from typing import Any

from sqlalchemy import Date, Text, cast, func
from sqlalchemy.engine import Dialect


def hour(dialect: Dialect, time: Any) -> Any:
    """The hour of a column of times: "2026-11-22 13"."""
    if dialect.name == "postgresql":
        return func.to_char(func.timezone("UTC", time), "YYYY-MM-DD HH24")
    return func.substr(cast(time, Text), 1, 13)


def day(dialect: Dialect, time: Any) -> Any:
    """The day of a column of times: "2026-11-22"."""
    if dialect.name == "postgresql":
        return func.to_char(func.timezone("UTC", time), "YYYY-MM-DD")
    return func.substr(cast(time, Text), 1, 10)


def week(dialect: Dialect, text: Any) -> Any:
    """The Monday of the week (ISO 8601) of a column of days."""
    if dialect.name == "postgresql":
        return func.to_char(func.date_trunc("week", cast(text, Date)), "YYYY-MM-DD")
    return func.date(text, "weekday 0", "-6 days")
