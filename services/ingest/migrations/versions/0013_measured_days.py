"""Sums of measurements in the order in which a chart reads them: by day, name and unit, then device.

Of one name on one day the devices then lie together, and are summed up as they are read. SQLite keeps the rows in that
order themselves, and not beside an index of it.

Revision ID: 0013
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_SUMS = ("count", "total", "squares")
_NEW = ("day", "name", "unit", "device_id")
_OLD = ("day", "device_id", "name", "unit")


def _made_anew(key: tuple[str, ...]) -> None:
    """The table with its primary key in this order, and the rows that it had."""
    kinds: dict[str, sa.types.TypeEngine[Any]] = {
        "day": sa.String(10),
        "device_id": _ID,
        "name": sa.String(64),
        "unit": sa.String(16),
    }
    op.create_table(
        "measured_days_anew",
        *(sa.Column(name, kinds[name], primary_key=True, autoincrement=False) for name in key),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("total", sa.Double, nullable=False),
        sa.Column("squares", sa.Double, nullable=False),
        sqlite_with_rowid=key == _OLD,
    )
    columns = ", ".join((*key, *_SUMS))
    op.execute(f"INSERT INTO measured_days_anew ({columns}) SELECT {columns} FROM measured_days")  # noqa: S608
    op.drop_table("measured_days")
    op.rename_table("measured_days_anew", "measured_days")


def upgrade() -> None:
    """Devices last."""
    _made_anew(_NEW)


def downgrade() -> None:
    """Devices after the day."""
    _made_anew(_OLD)
