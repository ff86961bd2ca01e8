"""Reviews by people, and the newest verdict beside each study.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TIME = sa.DateTime(timezone=True)

_NEWEST = """
    UPDATE studies SET
        verdict = COALESCE((SELECT d.verdict FROM decisions d WHERE d.study_id = studies.id
            AND d.revision = studies.revision), 0),
        reasons = COALESCE((SELECT d.reasons FROM decisions d WHERE d.study_id = studies.id
            AND d.revision = studies.revision), '[]'),
        decided_at = (SELECT d.decided_at FROM decisions d WHERE d.study_id = studies.id
            AND d.revision = studies.revision)
"""


def _sum_up_instances() -> None:
    connection = op.get_bind()
    rows = connection.execute(sa.text("SELECT study_id, modality, COUNT(*) FROM instances GROUP BY study_id, modality"))
    found: dict[int, dict[str, int]] = {}
    for study_id, modality, count in rows:
        found.setdefault(study_id, {})[modality] = count
    for study_id, counts in found.items():
        connection.execute(
            sa.text("UPDATE studies SET modalities = :modalities, instances = :instances WHERE id = :id"),
            {"id": study_id, "modalities": "+".join(sorted(counts))[:200], "instances": sum(counts.values())},
        )


def upgrade() -> None:
    """Add the columns, fill them, make the table."""
    op.add_column("studies", sa.Column("verdict", sa.Integer, nullable=False, server_default="0"))
    op.add_column("studies", sa.Column("reasons", sa.JSON, nullable=False, server_default="[]"))
    op.add_column("studies", sa.Column("decided_at", _TIME))
    op.add_column("studies", sa.Column("modalities", sa.String(200), nullable=False, server_default=""))
    op.add_column("studies", sa.Column("instances", sa.Integer, nullable=False, server_default="0"))
    op.execute(_NEWEST)
    _sum_up_instances()
    op.create_index("ix_studies_verdict", "studies", ["verdict", "id"])
    op.create_index("ix_studies_decided", "studies", ["decided_at"])
    op.create_table(
        "reviews",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("study_id", _ID, sa.ForeignKey("studies.id"), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("decided", sa.Integer, nullable=False),
        sa.Column("verdict", sa.Integer, nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("note", sa.String(500), nullable=False),
        sa.Column("reviewer", sa.String(64), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("reviewed_at", _TIME, nullable=False),
        sa.Column("record_index", sa.BigInteger),
    )
    op.create_index("ix_reviews_study_id", "reviews", ["study_id"])
    op.create_index("ix_reviews_time", "reviews", ["reviewed_at"])
