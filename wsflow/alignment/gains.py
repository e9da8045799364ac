r"""What a move gains, and the permutations that gain most.

Neuron i of the reference and neuron j of a network have *profiles*: the weights that enter them, the weights that leave
them and the entries of their group's vectors.  With all other groups held, the inner products of profiles are the gain
matrix :math:`G_{ij}` of a group, and the best permutation solves the linear assignment problem
:math:`\max_p \sum_i G_{i p(i)}`.

*Parts.*  Where groups fall into parts, part q may be placed at p.  That brings the best assignments of neurons within
the parts, summed over the move's groups,

.. math:: V_{pq} = \sum_g \max_w \sum_i G^g_{(p, i), (q, w(i))},

and the best placement solves the assignment problem of V.  A plain group is one part.

*Blocks inside a move.*  A grouped convolution whose two groups move together joins equal parts only: the orders within
both are chosen in turns for every pair (p, q), each with the other held.  A dense block that joins two groups of a
move, or a group to itself, makes the gain quadratic in the permutation; it is linearised at the order as it is.  Both
are approximations, and such a step is taken only where the inner product itself rises.

A step must raise the inner product by more than rounding, so that ties cannot cycle.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wsflow.alignment.assignment import assign
from wsflow.alignment.moves import Move, permuted
from wsflow.weightspace import GroupVector, WeightBlock
from wsflow.weightspace.symmetry import take

ROUNDS = 3
"""How often the orders within the parts of a grouped convolution are chosen in turns."""

ELEMENTS = 2**22
"""Weights of a block that are in float64 at once."""


@dataclass(frozen=True, eq=False)
class Networks:
    """Networks and what they are aligned to.

    Args:
        theta: (B, D).
        reference: (D,) or (B, D).
        margin: (B,), float64, a rise of the inner product that rounding alone could make.
        rows: (b,), the networks that are meant; None for all.
    """

    theta: Tensor
    reference: Tensor
    margin: Tensor
    rows: Tensor | None = None

    def read(self, piece: WeightBlock | GroupVector) -> tuple[Tensor, Tensor]:
        """A piece of the networks (b, ...) and of the reference (...) or (b, ...)."""
        mine, goal = piece.view(self.theta), piece.view(self.reference)
        if self.rows is not None:
            mine, goal = mine[self.rows], goal[self.rows] if self.reference.ndim == 2 else goal
        return mine, goal

    @property
    def count(self) -> int:
        """b, the number of networks."""
        return len(self.theta if self.rows is None else self.rows)


class Tied(NamedTuple):
    """A block that joins equal parts of two groups of a move.

    Attributes:
        block: The block.
        mine: (b, P, Q, out, in, depth), part q of the networks, for every place p.
        goal: (P, 1, out, in, depth) or (b, P, 1, out, in, depth), part p of the reference.
    """

    block: WeightBlock
    mine: Tensor
    goal: Tensor

    def gains(self, name: str, orders: dict[str, Tensor]) -> Iterator[Tensor]:
        """Gain matrices (b, P, Q, n, n) of a group, for each of its roles whose other end has an order."""
        source, target = orders.get(self.block.source), orders.get(self.block.target)
        if self.block.target == name and source is not None:
            yield self.goal.flatten(-2) @ take(self.mine, source, -2).flatten(-2).mT
        if self.block.source == name and target is not None:
            goal, mine = self.goal.transpose(-3, -2), take(self.mine, target, -3).transpose(-3, -2)
            yield goal.flatten(-2) @ mine.flatten(-2).mT

    def value(self, orders: dict[str, Tensor]) -> Tensor:
        """Inner products (b, P, Q) with all orders chosen."""
        mine = take(take(self.mine, orders[self.block.target], -3), orders[self.block.source], -2)
        return (self.goal * mine).sum((-3, -2, -1))


def best_step(move: Move, networks: Networks, known: Collection[str]) -> tuple[dict[str, Tensor], Tensor]:
    """The permutations that a move gains most from, and where they gain anything.

    Args:
        move: The move.
        networks: b networks.
        known: Names of the groups whose order is meant to stand; blocks that join the move to others are left out.

    Returns:
        (b, size) by name of the group, and (b,), whether the inner product rises by more than rounding.
    """
    outer = {group.name: _outer(move, group.name, networks, known) for group in move.groups}
    tied = [_tied(move, block, networks) for block in move.tied]
    orders = _orders(move, outer, tied)
    value = torch.stack([gain.gather(-1, orders[name][..., None]).sum((-2, -1)) for name, gain in outer.items()]).sum(0)
    for block in tied:
        value = value + block.value(orders)
    places = assign(value) if move.across else torch.zeros_like(value[..., 0], dtype=torch.long)
    perms = {name: _join(move, order, places) for name, order in orders.items()}
    if move.inside:
        rise = _rise(move, networks, perms)
    else:
        then = value.gather(-1, places[..., None]).sum((-2, -1))
        rise = then - torch.stack([_now(move, gain) for gain in outer.values()]).sum(0)
    return perms, rise > (networks.margin if networks.rows is None else networks.margin[networks.rows])


def _outer(move: Move, name: str, networks: Networks, known: Collection[str]) -> Tensor:
    """The gains (b, P, Q, n, n) of a group from all but tied blocks; Q is P, or 1 where parts stay in place."""
    size = next(group.size for group in move.groups if group.name == name)
    parted = move.parts > 1 and not move.across
    shape = (move.parts, size // move.parts) if parted else (size,)
    gain = networks.theta.new_zeros(networks.count, *shape, shape[-1], dtype=torch.float64)
    for mine, goal in _profiles(move, name, networks, known):
        gain += torch.unflatten(mine.double(), -2, shape) @ torch.unflatten(goal.double(), -2, shape).mT
    if parted:
        return gain.mT.unsqueeze(2)
    columns = torch.unflatten(gain.mT, -1, (move.parts, -1))
    return torch.unflatten(columns, -3, (move.parts, -1)).transpose(-3, -2)


def _profiles(move: Move, name: str, networks: Networks, known: Collection[str]) -> Iterator[tuple[Tensor, Tensor]]:
    """Slices of the profiles of a group's neurons, (b, size, m) of the networks and (..., size, m) of the reference."""
    for block in move.blocks:
        if block in move.tied:
            continue
        if block.target == name and block.source in known:
            for mine, goal in _slices(*networks.read(block), -2):
                yield mine.flatten(-2), goal.flatten(-2)
        if block.source == name and block.target in known:
            pair = networks.read(block)
            for mine, goal in _slices(*pair, -3) if block.parts == 1 else [pair]:
                yield _columns(block, mine), _columns(block, goal)
    for vector in move.vectors:
        if vector.group == name:
            yield networks.read(vector)


