"""The gRPC face of the tokens; what it does is in the log before it holds."""

import asyncio
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from services.ingest.dicomweb.tokens import Scope, Tokens
from services.ingest.explain import timestamp
from services.ingest.tables import Token
from shared.audit import Recorder
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import peer
from stepwedge.audit.v1 import audit_pb2
from stepwedge.ingest.v1 import tokens_pb2, tokens_pb2_grpc

SERVICE: Final = "stepwedge.ingest.v1.TokenService"

SCOPES: Final[Mapping[int, Scope]] = {
    tokens_pb2.TOKEN_SCOPE_STORE: Scope.STORE,
    tokens_pb2.TOKEN_SCOPE_READ: Scope.READ,
}
_TO_PROTO: Final = {scope.value: number for number, scope in SCOPES.items()}


class TokenService(tokens_pb2_grpc.TokenServiceServicer):
    """Translates between the contract and the rows."""

    def __init__(self, tokens: Tokens, recorder: Recorder) -> None:
        self._tokens = tokens
        self._recorder = recorder

    async def CreateToken(  # noqa: N802 - the contract's name
        self, request: tokens_pb2.CreateTokenRequest, context: Any
    ) -> tokens_pb2.CreateTokenResponse:
        """Make a token; tell it this once."""
        if any(scope not in SCOPES for scope in request.scopes):
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "no such scope")
        scopes = [SCOPES[scope] for scope in request.scopes]
        bearer, token = self._tokens.make(request.client, scopes, request.days, datetime.now(UTC))
        await self._record("token_created", token, context)
        answer = _token(token)
        await asyncio.to_thread(self._tokens.keep, token)
        return tokens_pb2.CreateTokenResponse(bearer=bearer, token=answer)

    async def ListTokens(  # noqa: N802
        self, request: tokens_pb2.ListTokensRequest, context: Any
    ) -> tokens_pb2.ListTokensResponse:
        """Every token."""
        return tokens_pb2.ListTokensResponse(
            tokens=[_token(one) for one in await asyncio.to_thread(self._tokens.listed)]
        )

    async def RevokeToken(  # noqa: N802
        self, request: tokens_pb2.RevokeTokenRequest, context: Any
    ) -> tokens_pb2.RevokeTokenResponse:
        """End a token at once."""
        token = await asyncio.to_thread(self._tokens.find, request.id)
        if token.revoked_at is None:
            await self._record("token_revoked", token, context)
            token = await asyncio.to_thread(self._tokens.revoke, request.id, datetime.now(UTC))
        return tokens_pb2.RevokeTokenResponse(token=_token(token))

    async def _record(self, act: str, token: Token, context: Any) -> None:
        event = audit_pb2.AuthenticatedEvent(
            person=token.client, role="client", act=act, method="bearer", by=peer(context).value
        )
        await self._recorder.record(
            key=f"authenticated/{uuid.uuid4()}", outcome=audit_pb2.EVENT_OUTCOME_SUCCESS, event=event
        )


def _token(row: Token) -> tokens_pb2.Token:
    message = tokens_pb2.Token(
        id=row.id,
        client=row.client,
        scopes=[_TO_PROTO[scope] for scope in row.scopes.split("+")],  # type: ignore[misc]
        created_at=timestamp(row.created_at),
        expires_at=timestamp(row.expires_at),
    )
    if row.revoked_at is not None:
        message.revoked_at.CopyFrom(timestamp(row.revoked_at))
    return message
