"""The gRPC face of ingest, where a wire test would have to wait."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.ingest import service
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
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


@pytest.mark.parametrize(
    ("reviewer", "role"), [("", "radiographer"), ("anna.b", ""), ("Anna Berg, 4711", "radiographer"), ("anna.b", "A B")]
)
def test_a_reviewer_whom_the_log_would_not_take_is_refused_before_anything_is_written(reviewer: str, role: str) -> None:
    request = ingest_pb2.ReviewStudyRequest(reviewer=reviewer, role=role)
    with pytest.raises(StepwedgeError) as refused:
        service._reviewer(request, Identity.CONSOLE)
    assert refused.value.code == ErrorCode.ERROR_CODE_INVALID_REQUEST


def test_only_the_console_names_a_reviewer() -> None:
    request = ingest_pb2.ReviewStudyRequest(reviewer="anna.b", role="radiographer")
    assert service._reviewer(request, Identity.CONSOLE) == ("anna.b", "radiographer")
    assert service._reviewer(request, Identity.OPERATOR) == ("operator", "operator")


def test_only_the_console_names_a_person_and_it_must() -> None:
    assert service._person("anna.b", Identity.CONSOLE) == "anna.b"
    assert service._person("anna.b", Identity.OPERATOR) == ""
    for name in ("", "Anna Berg, 4711"):
        with pytest.raises(StepwedgeError) as refused:
            service._person(name, Identity.CONSOLE)
        assert refused.value.code == ErrorCode.ERROR_CODE_INVALID_REQUEST
