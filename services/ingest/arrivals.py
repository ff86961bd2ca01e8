"""Turns what several senders bring at one time into one transaction, so that they share what it costs to be durable.

On SQLite, which has one writer, whoever comes first writes for all who wait, and confirmations of what was recorded
meanwhile go along. PostgreSQL groups the commits of its clients by itself.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Final

from sqlalchemy.exc import IntegrityError

from services.ingest.store import Arrival, StudyStore
from services.ingest.tables import Instance

_MOST: Final = 64
"""Arrivals in one transaction."""


class _Ticket:
    """An arrival that waits to be written, and what became of it."""

    def __init__(self, arrival: Arrival, written: "asyncio.Future[None] | None" = None) -> None:
        self.arrival = arrival
        self.row: tuple[Instance, bool] | None = None
        self.error: Exception | None = None
        self.written = written
        """Set when it is done."""

    @property
    def done(self) -> bool:
        """Whether it was written, or was tried to."""
        return self.row is not None or self.error is not None

    def answer(self) -> tuple[Instance, bool]:
        """The row, and whether it was there before; raises what went wrong."""
        if self.row is None:
            assert self.error is not None
            raise self.error
        return self.row


class Arrivals:
    """The way of the doors to the rows; any number of threads may call it.

    Parameters
    ----------
    studies
        Where the rows are.
    confirmed
        Called, in the thread of whoever wrote, when instances went to work.
    """

    def __init__(self, studies: StudyStore, confirmed: Callable[[], None] = lambda: None) -> None:
        self._studies = studies
        self._confirmed = confirmed
        self._waiting: deque[_Ticket] = deque()
        self._turn = threading.Lock()
        self._to_confirm: dict[int, int] = {}
        self._noted = threading.Lock()
        # One thread of its own: who writes next is handed no work from thread to thread.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="arrivals")

    def receive(self, arrival: Arrival) -> tuple[Instance, bool]:
        """Make an arrival durable as a row; blocks. Returns and raises as `StudyStore.receive`."""
        if not self._studies.one_writer:
            return self._studies.receive(arrival, datetime.now(UTC))
        ticket = _Ticket(arrival)
        self._waiting.append(ticket)
        with self._turn:
            while not ticket.done:
                self._write(self._batch())
        return ticket.answer()

    async def submit(self, arrival: Arrival) -> tuple[Instance, bool]:
        """As `receive`, from a coroutine: those who wait hold no thread."""
        if not self._studies.one_writer:
            return await asyncio.to_thread(self.receive, arrival)
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket = _Ticket(arrival, written)
        self._waiting.append(ticket)
        self._writer.submit(self._write_waiting)
        await written
        return ticket.answer()

    def _write_waiting(self) -> None:
        with self._turn:
            if batch := self._batch():
                self._write(batch)

    def confirm(self, instance_id: int, record_index: int) -> None:
        """The log has the `received` record of an instance; durable with what is written next, see `flush`."""
        with self._noted:
            self._to_confirm[instance_id] = record_index

    def flush(self) -> None:
        """Write the confirmations that went along with nothing; blocks."""
        with self._turn, self._riders() as riders:
            if riders:
                self._studies.confirm_received(riders, datetime.now(UTC))

    def _batch(self) -> list[_Ticket]:
        batch: list[_Ticket] = []
        with suppress(IndexError):
            while len(batch) < _MOST:
                batch.append(self._waiting.popleft())
        return batch

    def _write(self, batch: list[_Ticket]) -> None:
        try:
            with self._riders() as riders:
                rows = self._studies.receive_many([one.arrival for one in batch], datetime.now(UTC), riders)
        except IntegrityError as error:
            # One of them cannot be a row; its neighbours can.
            for one in batch if len(batch) > 1 else ():
                self._write([one])
            if len(batch) > 1:
                return
            batch[0].error = error
        except Exception as error:  # noqa: BLE001 - whatever it is, everyone who waits must learn it
            for one in batch:
                one.error = error
        else:
            for one, row in zip(batch, rows, strict=True):
                one.row = row
        if those := [one.written for one in batch if one.written is not None]:
            with suppress(RuntimeError):  # the loop is over, and nobody waits
                those[0].get_loop().call_soon_threadsafe(_wake, those)

    @contextmanager
    def _riders(self) -> Iterator[Mapping[int, int]]:
        """The confirmations that wait, taken for one transaction; they wait again where it fails."""
        with self._noted:
            taken, self._to_confirm = self._to_confirm, {}
        try:
            yield taken
        except BaseException:
            with self._noted:
                self._to_confirm = {**taken, **self._to_confirm}
            raise
        if taken:
            self._confirmed()


def _wake(waiting: Sequence["asyncio.Future[None]"]) -> None:
    for one in waiting:
        if not one.done():
            one.set_result(None)
