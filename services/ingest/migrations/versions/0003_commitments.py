"""Storage commitments that were asked for.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "commitments",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("transaction_uid", sa.String(64), nullable=False),
        sa.Column("ae_title", sa.String(16), nullable=False),
        sa.Column("references", sa.JSON, nullable=False),
        sa.Column("requested_at", _TIME, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt_at", _TIME),
        sa.Column("reported_at", _TIME),
        sa.UniqueConstraint("transaction_uid", "ae_title"),
    )
    op.create_index("ix_commitments_due", "commitments", ["next_attempt_at"])
