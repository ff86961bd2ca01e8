# ruff: noqa: N802 - the names of the methods are the contract's
"""The part of the log's gRPC face that hands out stand-alone proofs and rotates the signing key."""

import asyncio
from typing import Any

from services.audit.proofs import Rotator, proof_of
from services.audit.store import Store
from shared.errors import ErrorCode, StepwedgeError
from stepwedge.audit.v1 import audit_pb2

MAX_INDEX = 2**63 - 1


class ProofCalls:
    """GetProof and RotateKey of stepwedge.audit.v1.AuditService."""

    def __init__(self, the_store: Store, rotator: Rotator | None) -> None:
        self._proofs_of = the_store
        self._rotator = rotator

    async def GetProof(self, request: audit_pb2.GetProofRequest, context: Any) -> audit_pb2.GetProofResponse:
        """A tlog-proof of one entry."""
        if max(request.index, request.size) > MAX_INDEX:
            raise StepwedgeError(ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND, "the tree has no such entry")
        proof = await asyncio.to_thread(proof_of, self._proofs_of, request.index, request.size)
        return audit_pb2.GetProofResponse(proof=str(proof), size=proof.checkpoint.size)

    async def RotateKey(self, request: audit_pb2.RotateKeyRequest, context: Any) -> audit_pb2.RotateKeyResponse:
        """Let a new key sign from now on."""
        if self._rotator is None:
            raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "this log has no folder of keys")
        done = await asyncio.to_thread(self._rotator.rotate)
        return audit_pb2.RotateKeyResponse(
            old_key=done.old_key, new_key=done.new_key, from_size=done.from_size, proof=done.proof
        )
