"""An answer of several parts (PS3.18 8.6.1.2)."""

import secrets
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Final

from starlette.responses import Response, StreamingResponse

from services.ingest.dicomweb import multipart

_PIECE: Final = 1 << 18


def multipart_answer(
    kind: str, parts: AsyncIterator[tuple[str, bytes]], status: HTTPStatus, headers: Mapping[str, str]
) -> Response:
    """Parts (media type and content), each made when the one before it is sent.

    What fails half-way breaks the connection off, so that nobody takes the beginning for the whole.
    """
    boundary = secrets.token_hex(16)

    async def body() -> AsyncIterator[bytes | memoryview]:
        async for content_type, data in parts:
            yield multipart.opening(boundary, content_type)
            view = memoryview(data)
            for at in range(0, len(view), _PIECE):
                yield view[at : at + _PIECE]
        yield multipart.closing(boundary)

    return StreamingResponse(body(), status, headers, f'multipart/related; type="{kind}"; boundary={boundary}')
