"""Studies, instances, decisions, deliveries, failures, requeues.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "studies",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("study_instance_uid", sa.String(64), nullable=False, unique=True),
        sa.Column("pseudonym", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("first_received_at", _TIME, nullable=False),
        sa.Column("last_received_at", _TIME, nullable=False),
        sa.Column("next_action_at", _TIME),
        sa.Column("waiting_for", sa.String(32), nullable=False),
        sa.Column("lease_owner", sa.String(64)),
        sa.Column("lease_until", _TIME),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("last_error", sa.Integer, nullable=False),
    )
    op.create_index("ix_studies_pseudonym", "studies", ["pseudonym"])
    op.create_index("ix_studies_due", "studies", ["next_action_at"])
    op.create_index("ix_studies_state", "studies", ["state", "id"])
    op.create_index("ix_studies_waiting", "studies", ["waiting_for"])
    op.create_table(
        "instances",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("study_id", _ID, sa.ForeignKey("studies.id"), nullable=False),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False),
        sa.Column("series_instance_uid", sa.String(64), nullable=False),
        sa.Column("pseudonym", sa.String(64), nullable=False),
        sa.Column("series_pseudonym", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(80), nullable=False),
        sa.Column("sop_class_uid", sa.String(64), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(64), nullable=False),
        sa.Column("modality", sa.String(16), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("content_sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("commitment", sa.String(64), nullable=False),
        sa.Column("channel", sa.String(8), nullable=False),
        sa.Column("conflict", sa.Boolean, nullable=False),
        sa.Column("conflict_at_receipt", sa.Boolean, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("received_at", _TIME, nullable=False),
        sa.Column("record_index", sa.BigInteger),
        sa.Column("redacted_at", _TIME),
        sa.Column("redacted_index", sa.BigInteger),
        sa.Column("deidentified_sha256", sa.String(64), nullable=False),
        sa.Column("deidentified_bytes", sa.BigInteger, nullable=False),
        sa.Column("assessed_at", _TIME),
        sa.Column("assessed_index", sa.BigInteger),
        sa.Column("assessment", sa.LargeBinary, nullable=False),
        sa.Column("verdict", sa.Integer, nullable=False),
        sa.Column("reasons", sa.JSON, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt_at", _TIME),
        sa.Column("last_error", sa.Integer, nullable=False),
        sa.UniqueConstraint("sop_instance_uid", "content_sha256", name="uq_instances_identity"),
    )
    op.create_index("ix_instances_study_id", "instances", ["study_id"])
    op.create_index("ix_instances_state", "instances", ["state"])
    op.create_table(
        "decisions",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("study_id", _ID, sa.ForeignKey("studies.id"), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("verdict", sa.Integer, nullable=False),
        sa.Column("reasons", sa.JSON, nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
        sa.Column("policy_sha256", sa.String(64), nullable=False),
        sa.Column("software_build", sa.String(128), nullable=False),
        sa.Column("previous_index", sa.BigInteger),
        sa.Column("instances", sa.JSON, nullable=False),
        sa.Column("decided_at", _TIME, nullable=False),
        sa.Column("record_index", sa.BigInteger),
        sa.Column("cursor", sa.BigInteger, unique=True),
        sa.UniqueConstraint("study_id", "revision", name="uq_decisions_revision"),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("study_id", _ID, sa.ForeignKey("studies.id"), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("destination", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt_at", _TIME),
        sa.Column("objects", sa.Integer, nullable=False),
        sa.Column("sent_at", _TIME),
        sa.Column("last_error", sa.Integer, nullable=False),
        sa.Column("record_index", sa.BigInteger),
        sa.UniqueConstraint("study_id", "revision", "destination", name="uq_deliveries_route"),
    )
    op.create_index("ix_deliveries_study_id", "deliveries", ["study_id"])
    op.create_table(
        "delivered_instances",
        sa.Column("destination", sa.String(64), primary_key=True),
        sa.Column("instance_id", _ID, sa.ForeignKey("instances.id"), primary_key=True),
        sa.Column("delivered_at", _TIME, nullable=False),
    )
    op.create_table(
        "failures",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("study_id", _ID, sa.ForeignKey("studies.id"), nullable=False),
        sa.Column("instance_id", _ID, sa.ForeignKey("instances.id")),
        sa.Column("key", sa.String(200), nullable=False, unique=True),
        sa.Column("step", sa.String(16), nullable=False),
        sa.Column("error", sa.Integer, nullable=False),
        sa.Column("permanent", sa.Boolean, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("failed_at", _TIME, nullable=False),
        sa.Column("record_index", sa.BigInteger),
    )
    op.create_index("ix_failures_study_id", "failures", ["study_id"])
    op.create_table(
        "requeues",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("study_id", _ID, sa.ForeignKey("studies.id"), nullable=False),
        sa.Column("requested_by", sa.String(32), nullable=False),
        sa.Column("requested_at", _TIME, nullable=False),
        sa.Column("record_index", sa.BigInteger),
    )
    op.create_index("ix_requeues_study_id", "requeues", ["study_id"])
    op.create_table(
        "counters",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Drop the tables."""
    for table in (
        "counters",
        "requeues",
        "failures",
        "delivered_instances",
        "deliveries",
        "decisions",
        "instances",
        "studies",
    ):
        op.drop_table(table)
