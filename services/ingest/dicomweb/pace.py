"""How slowly an answer may be read: whoever reads on for ever would hold a place and an object in memory."""

import asyncio
import time
from typing import Final

from starlette.types import Message, Send

_PIECE: Final = 1 << 18
PATIENCE_SECONDS: Final = 60.0
LEAST_BYTES_PER_SECOND: Final = 1 << 16


class TooSlowError(ConnectionError):
    """The reader takes too little of the answer; its connection is broken off."""


class Pace:
    """`send` of one answer, in pieces. Waiting for the reader may take `patience` seconds in all, and a second more for
    every `rate` bytes that went out; making the answer does not count. Raises TooSlowError.
    """

    def __init__(self, send: Send, patience: float = PATIENCE_SECONDS, rate: float = LEAST_BYTES_PER_SECOND) -> None:
        self._send = send
        self._left = patience
        self._rate = rate

    async def __call__(self, message: Message) -> None:
        """Send a message, a long body in pieces."""
        body = memoryview(message.get("body", b""))
        for at in range(0, max(1, len(body)), _PIECE):
            piece = {**message}
            if len(body) > _PIECE:
                more = message.get("more_body", False) or at + _PIECE < len(body)
                piece |= {"body": body[at : at + _PIECE], "more_body": more}
            began = time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, self._left)):
                    await self._send(piece)
            except TimeoutError:
                raise TooSlowError from None
            self._left += len(piece.get("body", b"")) / self._rate - (time.monotonic() - began)
