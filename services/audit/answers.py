"""From the sequencer's thread back into the event loop: one wake-up for all the answers of a batch."""

import asyncio
from collections import deque
from concurrent.futures import Future
from typing import TypeVar

Answer = TypeVar("Answer")


class Answers:
    """Awaits futures that another thread ends; belongs to one event loop.

    asyncio.wrap_future wakes the loop once for each future, which costs a system call and a switch of threads apiece.
    """

    def __init__(self) -> None:
        self._ended: deque[asyncio.Future[None]] = deque()
        self._scheduled = False

    async def of(self, future: "Future[Answer]") -> Answer:
        """What the future ends with; it is cancelled where the caller is."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        future.add_done_callback(lambda _: self._end(waiter, loop))
        try:
            await waiter
        except asyncio.CancelledError:
            future.cancel()
            raise
        return future.result()

    def _end(self, waiter: "asyncio.Future[None]", loop: asyncio.AbstractEventLoop) -> None:
        self._ended.append(waiter)
        if not self._scheduled:
            self._scheduled = True
            try:
                loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the loop is closed, and nobody waits any more
                self._scheduled = False

    def _wake(self) -> None:
        self._scheduled = False
        while self._ended:
            waiter = self._ended.popleft()
            if not waiter.done():
                waiter.set_result(None)
