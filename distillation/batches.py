"""Batches in a fixed mixture of sources, augmented in a thread beside the training step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillation import not_a_chest
from distillation.augment import View, part, view
from distillation.data import CHANNELS, FLAGS, MAP, Pool
from services.inference.registry import EDGE_FLAGS

NOT_A_CHEST = "not a chest"
# Images of a source in a batch: the scarce adult sources are seen far more often than their share.
LABELLED_MIX = {"wingspan": 3, "covid": 2, "kermany": 3}
STUDENT_MIX = {"wingspan": 5, "covid": 3, "kermany": 4, "hannover": 2, NOT_A_CHEST: 2}
STUDENT_PARTS = {"wingspan": 3, "covid": 2, "kermany": 7}
"""Further images of a batch, of which only a part is shown."""
ONLY_PARTS = {"wingspan": 6, "covid": 5, "kermany": 21}
"""Where nothing but the edges is learnt."""


@dataclass
class Batch:
    """image [N, 1, 256, 256]; target, weight, soft [N, 4, 128, 128] in 0..1; complete bool [N, 4]; taught bool [N];
    flags, flag_weight [N, 34]: flags, then edges."""

    image: Tensor
    target: Tensor
    weight: Tensor
    soft: Tensor
    complete: Tensor
    taught: Tensor
    flags: Tensor
    flag_weight: Tensor


Maps = NDArray[np.uint8]
Sample = tuple[NDArray[np.uint8], Maps, Maps, Maps, NDArray[np.bool_], bool, NDArray[np.float32], NDArray[np.float32]]


class Mixture:
    """Draws batches without end: the n-th batch of a seed is always the same."""

    def __init__(
        self,
        pool: Pool,
        mix: dict[str, int],
        seed: int,
        labelled_turns: bool = True,
        gentle: float = 0.0,
        parts: dict[str, int] | None = None,
    ) -> None:
        self.pool, self.mix, self.seed, self.labelled_turns, self.gentle = pool, mix, seed, labelled_turns, gentle
        self.parts = parts or {}
        self.rows = {source: pool.rows_of(source) for source in {**mix, **self.parts} if source != NOT_A_CHEST}
        self.all_rows = np.arange(len(pool.radiographs))

    def leave_out(self, rows: Sequence[int]) -> None:
        """Draw these rows of the pool no more."""
        self.rows = {source: np.setdiff1d(own, rows) for source, own in self.rows.items()}
        self.all_rows = np.setdiff1d(self.all_rows, rows)

    def batch(self, number: int) -> Batch:
        rng = np.random.default_rng((self.seed, number))
        samples = [
            self._negative(rng) if source == NOT_A_CHEST else self._sample(int(rng.choice(self.rows[source])), rng)
            for source, count in self.mix.items()
            for _ in range(count)
        ] + [
            self._part(int(rng.choice(self.rows[source])), rng)
            for source, count in self.parts.items()
            for _ in range(count)
        ]
        grids, targets, weights, softs, complete, taught, flags, flag_weights = zip(*samples, strict=True)
        target, weight, soft = (
            torch.from_numpy(np.stack(m)).permute(0, 3, 1, 2).float().div_(255) for m in (targets, weights, softs)
        )
        return Batch(
            image=torch.from_numpy(np.stack(grids))[:, None].float().div_(255),
            target=target,
            weight=weight,
            soft=soft,
            complete=torch.from_numpy(np.stack(complete)),
            taught=torch.tensor(taught),
            flags=torch.from_numpy(np.stack(flags)),
            flag_weight=torch.from_numpy(np.stack(flag_weights)),
        )

    def _sample(self, row: int, rng: np.random.Generator) -> Sample:
        pool = self.pool
        maps = [pool.targets[row], pool.weights[row]]
        if pool.soft is not None:
            maps.append(pool.soft[row])
        gentle = bool(rng.random() < self.gentle)
        seen = view(pool.grids[row], pool.boxes[row], maps, rng, self.labelled_turns, gentle)
        taught = pool.taught is not None and bool(pool.taught[row])
        soft = seen.maps[2] if pool.soft is not None else seen.maps[0]
        return seen.grid, seen.maps[0], seen.maps[1], soft, pool.complete[row], taught, *_flags(seen)

    def _part(self, row: int, rng: np.random.Generator) -> Sample:
        pool = self.pool
        maps = [pool.targets[row], pool.weights[row]]
        seen = part(pool.grids[row], pool.boxes[row], pool.margins[row], maps, rng)
        return seen.grid, seen.maps[0], seen.maps[1], seen.maps[0], pool.complete[row], False, *_flags(seen)

    def _negative(self, rng: np.random.Generator) -> Sample:
        row = int(rng.choice(self.all_rows))
        grid = not_a_chest.trained(self.pool.grids[row], rng)
        flags, weight = np.zeros((2, len(FLAGS) + len(EDGE_FLAGS)), np.float32)
        flags[len(FLAGS) - 1] = weight[len(FLAGS) - 1] = 1
        nothing = np.zeros((MAP, MAP, len(CHANNELS)), np.uint8)
        return grid, nothing, nothing, nothing, np.zeros(len(CHANNELS), bool), False, flags, weight

    def stream(self, first: int, last: int) -> Iterator[Batch]:
        """Batches `first` to `last` - 1, made ahead in a thread (OpenCV and numpy let go of the interpreter)."""
        ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=6)
        stop = threading.Event()

        def produce() -> None:
            try:
                for number in range(first, last):
                    made = self.batch(number)
                    while not stop.is_set():
                        try:
                            ready.put(made, timeout=0.5)
                            break
                        except queue.Full:
                            continue
                    if stop.is_set():
                        return
            except BaseException as error:  # noqa: BLE001 - handed to the reader
                ready.put(error)

        thread = threading.Thread(target=produce, daemon=True)
        thread.start()
        try:
            for _ in range(first, last):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()


def _flags(seen: View) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Flags and edges of a look, and what is known of them."""
    return np.append(seen.flags, seen.edges), np.append(np.ones(len(FLAGS), np.float32), seen.known)
