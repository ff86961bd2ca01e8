"""Decided studies by day, device, modality, verdict and reason, kept by the database itself as studies change.

Triggers, since a row of `studies` changes in several places, and what is counted must follow every one of them in the
same transaction: the counts are at each moment what grouping the whole table would give. They belong to the table:
whoever makes `studies` anew (Alembic's batch mode does on SQLite) must make them again.

Revision ID: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_KEY = "day, device_id, modalities, verdict, reason"
_COUNTED = ("decided_at", "verdict", "reasons", "modalities", "device_id", "constancy")
_REASONS = {
    "sqlite": "json_each({row}.reasons)",
    "postgresql": "json_array_elements_text({row}.reasons) AS given(value)",
}
_DAY = {
    "sqlite": "substr({row}.decided_at, 1, 10)",
    "postgresql": "to_char(timezone('UTC', {row}.decided_at), 'YYYY-MM-DD')",
}
_CHANGED = {
    "sqlite": " OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in _COUNTED),
    "postgresql": " OR ".join(f"OLD.{name}::text IS DISTINCT FROM NEW.{name}::text" for name in _COUNTED),
}


# Every part of these statements stands in this file.
# ruff: noqa: S608


def _keys(dialect: str, row: str, count: str) -> str:
    """The places in which one row of `studies` counts: one for the study, and one for each of its reasons."""
    day, reasons = _DAY[dialect].format(row=row), _REASONS[dialect].format(row=row)
    counts = f"{row}.decided_at IS NOT NULL AND NOT {row}.constancy"
    place = f"{day}, COALESCE({row}.device_id, 0), {row}.modalities, {row}.verdict"
    return (
        f"SELECT {place}, 0 AS reason, {count} WHERE {counts} UNION ALL "
        f"SELECT DISTINCT {place}, CAST(value AS INTEGER), {count} FROM {reasons} WHERE {counts}"
    )


def _add(dialect: str, row: str, count: int) -> str:
    return (
        f"INSERT INTO decided_days ({_KEY}, count) SELECT * FROM ({_keys(dialect, row, str(count))}) AS places "
        f"WHERE TRUE ORDER BY 1, 2, 3, 4, 5 "
        f"ON CONFLICT ({_KEY}) DO UPDATE SET count = decided_days.count + excluded.count"
    )


def upgrade() -> None:
    """Make the table, count what there is, and keep counting."""
    op.create_table(
        "decided_days",
        # In the order in which a chart reads: of one day and one reason the devices lie together.
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("reason", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("verdict", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("modalities", sa.String(200), primary_key=True),
        sa.Column("device_id", _ID, primary_key=True, autoincrement=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    dialect = op.get_bind().dialect.name
    day, reasons = _DAY[dialect].format(row="studies"), _REASONS[dialect].format(row="studies")
    place = f"{day}, COALESCE(device_id, 0), modalities, verdict"
    counted = "decided_at IS NOT NULL AND NOT constancy"
    op.execute(
        f"INSERT INTO decided_days ({_KEY}, count) "
        f"SELECT {place}, 0, COUNT(*) FROM studies WHERE {counted} GROUP BY 1, 2, 3, 4"
    )
    op.execute(
        f"INSERT INTO decided_days ({_KEY}, count) SELECT {place}, CAST(value AS INTEGER), COUNT(DISTINCT studies.id) "
        f"FROM studies, {reasons} WHERE {counted} GROUP BY 1, 2, 3, 4, 5"
    )
    {"sqlite": _sqlite, "postgresql": _postgresql}[dialect]()


def _sqlite() -> None:
    for name, event, when, changes in (
        ("inserted", "INSERT", "NEW.decided_at IS NOT NULL", (("NEW", 1),)),
        ("deleted", "DELETE", "OLD.decided_at IS NOT NULL", (("OLD", -1),)),
        ("updated", f"UPDATE OF {', '.join(_COUNTED)}", _CHANGED["sqlite"], (("OLD", -1), ("NEW", 1))),
    ):
        body = " ".join(f"{_add('sqlite', row, count)};" for row, count in changes)
        op.execute(f"CREATE TRIGGER decided_days_{name} AFTER {event} ON studies WHEN {when} BEGIN {body} END")


def _postgresql() -> None:
    # One lock for all, taken before any count: whoever holds it waits for nobody, so that no two wait for each other.
    op.execute(
        f"""CREATE FUNCTION count_decided_days() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'UPDATE' AND NOT ({_CHANGED["postgresql"]}) THEN RETURN NULL; END IF;
  PERFORM pg_advisory_xact_lock(hashtextextended('decided_days', 0));
  IF TG_OP <> 'INSERT' THEN {_add("postgresql", "OLD", -1)}; END IF;
  IF TG_OP <> 'DELETE' THEN {_add("postgresql", "NEW", 1)}; END IF;
  RETURN NULL;
END $$"""
    )
    for name, event, when in (
        ("inserted", "INSERT", "NEW.decided_at IS NOT NULL"),
        ("deleted", "DELETE", "OLD.decided_at IS NOT NULL"),
        ("updated", f"UPDATE OF {', '.join(_COUNTED)}", "OLD.decided_at IS NOT NULL OR NEW.decided_at IS NOT NULL"),
    ):
        op.execute(
            f"CREATE TRIGGER decided_days_{name} AFTER {event} ON studies FOR EACH ROW WHEN ({when}) "
            "EXECUTE FUNCTION count_decided_days()"
        )


def downgrade() -> None:
    """Drop them."""
    on = " ON studies" if op.get_bind().dialect.name == "postgresql" else ""
    for name in ("inserted", "deleted", "updated"):
        op.execute(f"DROP TRIGGER decided_days_{name}{on}")
    if on:
        op.execute("DROP FUNCTION count_decided_days()")
    op.drop_table("decided_days")
