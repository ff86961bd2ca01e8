"""New rows without the bookkeeping of a session, which is most of what an arrival costs: plain statements.

What is usual when an object arrives, a study that is known and an instance that is new, goes this way; everything
else goes through the session.
"""

from collections.abc import Sequence
from typing import Any, Final, cast

from sqlalchemy import Connection, Table, bindparam, insert, select, update
from sqlalchemy.orm import attributes

from services.ingest.tables import Instance, Study

_STUDIES: Final = cast(Table, Study.__table__)
_INSTANCES: Final = cast(Table, Instance.__table__)
_STUDY: Final = select(_STUDIES).where(_STUDIES.c.study_instance_uid == bindparam("uid")).with_for_update()
_HELD: Final = (
    select(_INSTANCES.c.id).where(_INSTANCES.c.sop_instance_uid.in_(bindparam("uids", expanding=True))).limit(1)
)
_INSERT: Final = insert(_INSTANCES).returning(_INSTANCES.c.id)
_COLUMNS: Final = frozenset(column.key for column in _INSTANCES.columns)


def held(connection: Connection, sop_instance_uids: Sequence[str]) -> bool:
    """Whether there is a row under any of these UIDs."""
    return connection.execute(_HELD, {"uids": sop_instance_uids}).first() is not None


class LightRows:
    """The new rows of one transaction; `flush` writes them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._studies: list[tuple[Study, dict[str, Any]]] = []
        self._instances: list[Instance] = []

    def study(self, study_instance_uid: str) -> Study | None:
        """The study, locked until the transaction ends, where there is one; what is set on it is written."""
        row = self._connection.execute(_STUDY, {"uid": study_instance_uid}).mappings().one_or_none()
        if row is None:
            return None
        values: dict[str, Any] = {str(key): value for key, value in row.items()}
        study = Study(**values)
        self._studies.append((study, values))
        return study

    def add(self, instance: Instance) -> None:
        """A new instance; it has its number after `flush`."""
        self._instances.append(instance)

    def flush(self) -> None:
        """Write the instances, and what changed of the studies."""
        for instance in self._instances:
            state = attributes.instance_dict(instance)
            values = {key: value for key, value in state.items() if key in _COLUMNS}
            instance.id = self._connection.execute(_INSERT, values).scalar_one()
        for study, before in self._studies:
            changed = {key: value for key in before if (value := getattr(study, key)) != before[key]}
            if changed:
                self._connection.execute(update(_STUDIES).where(_STUDIES.c.id == before["id"]).values(changed))
