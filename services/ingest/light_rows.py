"""New rows without the bookkeeping of a session, which is most of what an arrival costs: plain statements.

What is usual when an object arrives, a study that is known and an instance that is new, goes this way; everything
else goes through the session. The statements are made once: to make one costs more than to run it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, cast

from sqlalchemy import Connection, Table, bindparam, insert, select, update
from sqlalchemy.orm import attributes

from services.ingest.states import ACTIVE_STATES, InstanceEvent, InstanceState, next_instance_state
from services.ingest.tables import Instance, Study

_STUDIES: Final = cast(Table, Study.__table__)
_INSTANCES: Final = cast(Table, Instance.__table__)
_CHANGING: Final = (
    "state",
    "generation",
    "last_received_at",
    "waits_from",
    "missing",
    "next_action_at",
    "device_id",
    "constancy",
    "instances",
    "modalities",
)
"""What an arrival changes of a study."""
_STUDY: Final = (
    select(_STUDIES.c.id, *(_STUDIES.c[name] for name in _CHANGING))
    .where(_STUDIES.c.study_instance_uid == bindparam("uid"))
    .with_for_update()
)
_CHANGE: Final = (
    update(_STUDIES)
    .where(_STUDIES.c.id == bindparam("row"))
    .values({name: bindparam(name, type_=_STUDIES.c[name].type) for name in _CHANGING})
)
_HELD: Final = (
    select(_INSTANCES.c.id).where(_INSTANCES.c.sop_instance_uid.in_(bindparam("uids", expanding=True))).limit(1)
)
_INSERT: Final = insert(_INSTANCES).returning(_INSTANCES.c.id)
_COLUMNS: Final = frozenset(column.key for column in _INSTANCES.columns)
_OF_THESE: Final = select(_INSTANCES.c.study_id).where(_INSTANCES.c.id.in_(bindparam("rows", expanding=True)))
_LOCK_OF_THESE: Final = (
    select(_STUDIES.c.id).where(_STUDIES.c.id.in_(_OF_THESE)).order_by(_STUDIES.c.id).with_for_update()
)
_RECORDED: Final = (
    update(_INSTANCES)
    .where(_INSTANCES.c.id == bindparam("row"), _INSTANCES.c.record_index.is_(None))
    .values(
        state=next_instance_state(InstanceState.STORED, InstanceEvent.RECORDED).value, record_index=bindparam("index")
    )
)
_TO_WORK: Final = (
    update(_STUDIES)
    .where(
        _STUDIES.c.id.in_(_OF_THESE),
        _STUDIES.c.state.in_(sorted(state.value for state in ACTIVE_STATES)),
        # What waits for a dependency is woken when that is back; looking through it before is for nothing.
        _STUDIES.c.waiting_for == "",
    )
    .values(next_action_at=bindparam("now", type_=_STUDIES.c.next_action_at.type))
)


def held(connection: Connection, sop_instance_uids: Sequence[str]) -> bool:
    """Whether there is a row under any of these UIDs."""
    return connection.execute(_HELD, {"uids": sop_instance_uids}).first() is not None


def confirm(connection: Connection, indexes: Mapping[int, int], now: datetime) -> None:
    """The log has the `received` records of these instances (row to index): they go to work."""
    if not indexes:
        return
    rows = sorted(indexes)
    if connection.dialect.name != "sqlite":
        # Studies first and in their order, so that two of these never wait for each other.
        connection.execute(_LOCK_OF_THESE, {"rows": rows})
    connection.execute(_RECORDED, [{"row": row, "index": indexes[row]} for row in rows])
    connection.execute(_TO_WORK, {"rows": rows, "now": now})


class LightRows:
    """The new rows of one transaction; `flush` writes them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._studies: dict[str, Study] = {}
        self._instances: list[Instance] = []

    def study(self, study_instance_uid: str) -> Study | None:
        """What an arrival changes of a study, locked until the transaction ends; None where there is no such study."""
        study = self._studies.get(study_instance_uid)
        if study is None:
            row = self._connection.execute(_STUDY, {"uid": study_instance_uid}).mappings().one_or_none()
            if row is None:
                return None
            study = self._studies[study_instance_uid] = Study(**{str(key): value for key, value in row.items()})
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
        for study in self._studies.values():
            changed = {name: getattr(study, name) for name in _CHANGING}
            self._connection.execute(_CHANGE, {"row": study.id, **changed})
