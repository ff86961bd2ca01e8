"""The device that made each instance; of what came before, it is unknown.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_SAID = ("station", "department", "location", "manufacturer", "model", "serial", "calling_ae_title")


def upgrade() -> None:
    """Make the table, and what points to it. No foreign key: SQLite would copy both tables for one."""
    op.create_table(
        "devices",
        sa.Column("id", _ID, primary_key=True),
        *(sa.Column(name, sa.String(64), nullable=False) for name in _SAID),
        sa.UniqueConstraint(*_SAID, name="uq_devices_said"),
    )
    op.add_column("instances", sa.Column("device_id", _ID))
    op.add_column("studies", sa.Column("device_id", _ID))
    op.create_index("ix_studies_device", "studies", ["device_id", "id"])
