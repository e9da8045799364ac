"""Networks of every kind of structure that alignment has to handle, most of them tiny."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from wsflow.weightspace import WeightSpace, mlp
from wsflow.weightspace.networks import cnn


class Residual(nn.Module):
    """A stream that perceptrons add to, and a linear map from the stream to itself."""

    def __init__(self, own: bool = True) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.up, self.down, self.norm = nn.Linear(6, 7), nn.Linear(7, 6), nn.LayerNorm(6)
        self.mix = nn.Linear(6, 6) if own else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.down(F.relu(self.up(self.norm(x))))
        if self.mix is not None:
            x = x + self.mix(x)
        return self.head(F.relu(x))


class Concatenated(nn.Module):
    """A layer that reads two others side by side; PReLU with a slope per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, padding=1)
        self.slope, self.head = nn.PReLU(4), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.first(x))
        both = torch.cat([x, F.relu(self.second(x))], dim=1)
        return self.head(both.mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution, alone or within a residual stream, whose parts then carry over to itself."""

    def __init__(self, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.reduce, self.norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.grouped, self.expand = nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.reduce(x)))
        y = self.grouped(x)
        x = F.relu(x + y if self.residual else y)
        return self.head(F.relu(self.expand(x)).mean((2, 3)))


class BasicBlock(nn.Module):
    """Two convolutions around which the stream passes; a change of width pads it by a 1x1 convolution."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.short = nn.Sequential()
        if before != after:
            self.short = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.short(x))


def resnet20(widths: tuple[int, ...] = (16, 32, 64), blocks: int = 3, classes: int = 10) -> nn.Sequential:
    """The residual network for CIFAR (He et al. 2016, section 4.2), with 1x1 convolutions where the width changes."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    before = widths[0]
    for stage, after in enumerate(widths):
        for block in range(blocks):
            layers.append(BasicBlock(before, after, 2 if stage and not block else 1))
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def group_norm() -> nn.Sequential:
    """Neurons permute within the parts of a GroupNorm, and the parts as a whole."""
    norm, act = nn.GroupNorm(3, 6), nn.ReLU()
    return nn.Sequential(nn.Conv2d(3, 6, 3), norm, act, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def depthwise() -> nn.Sequential:
    """A depthwise convolution with its norm between two others."""
    layers = [nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU6()]
    return nn.Sequential(*layers, nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def transformer() -> VisionTransformer:
    """Two encoder blocks of two heads, three numbers wide each."""
    return VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=6, mlp_dim=7, num_classes=3
    )


IMAGE = (3, 8, 8)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: mlp([5, 6, 6, 3]), (5,)),
    "cnn": (lambda: cnn((4, 5), (3, 3), (1, 2), (1, 1), IMAGE, 3), IMAGE),
    "cnn_batch_norm": (lambda: cnn((4, 5), (3, 3), (1, 2), (1, 1), IMAGE, 3, batch_norm=True), IMAGE),
    "residual": (lambda: Residual(own=False), (5,)),
    "residual_own": (Residual, (5,)),
    "concatenated": (Concatenated, IMAGE),
    "group_norm": (group_norm, IMAGE),
    "grouped": (Grouped, IMAGE),
    "grouped_residual": (lambda: Grouped(residual=True), IMAGE),
    "depthwise": (depthwise, IMAGE),
    "resnet": (lambda: resnet20((4, 5, 6), blocks=1), IMAGE),
    "transformer": (transformer, IMAGE),
}


def space_of(network: nn.Module, shape: tuple[int, ...]) -> WeightSpace:
    """The weight space of a network with inputs of a shape, its symmetries unproven."""
    return WeightSpace.from_module(network, torch.randn(2, *shape), check=False)
