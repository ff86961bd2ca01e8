"""New rows without the bookkeeping of a session, which is most of what an arrival costs: plain statements.

What is usual when an object arrives, a study that is known and an instance that is new, goes this way; everything
else goes through the session.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, cast

from sqlalchemy import Column, Connection, Table, bindparam, insert, literal_column, or_, select, update
from sqlalchemy.orm import attributes
from sqlalchemy.sql.schema import CallableColumnDefault, ScalarElementColumnDefault

from services.ingest.states import ACTIVE_STATES, InstanceEvent, InstanceState, next_instance_state
from services.ingest.tables import Instance, Study
from shared.statements import Statement


def _default(column: Column[Any]) -> Any:
    default = column.default
    if isinstance(default, CallableColumnDefault):
        return default.arg(cast(Any, None))
    return default.arg if isinstance(default, ScalarElementColumnDefault) else None


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
_STUDY: Final = Statement(
    select(_STUDIES.c.id, *(_STUDIES.c[name] for name in _CHANGING))
    .where(_STUDIES.c.study_instance_uid == bindparam("uid"))
    .with_for_update()
)
_CHANGE: Final = Statement(
    update(_STUDIES)
    .where(_STUDIES.c.id == bindparam("row"))
    .values({name: bindparam(name, type_=_STUDIES.c[name].type) for name in _CHANGING})
)
_HELD: Final = Statement(select(literal_column("1")).where(_INSTANCES.c.sop_instance_uid == bindparam("uid")).limit(1))
_NEW: Final = {column.key: _default(column) for column in _INSTANCES.columns if column.key != "id"}
"""A row of which nothing is known."""
_INSERT: Final = Statement(
    insert(_INSTANCES)
    .values({name: bindparam(name, type_=_INSTANCES.c[name].type) for name in _NEW})
    .returning(_INSTANCES.c.id)
)
_OF_THESE: Final = select(_INSTANCES.c.study_id).where(_INSTANCES.c.id.in_(bindparam("rows", expanding=True)))
_LOCK_OF_THESE: Final = (
    select(_STUDIES.c.id).where(_STUDIES.c.id.in_(_OF_THESE)).order_by(_STUDIES.c.id).with_for_update()
)
_RECORDED: Final = Statement(
    update(_INSTANCES)
    .where(_INSTANCES.c.id == bindparam("row"), _INSTANCES.c.record_index.is_(None))
    .values(
        state=next_instance_state(InstanceState.STORED, InstanceEvent.RECORDED).value, record_index=bindparam("index")
    )
)
_TO_WORK: Final = Statement(
    update(_STUDIES)
    .where(
        _STUDIES.c.id == select(_INSTANCES.c.study_id).where(_INSTANCES.c.id == bindparam("row")).scalar_subquery(),
        or_(*(_STUDIES.c.state == state.value for state in sorted(ACTIVE_STATES))),
        # What waits for a dependency is woken when that is back; looking through it before is for nothing.
        _STUDIES.c.waiting_for == "",
    )
    .values(next_action_at=bindparam("now", type_=_STUDIES.c.next_action_at.type))
)


def held(connection: Connection, sop_instance_uids: Sequence[str]) -> bool:
    """Whether there is a row under any of these UIDs."""
    return any(_HELD.rows(connection, {"uid": uid}) for uid in sop_instance_uids)


def confirm(connection: Connection, indexes: Mapping[int, int], now: datetime) -> None:
    """The log has the `received` records of these instances (row to index): they go to work."""
    if not indexes:
        return
    rows = sorted(indexes)
    if connection.dialect.name != "sqlite":
        # Studies first and in their order, so that two of these never wait for each other.
        connection.execute(_LOCK_OF_THESE, {"rows": rows})
    _RECORDED.run(connection, [{"row": row, "index": indexes[row]} for row in rows])
    _TO_WORK.run(connection, [{"row": row, "now": now} for row in rows])


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
            found = _STUDY.rows(self._connection, {"uid": study_instance_uid})
            if not found:
                return None
            changing = dict(zip(("id", *_CHANGING), found[0], strict=True))
            study = self._studies[study_instance_uid] = Study(**changing)
        return study

    def add(self, instance: Instance) -> None:
        """A new instance; it has its number after `flush`."""
        self._instances.append(instance)

    def flush(self) -> None:
        """Write the instances, and what changed of the studies."""
        for instance in self._instances:
            ((instance.id,),) = _INSERT.rows(self._connection, _NEW | attributes.instance_dict(instance))
        for study in self._studies.values():
            changed = {name: getattr(study, name) for name in _CHANGING}
            _CHANGE.run(self._connection, [{"row": study.id, **changed}])
