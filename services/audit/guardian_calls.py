# ruff: noqa: N802 - the names of the methods are the contract's
"""The part of the log's gRPC face for those who guard it: erasure, legal holds, pruning, identity, checks."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from services.audit import record, retention
from services.audit.acts import Caller
from services.audit.log import Log
from services.audit.retention import Hold, Prune, Wish
from services.audit.scrub import Findings, Scrub
from services.audit.subjects import Erase, LookUp, Vault
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import caller
from shared.transparency.cosignature import WitnessKey
from stepwedge.audit.v1 import audit_pb2

_SECONDS = 60.0
_SHAPES: Mapping[str, re.Pattern[str]] = {
    name: re.compile(record.SHAPES[place])
    for name, place in (
        ("subject", "Record.subject"),
        ("study", "Record.study"),
        ("release", "HoldEvent.hold"),
        ("reference", "HoldEvent.reference"),
        ("person", "HoldEvent.person"),
    )
}
TOKEN_BYTES = 16


def _invalid(message: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, message)


def _shaped(**values: str) -> None:
    """Refuse what no record may hold, before anything is done. The message names the field only."""
    for name, value in values.items():
        if value and not _SHAPES[name].fullmatch(value):
            raise _invalid(f"{name} does not have the form that this field takes")


def moment_us(moment: Timestamp) -> int:
    """A time of a request in microseconds. Raises INVALID_REQUEST."""
    if not 0 <= moment.seconds < 253_402_300_800 or not 0 <= moment.nanos < 1_000_000_000:
        raise _invalid("a time of the query is out of range")
    return moment.seconds * 1_000_000 + -(-moment.nanos // 1000)


class GuardianCalls:
    """EraseSubject, SetHold, ListHolds, Prune, OpenIdentity and CheckLog of stepwedge.audit.v1.AuditService."""

    def __init__(
        self, log: Log, scrub: Scrub, of_kind: Mapping[str, str], witnesses: Sequence[WitnessKey] = ()
    ) -> None:
        self._witness_keys = witnesses
        self._guarded = log
        self._scrub = scrub
        self._of_kind = of_kind

    def _vault(self) -> Vault:
        if self._guarded.vault is None:
            raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "this log has no master key")
        return self._guarded.vault

    def _caller(self, cause: audit_pb2.Cause, *, purpose_needed: bool = True) -> Caller:
        _shaped(reference=cause.reference, person=cause.person)
        return Caller.of(caller(), cause, purpose_needed=purpose_needed)

    async def _performed(self, act: Any) -> int | None:
        receipt = await asyncio.wait_for(asyncio.wrap_future(self._guarded.perform(act)), _SECONDS)
        return receipt.indexes[0] if receipt.indexes else None

    async def EraseSubject(
        self, request: audit_pb2.EraseSubjectRequest, context: Any
    ) -> audit_pb2.EraseSubjectResponse:
        """Destroy what ties a subject's records to a person."""
        _shaped(subject=request.subject)
        if bool(request.subject) == bool(request.token) or len(request.token) not in (0, TOKEN_BYTES):
            raise _invalid("either the subject or the token of its number is needed")
        act = Erase(self._vault(), self._caller(request.cause), subject=request.subject, token=request.token)
        index = await self._performed(act)
        if act.event.refusal:
            raise StepwedgeError(act.event.refusal, f"a legal hold keeps the subject; recorded as entry {index}")
        erased = act.index if index is None else index
        return audit_pb2.EraseSubjectResponse(index=erased or 0, subject=act.subject, erased=act.event)

    async def SetHold(self, request: audit_pb2.SetHoldRequest, context: Any) -> audit_pb2.SetHoldResponse:
        """Set or release a legal hold."""
        _shaped(subject=request.subject, study=request.study, release=request.release)
        if request.release and (request.subject or request.study):
            raise _invalid("a hold is released by its identifier alone")
        act = Hold(self._caller(request.cause), study=request.study, subject=request.subject, release=request.release)
        return audit_pb2.SetHoldResponse(index=await self._performed(act) or 0, hold=act.hold)

    async def ListHolds(self, request: audit_pb2.ListHoldsRequest, context: Any) -> audit_pb2.ListHoldsResponse:
        """The holds that stand."""

        def read() -> list[retention.Held]:
            with self._guarded.store.reading() as connection:
                return list(retention.holds(connection).by_id.values())

        standing = [
            audit_pb2.Hold(hold=one.hold, study=one.study, subject=one.subject, index=one.index)
            for one in await asyncio.to_thread(read)
        ]
        return audit_pb2.ListHoldsResponse(holds=standing)

    async def Prune(self, request: audit_pb2.PruneRequest, context: Any) -> audit_pb2.PruneResponse:
        """Remove entries whose retention is over."""
        self._scrub.raise_if_refused()
        before = moment_us(request.before) if request.HasField("before") else None
        try:
            names = [audit_pb2.RetentionClass.Name(one).removeprefix("RETENTION_CLASS_") for one in request.classes]
        except ValueError:
            raise _invalid("classes holds a number without a name") from None
        if "UNSPECIFIED" in names or len(names) > len(record.RETENTION):
            raise _invalid("classes holds none, or too many")
        wish = Wish(before, tuple(dict.fromkeys(names)), self._of_kind)
        asked = self._caller(request.cause, purpose_needed=False)
        if request.dry_run:
            return await asyncio.to_thread(self._would_prune, wish)
        act = Prune(asked, wish, self._guarded.forget_subjects, self._witness_keys)
        index = await self._performed(act)
        if act.refused:
            message = f"what was named must still be kept; recorded as entry {index}"
            raise StepwedgeError(ErrorCode.ERROR_CODE_RETAINED, message)
        return audit_pb2.PruneResponse(index=index, removed=act.removed, held=act.held, more=act.more)

    def _would_prune(self, wish: Wish) -> audit_pb2.PruneResponse:
        with self._guarded.store.reading() as connection:
            now_us = retention.agreed_us(connection, time.time_ns() // 1000, self._witness_keys)
            if wish.too_early(now_us):
                raise StepwedgeError(ErrorCode.ERROR_CODE_RETAINED, "what was named must still be kept")
            size = retention.size_of(connection)
            found = retention.expired(connection, wish, now_us, size, most=10_000_000)
        return audit_pb2.PruneResponse(removed=len(found.indexes), held=found.held, more=found.more)

    async def OpenIdentity(
        self, request: audit_pb2.OpenIdentityRequest, context: Any
    ) -> audit_pb2.OpenIdentityResponse:
        """Hand out the sealed identity of an entry, once that is recorded."""
        if request.index >= 2**63:
            raise StepwedgeError(ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND, "the log has no such entry")
        act = LookUp(self._vault(), self._caller(request.cause), request.index)
        index = await self._performed(act)
        return audit_pb2.OpenIdentityResponse(
            sealed=act.sealed, subject=act.subject, idempotency_key=act.key, lookup_index=index or 0
        )

    async def CheckLog(
        self, request: audit_pb2.CheckLogRequest, context: Any
    ) -> AsyncIterator[audit_pb2.CheckLogResponse]:
        """Hold every entry against the tree."""
        if request.first >= 2**63:
            raise _invalid("first is beyond the log")
        found = self._scrub.check(request.first, reindex=request.reindex)
        while (far := await asyncio.to_thread(next, found, None)) is not None:
            yield _far(far)


def _far(found: Findings) -> audit_pb2.CheckLogResponse:
    return audit_pb2.CheckLogResponse(
        checked=found.checked,
        size=found.size,
        columns_altered=len(found.columns),
        entries_altered=len(found.entries),
        entries_missing=len(found.missing),
        first_index=found.first,
        pruned=found.pruned,
    )
