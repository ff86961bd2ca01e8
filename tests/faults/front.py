"""What stands between processes in the fault runs: a TCP balancer that can be cut, healed, frozen, or answer errors.

It balances as a site's would: each connection goes to the next backend that takes it. One thread serves all fronts.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

Result = TypeVar("Result")
Backend = tuple[str, int] | Path
"""Host and port, or the path of a socket."""

ERROR = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: 71\r\nConnection: close\r\n\r\n"
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message/></Error>    "
)
CONNECT_SECONDS = 1.0
_PIECE = 1 << 16


class Front:
    """One address, and the backends behind it."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self.backends = list(backends)
        self.address = ("", 0)
        self.accepted = 0
        self.refused = 0
        """Connections for which no backend was there."""
        self._next = 0
        self._mode = "through"
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.accepted += 1
        self._writers.add(writer)
        try:
            if self._mode == "cut":
                return
            if self._mode == "errors":
                await self._answer_error(reader, writer)
                return
            await self._flows.wait()
            backend = await self._connected()
            if backend is None:
                self.refused += 1
                return
            self._writers.add(backend[1])
            try:
                await asyncio.gather(self._pump(reader, backend[1]), self._pump(backend[0], writer))
            finally:
                self._writers.discard(backend[1])
                backend[1].close()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in range(len(self.backends)):
            self._next += 1
            backend = self.backends[self._next % len(self.backends)]
            with contextlib.suppress(OSError, TimeoutError):
                if isinstance(backend, Path):
                    return await asyncio.open_unix_connection(str(backend))
                # A machine that was cut off answers nothing at all.
                return await asyncio.wait_for(asyncio.open_connection(*backend), CONNECT_SECONDS)
        return None

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_PIECE):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            with contextlib.suppress(OSError, RuntimeError):
                if writer.can_write_eof():
                    writer.write_eof()

    async def _answer_error(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(_PIECE), 0.2)
        writer.write(ERROR)
        await writer.drain()

    async def set(self, mode: str) -> None:
        """ "through", "cut" (connections end, new ones are closed), "frozen" (nothing moves), "errors" (HTTP 503)."""
        self._mode = mode
        if mode == "frozen":
            self._flows.clear()
        else:
            self._flows.set()
        if mode in ("cut", "errors"):
            for writer in list(self._writers):
                with contextlib.suppress(OSError, RuntimeError):
                    writer.transport.abort()


class Fronts:
    """Every front of a run, in one thread; a context manager."""

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda loop, context: None)  # connections that end in every way
        self._thread = threading.Thread(target=self._loop.run_forever, name="fronts", daemon=True)
        self._thread.start()
        self._servers: list[asyncio.base_events.Server] = []
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            self._loop.call_soon_threadsafe(server.close)

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        with contextlib.suppress(Exception):
            self._do(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def open(self, *backends: Backend, host: str = "127.0.0.1", port: int = 0) -> Front:
        """A front on a free port before these backends."""
        front = Front(backends)

        async def start() -> None:
            server = await asyncio.start_server(front.serve, host, port, backlog=256)
            self._servers.append(server)
            front.address = server.sockets[0].getsockname()[:2]

        self._do(start())
        return front

    def balance(self, front: Front, backends: Sequence[Backend]) -> None:
        """Let a front lead new connections to these backends; those that are open stay where they are."""

        async def change() -> None:
            front.backends = list(backends)

        self._do(change())

    def open_socket(self, path: Path, backend: Path) -> Front:
        """A front on a socket of the file system, as PostgreSQL has one."""
        front = Front([backend])

        async def start() -> None:
            self._servers.append(await asyncio.start_unix_server(front.serve, str(path), backlog=256))

        self._do(start())
        return front

    def set(self, front: Front, mode: str) -> None:
        """See `Front.set`."""
        self._do(front.set(mode))

    def _do(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)
