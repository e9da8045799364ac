"""Small networks around one operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Conv2d, LayerNorm, Linear, MultiheadAttention, Parameter
from torch.nn import functional as F

from wsflow.weightspace import WeightSpace

INPUTS = {
    "vector": torch.randn(2, 5, generator=torch.Generator().manual_seed(1)),
    "tokens": torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(2)),
    "image": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3)),
    "signal": torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(4)),
    "symbols": torch.tensor([[0, 1, 2, 6], [3, 3, 0, 5]]),
}


class Net(nn.Module):
    """A network from a function of its layers and its input."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **layers: nn.Module | Parameter) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Offset(nn.Module):
    """Holds a buffer."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("value", torch.linspace(0.5, 2.0, torch.Size(shape).numel()).view(shape))


def vector(middle: Callable[[Any, Tensor], Tensor], **layers: Any) -> Net:
    """Linear 5-4, something, Linear 4-2."""
    return Net(lambda s, x: s.b(middle(s, s.a(x))), a=Linear(5, 4), b=Linear(4, 2), **layers)


def image(middle: Callable[[Any, Tensor], Tensor], width: int = 6, **layers: Any) -> Net:
    """A convolution 3-6, something, a convolution 6-2, means."""
    first, last = Conv2d(3, width, 3, padding=1), Conv2d(width, 2, 3, padding=1)
    return Net(lambda s, x: s.b(middle(s, s.a(x))).mean((2, 3)), a=first, b=last, **layers)


def tokens(middle: Callable[[Any, Tensor], Tensor], **layers: Any) -> Net:
    """Linear 5-8 for each token, something, the mean over tokens, Linear 8-2."""
    return Net(lambda s, x: s.b(middle(s, s.a(x)).mean(1)), a=Linear(5, 8), b=Linear(8, 2), **layers)


def attended(s: Any, y: Tensor, **settings: Any) -> Tensor:
    return y + s.m(s.n(y), s.n(y), s.n(y), need_weights=False, **settings)[0]


def attention(**settings: Any) -> dict[str, nn.Module]:
    return {"n": LayerNorm(8), "m": MultiheadAttention(8, 4, batch_first=True, **settings)}


def written(s: Any, y: Tensor) -> Tensor:
    """Changes ``y`` in place through another name, and reads the first."""
    y.mul_(s.p)
    return F.relu(y)


def written_through_a_view(s: Any, y: Tensor) -> Tensor:
    y.unsqueeze(2).mul_(s.p)
    return F.relu(y)


def activated_in_place(s: Any, y: Tensor) -> Tensor:
    F.relu(y, inplace=True)
    return y


def transposed_in_place(s: Any, y: Tensor) -> Tensor:
    y.transpose_(1, 2)
    return F.relu(s.c(y)).transpose(1, 2)


def repeated(s: Any, y: Tensor) -> Tensor:
    return F.relu(s.c(F.relu(s.c(F.relu(y)))))


def tied() -> Net:
    net = Net(lambda s, x: s.b(F.relu(s.d(F.relu(s.c(F.relu(s.a(x))))))), a=Linear(5, 4), b=Linear(4, 2))
    net.c, net.d = Linear(4, 4), Linear(4, 4)
    net.d.weight = net.c.weight
    return net


def squeezed(s: Any, y: Tensor) -> Tensor:
    y = F.relu(y)
    return y * torch.sigmoid(s.e(F.relu(s.d(y.mean((2, 3), keepdim=True)))))


def concatenated(*parts: str) -> Callable[[Any, Tensor], Tensor]:
    return lambda s, x: s.b(torch.cat([x if part == "x" else F.relu(getattr(s, part)(x)) for part in parts], dim=1))


def shuffled(s: Any, y: Tensor) -> Tensor:
    n, c, h, w = y.shape
    return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def summary(space: WeightSpace) -> str:
    """Hidden groups with their parts, and rescalings."""
    groups = []
    for group in space.hidden:
        parts = group.partition
        words = [f"/{parts.parts}", "" if parts.across else " in place", f" {parts.key}".rstrip()] if parts else []
        groups.append(f"{group.name} {group.size}{''.join(words)}")
    factors = [f"{r.name} {r.scaling} {r.size}" for r in space.rescalings]
    return f"{', '.join(groups)} | {', '.join(factors)}"
