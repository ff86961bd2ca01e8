"""Which dependencies are fit for work, so that an outage is met once and not by every study in the queue.

A gate is shut by the first call that finds its dependency away, and opens when the health probe, made again since,
finds it well. Calls that end in the middle are counted against the object they were about: an object that takes a
service down each time is tried alone, and is given up in the end, while its neighbours go on.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from shared.errors import ErrorCode, StepwedgeError
from shared.health import INTERVAL_SECONDS, Health

PARALLEL_CALLS: Final = 4
"""Calls to one dependency under way at once in one process."""
_REOPENS_AFTER_SECONDS: Final = INTERVAL_SECONDS + 1.0  # so that a probe was made since


class Waiting(Exception):  # noqa: N818 - a state of affairs, not an error
    """Nothing can be done now for want of a dependency."""

    def __init__(self, dependency: str, error: StepwedgeError) -> None:
        super().__init__(dependency)
        self.dependency = dependency
        self.error = error


class Gate:
    """The way to one dependency."""

    def __init__(self, name: str, health: Health) -> None:
        self.name = name
        self._health = health
        self._shut_at: float | None = None
        self._permits = asyncio.Semaphore(PARALLEL_CALLS)
        self._alone = asyncio.Lock()
        self._broken: Counter[int] = Counter()

    @property
    def open(self) -> bool:
        """Whether it is worth calling."""
        if not self._health.ok(self.name):
            return False
        if self._shut_at is not None and time.monotonic() - self._shut_at >= _REOPENS_AFTER_SECONDS:
            self._shut_at = None
        return self._shut_at is None

    def require(self) -> None:
        """Raise Waiting where it is not worth calling."""
        if not self.open:
            raise Waiting(
                self.name, StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, f"{self.name} does not answer")
            )

    def shut(self) -> None:
        """A call found the dependency away."""
        self._shut_at = time.monotonic()

    def broke(self, subject: int) -> int:
        """A call about `subject` ended in the middle; returns how many have, one after the other."""
        self._broken[subject] += 1
        return self._broken[subject]

    def mended(self, subject: int) -> None:
        """A call about `subject` was answered."""
        self._broken.pop(subject, None)

    @asynccontextmanager
    async def call(self, subject: int) -> AsyncIterator[None]:
        """Wait for a turn; a subject whose calls have ended in the middle more than once gets all turns at once."""
        turns = PARALLEL_CALLS if self._broken[subject] > 1 else 1
        taken = 0
        try:
            async with self._alone:
                for _ in range(turns):
                    await self._permits.acquire()
                    taken += 1
            self.require()
            yield
        finally:
            for _ in range(taken):
                self._permits.release()
