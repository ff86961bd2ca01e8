"""Multipart bodies (RFC 2046 5.1, RFC 2387), read piece by piece and written piece by piece; nothing is held whole.

`python-multipart`, which the console reads forms with, does not serve here: it takes neither a preamble nor padding
behind a boundary, which RFC 2046 allows, and it writes bytes of the body into its warnings, which here are a patient's.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from shared.errors import ErrorCode, StepwedgeError

MAX_HEADER_BYTES: Final = 8192
"""Headers of one part, all together."""
_MAX_PREAMBLE_BYTES: Final = 4096
_MAX_PADDING_BYTES: Final = 256

# RFC 2046 5.1.1: 1 to 70 characters, no space at the end. Orthanc's has 73, and some use characters beyond the RFC's.
_BOUNDARY: Final = re.compile(r"[\x20-\x7e]{0,199}[\x21-\x7e]")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PARAMETER: Final = re.compile(r';\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s;,"]*)\s*')


@dataclass(frozen=True, slots=True)
class MediaType:
    """A media type and its parameters (RFC 9110 8.3.1); type and names of parameters in lower case."""

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def media_type(value: str) -> MediaType:
    """Read the value of a Content-Type. Raises INVALID_REQUEST where it is none."""
    name, rest = (value[: value.index(";")], value[value.index(";") :]) if ";" in value else (value, "")
    name = name.strip().lower()
    parameters: dict[str, str] = {}
    at = 0
    rest = rest.rstrip(" ;\t")
    while at < len(rest):
        found = _PARAMETER.match(rest, at)
        if found is None:
            raise _invalid("a media type cannot be read")
        text = found[2]
        if text.startswith('"'):
            text = re.sub(r"\\(.)", r"\1", text[1:-1])
        parameters.setdefault(found[1].lower(), text)
        at = found.end()
    if not re.fullmatch(r"[\w!#$&^.+*-]+/[\w!#$&^.+*-]+", name, re.ASCII):
        raise _invalid("a media type cannot be read")
    return MediaType(name, parameters)


@dataclass(frozen=True, slots=True)
class Began:
    """A part begins."""

    headers: Mapping[str, str]
    """Names in lower case."""


@dataclass(frozen=True, slots=True)
class Data:
    """A piece of the part that began last."""

    piece: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The part that began last is whole."""


Event = Began | Data | Ended


class Reader:
    """Reads one body; `feed` it as it comes. Memory: one piece, and as much again as one part's headers."""

    def __init__(self, boundary: str) -> None:
        if not _BOUNDARY.fullmatch(boundary):
            raise _invalid("the boundary is absent or none")
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        self._buffer = b"\r\n"  # the first delimiter may stand at the very beginning
        self._step = self._preamble
        self._preamble_bytes = 0
        self.finished = False
        """Whether the closing delimiter came."""

    def feed(self, piece: bytes) -> Iterator[Event]:
        """What this piece brought. Raises INVALID_REQUEST where the body is no multipart."""
        self._buffer += piece
        while not self.finished:
            found = self._step()
            if found is None:
                return
            yield from found
        self._buffer = b""  # the epilogue says nothing

    def _preamble(self) -> list[Event] | None:
        at = self._buffer.find(self._delimiter)
        if at < 0:
            kept = self._buffer[-len(self._delimiter) :]
            self._preamble_bytes += len(self._buffer) - len(kept)
            if self._preamble_bytes > _MAX_PREAMBLE_BYTES:
                raise _invalid("the body does not begin with its boundary")
            self._buffer = kept
            return None
        self._buffer = self._buffer[at + len(self._delimiter) :]
        self._step = self._delimited
        return []

    def _delimited(self) -> list[Event] | None:
        """Behind a delimiter: two hyphens close the body; else padding and a line's end, and a part begins."""
        if len(self._buffer) < 2:
            return None
        if self._buffer.startswith(b"--"):
            self.finished = True
            return []
        end = self._buffer.find(b"\r\n")
        if end < 0 and len(self._buffer) <= _MAX_PADDING_BYTES:
            return None
        if end < 0 or self._buffer[:end].strip(b" \t"):
            raise _invalid("something stands behind a boundary")
        # The line's end stays: headers may be absent, and then the empty line that ends them follows at once.
        self._buffer = self._buffer[end:]
        self._step = self._headers
        return []

    def _headers(self) -> list[Event] | None:
        end = self._buffer.find(b"\r\n\r\n")
        if (end if end >= 0 else len(self._buffer)) > MAX_HEADER_BYTES:
            raise _invalid("the headers of a part are too long")
        if end < 0:
            return None
        headers = _headers(self._buffer[2:end])
        # A part without content is followed by the delimiter at once, which shares the line's end with the headers.
        self._buffer = self._buffer[end + 2 :]
        self._step = self._first
        return [Began(headers)]

    def _first(self) -> list[Event] | None:
        if len(self._buffer) < len(self._delimiter):
            if not self._delimiter.startswith(self._buffer):
                self._buffer, self._step = self._buffer[2:], self._content
                return []
            return None
        if not self._buffer.startswith(self._delimiter):
            self._buffer = self._buffer[2:]
        self._step = self._content
        return []

    def _content(self) -> list[Event] | None:
        at = self._buffer.find(self._delimiter)
        if at >= 0:
            events: list[Event] = [Data(self._buffer[:at])] if at else []
            self._buffer = self._buffer[at + len(self._delimiter) :]
            self._step = self._delimited
            return [*events, Ended()]
        # Only what could be the beginning of a delimiter is kept back.
        first = self._beginning()
        piece, self._buffer = self._buffer[:first], self._buffer[first:]
        return [Data(piece)] if piece else None

    def _beginning(self) -> int:
        """Where, near the end, a delimiter may begin; the length where none may."""
        at = max(0, len(self._buffer) - len(self._delimiter) + 1)
        while (at := self._buffer.find(b"\r", at)) >= 0:
            if self._delimiter.startswith(self._buffer[at:]):
                return at
            at += 1
        return len(self._buffer)


def _headers(block: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in block.split(b"\r\n") if block else []:
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name):
            raise _invalid("a header of a part cannot be read")
        headers.setdefault(name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1"))
    return headers


def opening(boundary: str, content_type: str, **headers: str) -> bytes:
    """The delimiter and headers before a part's content."""
    lines = [f"\r\n--{boundary}", f"Content-Type: {content_type}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def closing(boundary: str) -> bytes:
    """What ends a body."""
    return f"\r\n--{boundary}--\r\n".encode("ascii")


def _invalid(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, words)
