r"""Symmetries of weight space that follow from its groups, pieces and rescalings.

*Permutation.*  One permutation per hidden group acts on the out axis of the blocks that enter it, the in axis of the
blocks that leave it, and its vectors.  With the convention "new neuron i is old neuron p(i)", a block becomes
:math:`W'_{ij} = W_{p(i), q(j)}` (thesis eq. 4.1).  A group that falls into parts (GroupNorm, grouped convolution,
attention heads) allows only permutations of whole parts, of neurons within a part, or both.

*Rescaling.*  For an activation with :math:`\sigma(\lambda z) = \lambda \sigma(z)`, the incoming weights and the bias of
a neuron are multiplied by :math:`\lambda` and its outgoing weights divided by it (positive factors for ReLU, signs for
tanh; Godfrey et al. 2022).  Batch norm undoes factors of its inputs: they move its running statistics,
:math:`m' = \lambda m` and :math:`v' = \lambda^2 (v + \epsilon) - \epsilon`, and stop there; its own weight and bias
start a second family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wsflow.weightspace.elements import split_last
from wsflow.weightspace.transfer import send

if TYPE_CHECKING:
    from wsflow.weightspace.elements import GroupVector, NeuronGroup, WeightBlock
    from wsflow.weightspace.space import WeightSpace


def permute(space: WeightSpace, theta: Tensor, perms: Sequence[Tensor]) -> Tensor:
    """Permute the hidden neurons of B networks.

    Args:
        space: Their weight space.
        theta: (B, D), or extended by running statistics.
        perms: One tensor per hidden group, in the order of ``space.hidden``: (B, size) or, shared by all networks,
            (size,).  Entry i is the old index of the new neuron i.  Where a group falls into parts, they must be
            allowed (:func:`check_permutations`).

    Returns:
        A tensor of the shape of ``theta``, networks that compute the same functions.

    Raises:
        ValueError: where the number or the sizes of the permutations do not fit.
    """
    space.check(theta)
    fits(perms, [group.size for group in space.hidden], "permutations", "hidden groups")
    moves = {group.name: send(p, theta.device) for group, p in zip(space.hidden, perms, strict=True)}
    result = theta.clone()
    for block in space.blocks:
        if block.target in moves or block.source in moves:
            moved = take(block.view(theta), moves.get(block.target), -3)
            block.view(result)[...] = take(moved, _edges(block, moves.get(block.source)), -2)
    for vector in _vectors(space, theta):
        if vector.group in moves:
            vector.view(result)[...] = take(vector.view(theta), moves[vector.group], -2)
    return result


def take(values: Tensor, index: Tensor | None, axis: int) -> Tensor:
    """Entries of an axis of ``values`` (..., n, ...), in another order.

    Args:
        values: One or more axes from ``axis`` on, and batch axes before them.
        index: (n,), shared; (B, n), one per network; (B, m, n) where the axis before has an order of each own; None
            for the order as it is.
        axis: A negative number.
    """
    if index is None:
        return values
    if index.ndim == 1:
        return values.index_select(axis, index)
    if values.ndim + axis != index.ndim - 1:
        index = index.unsqueeze(-2)
    shape = index.shape + (1,) * (-axis - 1)
    return values.gather(axis, index.view(shape).expand(values.shape))


def rescale(space: WeightSpace, theta: Tensor, scales: Sequence[Tensor]) -> Tensor:
    """Multiply what enters neurons by factors and divide what leaves them.

    Args:
        space: Their weight space.
        theta: (B, D), or extended by running statistics.
        scales: One tensor per entry of ``space.rescalings``, (B, size) or (size,); positive, or -1 and 1 where the
            rescaling has signs.

    Returns:
        A tensor of the shape of ``theta``, networks that compute the same functions.  Where batch norm follows, that
        holds for extended vectors; with statistics that were not moved along the function is another.

    Raises:
        ValueError: where the number or the sizes of the factors do not fit.
    """
    space.check(theta)
    fits(scales, [rescaling.size for rescaling in space.rescalings], "scales", "rescalings")
    factors = {r.name: _per_neuron(space, r.group, s.to(theta)) for r, s in zip(space.rescalings, scales, strict=True)}
    result = theta.clone()
    for block in space.blocks:
        if block.target_scale in factors or block.source_scale in factors:
            block.view(result)[...] = block.view(theta) * _block_factor(block, factors)[..., None]
    for vector in _vectors(space, theta):
        if vector.kind != "slope" and (vector.scale in factors or vector.source_scale in factors):
            vector.view(result)[...] = _rescaled(vector, vector.view(theta), factors)
    return result


def _block_factor(block: WeightBlock, factors: Mapping[str, Tensor]) -> Tensor:
    """What each edge of a block is multiplied by, (..., out, fan_in) or broadcastable."""
    one = next(iter(factors.values())).new_ones(1)
    out = factors.get(block.target_scale or "", one)
    out = 1 / out if block.inverse else out
    if block.source_scale is None or block.source_scale not in factors:
        return out[..., :, None]
    into = split_last(factors[block.source_scale], block.parts, -1)
    return out[..., :, None] / into.repeat_interleave(block.out // block.parts, dim=-2)


def _rescaled(vector: GroupVector, value: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
    """A vector (..., size, depth), multiplied by the factors of its rescalings."""
    one = value.new_ones(1)
    scale, source = factors.get(vector.scale or "", one), factors.get(vector.source_scale or "", one)
    factor = ((1 / scale if vector.inverse else scale) / source)[..., None]
    if vector.kind == "running_var":
        return factor.square() * (value + vector.eps) - vector.eps
    return value * factor


def _per_neuron(space: WeightSpace, group: str, scale: Tensor) -> Tensor:
    """One factor for each neuron of a group."""
    return scale.repeat_interleave(space.group(group).size // scale.shape[-1], dim=-1)


def _edges(block: WeightBlock, move: Tensor | None) -> Tensor | None:
    """The order of a block's columns, (B, fan_in); for a grouped convolution, one for each row, (B, out, fan_in)."""
    if move is None or block.parts == 1:
        return move
    inner = split_last(move, block.parts, -1) % block.fan_in
    rows = inner.repeat_interleave(block.out // block.parts, dim=-2)
    return rows if rows.ndim == 3 else rows[None]


def _vectors(space: WeightSpace, theta: Tensor) -> tuple[GroupVector, ...]:
    """The vectors that flat vectors hold: running statistics are among them if these are extended."""
    return space.vectors + space.buffers * (theta.shape[-1] > space.dim)


def invert(perms: Sequence[Tensor]) -> list[Tensor]:
    """The inverse permutations: doing ``perms`` and then these leaves every network as it was."""
    return [p.argsort(dim=-1) for p in perms]


def compose(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
    """Permutations that do ``first`` and then ``second``; each (B, size)."""
    return [p.gather(-1, q) for p, q in zip(first, second, strict=True)]


def random_permutations(space: WeightSpace, n: int, generator: torch.Generator | None = None) -> list[Tensor]:
    """Uniform permutations of every hidden group, (n, size) each; structured ones where a group has a partition."""
    swaps: dict[str, Tensor] = {}
    return [_random(group, n, generator, swaps) for group in space.hidden]


def random_scales(space: WeightSpace, n: int, generator: torch.Generator | None = None) -> list[Tensor]:
    """Random factors for every rescaling, (n, size) each: log-normal, or signs."""
    scales = []
    for rescaling in space.rescalings:
        normal = torch.randn(n, rescaling.size, generator=generator)
        scales.append(torch.where(normal < 0, -1.0, 1.0) if rescaling.scaling == "sign" else normal.exp())
    return scales


def units(space: WeightSpace) -> list[list[int]]:
    """Places in ``space.hidden`` of the groups that permute together: those of one key, and every other one alone."""
    keys = [(g.partition.key if g.partition else "") or f"alone {g.name}" for g in space.hidden]
    order = sorted(range(len(keys)), key=lambda i: keys.index(keys[i]))
    return [list(members) for _, members in groupby(order, key=lambda i: keys[i])]


def check_permutations(space: WeightSpace, perms: Sequence[Tensor]) -> None:
    """Raise ValueError, naming the group, unless these are permutations that the space's groups allow.

    Args:
        space: The weight space.
        perms: One tensor (B, size) or (size,) per hidden group.
    """
    fits(perms, [group.size for group in space.hidden], "permutations", "hidden groups")
    parts: dict[str, Tensor] = {}
    for group, p in zip(space.hidden, perms, strict=True):
        identity = torch.arange(group.size, device=p.device)
        if not bool((p.sort(dim=-1).values == identity).all()):
            raise ValueError(f"group {group.name!r}: not a permutation of its {group.size} neurons")
        if group.partition is not None:
            _check_parts(group, p, parts)


def _check_parts(group: NeuronGroup, p: Tensor, shared: dict[str, Tensor]) -> None:
    assert group.partition is not None
    partition, size = group.partition, group.size // group.partition.parts
    grid = split_last(p, partition.parts, size)
    part = grid[..., 0] // size
    here = torch.arange(partition.parts, device=p.device)
    inner = torch.arange(size, device=p.device)
    other = shared.setdefault(partition.key, part) if partition.key else part
    broken = {
        f"keep its {partition.parts} parts whole": (grid // size != part[..., None]).any(),
        "leave its parts in place": not partition.across and (part != here).any(),
        "leave the order within its parts": not partition.within and (grid % size != inner).any(),
        f"move its parts as the other groups of {partition.key!r} do": (other != part).any(),
    }
    for rule, wrong in broken.items():
        if bool(wrong):
            raise ValueError(f"group {group.name!r}: its permutations must {rule}")


def _random(group: NeuronGroup, n: int, generator: torch.Generator | None, swaps: dict[str, Tensor]) -> Tensor:
    if group.partition is None:
        return torch.rand(n, group.size, generator=generator).argsort(dim=1)
    parts, size = group.partition.parts, group.size // group.partition.parts
    order = torch.arange(group.size).view(1, parts, size).expand(n, -1, -1)
    if group.partition.within:
        order = order.gather(2, torch.rand(n, parts, size, generator=generator).argsort(dim=2))
    if group.partition.across:
        swap = torch.rand(n, parts, generator=generator).argsort(dim=1)
        swap = swaps.setdefault(group.partition.key, swap) if group.partition.key else swap
        order = order.gather(1, swap[..., None].expand(-1, -1, size))
    return order.flatten(1)


def fits(given: Sequence[Tensor], sizes: Sequence[int], what: str, where: str) -> None:
    """Raise ValueError unless the last axes of the tensors have these sizes."""
    found = [t.shape[-1] for t in given]
    if found != list(sizes):
        raise ValueError(f"{what} of sizes {found} do not fit {where} of sizes {list(sizes)}")
