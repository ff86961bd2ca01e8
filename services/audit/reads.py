"""The record of who read the log (DICOM PS3.15 A.5, Audit Log Used): durable before anything is handed out.

Recorded is what reveals entries to people and their tools: a query, a stream, an entry, a proof that carries its entry,
an export. Not recorded is what reveals none: checkpoints, inclusion and consistency proofs. Those are also all that a
service of the cluster itself may ask for (ingest, to check that what it was answered is in the tree), so no record
begets another. The pages of one query are one read; so is a stream.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import sqlalchemy as sa
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from services.audit import record
from services.audit.acts import Own
from services.audit.answers import Answers
from services.audit.log import Log
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import PERSON, Identity
from stepwedge.audit.v1 import audit_pb2

FRESH_SECONDS = 600.0
"""How long the pages that follow belong to the read that was recorded; later ones are a read of their own."""

# A refusal for these says that the log itself cannot be written: there is nothing to record it with.
_AWAY = frozenset(
    {
        ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE,
        ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE,
        ErrorCode.ERROR_CODE_STORAGE_FULL,
    }
)

_SHAPES: Mapping[str, re.Pattern[str]] = {
    "study": re.compile(record.SHAPES["Record.study"]),
    "instance": re.compile(record.SHAPES["Record.instance"]),
    "subject": re.compile(record.SHAPES["Record.subject"]),
    "model_sha256": re.compile(record.SHAPES["Pins.model_sha256"]),
    "producer": re.compile("|".join(identity.value for identity in Identity)),
}
_ABOUT = ("study", "instance", "subject")
_NOT_A_FILTER = frozenset({"page_size", "page_token"})


@dataclass(frozen=True, slots=True)
class Read:
    """One read, as an act of the log that does nothing but be recorded."""

    makes_facets: ClassVar[bool] = False

    event: audit_pb2.ReadEvent
    about: Mapping[str, str]

    def perform(self, connection: sa.Connection, now_us: int, size: int) -> Own:
        """The record."""
        outcome = audit_pb2.EVENT_OUTCOME_MINOR_FAILURE if self.event.refusal else audit_pb2.EVENT_OUTCOME_SUCCESS
        return Own("read", outcome, {**self.about, "read": self.event})

    def committed(self) -> None:
        """Nothing is to be done."""


class Reads:
    """Records reads; belongs to one event loop."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._answers = Answers()
        # A page token from before a restart is one that this process did not give: its page is recorded anew.
        self._key = secrets.token_bytes(32)

    async def record(
        self,
        reader: Identity,
        method: str,
        asked: Message,
        *,
        entries: int,
        more: bool = False,
        about: Message | None = None,
    ) -> None:
        """Record a read; return when that is durable. What was read is handed out only then.

        Parameters
        ----------
        reader
            Who, by the certificate; the person for whom it asks is that of the call.
        method
            Name of the method.
        asked
            The request.
        entries
            How many entries are about to be handed out.
        more
            Whether the query has more pages.
        about
            The record that is read, where it is one; its pseudonyms stand in the record of the read.

        Raises
        ------
        StepwedgeError
            AUDIT_UNAVAILABLE or LOG_INCONSISTENT: then nothing is handed out.
        """
        event = audit_pb2.ReadEvent(reader=reader.value, person=PERSON.get(), method=method, entries=entries, more=more)
        event.filters.extend(filters(asked))
        await self._answers.of(self._log.perform(Read(event, _about(about or asked))))

    async def refused(self, reader: Identity, method: str, asked: Message, error: StepwedgeError) -> None:
        """Record a read that came to nothing, as far as the log takes it: nothing was handed out."""
        if error.code in _AWAY:
            return
        event = audit_pb2.ReadEvent(reader=reader.value, person=PERSON.get(), method=method, refusal=error.code)
        event.filters.extend(filters(asked))
        try:
            await self._answers.of(self._log.perform(Read(event, _about(asked))))
        except StepwedgeError:
            return

    def sealed(self, token: str, reader: Identity, began: float | None = None) -> str:
        """A page token that says that its read is recorded; empty where `token` is."""
        if not token:
            return ""
        since = int(time.time() if began is None else began)
        return f"{token}.{since}.{self._mac(token, since, reader)}"

    def opened(self, token: str, reader: Identity) -> tuple[str, float | None]:
        """The token of the query itself, and when its read was recorded; None where the page is a read of its own."""
        inner, _, rest = token.partition(".")
        if not inner:
            return token, None  # no token, or one that is none: not the first page
        since, _, mac = rest.partition(".")
        if not re.fullmatch(r"[0-9]{1,12}", since) or not mac.isascii():
            return inner, None
        recorded = int(since)
        if not hmac.compare_digest(mac, self._mac(inner, recorded, reader)):
            return inner, None
        return inner, recorded if 0 <= time.time() - recorded < FRESH_SECONDS else None

    def _mac(self, token: str, since: int, reader: Identity) -> str:
        whose = f"{reader.value}\n{PERSON.get()}\n{since}\n{token}"
        return hmac.new(self._key, whose.encode(), hashlib.sha256).hexdigest()[:32]


def filters(asked: Message) -> Iterator[audit_pb2.ReadFilter]:
    """What a request asks for. A word that can be in no record is named and left out: it might be a person's name."""
    for one, value in asked.ListFields():
        if one.name in _NOT_A_FILTER:
            continue
        if one.message_type is not None and one.message_type.full_name != "google.protobuf.Timestamp":
            yield from filters(value)
            continue
        yield audit_pb2.ReadFilter(name=one.name, value=_value(one, value))


def _value(one: FieldDescriptor, value: Any) -> str:
    if one.enum_type is not None:
        known = one.enum_type.values_by_number.get(value)
        prefix = one.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
        return "" if known is None else known.name.removeprefix(prefix)
    if one.type == FieldDescriptor.TYPE_MESSAGE:
        inside = 0 <= value.seconds < 253_402_300_800 and 0 <= value.nanos < 1_000_000_000
        return record.timestamp(value.seconds, value.nanos) if inside else ""
    if one.type == FieldDescriptor.TYPE_STRING:
        return value if one.name in _SHAPES and _SHAPES[one.name].fullmatch(value) else ""
    if one.type in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64):
        return str(value) if value < 10**19 else ""
    if one.type == FieldDescriptor.TYPE_BYTES:
        # A token of the blind index: who has its key can tell from its digest whether a number was searched for.
        return hashlib.sha256(value).hexdigest()
    return ""


def _about(message: Message) -> dict[str, str]:
    """The pseudonyms that a request or a record names."""
    named = {name: getattr(message, name, "") for name in _ABOUT}
    return {name: value for name, value in named.items() if isinstance(value, str) and _SHAPES[name].fullmatch(value)}
