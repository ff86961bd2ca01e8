"""Reject and repeat counts by day and device, the side of an image, and the person behind a requeue.

Images from before are not counted: what they show is known, whether their sides differ is not.

Revision ID: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Add the columns, make the table and the indexes."""
    op.add_column("instances", sa.Column("laterality", sa.String(16), nullable=False, server_default=""))
    op.add_column("instances", sa.Column("exposure", sa.String(32)))
    op.add_column("instances", sa.Column("repeated", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("requeues", sa.Column("person", sa.String(64), nullable=False, server_default=""))
    said = sa.text("exposure IS NOT NULL")
    op.create_index(
        "ix_instances_exposure",
        "instances",
        ["exposure", "received_at"],
        sqlite_where=said,
        postgresql_where=said,
    )
    op.create_index("ix_failures_time", "failures", ["failed_at"])
    op.create_table(
        "repeat_days",
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("device_id", _ID, primary_key=True, autoincrement=False),
        sa.Column("reason", sa.Integer, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("images", "rejected", "repeated", "unsaid")),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("repeat_days")
    op.drop_index("ix_failures_time", "failures")
    op.drop_index("ix_instances_exposure", "instances")
    op.drop_column("requeues", "person")
    for name in ("repeated", "exposure", "laterality"):
        op.drop_column("instances", name)
