"""A hypothesis strategy for networks put together at random from all supported layers.

A network starts from vectors, images or tokens, runs a few random steps, ends in one or two linear heads, and has
residual blocks, concatenations, grouped and depthwise convolutions, norms of every kind and attention on its way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import torch
from torch import Tensor, nn

from wsflow.weightspace.networks import ACTIVATIONS


class Residual(nn.Module):
    """``x + branch(x)``."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Beside(nn.Module):
    """Two branches side by side."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x)], dim=1)


class Gain(nn.Module):
    """A factor and an offset for each channel."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gain, self.offset = nn.Parameter(torch.rand(shape) + 0.5), nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain + self.offset


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Attend(nn.Module):
    """Attention to the normalised tokens."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.norm, self.attention = (
            nn.LayerNorm(width),
            nn.MultiheadAttention(width, heads, bias=bias, batch_first=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.attention(y, y, y, need_weights=False)[0]


class Mean(nn.Module):
    """Means over all axes but the first and the channels'."""

    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.axes)


class Heads(nn.Module):
    """Linear layers that read the same neurons."""

    def __init__(self, trunk: nn.Module, *heads: nn.Module) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, nn.ModuleList(heads)

    def forward(self, x: Tensor) -> Any:
        features = self.trunk(x)
        outputs = [head(features) for head in self.heads]
        return outputs[0] if len(outputs) == 1 else outputs


@dataclass
class Flow:
    """What flows through a network under construction.

    Attributes:
        channels: Its channels.
        side: Height and width of an image; 0 for vectors and tokens.
        whole: Whether its channels are one group and not several side by side.
        bare: Whether it is the input still, to which a parameter must not be applied.
    """

    channels: int
    side: int = 0
    whole: bool = True
    bare: bool = False


