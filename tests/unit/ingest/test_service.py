"""The gRPC face of ingest, where a wire test would have to wait."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.ingest import service
from shared.errors import ErrorCode, StepwedgeError
from stepwedge.ingest.v1 import ingest_pb2


async def test_a_stream_that_falls_silent_is_ended_with_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_SILENCE_SECONDS", 0.05)

    async def falls_silent() -> AsyncIterator[ingest_pb2.SubmitInstanceRequest]:
        yield ingest_pb2.SubmitInstanceRequest(chunk=b"one")
        await asyncio.Event().wait()

    requests = service._without_silence(falls_silent())
    assert (await anext(requests)).chunk == b"one"
    with pytest.raises(StepwedgeError) as ended:
        await anext(requests)
    assert ended.value.code == ErrorCode.ERROR_CODE_INVALID_REQUEST
