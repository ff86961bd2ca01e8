"""The teachers together: their answers to whole, undisturbed images, looked at twice (as they are, and mirrored)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SWAPPED = [1, 0, 2, 3]  # in a mirror the right lung stands where the left one was


class Ensemble(nn.Module):
    """All teachers as one network with the outputs of a student, to be exported and set beside one: image
    [N, 1, 256, 256] -> logits [N, 4, 128, 128] of the mean probability over teachers and both looks, no flags, no
    features."""

    def __init__(self, teachers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        looks = torch.stack(
            [
                masks
                for teacher in self.teachers
                for masks in (teacher(image).sigmoid(), teacher(image.flip(3)).sigmoid().flip(3)[:, SWAPPED])
            ]
        )
        empty = image.flatten(1)[:, :1]
        return torch.logit(looks.mean(0), eps=1e-6), empty, empty


@torch.no_grad()
def probabilities(teachers: Sequence[nn.Module], grids: NDArray[np.uint8]) -> Tensor:
    """Mean probability [N, 4, 128, 128] over teachers and both looks at grids uint8 [N, 256, 256]."""
    images = torch.from_numpy(np.array(grids))[:, None].float().div_(255).contiguous(memory_format=torch.channels_last)
    total = torch.zeros(())
    for teacher in teachers:
        with torch.autocast("cpu", torch.bfloat16):
            plain, mirrored = (_masks(teacher(look)) for look in (images, images.flip(3)))
        total = total + plain.float().sigmoid() + mirrored.float().sigmoid().flip(3)[:, SWAPPED]
    return total / (2 * len(teachers))


def _masks(answer: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A student answers with more than masks."""
    return answer[0] if isinstance(answer, tuple) else answer


def worth_teaching(sources: Sequence[str], most: int, seed: int = 1) -> NDArray[np.int64]:
    """Rows that get soft labels: all of each source, but at most `most` of one (the rest keep people's labels only)."""
    rng, names = np.random.default_rng(seed), np.array(sources)
    rows = [rng.permutation(np.flatnonzero(names == source))[:most] for source in sorted(set(sources))]
    return np.sort(np.concatenate(rows))


def soft_labels(
    teachers: Sequence[nn.Module],
    grids: NDArray[np.uint8],
    rows: NDArray[np.int64],
    path: Path,
    progress: Callable[[int, int], None],
) -> NDArray[np.uint8]:
    """Soft labels uint8 [n, 128, 128, 4] for `rows` (zero elsewhere), made once and kept in `path`."""
    if not path.exists():
        made = np.zeros((len(grids), 128, 128, 4), np.uint8)
        for start in range(0, len(rows), 16):
            some = rows[start : start + 16]
            found = probabilities(teachers, grids[some])
            made[some] = (found * 255).round().byte().permute(0, 2, 3, 1).numpy()
            progress(min(start + 16, len(rows)), len(rows))
        part = path.with_suffix(".part.npy")
        np.save(part, made)
        part.replace(path)
    return np.asarray(np.load(path, mmap_mode="r"))
