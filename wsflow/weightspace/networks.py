"""Base networks that a description can name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from wsflow.weightspace import operations

ACTIVATIONS: dict[str, type[nn.Module]] = {
    name: layer
    for name, (layer, _) in operations.ACTIVATIONS.items()
    if layer is not None and not name.endswith("softmax")
}
"""Activations of hidden layers by the name that a neuron group carries."""


def mlp(widths: Sequence[int], activation: str = "relu", bias: bool = True) -> nn.Sequential:
    """A multilayer perceptron; inputs of any shape are flattened.

    Args:
        widths: Sizes of the input, the hidden layers and the output, such as ``[30, 16, 16, 2]``.
        activation: A key of :data:`ACTIVATIONS`.
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


def cnn(
    channels: Sequence[int] = (8, 10),
    kernels: Sequence[int] = (4, 3),
    strides: Sequence[int] = (4, 2),
    paddings: Sequence[int] = (0, 1),
    input_shape: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    activation: str = "relu",
    batch_norm: bool = False,
    pool: bool = False,
) -> nn.Sequential:
    """A small convolutional network for images.

    Layer i is ``conv{i}`` (without a bias before batch norm), ``norm{i}`` where there is batch norm, and ``act{i}``;
    then come ``flatten`` and the linear ``head``.

    Args:
        channels: Channels that each convolution puts out.
        kernels: Side of each convolution's kernel.
        strides: Stride of each convolution.
        paddings: Zeros around the input of each convolution.
        input_shape: Channels, height and width of an image.
        classes: Number of outputs.
        activation: A key of :data:`ACTIVATIONS`.
        batch_norm: Whether batch norm follows each convolution.
        pool: Whether the head reads each channel's mean over all positions, and not the whole map.

    Raises:
        ValueError: for sequences of different lengths, an unknown activation, numbers out of range, or an image too
            small for the convolutions.
    """
    plan = [list(channels), list(kernels), list(strides), list(paddings)]
    if len({len(one) for one in plan}) != 1 or not plan[0]:
        raise ValueError(f"channels, kernels, strides and paddings need one entry per convolution, got {plan}")
    if min(*channels, *kernels, *strides, *input_shape, classes) < 1 or min(paddings) < 0:
        raise ValueError(f"sizes must be at least 1 and paddings 0, got {plan}, {list(input_shape)}, {classes}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known are {sorted(ACTIVATIONS)}")
    before, *sides = input_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (after, kernel, stride, padding) in enumerate(zip(*plan, strict=True), start=1):
        layers[f"conv{i}"] = nn.Conv2d(before, after, kernel, stride, padding, bias=not batch_norm)
        if batch_norm:
            layers[f"norm{i}"] = nn.BatchNorm2d(after)
        layers[f"act{i}"] = ACTIVATIONS[activation]()
        before, sides = after, [(side + 2 * padding - kernel) // stride + 1 for side in sides]
        if min(sides) < 1:
            raise ValueError(f"images {list(input_shape)} are too small for convolution {i} of {plan}")
    if pool:
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(before * (1 if pool else sides[0] * sides[1]), classes)
    return nn.Sequential(layers)
