"""Dynamic batching, with the words and the meaning that Triton gives them: requests that wait are run together.

When the model is free, the oldest requests that wait are taken, as many as fit into `max_batch_size`. If their number
is no preferred size, and no request has waited `max_queue_delay_microseconds`, more are waited for; then the largest
preferred size that they reach is run, or, where they reach none, all of them. On a processor a batch gains nothing over
one image at a time, so that it is off by default.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.inference.backends import Backend, Outputs
from shared.errors import ErrorCode, StepwedgeError


@dataclass(frozen=True)
class Batching:
    """How requests are put together.

    max_batch_size: images in one run at most; 1 for no batching. preferred_batch_size: sizes at which nothing more is
    waited for. max_queue_delay_microseconds: how long a request may wait for company. max_queue_size: requests that may
    wait, 0 for any number.
    """

    max_batch_size: int = 1
    preferred_batch_size: Sequence[int] = ()
    max_queue_delay_microseconds: int = 0
    max_queue_size: int = 0


@dataclass(frozen=True)
class _Request:
    images: NDArray[np.float32]
    since: float
    answer: Future[Outputs]


class Batched:
    """A backend whose calls from several threads are run together.

    Raises
    ------
    StepwedgeError
        Its `run`: OVERLOADED where as many requests wait as may.
    """

    def __init__(self, inner: Backend, batching: Batching) -> None:
        self._inner = inner
        self._most = batching.max_batch_size
        self._preferred = sorted(batching.preferred_batch_size)
        self._delay = batching.max_queue_delay_microseconds / 1e6
        self._longest_queue = batching.max_queue_size
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.provider, self.platform = inner.provider, inner.platform
        self.description = f"{inner.description};batch={self._most}"
        self._thread = threading.Thread(target=self._serve, name="batches", daemon=True)
        self._thread.start()

    def run(self, images: NDArray[np.float32]) -> Outputs:
        """See `Backend.run`; waits until a batch with these images has run."""
        if len(images) >= self._most:
            return self._inner.run(images)
        request = _Request(images, time.monotonic(), Future())
        with self._changed:
            if self._closed:
                raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, "the model is being put away")
            if self._longest_queue and len(self._waiting) >= self._longest_queue:
                raise StepwedgeError(ErrorCode.ERROR_CODE_OVERLOADED, "as many requests wait for the model as may")
            self._waiting.append(request)
            self._changed.notify()
        return request.answer.result()

    def close(self) -> None:
        """Run what waits, then give everything back."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._inner.close()

    def _serve(self) -> None:
        while batch := self._next():
            images = np.concatenate([one.images for one in batch])
            try:
                outputs = self._inner.run(images)
            except BaseException as error:  # noqa: BLE001 - it belongs to those who wait
                for one in batch:
                    one.answer.set_exception(error)
                continue
            start = 0
            for one in batch:
                end = start + len(one.images)
                one.answer.set_result(Outputs(*(output[start:end] for output in outputs)))
                start = end

    def _next(self) -> list[_Request]:
        """The requests of the next run, oldest first; none where the model is put away."""
        with self._changed:
            while True:
                taken, size = self._fitting()
                if not taken:
                    if self._closed:
                        return []
                    self._changed.wait()
                    continue
                left = self._waiting[0].since + self._delay - time.monotonic()
                full = taken < len(self._waiting) or size == self._most
                if full or left <= 0 or self._closed or size in self._preferred:
                    return [self._waiting.popleft() for _ in range(self._cut(taken))]
                self._changed.wait(left)

    def _fitting(self) -> tuple[int, int]:
        """How many of the oldest requests fit into one run, and how many images they hold."""
        taken = size = 0
        for one in self._waiting:
            if size + len(one.images) > self._most:
                break
            taken, size = taken + 1, size + len(one.images)
        return taken, size

    def _cut(self, taken: int) -> int:
        """How many of these requests reach the largest preferred size; all where they reach none."""
        sizes = np.cumsum([len(self._waiting[i].images) for i in range(taken)]).tolist()
        reached = [size for size in sizes if size in self._preferred]
        return sizes.index(reached[-1]) + 1 if reached else taken
