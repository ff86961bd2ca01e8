"""The log's own record of calls that its server refused; the other services record theirs over `shared.audit`."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar

import sqlalchemy as sa
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.audit.acts import Own
from services.audit.answers import Answers
from services.audit.log import Log
from stepwedge.audit.v1 import audit_pb2


@dataclass(frozen=True, slots=True)
class RefusedCall:
    """As an act of the log that does nothing but be recorded."""

    makes_facets: ClassVar[bool] = False

    key: str
    outcome: audit_pb2.EventOutcome.ValueType
    event: Message
    occurred_at: Timestamp = field(default_factory=Timestamp)

    def perform(self, connection: sa.Connection, now_us: int, size: int) -> Own:
        """The record."""
        fields = {"refused_call": self.event, "occurred_at": self.occurred_at}
        return Own(self.key, self.outcome, fields, once=True)

    def committed(self) -> None:
        """Nothing is to be done."""


class OwnRecorder:
    """What `shared.refusals` of the log's own process records with."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._answers = Answers()

    async def record(
        self,
        *,
        key: str,
        outcome: audit_pb2.EventOutcome.ValueType,
        event: Message,
        occurred_at: datetime | None = None,
    ) -> int:
        """Record it; its index, also where an earlier try had come to be durable after all."""
        when = Timestamp()
        when.FromDatetime((occurred_at or datetime.now(UTC)).astimezone(UTC).replace(tzinfo=None))
        receipt = await self._answers.of(self._log.perform(RefusedCall(key, outcome, event, when)))
        return receipt.indexes[0]
