"""The network of the text detector: fully convolutional, one score for every cell of 4 by 4 pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _conv(into: int, out: int, size: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (size - 1) // 2
    return nn.Sequential(nn.Conv2d(into, out, size, stride, padding, dilation, groups, bias=False), nn.BatchNorm2d(out))


class _Block(nn.Module):
    """Depthwise, then pointwise, beside a shortcut."""

    def __init__(self, width: int, size: int = 3, dilation: int = 1) -> None:
        super().__init__()
        self.depth = _conv(width, width, size, groups=width, dilation=dilation)
        self.point = _conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.point(torch.relu(self.depth(x))))


class TextNet(nn.Module):
    """[n, 2, h, w] (see `shared.text_detector.tensor`), h and w multiples of 32, to logits [n, 1, h/4, w/4]."""

    def __init__(self, a: int = 12, b: int = 32, c: int = 64, d: int = 96) -> None:
        super().__init__()
        self.stem = _conv(2, a, 5, 2)
        self.quarter = _conv(a, b, 3, 2)
        self.fine = nn.Sequential(_Block(b), _Block(b))
        self.eighth = _conv(b, c, 3, 2)
        self.middle = nn.Sequential(_Block(c, 5), _Block(c, 5), _Block(c, 5))
        self.sixteenth = _conv(c, d, 3, 2, groups=1)
        self.coarse = nn.Sequential(_Block(d, 5), _Block(d, 5), _Block(d, 5))
        self.back = _conv(d, c, 1)
        self.mixed = _Block(c, 3)
        self.up = _conv(c, b, 1)
        self.last = _Block(b)
        self.head = nn.Conv2d(b, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(torch.relu(self.quarter(torch.relu(self.stem(x)))))
        middle = self.middle(torch.relu(self.eighth(fine)))
        coarse = self.coarse(torch.relu(self.sixteenth(middle)))
        wide = nn.functional.interpolate(self.back(coarse), scale_factor=2.0, mode="nearest")
        middle = self.mixed(torch.relu(middle + wide))
        near = nn.functional.interpolate(self.up(middle), scale_factor=2.0, mode="nearest")
        logits: Tensor = self.head(self.last(torch.relu(fine + near)))
        return logits