class Architect:
    """Draws layers.

    Args:
        draw: Of a hypothesis strategy.
    """

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def one(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def divisor(self, number: int, least: int = 1) -> int:
        return self.one(*(d for d in range(least, number + 1) if number % d == 0))

    def activation(self, channels: int, image: bool) -> nn.Module:
        name = self.one("prelu", *sorted(ACTIVATIONS))
        if name == "prelu":
            return nn.PReLU(channels) if image and self.flag() else nn.PReLU()
        return ACTIVATIONS[name]()

    def image_step(self, flow: Flow, deep: int) -> nn.Module:
        """A layer for images, or a block of some; changes ``flow``."""
        kinds = ["dense", "dense", "norm", "activation", "activation", "pool", "gain"]
        kinds += ["grouped", "depthwise", "gate"] if flow.whole else []
        kinds += ["residual", "beside"] if deep and flow.whole else []
        kind, c = self.one(*kinds), flow.channels
        if kind == "dense":
            flow.channels, flow.whole, flow.bare = self.one(2, 3, 4, 6), True, False
            mode = self.one("zeros", "reflect", "circular") if flow.side > 1 else "zeros"
            return nn.Conv2d(c, flow.channels, 3, padding=1, padding_mode=mode, bias=self.flag())
        if kind == "grouped":
            parts = self.divisor(c)
            flow.channels = parts * self.one(1, 2)
            return nn.Conv2d(c, flow.channels, 1, groups=parts, bias=self.flag())
        if kind == "depthwise":
            return nn.Conv2d(c, c, 3, padding=1, groups=c, bias=self.flag())
        if kind == "gain":
            return nn.Identity() if flow.bare else Gain(c, 1, 1)
        if kind == "gate":
            return Gate(c, self.one(2, 3))
        if kind == "pool":
            return self.pool(flow)
        if kind == "norm":
            return self.image_norm(flow)
        if kind == "residual":
            steps, inner = self.branch(flow)
            return Residual(nn.Sequential(*steps, nn.Conv2d(inner.channels, c, 1)))
        if kind == "beside":
            (first, one), (second, other) = self.branch(flow), self.branch(flow)
            flow.channels, flow.whole = one.channels + other.channels, False
            return Beside(nn.Sequential(*first), nn.Sequential(*second))
        return self.activation(c, image=True)

    def branch(self, outer: Flow) -> tuple[list[nn.Module], Flow]:
        """Steps that keep the size of an image, and what leaves them."""
        flow = Flow(outer.channels, bare=outer.bare)
        return [self.image_step(flow, deep=0) for _ in range(self.one(1, 2, 3))], flow

    def pool(self, flow: Flow) -> nn.Module:
        if flow.side < 4:
            return self.one(nn.Identity(), nn.Dropout(0.5), nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1))
        kind = self.one(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
        flow.side //= 2
        return kind(flow.side) if kind.__name__.startswith("Adaptive") else kind(2)

    def image_norm(self, flow: Flow) -> nn.Module:
        c, affine = flow.channels, self.flag()
        kinds = ["batch", "batch", "own batch", "instance", "layer"] + ["group"] * flow.whole
        kind = self.one(*kinds)
        if kind == "group":
            return nn.GroupNorm(self.divisor(c), c, affine=affine)
        if kind == "instance":
            return nn.InstanceNorm2d(c, affine=affine)
        if kind == "layer":
            return nn.GroupNorm(1, c, affine=affine)
        return nn.BatchNorm2d(c, affine=affine, track_running_stats=kind == "batch")

    def vector_step(self, flow: Flow, deep: int) -> nn.Module:
        """A layer for vectors, or a block of some; changes ``flow``."""
        kinds = ["dense", "dense", "norm", "activation", "activation", "gain"]
        kind, c = self.one(*kinds, *["residual", "beside"] * deep * flow.whole), flow.channels
        if kind == "dense":
            flow.channels, flow.whole, flow.bare = self.one(1, 2, 3, 5), True, False
            return nn.Linear(c, flow.channels, bias=self.flag())
        if kind == "norm":
            norms = nn.BatchNorm1d(c), nn.BatchNorm1d(c, affine=False), nn.LayerNorm(c), nn.RMSNorm(c)
            return self.one(*norms)
        if kind == "gain":
            return nn.Identity() if flow.bare else Gain(c)
        if kind == "activation":
            return self.activation(c, image=True)
        inners = [Flow(c, bare=flow.bare) for _ in range(2)]
        steps = [[self.vector_step(inner, 0) for _ in range(2)] for inner in inners]
        if kind == "residual":
            return Residual(nn.Sequential(*steps[0], nn.Linear(inners[0].channels, c)))
        flow.channels, flow.whole = sum(inner.channels for inner in inners), False
        return Beside(*(nn.Sequential(*branch) for branch in steps))

    def image_trunk(self) -> tuple[list[nn.Module], Flow, tuple[int, ...]]:
        flow = Flow(self.one(1, 3), 4, bare=True)
        shape = (flow.channels, 4, 4)
        steps = [self.image_step(flow, deep=1) for _ in range(self.one(1, 2, 3, 4, 5))]
        if self.flag():
            return [*steps, Mean((2, 3))], flow, shape
        flow.channels *= flow.side**2
        flow.whole = False
        return [*steps, nn.Flatten()], flow, shape

    def token_trunk(self) -> tuple[list[nn.Module], Flow, tuple[int, ...]]:
        heads = self.one(1, 2, 3)
        width = heads * self.one(1, 2)
        steps: list[nn.Module] = [nn.Linear(4, width), Gain(3, width) if self.flag() else nn.Identity()]
        for _ in range(self.one(1, 2)):
            inner = [nn.LayerNorm(width), nn.Linear(width, 5), self.activation(5, image=False), nn.Linear(5, width)]
            steps += [Residual(Attend(width, heads, self.flag())), Residual(nn.Sequential(*inner))]
        return [*steps, Mean((1,))], Flow(width), (3, 4)


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A network in eval mode, and two inputs."""
    architect = Architect(draw)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    torch.manual_seed(draw(st.integers(0, 1000)))
    kind = architect.one("image", "image", "vector", "tokens")
    steps: list[nn.Module] = []
    flow, shape = Flow(4, bare=True), (4,)
    if kind != "vector":
        steps, flow, shape = architect.image_trunk() if kind == "image" else architect.token_trunk()
    steps += [architect.vector_step(flow, deep=1) for _ in range(architect.one(0, 1, 2, 3))]
    heads = [nn.Linear(flow.channels, size) for size in architect.one([2], [1], [2, 3])]
    return Heads(nn.Sequential(*steps), *heads).eval(), torch.randn(2, *shape, generator=generator)
