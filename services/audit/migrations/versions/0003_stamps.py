"""Time stamps of checkpoints (RFC 3161), and the checkpoint with which each key of the log took over."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# On SQLite only INTEGER PRIMARY KEY is the row's own number.
_INDEX = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the table of the stamps, and give the keys a checkpoint that the key before and the new one signed."""
    op.create_table(
        "stamps",
        sa.Column("size", _INDEX, primary_key=True, autoincrement=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("token", sa.LargeBinary, nullable=False),
        sa.Column("stamped_us", sa.BigInteger, nullable=False),
    )
    op.add_column("keys", sa.Column("note", sa.Text, nullable=True))


def downgrade() -> None:
    """Refused: a log is never unmade."""
    raise RuntimeError("a log is never unmade")
