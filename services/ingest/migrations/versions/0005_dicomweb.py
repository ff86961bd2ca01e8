"""Bearer tokens of DICOMweb clients, and the sealed catalogue that their searches read.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("client", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("scopes", sa.String(64), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("revoked_at", _TIME),
    )
    op.create_table(
        "catalogue",
        sa.Column("instance_id", _ID, sa.ForeignKey("instances.id"), primary_key=True, autoincrement=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("patient", sa.LargeBinary, nullable=False),
        sa.Column("accession", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_catalogue_patient", "catalogue", ["patient"])
    op.create_index("ix_catalogue_accession", "catalogue", ["accession"])
