"""From a network to its weight space.

Sequences of linear layers and activations are understood: each linear layer is a weight block, and each place between
two of them is a hidden neuron group with the activation found there.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from itertools import pairwise

from torch import nn

from wsflow.weightspace.space import GroupVector, NeuronGroup, Role, WeightBlock, WeightSpace

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
}
"""Activations by the name that a neuron group carries."""

PASS_THROUGH = (nn.Flatten, nn.Identity, nn.Dropout)


class UnsupportedModuleError(ValueError):
    """A network whose symmetries wsflow does not know."""


def trace(module: nn.Module, output_activation: str = "softmax", select: str | None = None) -> WeightSpace:
    """The weight space of an ``nn.Sequential`` of Linear and activations, nested or not.

    Args:
        module: The network; it is copied.
        output_activation: ``softmax`` for a classifier, ``identity`` otherwise.
        select: A regular expression; parameters whose full name it matches are the space and the rest is frozen at
            the module's values.  A group with a frozen tensor no longer permutes.

    Raises:
        UnsupportedModuleError: for any other module, by name and place, and for layers that share a parameter.
        ValueError: where ``select`` matches nothing.
    """
    if output_activation not in ("softmax", "identity"):
        raise ValueError(f"output_activation must be 'softmax' or 'identity', got {output_activation!r}")
    linears, activations = _read(module)
    pattern = re.compile(select if select is not None else ".*")
    sizes = [linears[0][1].in_features, *(layer.out_features for _, layer in linears)]
    names = ["input", *(f"hidden{i + 1}" for i in range(len(linears) - 1)), "output"]
    frozen: set[str] = set()
    blocks, vectors, start = [], [], 0
    for i, (name, layer) in enumerate(linears):
        shape = (layer.out_features, layer.in_features)
        weight, bias = _join(name, "weight"), _join(name, "bias")
        if pattern.fullmatch(weight):
            block = WeightBlock(weight, names[i], names[i + 1], *shape, (), shape, start)
            blocks.append(block)
            start += block.numel
        else:
            frozen |= {names[i], names[i + 1]}
        if layer.bias is not None and pattern.fullmatch(bias):
            vectors.append(GroupVector(bias, names[i + 1], "bias", shape[0], start))
            start += shape[0]
        elif layer.bias is not None:
            frozen.add(names[i + 1])
    if not blocks and not vectors:
        raise ValueError(f"select={select!r} matches no parameter of the network")

    def role(i: int) -> Role:
        if i in (0, len(linears)):
            return "output" if i else "input"
        return "input" if names[i] in frozen else "hidden"

    groups = tuple(
        NeuronGroup(name, size, role(i), [*activations, output_activation][i])
        for i, (name, size) in enumerate(zip(names, sizes, strict=True))
    )
    template = copy.deepcopy(module).eval().requires_grad_(False)
    return WeightSpace(groups, tuple(blocks), tuple(vectors), template=template)


def _read(module: nn.Module) -> tuple[list[tuple[str, nn.Linear]], list[str]]:
    """Linear layers by name, and the activation of the input and of every hidden group."""
    linears: list[tuple[str, nn.Linear]] = []
    activations: list[str] = []
    pending: str | None = None
    known = {cls: name for name, cls in ACTIVATIONS.items()}
    for name, layer in _leaves(module):
        what = f"{type(layer).__name__} at {name or 'the top'!r}"
        if type(layer) is nn.Linear:
            activations.append(pending or "identity")
            linears.append((name, layer))
            pending = None
        elif type(layer) in known:
            if pending is not None or not linears:
                where = "directly after another activation" if linears else "before the first Linear"
                raise UnsupportedModuleError(f"{what} stands {where}")
            pending = known[type(layer)]
        elif type(layer) not in PASS_THROUGH:
            supported = ["Sequential", "Linear", *(c.__name__ for c in (*PASS_THROUGH, *known))]
            raise UnsupportedModuleError(f"{what} is not supported; supported are {', '.join(supported)}")
    if not linears:
        raise UnsupportedModuleError(f"{type(module).__name__} has no Linear layer")
    if pending is not None:
        raise UnsupportedModuleError(f"the network ends in {pending}; it must end in a Linear layer (logits or values)")
    for (name, before), (other, after) in pairwise(linears):
        if before.out_features != after.in_features:
            raise UnsupportedModuleError(
                f"{other!r} reads {after.in_features} features but {name!r} gives {before.out_features}"
            )
    if len({id(p) for _, layer in linears for p in layer.parameters()}) != sum(1 for _ in _all(linears)):
        raise UnsupportedModuleError("layers that share a parameter are not supported")
    return linears, activations


def _all(linears: list[tuple[str, nn.Linear]]) -> Iterator[nn.Parameter]:
    return (p for _, layer in linears for p in layer.parameters())


def _leaves(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    if type(module) is not nn.Sequential:
        yield prefix, module
        return
    # Not named_children(), which passes over a module that stands in two places.
    for name, child in module._modules.items():
        if child is not None:
            yield from _leaves(child, _join(prefix, name))


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
