r"""Symmetries of weight space that follow from its groups and blocks.

*Permutation.*  One permutation per hidden group acts on the out axis of the blocks that enter it, the in axis of the
blocks that leave it, and its vectors.  With the convention "new neuron i is old neuron p(i)", a block becomes
:math:`W'_{ij} = W_{p(i), q(j)}` (thesis eq. 4.1).

*Rescaling.*  For an activation with :math:`\sigma(\lambda z) = \lambda \sigma(z)`, the incoming weights and the bias of
a neuron are multiplied by :math:`\lambda` and its outgoing weights divided by it (positive factors for ReLU, signs for
tanh; Godfrey et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from wsflow.weightspace.space import NeuronGroup, WeightSpace


def permute(space: WeightSpace, theta: Tensor, perms: Sequence[Tensor]) -> Tensor:
    """Permute the hidden neurons of B networks.

    Args:
        space: Their weight space.
        theta: (B, D).
        perms: One tensor per hidden group, in the order of ``space.hidden``: (B, size) or, shared by all networks,
            (size,).  Entry i is the old index of the new neuron i.

    Returns:
        (B, D), networks that compute the same functions.

    Raises:
        ValueError: where the number or the sizes of the permutations do not fit.
    """
    space.check(theta)
    _fits(space, perms, "permutations")
    batch = theta.shape[0]
    moves = {group.name: p.to(theta.device).expand(batch, -1) for group, p in zip(space.hidden, perms, strict=True)}
    for group in space.groups:
        moves.setdefault(group.name, torch.arange(group.size, device=theta.device).expand(batch, -1))
    index = torch.empty(theta.shape, dtype=torch.long, device=theta.device)
    for block in space.blocks:
        out, into = moves[block.target], moves[block.source]
        edge = out[:, :, None] * block.in_ + into[:, None, :]
        entry = edge[..., None] * block.depth + torch.arange(block.depth, device=theta.device)
        index[:, block.slice] = block.start + entry.flatten(1)
    for vector in space.vectors:
        index[:, vector.slice] = vector.start + moves[vector.group]
    return theta.gather(1, index)


def rescale(space: WeightSpace, theta: Tensor, scales: Sequence[Tensor]) -> Tensor:
    """Multiply each hidden neuron's incoming weights and bias by a factor and divide its outgoing weights by it.

    Args:
        space: Their weight space.
        theta: (B, D).
        scales: One tensor per hidden group, (B, size) or (size,); positive for ReLU, -1 or 1 for tanh, 1 elsewhere.

    Returns:
        (B, D).  The functions stay the same where the activation allows the factors.

    Raises:
        ValueError: where the number or the sizes of the factors do not fit.
    """
    space.check(theta)
    _fits(space, scales, "scales")
    batch = theta.shape[0]
    factors = {group.name: s.to(theta).expand(batch, -1) for group, s in zip(space.hidden, scales, strict=True)}
    for group in space.groups:
        factors.setdefault(group.name, theta.new_ones(batch, group.size))
    factor = torch.empty_like(theta)
    for block in space.blocks:
        ratio = factors[block.target][:, :, None] / factors[block.source][:, None, :]
        factor[:, block.slice] = ratio[..., None].expand(*ratio.shape, block.depth).flatten(1)
    for vector in space.vectors:
        factor[:, vector.slice] = factors[vector.group]
    return theta * factor


def invert(perms: Sequence[Tensor]) -> list[Tensor]:
    """The inverse permutations: doing ``perms`` and then these leaves every network as it was."""
    return [p.argsort(dim=-1) for p in perms]


def compose(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
    """Permutations that do ``first`` and then ``second``; each (B, size)."""
    return [p.gather(-1, q) for p, q in zip(first, second, strict=True)]


def random_permutations(space: WeightSpace, n: int, generator: torch.Generator | None = None) -> list[Tensor]:
    """Uniform permutations of every hidden group, (n, size) each; structured ones where a group has a partition."""
    return [_random(group, n, generator) for group in space.hidden]


def random_scales(space: WeightSpace, n: int, generator: torch.Generator | None = None) -> list[Tensor]:
    """Random factors that each hidden group allows, (n, size) each: log-normal, signs, or ones."""
    scales = []
    for group in space.hidden:
        normal = torch.randn(n, group.size, generator=generator)
        choice = {"positive": normal.exp(), "sign": torch.where(normal < 0, -1.0, 1.0), "none": torch.ones_like(normal)}
        scales.append(choice[group.scaling])
    return scales


def _random(group: NeuronGroup, n: int, generator: torch.Generator | None) -> Tensor:
    if group.partition is None:
        return torch.rand(n, group.size, generator=generator).argsort(dim=1)
    parts, size = group.partition.parts, group.size // group.partition.parts
    order = torch.arange(group.size).view(1, parts, size).expand(n, -1, -1)
    if group.partition.within:
        order = order.gather(2, torch.rand(n, parts, size, generator=generator).argsort(dim=2))
    if group.partition.across:
        swap = torch.rand(n, parts, generator=generator).argsort(dim=1)
        order = order.gather(1, swap[..., None].expand(-1, -1, size))
    return order.flatten(1)


def _fits(space: WeightSpace, given: Sequence[Tensor], what: str) -> None:
    sizes, expected = [t.shape[-1] for t in given], [group.size for group in space.hidden]
    if sizes != expected:
        raise ValueError(f"{what} of sizes {sizes} do not fit hidden groups of sizes {expected}")
