"""What tests of fields on the neural graph share: spaces, random parameters, and the checks that all of them pass.

Heads that start at zero would hide mistakes, so most checks want random values in every parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from graph_spaces import convolutional, joined, positions, residual
from torch import Tensor, nn

from wsflow.fields import VectorField
from wsflow.weightspace import WeightSpace, mlp
from wsflow.weightspace.symmetry import random_permutations

Module = TypeVar("Module", bound=nn.Module)

SPACES: dict[str, Callable[[], WeightSpace]] = {
    "mlp": lambda: WeightSpace.from_module(mlp([6, 5, 4, 2])),
    "tanh": lambda: WeightSpace.from_module(mlp([5, 4, 3, 2], activation="tanh"), output_activation="identity"),
    "no_bias": lambda: WeightSpace.from_module(mlp([5, 4, 2], bias=False)),
    "residual": residual,
    "cnn": convolutional,
    "batch_norm": lambda: convolutional(batch_norm=True, pool=True),
    "joined": joined,
    "positions": positions,
}

WIDER: dict[str, Callable[[], WeightSpace]] = {
    "mlp": lambda: WeightSpace.from_module(mlp([6, 3, 9, 2])),
    "residual": lambda: residual(stream=3, middle=7),
    "cnn": lambda: convolutional(channels=[6, 7]),
    "positions": lambda: positions(hidden=7),
}
"""Other widths of some of the spaces."""


def randomise(module: Module) -> Module:
    """The module in float64, with random values in every parameter."""
    module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p), alpha=0.2)
    return module


def points(field: VectorField, n: int = 3) -> tuple[Tensor, Tensor]:
    """Random states and times in float64."""
    return torch.randn(n, field.dim, dtype=torch.float64), torch.rand(n, dtype=torch.float64)


def differ(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-3 * b.abs().max())


def check_equivariance(field: VectorField) -> None:
    """Hidden permutations of the state permute the output, and leave extra coordinates."""
    space, (x, t) = field.space, points(field)
    perms = random_permutations(space, len(x))

    def moved(y: Tensor) -> Tensor:
        return torch.cat([space.permute(y[:, : space.dim], perms), y[:, space.dim :]], dim=1)

    out = field(x, t)
    torch.testing.assert_close(field(moved(x), t), moved(out), rtol=1e-11, atol=1e-11 * out.abs().max().item())
    assert differ(moved(out), out)


def check_one_by_one(field: VectorField) -> None:
    """Networks do not see each other, and batches have any size."""
    x, t = points(field, 4)
    together = field(x, t)
    for size in (1, 3):
        parts = [field(*part) for part in zip(x.split(size), t.split(size), strict=True)]
        torch.testing.assert_close(torch.cat(parts), together, rtol=1e-11, atol=1e-11)
    assert field(x[:0], t[:0]).shape == (0, field.dim)


def check_time_and_extra_coordinates_are_read(field: VectorField) -> None:
    """Every tensor of the output changes with time and with an extra coordinate."""
    x, _ = points(field, 1)
    late = torch.tensor([0.2, 0.6, 0.2], dtype=torch.float64)
    states = x.repeat(3, 1)
    states[2, -1] += 1
    early, later, other = field(states, late)
    for tensor in field.space.tensors:
        assert differ(early[tensor.slice], later[tensor.slice])
        assert differ(early[tensor.slice], other[tensor.slice])


def check_every_tensor_is_read(field: VectorField) -> None:
    """Every tensor of the output changes with every tensor of the state."""
    x, t = points(field, 1)
    out = field(x, t)[0]
    for tensor in field.space.tensors:
        moved = x.clone()
        moved[:, tensor.slice] += torch.randn(tensor.numel, dtype=torch.float64)
        other = field(moved, t)[0]
        for read in field.space.tensors:
            assert (other[read.slice] - out[read.slice]).abs().max() > 1e-7


def check_gradients(field: VectorField, condition: Tensor | None = None) -> None:
    """Every parameter has a gradient from the first step on, and none that stays zero."""
    field.double()
    x, t = points(field, 4)
    (field(x, t, condition) - x).square().mean().backward()
    assert [name for name, p in field.named_parameters() if p.grad is None] == []
    randomise(field).zero_grad()
    (field(x, t, condition) - x).square().mean().backward()
    assert [name for name, p in field.named_parameters() if not p.grad.abs().max() > 1e-10] == []


def check_binding(field: VectorField, new: WeightSpace) -> None:
    """A bound field shares parameters, is equivariant and leaves the field as it was."""
    (x, t), bound = points(field), field.bind(new)
    check_equivariance(bound)
    assert [id(p) for p in bound.parameters()] == [id(p) for p in field.parameters()]
    before, (y, s) = field(x, t), points(bound)
    far = bound(y, s)
    assert torch.equal(field(x, t), before)
    with torch.no_grad():
        for p in field.parameters():
            p.mul_(1.1)
    assert differ(bound(y, s), far)
