"""The newest checkpoint that enough witnesses cosigned."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# On SQLite only INTEGER PRIMARY KEY is the row's own number.
_INDEX = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the table beside that of the plain checkpoints."""
    op.create_table(
        "cosigned",
        sa.Column("size", _INDEX, primary_key=True, autoincrement=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("signed_us", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Refused: a log is never unmade."""
    raise RuntimeError("a log is never unmade")
