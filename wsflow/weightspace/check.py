"""Proof by trial: a network's outputs do not change under the symmetries that were read off it.

Every tensor of the space is given random values first (norm weights of 1 and biases of 0, as networks start with, hide
mistakes), in float64.  Then random permutations of all groups, structured ones where only these are allowed, and random
factors of all rescalings must leave every output where it was.  Where they do not, each group and each rescaling is
tried alone, to name the one that fails.

Two small groups, or the heads of two layers, may happen to move alike, which would hide that a tensor moves with the
wrong one.  So they move in turns: number k moves in round r if bit r of k is set; any two then differ in some round.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wsflow.weightspace.elements import NeuronGroup
from wsflow.weightspace.space import WeightSpace
from wsflow.weightspace.symmetry import random_permutations, random_scales, units

TOLERANCE = 1e-9
"""Largest change of an output, over the largest output."""

NOISE = 0.1
"""Size of the noise on a tensor, over its root mean square; much more makes deep attention chaotic."""

DRAWS = 8
"""Random symmetries of which the one that changes most is tried."""

INPUTS, SIZE = 16, 2**13
"""Inputs that there should be, and numbers that they may hold in all."""

SMALL = 5
"""Neurons up to which two groups may happen to move alike."""


class SymmetryError(ValueError):
    """A symmetry that changes the network's function."""


def check_symmetries(
    space: WeightSpace, module: nn.Module, example_input: Tensor | None = None, trials: int = 2, seed: int = 0
) -> None:
    """Raise unless random permutations and rescalings leave a network's outputs unchanged.

    Args:
        space: The weight space that was read off the network.
        module: The network; it is copied.
        example_input: (N, ...); standard normal inputs of the space's shape unless given.  Random ones of their mean
            and size join small inputs, so that few neurons are dead on all of them.
        trials: Random networks and symmetries to try.
        seed: Of the random numbers.

    Raises:
        SymmetryError: where an output changes by more than 1e-9 of the largest one, with the group or the rescaling.
    """
    generator = torch.Generator().manual_seed(seed)
    network = copy.deepcopy(module).cpu().double().eval().requires_grad_(False)
    if example_input is None:
        if space.input_shape is None:
            raise ValueError("check_symmetries needs an example_input: the space does not know the shape of one")
        example_input = torch.randn(2, *space.input_shape, generator=generator)
    example = _more(example_input.cpu(), generator)
    for _ in range(trials):
        theta = _random_network(space, network, generator)
        before = _outputs(space, network, theta, example)
        if not before.isfinite().all():
            raise SymmetryError("the network's outputs are not finite, so that nothing can be said of its symmetries")
        _compare(space, network, theta, example, before, generator)


