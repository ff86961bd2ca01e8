"""Calls that were refused because of who called, on their way into the log; a flood of them is a few records.

The refusal itself waits for nothing: it is noted in memory, and a task of its own records it. The first of its kind is
recorded at once, and those alike (the same caller, certificate, method and error) that follow within a minute as one
record with their count. While the log is away they are counted on. What a process that is killed had noted and not
recorded is lost; its metrics and its own log lines still have it.
"""

import asyncio
import contextvars
import hashlib
import ssl
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from google.protobuf.message import Message

from shared import logs
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from stepwedge.audit.v1 import audit_pb2

WINDOW_SECONDS = 60.0
"""How long refusals that are alike are counted into one record."""

NOTED: frozenset[ErrorCode.ValueType] = frozenset(
    {ErrorCode.ERROR_CODE_UNAUTHENTICATED, ErrorCode.ERROR_CODE_PERMISSION_DENIED}
)
"""Errors that are about who called."""

_MOST = 256
"""Kinds that are told apart; whoever has certificates without number is counted together."""
_PAUSE_SECONDS = 5.0

_log = logs.get_logger(__name__)


class Recorder(Protocol):
    """What takes the records: `shared.audit.Recorder`, or the log itself."""

    async def record(
        self,
        *,
        key: str,
        outcome: audit_pb2.EventOutcome.ValueType,
        event: Message,
        occurred_at: datetime | None = None,
    ) -> int:
        """Record an act; see `shared.audit.Recorder.record`."""


@dataclass(frozen=True, slots=True)
class _Kind:
    caller: Identity | None
    certificate: bytes
    """PEM; its digest is made once, when it is recorded."""
    method: str
    code: ErrorCode.ValueType


@dataclass(slots=True)
class _Count:
    due: float
    """When it is to be recorded, on the monotonic clock."""
    count: int = 0
    first_us: int = 0
    last_us: int = 0


@dataclass(slots=True)
class _Record:
    """On its way; the same until the log has it."""

    key: str
    event: audit_pb2.RefusedCallEvent
    occurred_at: datetime


class Refusals:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._counts: dict[_Kind, _Count] = {}
        self._under_way: _Record | None = None
        self._recorder: Recorder | None = None
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    def record_with(self, recorder: Recorder) -> None:
        """Say what takes the records; what was noted before goes there too."""
        self._recorder = recorder
        self._start()

    def note(self, caller: Identity | None, context: Any, method: str, code: ErrorCode.ValueType) -> None:
        """Note a refusal where its error is about who called; returns at once.

        Parameters
        ----------
        caller
            The identity in the certificate; None where it names none.
        context
            The call's servicer context.
        method
            Full name of the method, "/package.Service/Method".
        code
            What the caller was told.
        """
        if code not in NOTED:
            return
        certificate = b"".join(context.auth_context().get("x509_pem_cert", [])[:1])
        kind = _Kind(caller, certificate, method.lstrip("/"), code)
        if kind not in self._counts and len(self._counts) >= _MOST:
            kind = _Kind(None, b"", "", code)
        now = time.time_ns() // 1000
        count = self._counts.setdefault(kind, _Count(due=0.0))
        count.first_us = count.first_us if count.count else now
        count.last_us = now
        count.count += 1
        self._start()

    async def close(self, seconds: float = 2.0) -> None:
        """Record what is left, as far as the log takes it in so many seconds."""
        if self._task is None:
            return
        for count in self._counts.values():
            count.due = 0.0
        self._news.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._all_recorded()), seconds)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _all_recorded(self) -> None:
        while self._under_way is not None or any(one.count for one in self._counts.values()):
            if self._task is None or self._task.done():
                return
            await asyncio.sleep(0.01)

    def _start(self) -> None:
        self._news.set()
        if self._recorder is not None and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run(), name="refusals", context=contextvars.Context())

    async def _run(self) -> None:
        """Record what is due; ends when nothing is noted any more."""
        assert self._recorder is not None
        while True:
            self._news.clear()
            if self._under_way is None:
                self._under_way = self._next(time.monotonic())
            if self._under_way is not None:
                if await self._recorded(self._recorder, self._under_way):
                    self._under_way = None
                else:
                    await asyncio.sleep(_PAUSE_SECONDS)
                continue
            if not self._counts:
                return
            wait = max(0.0, min(one.due for one in self._counts.values()) - time.monotonic())
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), wait)

    def _next(self, now: float) -> _Record | None:
        """The next that is due; a kind of which none came for a whole window is forgotten."""
        for kind, count in list(self._counts.items()):
            if count.due > now:
                continue
            if not count.count:
                del self._counts[kind]
                continue
            made = _Record(
                f"refused/{uuid.uuid4()}", _event(kind, count), datetime.fromtimestamp(count.first_us / 1e6, UTC)
            )
            count.count, count.due = 0, now + WINDOW_SECONDS
            return made
        return None

    async def _recorded(self, recorder: Recorder, one: _Record) -> bool:
        try:
            await recorder.record(
                key=one.key,
                outcome=audit_pb2.EVENT_OUTCOME_SERIOUS_FAILURE,
                event=one.event,
                occurred_at=one.occurred_at,
            )
        except StepwedgeError as error:
            _log.warning("a refused call is not recorded", error=error.name, permanent=error.permanent)
            return error.permanent  # the log will never take it, as one of an older build; the line above is what stays
        except Exception as error:  # noqa: BLE001 - a defect must not end what records the next
            _log.error("a refused call is not recorded", **logs.describe(error))
            return True
        return True


def _event(kind: _Kind, count: _Count) -> audit_pb2.RefusedCallEvent:
    digest = ""
    if kind.certificate:
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(kind.certificate.decode("ascii"))).hexdigest()
    return audit_pb2.RefusedCallEvent(
        caller=kind.caller.value if kind.caller else "",
        certificate_sha256=digest,
        method=kind.method,
        error=kind.code,
        count=count.count,
        window_ms=max(0, count.last_us - count.first_us) // 1000,
    )