def _slices(mine: Tensor, goal: Tensor, axis: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Both, cut along an axis so that a slice of all networks has at most ``ELEMENTS`` numbers."""
    width = max(1, ELEMENTS * mine.shape[axis] // max(1, mine.numel()))
    return zip(torch.split(mine, width, axis), torch.split(goal, width, axis), strict=True)


def _columns(block: WeightBlock, value: Tensor) -> Tensor:
    """The weights that leave each source neuron, (..., in, m), of a block (..., out, fan_in, depth)."""
    return torch.unflatten(value, -3, (block.parts, -1)).transpose(-3, -2).flatten(-2).flatten(-3, -2)


def _tied(move: Move, block: WeightBlock, networks: Networks) -> Tied:
    mine, goal = (torch.unflatten(x.double(), -3, (block.parts, -1)) for x in networks.read(block))
    spread = mine.unsqueeze(1).expand(-1, move.parts, -1, -1, -1, -1) if move.across else mine.unsqueeze(2)
    return Tied(block, spread, goal.unsqueeze(-4))


def _orders(move: Move, outer: dict[str, Tensor], tied: list[Tied]) -> dict[str, Tensor]:
    """The best orders within the parts, (b, P, Q, n) by name of the group."""
    orders = {
        name: torch.arange(gain.shape[-1], device=gain.device).expand(gain.shape[:-1])
        for name, gain in outer.items()
        if name not in move.within
    }
    for _ in range(ROUNDS if tied else 1):
        for group in move.groups:
            if group.name in move.within:
                gains = [gain for block in tied for gain in block.gains(group.name, orders)]
                orders[group.name] = assign(sum(gains, start=outer[group.name]))
    return orders


def _join(move: Move, order: Tensor, places: Tensor) -> Tensor:
    """The permutation (b, size) of a group from orders within parts (b, P, Q, n) and the part at each place (b, P)."""
    n = order.shape[-1]
    chosen = order.gather(2, places[..., None, None].expand(-1, -1, 1, n)).squeeze(2)
    parts = places if move.across else torch.arange(move.parts, device=order.device)
    return (parts[..., None] * n + chosen).flatten(1)


def _now(move: Move, gain: Tensor) -> Tensor:
    """The gain (b,) of the order as it is."""
    same = gain.diagonal(dim1=1, dim2=2) if move.across else gain[:, :, 0].movedim(1, -1)
    return same.diagonal(dim1=1, dim2=2).sum((1, 2))


def _rise(move: Move, networks: Networks, perms: dict[str, Tensor]) -> Tensor:
    """What permutations add to the inner product, (b,), from the weights themselves."""
    change = torch.zeros((), dtype=torch.float64, device=networks.theta.device)
    for piece in move.pieces:
        mine, goal = (x.double() for x in networks.read(piece))
        change = change + ((permuted(piece, mine, perms) - mine) * goal).flatten(1).sum(1)
    return change