def _more(example: Tensor, generator: torch.Generator) -> Tensor:
    """Inputs in float64, with more where they are numbers, few and small."""
    if not example.is_floating_point():
        return example
    example = example.double()
    missing = min(INPUTS, SIZE // max(1, example[0].numel())) - len(example)
    noise = torch.randn(max(0, missing), *example.shape[1:], generator=generator, dtype=torch.float64)
    size = example.std(correction=0)
    return torch.cat([example, example.mean() + (size if size > 0 else 1.0) * noise])


def _compare(
    space: WeightSpace, network: nn.Module, theta: Tensor, example: Tensor, before: Tensor, generator: torch.Generator
) -> None:
    perms, scales = _permutations(space, generator), _scales(space, generator)
    still: list[Tensor] = [torch.arange(group.size) for group in space.hidden]
    still += [torch.ones_like(scale) for scale in scales]

    def error(chosen: Collection[int]) -> float:
        moves = [move if i in chosen else still[i] for i, move in enumerate((*perms, *scales))]
        moved = space.permute(space.rescale(theta[None], moves[len(perms) :]), moves[: len(perms)])[0]
        after = _outputs(space, network, moved, example)
        return float((after - before).abs().max() / before.abs().max().clamp_min(torch.finfo(torch.float64).tiny))

    for chosen in _rounds(space):
        if not error(chosen) <= TOLERANCE:
            _blame(space, error)
            raise SymmetryError(f"the symmetries change the outputs by {error(chosen):.1e} of the largest one")


def _blame(space: WeightSpace, error: Callable[[Collection[int]], float]) -> None:
    """Raise SymmetryError for the groups that permute together, or the rescaling, that fails alone."""
    for members in units(space):
        if not error(members) <= TOLERANCE:
            names = " with ".join(repr(space.hidden[i].name) for i in members)
            raise SymmetryError(f"permuting group {names} changes the outputs by {error(members):.1e} of the largest")
    for i, rescaling in enumerate(space.rescalings):
        wrong = error([len(space.hidden) + i])
        if not wrong <= TOLERANCE:
            name = f"rescaling {rescaling.name!r} of group {rescaling.group!r}"
            raise SymmetryError(f"{name} changes the outputs by {wrong:.1e} of the largest")


def _rounds(space: WeightSpace) -> list[set[int]]:
    """What moves in each round: places of hidden groups, and behind them those of rescalings."""
    hidden, every = space.hidden, [*units(space)]
    every += [[len(hidden) + i] for i in range(len(space.rescalings))]
    small = [m for m in units(space) if any(hidden[i].partition or hidden[i].size <= SMALL for i in m)]
    small += [[len(hidden) + i] for i, r in enumerate(space.rescalings) if r.scaling == "sign" and r.size <= SMALL]
    large = {i for members in every if members not in small for i in members}
    turns = range(max(1, len(small).bit_length()))
    return [large.union(*(m for k, m in enumerate(small, start=1) if k >> turn & 1)) for turn in turns]


def _permutations(space: WeightSpace, generator: torch.Generator) -> list[Tensor]:
    """Of some random permutations, those that move most: of two neurons, every other one would move none."""
    draws = random_permutations(space, DRAWS, generator)
    perms = [draw[0] for draw in draws]
    for members in units(space):
        moved = torch.stack([_moved(space.hidden[i], draws[i]) for i in members]).sum(0)
        for i in members:
            perms[i] = draws[i][moved.argmax()]
    return perms


def _moved(group: NeuronGroup, perms: Tensor) -> Tensor:
    """Neurons that permutations (n, size) move, and move to other parts and to other places within parts; (n,)."""
    size, places = group.size // (group.partition.parts if group.partition else 1), torch.arange(group.size)
    return torch.stack([perms != places, perms // size != places // size, perms % size != places % size]).sum((0, 2))


def _scales(space: WeightSpace, generator: torch.Generator) -> list[Tensor]:
    """Of some random factors, those with most signs."""
    return [draw[(draw != 1).sum(1).argmax()].double() for draw in random_scales(space, DRAWS, generator)]


def _random_network(space: WeightSpace, network: nn.Module, generator: torch.Generator) -> Tensor:
    """An extended vector (D + D_b,): the network's own numbers, each tensor with noise of its size."""
    theta = space.flatten(network.state_dict(), buffers=True)
    variances = torch.cat([torch.empty(0, dtype=torch.long), *(_variances(space))])
    for tensor in (*space.tensors, *space.buffer_tensors):
        part = theta[tensor.slice]
        size = part.square().mean().sqrt()
        noise = torch.randn(part.shape, generator=generator, dtype=torch.float64)
        theta[tensor.slice] = part + (NOISE * size if size > 0 else 0.1) * noise
    theta[variances] = 0.1 + theta[variances].abs()
    return theta


def _variances(space: WeightSpace) -> Iterator[Tensor]:
    return (torch.arange(b.slice.start, b.slice.stop) for b in space.buffers if b.kind == "running_var")


def _outputs(space: WeightSpace, network: nn.Module, theta: Tensor, example: Tensor) -> Tensor:
    """All outputs of the network with the weights ``theta`` in one vector."""
    network.load_state_dict(space.unflatten(theta), strict=False)
    with torch.no_grad():
        return torch.cat([value.flatten() for value in _tensors(network(example))])


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, dict):
        yield from (tensor for value in outputs.values() for tensor in _tensors(value))
    elif isinstance(outputs, list | tuple):
        yield from (tensor for value in outputs for tensor in _tensors(value))
