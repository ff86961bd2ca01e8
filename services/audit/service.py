# ruff: noqa: N802 - the names of the methods are the contract's
"""The gRPC face of the log: translates between the contract and the log."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from services.audit import export, record, store
from services.audit.answers import Answers
from services.audit.draft import Receipt
from services.audit.guardian_calls import TOKEN_BYTES, GuardianCalls, moment_us
from services.audit.log import Log
from services.audit.proof_calls import ProofCalls
from services.audit.proofs import Rotator
from services.audit.reading import Reader, checkpoint_of
from services.audit.reads import Reads
from services.audit.scrub import Scrub
from services.audit.store import Filter
from services.audit.witnesses import Witnesses
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity, caller
from shared.refusals import Refusals
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc

MAX_RECORDS = 256
"""Most records in one Append."""


class AuditService(ProofCalls, GuardianCalls, audit_pb2_grpc.AuditServiceServicer):
    """stepwedge.audit.v1.AuditService."""

    def __init__(
        self,
        log: Log,
        witnesses: Witnesses | None = None,
        rotator: Rotator | None = None,
        scrub: Scrub | None = None,
        retention: Mapping[str, str] | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        scrub = scrub or Scrub(log, 0)
        ProofCalls.__init__(self, log.store, rotator)
        GuardianCalls.__init__(self, log, scrub, retention or {}, witnesses.keys if witnesses else ())
        self._log = log
        self._witnesses = witnesses
        self._reader = Reader(log.store, scrub.raise_if_refused)
        self._answers = Answers()
        self._reads = Reads(log)
        self._refusals = refusals

    async def Append(self, request: audit_pb2.AppendRequest, context: Any) -> audit_pb2.AppendResponse:
        """Take a batch; answer when it is durable and under a signed checkpoint."""
        receipt = await self._taken(request.records, caller(), context)
        return audit_pb2.AppendResponse(indexes=receipt.indexes, checkpoint=receipt.checkpoint)

    async def AppendStream(
        self, requests: AsyncIterator[audit_pb2.AppendStreamRequest], context: Any
    ) -> AsyncIterator[audit_pb2.AppendStreamResponse]:
        """Take batches one after the other; the next is not read before the last is durable."""
        producer = caller()
        async for request in requests:
            receipt = await self._taken(request.records, producer, context)
            yield audit_pb2.AppendStreamResponse(indexes=receipt.indexes, checkpoint=receipt.checkpoint)

    async def _taken(self, records: Sequence[audit_pb2.Record], producer: Identity, context: Any) -> Receipt:
        if not 1 <= len(records) <= MAX_RECORDS:
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, f"a batch has 1 to {MAX_RECORDS} records")
        try:
            prepared = [record.prepare(one, producer) for one in records]
        except StepwedgeError as error:
            self._refused(error.code, context)  # a record of another's act is refused because of who called
            raise
        return await self._answers.of(self._log.submit(prepared))

    def _refused(self, code: ErrorCode.ValueType, context: Any) -> None:
        if self._refusals is not None:
            self._refusals.note(caller(), context, "/stepwedge.audit.v1.AuditService/Append", code)

    async def GetEntry(self, request: audit_pb2.GetEntryRequest, context: Any) -> audit_pb2.GetEntryResponse:
        """One entry."""
        async with self._read("GetEntry", request):
            entry = await asyncio.to_thread(self._reader.entry, request.index)
        await self._reads.record(caller(), "GetEntry", request, entries=1, about=entry.record)
        return audit_pb2.GetEntryResponse(entry=entry)

    async def GetProof(self, request: audit_pb2.GetProofRequest, context: Any) -> audit_pb2.GetProofResponse:
        """A proof that carries its entry."""
        async with self._read("GetProof", request):
            proof = await super().GetProof(request, context)
        await self._reads.record(caller(), "GetProof", request, entries=1)
        return proof

    async def ListHolds(self, request: audit_pb2.ListHoldsRequest, context: Any) -> audit_pb2.ListHoldsResponse:
        """The holds that stand; each names a study or a subject."""
        async with self._read("ListHolds", request):
            standing = await super().ListHolds(request, context)
        await self._reads.record(caller(), "ListHolds", request, entries=len(standing.holds))
        return standing

    @contextlib.asynccontextmanager
    async def _read(self, method: str, request: Any) -> AsyncIterator[None]:
        """Record the read where what is inside is refused; where it succeeds, that is for who knows what was read."""
        try:
            yield
        except StepwedgeError as error:
            await self._reads.refused(caller(), method, request, error)
            raise

    async def QueryEntries(
        self, request: audit_pb2.QueryEntriesRequest, context: Any
    ) -> audit_pb2.QueryEntriesResponse:
        """A page of the entries that match."""
        reader = caller()
        after, recorded = self._reads.opened(request.page_token, reader)
        async with self._read("QueryEntries", request):
            wanted = to_filter(request)
            entries, token = await asyncio.to_thread(self._reader.query, wanted, request.page_size, after)
        if recorded is None:
            await self._reads.record(reader, "QueryEntries", request, entries=len(entries), more=bool(token))
        return audit_pb2.QueryEntriesResponse(
            entries=entries, next_page_token=self._reads.sealed(token, reader, recorded)
        )

    async def StreamEntries(
        self, request: audit_pb2.StreamEntriesRequest, context: Any
    ) -> AsyncIterator[audit_pb2.StreamEntriesResponse]:
        """Every entry that matches and is in the log now, page after page."""
        reader, size = caller(), request.query.page_size
        token, _ = self._reads.opened(request.query.page_token, reader)
        recorded = False
        while True:
            async with self._read("StreamEntries", request):
                if not recorded:
                    wanted = to_filter(request.query)
                    end = (await asyncio.to_thread(self._reader.head)).size
                entries, token = await asyncio.to_thread(self._reader.query, wanted, size, token, end)
            if not recorded:
                await self._reads.record(
                    reader, "StreamEntries", request, entries=len(entries), more=bool(token), about=request.query
                )
                recorded = True
            if entries:
                yield audit_pb2.StreamEntriesResponse(entries=entries)
            if not token:
                return

    async def GetCheckpoint(
        self, request: audit_pb2.GetCheckpointRequest, context: Any
    ) -> audit_pb2.GetCheckpointResponse:
        """The newest checkpoint."""
        head, cosigned = await asyncio.to_thread(self._reader.heads)
        return audit_pb2.GetCheckpointResponse(
            checkpoint=head.note,
            size=head.size,
            root_hash=checkpoint_of(head).root,
            verification_key=str(self._log.key),
            cosigned_checkpoint="" if cosigned is None else cosigned.note,
        )

    async def GetInclusionProof(
        self, request: audit_pb2.GetInclusionProofRequest, context: Any
    ) -> audit_pb2.GetInclusionProofResponse:
        """That an entry is in the tree."""
        proof = await asyncio.to_thread(self._reader.inclusion, request.index, request.size)
        return audit_pb2.GetInclusionProofResponse(
            index=request.index,
            size=proof.size,
            leaf_hash=proof.leaf_hash,
            path=proof.path,
            root_hash=proof.root,
            checkpoint=proof.checkpoint,
        )

    async def GetConsistencyProof(
        self, request: audit_pb2.GetConsistencyProofRequest, context: Any
    ) -> audit_pb2.GetConsistencyProofResponse:
        """That nothing was changed since an older tree."""
        proof = await asyncio.to_thread(self._reader.consistency, request.from_size, request.to_size)
        return audit_pb2.GetConsistencyProofResponse(
            from_size=request.from_size, to_size=proof.to_size, path=proof.path, checkpoint=proof.checkpoint
        )

    async def Export(self, request: audit_pb2.ExportRequest, context: Any) -> AsyncIterator[audit_pb2.ExportResponse]:
        """The log as an archive, or its records in a format of auditors' tools, in pieces."""
        async with self._read("Export", request):
            if request.format not in export.FORMATS:
                raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "no such format of an export")
            checkpoint, keys = await asyncio.to_thread(self._export_head, request.size)
        # What is there now shall be under cosignatures; where witnesses are away, it is exported without.
        if export.FORMATS[request.format] is None and request.size == 0 and await self._cosigned(checkpoint.size):
            checkpoint, keys = await asyncio.to_thread(self._export_head, 0, checkpoint.size)
        await self._reads.record(caller(), "Export", request, entries=checkpoint.size)
        pieces = export.pieces(self._log.store, checkpoint, keys, export.FORMATS[request.format])
        try:
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                yield audit_pb2.ExportResponse(chunk=piece)
        finally:
            # Where the caller has gone a thread may still be making a piece; the archive then ends with it.
            with contextlib.suppress(ValueError):
                pieces.close()

    async def _cosigned(self, size: int) -> bool:
        """Whether witnesses cosigned at least so many entries, asked at once."""
        if self._witnesses is None:
            return False
        return await asyncio.to_thread(self._witnesses.wait_for, size)

    def _export_head(self, size: int, cosigned_from: int | None = None) -> tuple[store.Head, list[store.Key]]:
        with self._log.store.reading() as connection:
            head = export.at(connection, size, self._log.sign, cosigned_from=cosigned_from)
            return head, store.keys(connection)


_WORD = re.compile(r"[!-~]{1,200}")


def to_filter(request: audit_pb2.QueryEntriesRequest) -> Filter:
    """The filter that a request asks for. Raises INVALID_REQUEST for a time, token or word that is none."""
    if len(request.token) not in (0, TOKEN_BYTES):
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, f"a token has {TOKEN_BYTES} bytes")
    words = (request.study, request.instance, request.subject, request.producer, request.model_sha256, request.actor)
    if any(word and not _WORD.fullmatch(word) for word in words):
        # Nothing in the log has that form; and PostgreSQL takes no NUL.
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "the query has a word that no record can hold")
    return Filter(
        study=request.study or None,
        instance=request.instance or None,
        subject=request.subject or None,
        kind=request.kind or None,
        producer=request.producer or None,
        outcome=request.outcome or None,
        verdict=request.verdict or None,
        model_sha256=request.model_sha256 or None,
        actor=request.actor or None,
        token=request.token.hex() or None,
        recorded_from_us=moment_us(request.recorded_from) if request.HasField("recorded_from") else None,
        recorded_before_us=moment_us(request.recorded_before) if request.HasField("recorded_before") else None,
    )
