"""What needs more than one image: site and person of each instance, findings of each decision; the constancy test, and
the policies that decided.

Revision ID: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the columns and make the tables."""
    op.add_column("instances", sa.Column("site", sa.String(64), nullable=False, server_default=""))
    op.add_column("instances", sa.Column("person", sa.String(32), nullable=False, server_default=""))
    op.add_column("studies", sa.Column("constancy", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("decisions", sa.Column("findings", sa.LargeBinary, nullable=False, server_default=""))
    op.create_table(
        "baselines",
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("study_id", _ID, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
        sa.Column("set_by", sa.String(32), nullable=False),
        sa.Column("set_at", _TIME, nullable=False),
        sa.Column("record_index", sa.BigInteger),
    )
    op.create_table(
        "constancy_tests",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("study_id", _ID, nullable=False),
        sa.Column("baseline_version", sa.Integer, nullable=False),
        sa.Column("compared", sa.Integer, nullable=False),
        sa.Column("drifted", sa.Integer, nullable=False),
        sa.Column("tested_at", _TIME, nullable=False),
        sa.Column("record_index", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "policies",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("first_used_at", _TIME, nullable=False),
    )


def downgrade() -> None:
    """Drop them."""
    for table in ("policies", "constancy_tests", "baselines"):
        op.drop_table(table)
    op.drop_column("decisions", "findings")
    op.drop_column("studies", "constancy")
    op.drop_column("instances", "person")
    op.drop_column("instances", "site")
