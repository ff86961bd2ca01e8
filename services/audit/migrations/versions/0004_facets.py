"""Facets in place of a column each; keys of subjects, sealed identities, the blind index."""

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# On SQLite only INTEGER PRIMARY KEY is the row's own number.
_INDEX = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_GONE = ("kind", "producer", "outcome", "verdict", "model_sha256")
_ROWS = 2000


def upgrade() -> None:
    """Make the tables, and give each entry its facet."""
    op.create_table(
        "facets",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.SmallInteger, nullable=False),
        sa.Column("producer", sa.String(32), nullable=False),
        sa.Column("outcome", sa.SmallInteger, nullable=False),
        sa.Column("verdict", sa.SmallInteger),
        sa.Column("model_sha256", sa.String(64)),
        sa.Column("actor", sa.String(64)),
        sa.Column("retention", sa.SmallInteger),
    )
    op.add_column("entries", sa.Column("facet", sa.Integer))
    _give_facets(op.get_bind())
    for name in (*_GONE, "study", "instance", "subject"):
        op.drop_index(f"entries_{name}", table_name="entries")
    for name in _GONE:
        op.drop_column("entries", name)
    op.create_index("entries_facet", "entries", ["facet", "index"])
    for name in ("study", "instance", "subject"):
        present = sa.text(f"{name} IS NOT NULL")
        columns = [name, "index", "facet"]
        op.create_index(f"entries_{name}", "entries", columns, sqlite_where=present, postgresql_where=present)
    op.create_table(
        "subject_keys",
        sa.Column("key_id", sa.String(16), primary_key=True),
        sa.Column("subject", sa.String(64), nullable=False, unique=True),
        sa.Column("wrapped", sa.LargeBinary, nullable=False),
    )
    op.create_table("identity_master", sa.Column("id", sa.String(16), primary_key=True))
    op.create_table(
        "identities",
        sa.Column("index", _INDEX, primary_key=True, autoincrement=False),
        sa.Column("subject", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_index("identities_subject", "identities", ["subject"])
    op.create_table(
        "blind_index",
        sa.Column("token", sa.LargeBinary(16), primary_key=True),
        sa.Column("study", sa.String(64), primary_key=True),
        sa.Column("subject", sa.String(64), primary_key=True),
    )
    op.create_index("blind_index_subject", "blind_index", ["subject"])
    op.create_index("blind_index_study", "blind_index", ["study"])


def _give_facets(connection: sa.Connection) -> None:
    entries = sa.table("entries", *(sa.column(name) for name in ("index", "leaf", "facet", *_GONE)))
    facets = sa.table("facets", *(sa.column(name) for name in ("id", *_GONE, "actor")))
    known: dict[tuple[Any, ...], int] = {}
    last = -1
    while True:
        wanted = sa.select(entries).where(entries.c.index > last).order_by(entries.c.index).limit(_ROWS)
        rows = connection.execute(wanted).all()
        if not rows:
            return
        updates = []
        for row in rows:
            key = (*(getattr(row, name) for name in _GONE), _actor(row.leaf))
            if key not in known:
                known[key] = len(known) + 1
                values = dict(zip((*_GONE, "actor"), key, strict=True))
                connection.execute(sa.insert(facets).values(id=known[key], **values))
            updates.append({"place": row.index, "number": known[key]})
        change = sa.update(entries).where(entries.c.index == sa.bindparam("place"))
        connection.execute(change.values(facet=sa.bindparam("number")), updates)
        last = int(rows[-1][0])


def _actor(leaf: bytes) -> str | None:
    try:
        event = json.loads(bytes(leaf))["event"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(event, Mapping):
        return None
    for name in ("person", "reviewer", "reader", "caller", "requested_by"):
        if value := event.get(name):
            return str(value)
    return None


def downgrade() -> None:
    """Refused: a log is never unmade."""
    raise RuntimeError("a log is never unmade")
