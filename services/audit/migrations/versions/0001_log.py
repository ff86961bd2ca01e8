"""The log: entries, attachments, tiles of the tree, checkpoints, keys, producers."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# On SQLite only INTEGER PRIMARY KEY is the row's own number.
_INDEX = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the tables of `services.audit.store`."""
    op.create_table(
        "entries",
        sa.Column("index", _INDEX, primary_key=True, autoincrement=False),
        sa.Column("leaf", sa.LargeBinary, nullable=False),
        sa.Column("key_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("kind", sa.SmallInteger, nullable=False),
        sa.Column("producer", sa.String(32), nullable=False),
        sa.Column("outcome", sa.SmallInteger, nullable=False),
        sa.Column("recorded_us", sa.BigInteger, nullable=False),
        sa.Column("recorded_max_us", sa.BigInteger, nullable=False),
        sa.Column("verdict", sa.SmallInteger),
        sa.Column("study", sa.String(64)),
        sa.Column("instance", sa.String(64)),
        sa.Column("subject", sa.String(64)),
        sa.Column("model_sha256", sa.String(64)),
    )
    op.create_index("entries_key", "entries", ["key_hash"], unique=True)
    op.create_index("entries_recorded", "entries", ["recorded_max_us", "index"])
    op.create_index(
        "entries_late",
        "entries",
        ["index"],
        sqlite_where=sa.text("recorded_us < recorded_max_us"),
        postgresql_where=sa.text("recorded_us < recorded_max_us"),
    )
    for name in ("kind", "producer", "outcome"):
        op.create_index(f"entries_{name}", "entries", [name, "index"])
    for name in ("verdict", "study", "instance", "subject", "model_sha256"):
        present = sa.text(f"{name} IS NOT NULL")
        op.create_index(f"entries_{name}", "entries", [name, "index"], sqlite_where=present, postgresql_where=present)
    op.create_table(
        "attachments",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("content", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "tiles",
        sa.Column("level", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("index", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("hashes", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "checkpoints",
        sa.Column("size", _INDEX, primary_key=True, autoincrement=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("signed_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "keys",
        sa.Column("verification_key", sa.String(512), primary_key=True),
        sa.Column("from_size", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "producers",
        sa.Column("producer", sa.String(32), primary_key=True),
        sa.Column("incarnation", sa.String(36), primary_key=True),
        sa.Column("highest", sa.BigInteger, nullable=False),
        sa.Column("gaps", sa.JSON, nullable=False),
        sa.Column("repeats", sa.JSON, nullable=False),
        sa.Column("unreported", sa.Boolean, nullable=False),
    )
    present = sa.text("unreported")
    op.create_index("producers_unreported", "producers", ["unreported"], sqlite_where=present, postgresql_where=present)


def downgrade() -> None:
    """Refused: a log is never unmade."""
    raise RuntimeError("a log is never unmade")
