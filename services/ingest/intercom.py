"""How the processes that receive and the process that keeps rows and records talk: JSON in frames over a socket pair.

A frame is its length, four bytes, big endian, and so many bytes of JSON: an object. Whoever reads hostile objects sends
them, so nothing but JSON is read here, and no frame longer than `MAX_FRAME_BYTES`.

From a worker: `hello`; for each object `arrived` (what is said of it) and then `durable` or `lost` (of its bytes), of
which the first bears the `id` that the one answer bears too; `ask` (whether objects can be accepted now), `name`,
`admit`, `commit`, `outcome` and `announce`, which are answered; `refused`, `closed`, `reported` and `hurry`, which are
not. To a worker: answers, `ready`, `abort`.
"""

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from itertools import count
from typing import Any, Final

from shared.errors import ErrorCode, StepwedgeError

MAX_FRAME_BYTES: Final = 1 << 24
_LENGTH: Final = struct.Struct(">I")
_PIECE: Final = 1 << 18

Message = dict[str, Any]


def encoded(message: Message) -> bytes:
    """The frame of a message."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Puts frames together out of what a stream brings."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, piece: bytes) -> Iterator[Message]:
        """The messages that are whole now. Raises ValueError for what is no frame of ours."""
        self._buffer += piece
        while len(self._buffer) >= 4:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise ValueError("a frame is too long")
            if len(self._buffer) < 4 + length:
                return
            message = json.loads(bytes(self._buffer[4 : 4 + length]))
            del self._buffer[: 4 + length]
            if not isinstance(message, dict):
                raise ValueError("a frame is no object")
            yield message


def error_named(name: str) -> StepwedgeError:
    """The error that the other side named."""
    return StepwedgeError(ErrorCode.Value(f"ERROR_CODE_{name}"), "said by the process that keeps the records")


class Line:
    """A worker's end; any number of threads may use it, one reads it.

    Parameters
    ----------
    connection
        Of the socket pair.
    heard
        Called, in the thread that reads, with each message that is no answer.
    """

    def __init__(self, connection: socket.socket, heard: Callable[[Message], None]) -> None:
        self._connection = connection
        self._heard = heard
        self._sending = threading.Lock()
        self._numbers = count(1)
        self._waiting: dict[int, Future[Message]] = {}

    def tell(self, op: str, **members: Any) -> None:
        """Send what is not answered."""
        frame = encoded({"op": op, **members})
        with self._sending, suppress(OSError):  # where the other side is gone, whoever reads is told
            self._connection.sendall(frame)

    def begin(self, op: str, **members: Any) -> "Call":
        """Send what will be answered."""
        number = next(self._numbers)
        answer: Future[Message] = Future()
        self._waiting[number] = answer
        self.tell(op, id=number, **members)
        return Call(self, number, answer)

    def ask(self, op: str, seconds: float, **members: Any) -> Message:
        """Send, and wait for the answer; raises as `Call.wait`."""
        return self.begin(op, **members).wait(seconds)

    def read(self) -> None:
        """Read until the other side is gone."""
        frames = Frames()
        with suppress(OSError):
            while piece := self._connection.recv(_PIECE):
                for message in frames.feed(piece):
                    self._take(message)

    def _take(self, message: Message) -> None:
        if "op" in message:
            self._heard(message)
            return
        answer = self._waiting.pop(message["id"], None)
        if answer is not None:
            answer.set_result(message)

    def forget(self, number: int) -> None:
        """Nobody waits for this answer any more."""
        self._waiting.pop(number, None)


class Call:
    """Something that was asked."""

    def __init__(self, line: Line, number: int, answer: "Future[Message]") -> None:
        self._line = line
        self._answer = answer
        self.number = number

    def wait(self, seconds: float) -> Message:
        """The answer. Raises the error that it names, AUDIT_UNAVAILABLE where none comes in time."""
        try:
            message = self._answer.result(seconds)
        except FutureTimeoutError:
            raise StepwedgeError(ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE, "there was no answer in time") from None
        finally:
            self._line.forget(self.number)
        if error := message.get("error"):
            raise error_named(error)
        return message
