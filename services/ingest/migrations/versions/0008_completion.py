"""What objects and peers announce of a study, and what a decision lacked; of what came before, nothing is known.

Revision ID: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the columns and make the tables."""
    for name in ("view_position", "body_part", "procedure_code"):
        op.add_column("instances", sa.Column(name, sa.String(16), nullable=False, server_default=""))
    for name in ("study_series", "study_instances", "series_instances"):
        op.add_column("instances", sa.Column(name, sa.Integer, nullable=False, server_default="0"))
    op.add_column("studies", sa.Column("waits_from", _TIME))
    op.add_column("studies", sa.Column("missing", sa.JSON))
    op.add_column("studies", sa.Column("forced_by", sa.String(64), nullable=False, server_default=""))
    op.add_column("studies", sa.Column("forced_generation", sa.Integer, nullable=False, server_default="0"))
    op.add_column("decisions", sa.Column("missing", sa.JSON))
    op.add_column("decisions", sa.Column("forced_by", sa.String(64), nullable=False, server_default=""))
    op.create_table(
        "announcements",
        sa.Column("study_instance_uid", sa.String(64), primary_key=True),
        sa.Column("instances", sa.Integer, nullable=False),
        sa.Column("series", sa.Integer, nullable=False),
        sa.Column("announced_at", _TIME, nullable=False),
    )
    op.create_index("ix_announcements_time", "announcements", ["announced_at"])
    op.create_table(
        "announced_instances",
        sa.Column("study_instance_uid", sa.String(64), primary_key=True),
        sa.Column("sop_instance_uid", sa.String(64), primary_key=True),
    )
