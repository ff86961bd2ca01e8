"""A narrower student: the channels with the least say are taken out (structured pruning), and the rest settles."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillation.models import ConvBlock, Student

LANES = 8
"""Widths are multiples of this: between two of them the kernels of processors are no faster."""


def pruned(student: Student, share: float) -> Student:
    """A copy without about `share` of the channels of every block: those whose batch norm scales them least (Liu et
    al. 2017, arXiv 1708.06519). The two outputs of which the features are keep their width: the contract names it."""
    made = copy.deepcopy(student)
    kept, width = torch.arange(1), 1  # of the block before: which of its outputs are left, of how many

    def narrow(blocks: Any, place: int, inputs: Tensor, share: float) -> tuple[Tensor, int]:
        before = blocks[place]
        blocks[place], left = _narrowed(before, inputs, share)
        return left, before[0].out_channels

    for place in range(len(made.stem)):
        kept, width = narrow(made.stem, place, kept, share)
    skips: list[Tensor] = []
    for number, stage in enumerate(made.stages):
        measured = number >= len(made.stages) - 2
        kept, _ = narrow(stage, 0, kept, share)
        kept, width = narrow(stage, 1, kept, 0.0 if measured else share)
        skips.append(kept)
    for place, skip in enumerate(skips[-2::-1]):
        kept, width = narrow(made.ups, place, torch.cat((kept, skip + width)), share)
    narrow(made.edges, 0, torch.cat((kept, torch.tensor([width]))), 0.0)
    head = made.head
    made.head = nn.Conv2d(len(kept), head.out_channels, 1)
    made.head.weight.data, made.head.bias = head.weight.data[:, kept].clone(), head.bias
    return made


def _narrowed(block: ConvBlock, inputs: Tensor, share: float) -> tuple[ConvBlock, Tensor]:
    """The block on these inputs only, and which of its outputs are left (in their order)."""
    conv, norm = block[0], block[1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    most = LANES * max(1, round(conv.out_channels * (1 - share) / LANES))
    left = norm.weight.detach().abs().argsort(descending=True)[:most].sort().values
    made = ConvBlock(len(inputs), most, conv.stride[0])
    new_conv, new_norm = made[0], made[1]
    assert isinstance(new_conv, nn.Conv2d)
    assert isinstance(new_norm, nn.BatchNorm2d)
    new_conv.weight.data = conv.weight.data[left][:, inputs].clone()
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(new_norm, name).data = getattr(norm, name).data[left].clone()
    return made, left


@torch.no_grad()
def settle(student: Student, grids: NDArray[np.uint8], batch: int = 16) -> Student:
    """Estimate the statistics of every batch norm anew on grids uint8 [N, 256, 256]: with channels gone the old ones
    are wrong. Returns the student in evaluation mode."""
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean of all batches
    student.train()
    for start in range(0, len(grids), batch):
        student(torch.from_numpy(grids[start : start + batch])[:, None].float().div_(255))
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return student.eval()
