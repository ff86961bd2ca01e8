"""Dynamic batching: who is put together with whom, and when."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from services.inference.backends import Outputs
from services.inference.batching import Batched, Batching
from services.inference.registry import load
from shared.errors import ErrorCode, StepwedgeError
from shared.paths import MODEL


class Counting:
    """A backend that answers with its input's mean, remembers its batches, and waits at a gate."""

    provider, description, platform = "Counting", "Counting", "counting"

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.closed = False

    def run(self, images: np.ndarray) -> Outputs:
        self.batches.append(len(images))
        self.entered.release()
        assert self.gate.acquire(timeout=10)
        if (images < 0).any():
            raise StepwedgeError(ErrorCode.ERROR_CODE_INTERNAL, "negative")
        means = images.mean((1, 2, 3), keepdims=True)
        return Outputs(means, means[:, 0, 0], means[:, 0, 0])

    def close(self) -> None:
        self.closed = True


def _image(value: float, count: int = 1) -> np.ndarray:
    return np.full((count, 1, 2, 2), value, np.float32)


class Site:
    """Callers in threads of their own, around one backend."""

    def __init__(self, **batching: object) -> None:
        self.inner = Counting()
        self.batched = Batched(self.inner, Batching(**batching))  # type: ignore[arg-type]
        self.pool = ThreadPoolExecutor(16)

    def ask(self, value: float, count: int = 1) -> Future[Outputs]:
        waiting = len(self.batched._waiting)
        asked = self.pool.submit(self.batched.run, _image(value, count))
        while len(self.batched._waiting) == waiting and not asked.done() and not self.inner.entered._value:
            pass  # until it waits, or runs
        return asked

    def busy(self) -> Future[Outputs]:
        """Occupy the model, so that what follows waits."""
        asked = self.pool.submit(self.batched.run, _image(0.5))
        assert self.inner.entered.acquire(timeout=10)
        return asked

    def free(self, runs: int) -> None:
        for _ in range(runs):
            self.inner.gate.release()


def _values(asked: list[Future[Outputs]]) -> list[float]:
    return [round(float(one.result(10).flags[0, 0]), 3) for one in asked]


def test_requests_that_wait_run_together_and_each_gets_its_own_answer() -> None:
    site = Site(max_batch_size=4)
    first = site.busy()
    waiting = [site.ask(value / 10) for value in range(1, 7)]
    site.free(3)
    assert _values([first, *waiting]) == [0.5, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert site.inner.batches == [1, 4, 2]
    site.batched.close()
    assert site.inner.closed


def test_a_preferred_size_is_run_before_a_larger_number_that_is_none() -> None:
    site = Site(max_batch_size=8, preferred_batch_size=(2, 4))
    first = site.busy()
    waiting = [site.ask(value / 10) for value in range(1, 7)]
    site.free(3)
    _values([first, *waiting])
    assert site.inner.batches == [1, 4, 2]
    site.batched.close()


def test_a_request_waits_for_company_no_longer_than_the_delay() -> None:
    site = Site(max_batch_size=4, max_queue_delay_microseconds=50_000)
    site.free(2)
    alone = site.ask(0.1)
    assert _values([alone]) == [0.1]
    assert site.inner.batches == [1]
    site.batched.close()


def test_a_batch_that_is_full_does_not_wait() -> None:
    site = Site(max_batch_size=2, max_queue_delay_microseconds=1_000_000)
    site.free(1)
    assert _values([site.pool.submit(site.batched.run, _image(0.1)), site.pool.submit(site.batched.run, _image(0.2))])
    assert site.inner.batches == [2]
    site.batched.close()


def test_requests_of_several_images_stay_whole_and_in_order() -> None:
    site = Site(max_batch_size=4)
    first = site.busy()
    waiting = [site.ask(0.1, 3), site.ask(0.2, 2), site.ask(0.3, 1)]
    site.free(3)
    assert _values([first, *waiting]) == [0.5, 0.1, 0.2, 0.3]
    assert site.inner.batches == [1, 3, 3]
    site.batched.close()


def test_a_request_beyond_the_queue_is_refused_as_overloaded() -> None:
    site = Site(max_batch_size=4, max_queue_size=1)
    first = site.busy()
    waiting = site.ask(0.1)
    with pytest.raises(StepwedgeError) as caught:
        site.batched.run(_image(0.2))
    assert caught.value.code == ErrorCode.ERROR_CODE_OVERLOADED
    site.free(2)
    assert _values([first, waiting]) == [0.5, 0.1]
    site.batched.close()


def test_a_failed_run_fails_those_in_it_and_nobody_else() -> None:
    site = Site(max_batch_size=2)
    first = site.busy()
    bad, beside, after = site.ask(-1.0), site.ask(0.1), site.ask(0.2)
    site.free(3)
    assert _values([first, after]) == [0.5, 0.2]
    for one in (bad, beside):
        with pytest.raises(StepwedgeError):
            one.result(10)
    site.batched.close()
    with pytest.raises(StepwedgeError):
        site.batched.run(_image(0.1))


def test_the_released_model_answers_in_batches_as_alone() -> None:
    model, alone = load(MODEL), load(MODEL)
    model.batched(Batching(max_batch_size=4, max_queue_delay_microseconds=20_000))
    model.check()
    assert model.execution_provider == f"{alone.execution_provider};batch=4"
    grids = [np.random.default_rng(seed).integers(0, 255, (256, 256)).astype(np.uint8) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(model.answer, grids))
    for grid, answer in zip(grids, found, strict=True):
        expected = alone.answer(grid)
        assert ((answer.logits > 0) == (expected.logits > 0)).mean() > 0.999
        assert np.abs(answer.flags - expected.flags).max() < 0.05
    model.close()
