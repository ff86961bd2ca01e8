"""Results that are made of decisions, what each destination gets, and to which AE title an instance was sent.

Revision ID: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the columns and make the tables. No foreign keys, as in 0004."""
    op.add_column("instances", sa.Column("called_ae_title", sa.String(16), nullable=False, server_default=""))
    op.add_column("deliveries", sa.Column("contents", sa.JSON, nullable=False, server_default='["ORIGINAL"]'))
    op.add_column("deliveries", sa.Column("routes", sa.JSON, nullable=False, server_default="[]"))
    op.add_column("deliveries", sa.Column("shadow", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "makings",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("study_id", _ID, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("kinds", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt_at", _TIME),
        sa.Column("made_at", _TIME),
        sa.Column("last_error", sa.Integer, nullable=False),
        sa.UniqueConstraint("study_id", "revision", name="uq_makings_revision"),
    )
    op.create_index("ix_makings_study_id", "makings", ["study_id"])
    op.create_table(
        "results",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("study_id", _ID, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("sop_class_uid", sa.String(64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False, unique=True),
        sa.Column("series_instance_uid", sa.String(64), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("content_sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("instance_id", _ID),
        sa.Column("segments", sa.JSON, nullable=False),
        sa.Column("made_at", _TIME, nullable=False),
    )
    op.create_index("ix_results_study_id", "results", ["study_id"])
    op.create_table(
        "delivered_results",
        sa.Column("destination", sa.String(64), primary_key=True),
        sa.Column("result_id", _ID, primary_key=True, autoincrement=False),
        sa.Column("delivered_at", _TIME, nullable=False),
    )
