"""Small networks with every kind of factor that a canonical form removes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from architectures import IMAGE, NETWORKS, resnet20
from torch import Tensor, nn
from torch.nn import functional as F

from wsflow.weightspace import WeightSpace, mlp
from wsflow.weightspace.check import _random_network
from wsflow.weightspace.networks import cnn


class Dense(nn.Module):
    """Convolutions that read all before them through batch norm, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grow = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3, padding=1)
        self.first, self.second, self.head = nn.BatchNorm2d(4), nn.BatchNorm2d(7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.grow(F.relu(self.first(x)))], dim=1)
        return self.head(F.relu(self.second(x)).mean((2, 3)))


class Stream(nn.Module):
    """A residual stream of channels without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.down(F.relu(self.up(x))))
        return self.head(x.mean((2, 3)))


class PreActivated(nn.Module):
    """A residual stream that is read through batch norm alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm, self.last, self.head = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.branch(F.relu(self.norm(x)))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class Branches(nn.Module):
    """A flattened convolution and a linear layer that are added."""

    def __init__(self, conv_bias: bool = True) -> None:
        super().__init__()
        self.conv, self.skip = nn.Conv2d(3, 4, 2, bias=conv_bias), nn.Linear(27, 5)
        self.main, self.head = nn.Linear(16, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.main(F.relu(self.conv(x)).flatten(1))
        return self.head(F.relu(y + self.skip(x.flatten(1))))


class Heads(nn.Module):
    """Two classifiers on one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fine, self.coarse = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.body(x))
        return self.fine(x), self.coarse(x)


def pooled(*layers: nn.Module, width: int) -> nn.Sequential:
    """Layers on images, the mean over positions and a classifier."""
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


OWN: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "no_bias": (lambda: mlp([5, 4, 3, 2], bias=False), (5,)),
    "leaky_relu": (lambda: mlp([5, 4, 3, 2], "leaky_relu"), (5,)),
    "tanh": (lambda: mlp([5, 4, 3, 2], "tanh"), (5,)),
    "gelu": (lambda: mlp([5, 4, 3, 2], "gelu"), (5,)),
    "tanh_on_relu": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)),
        (5,),
    ),
    "prelu": (lambda: nn.Sequential(nn.Linear(5, 4), nn.PReLU(4), nn.Linear(4, 3), nn.PReLU(), nn.Linear(3, 2)), (5,)),
    "tanh_batch_norm": (lambda: cnn((4, 5), (3, 3), (1, 2), (1, 1), IMAGE, 3, "tanh", batch_norm=True), IMAGE),
    "layer_norm": (lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2)), (5,)),
    "layer_norm_no_eps": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4, eps=0.0), nn.ReLU(), nn.Linear(4, 2)),
        (5,),
    ),
    "group_norm_no_eps": (lambda: pooled(nn.Conv2d(3, 6, 3), nn.GroupNorm(3, 6, eps=0.0), nn.ReLU(), width=6), IMAGE),
    "last_norm": (lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.BatchNorm1d(3)), (5,)),
    "mobile": (
        lambda: pooled(
            *(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU6()),
            *(nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)),
            width=4,
        ),
        IMAGE,
    ),
    "kernels": (
        lambda: pooled(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.LeakyReLU(), width=6),
        IMAGE,
    ),
    "dense": (Dense, IMAGE),
    "stream": (Stream, IMAGE),
    "pre_activated": (PreActivated, IMAGE),
    "branches": (Branches, (3, 3, 3)),
    "heads": (Heads, (5,)),
    "resnet_two_blocks": (lambda: resnet20((4, 5), blocks=2), IMAGE),
}
SCALABLE = {**{name: made for name, made in NETWORKS.items() if name not in ("transformer", "depthwise")}, **OWN}
"""A network and the shape of its inputs by name; all have a canonical form."""


def build(name: str, eps: float | None = None) -> WeightSpace:
    """The space of a network; ``eps`` replaces that of its batch norms."""
    make, shape = SCALABLE[name]
    torch.manual_seed(0)
    network = make()
    for module in network.modules():
        if eps is not None and isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = eps
    return WeightSpace.from_module(network, torch.randn(2, *shape))


def draw(space: WeightSpace, n: int = 3, seed: int = 0) -> Tensor:
    """Extended vectors (n, D + D_b) in float64, with weights of all sizes and signs."""
    generator = torch.Generator().manual_seed(seed)
    network = copy.deepcopy(space.template).double()
    theta = torch.stack([_random_network(space, network, generator) for _ in range(n)])
    noise = torch.randn(n, space.dim, generator=generator, dtype=torch.float64)
    theta[:, : space.dim] += 0.3 * noise
    return theta


def pixels(space: WeightSpace, n: int = 5) -> Tensor:
    """Random inputs (n, ...) in float64."""
    assert space.input_shape is not None
    return torch.randn(n, *space.input_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def outputs(space: WeightSpace, theta: Tensor) -> Tensor:
    """All outputs (B, ...) of networks on random inputs."""
    with torch.no_grad():
        values: Any = space.forward(theta, pixels(space).to(theta))
    values = [values] if isinstance(values, Tensor) else values
    return torch.cat([value.flatten(1) for value in values], dim=1)


def change(space: WeightSpace, before: Tensor, after: Tensor) -> float:
    """Largest change of an output between networks, over the largest output of each."""
    a, b = outputs(space, before), outputs(space, after)
    return float(((a - b).abs().amax(1) / a.abs().amax(1)).max())
