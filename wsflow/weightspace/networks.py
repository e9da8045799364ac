"""Base networks that a description can name."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from wsflow.weightspace.trace import ACTIVATIONS


def mlp(widths: Sequence[int], activation: str = "relu", bias: bool = True) -> nn.Sequential:
    """A multilayer perceptron; inputs of any shape are flattened.

    Args:
        widths: Sizes of the input, the hidden layers and the output, such as ``[30, 16, 16, 2]``.
        activation: A key of :data:`wsflow.weightspace.trace.ACTIVATIONS`.
        bias: Whether the layers have biases.

    Raises:
        ValueError: for fewer than two widths, a width below 1 or an unknown activation.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must hold at least an input and an output size, all positive; got {list(widths)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known are {sorted(ACTIVATIONS)}")
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])
