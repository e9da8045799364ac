r"""Doubly stochastic matrices for every hidden group, with the structure of its permutations, and their rounding.

A plain group has one logit matrix.  A group of p parts of n neurons that may change places whole, and inside
themselves, has a matrix A (p, p) for the parts, shared by all groups of one key, and one matrix :math:`W_k` (n, n) for
each old part k:

.. math:: P_{(i, u), (k, v)} = A_{ik} (W_k)_{uv},

doubly stochastic again, and a structured permutation where A and the :math:`W_k` are permutations.  A or W is the
identity where the group's partition forbids these moves.

Rounding maximises :math:`\sum \langle P, G \rangle` over the permutations P that a unit of groups allows: assignments
inside every pair of parts, then one assignment of the parts (:func:`best_permutations`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wsflow.alignment.assignment import assign
from wsflow.weightspace import NeuronGroup, WeightSpace
from wsflow.weightspace.symmetry import units

Leaves = dict[tuple[str, str], Tensor]
"""Square matrices (B, ..., n, n) by role, ``parts`` or ``neurons``, and by key or name of a group."""


def leaf_shapes(space: WeightSpace) -> dict[tuple[str, str], tuple[int, ...]]:
    """Shapes, without the batch axis, of the matrices that make up the soft permutations of a space."""
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    for group in space.hidden:
        parts, across, within = _structure(group)
        if across:
            shapes["parts", _key(group)] = (parts, parts)
        if within:
            size = group.size // parts
            shapes["neurons", group.name] = (parts, size, size)
    return shapes


def join(space: WeightSpace, leaves: Leaves) -> list[Tensor]:
    """The matrices (B, size, size) of every hidden group from its parts; differentiable.

    Args:
        space: The weight space.
        leaves: Of the shapes of :func:`leaf_shapes`, with a batch axis before them.
    """
    return [_join(group, leaves) for group in space.hidden]


def best_permutations(space: WeightSpace, gains: Sequence[Tensor]) -> list[Tensor]:
    """The allowed permutations of greatest total gain.

    Args:
        space: The weight space.
        gains: (B, size, size) per hidden group, finite: what is gained where new neuron i is old neuron j.

    Returns:
        (B, size) per hidden group.
    """
    perms: dict[int, Tensor] = {}
    for members in units(space):
        perms.update(zip(members, _best([(space.hidden[i], gains[i]) for i in members]), strict=True))
    return [perms[i] for i in range(len(perms))]


def _best(unit: list[tuple[NeuronGroup, Tensor]]) -> list[Tensor]:
    """Permutations of groups that share the places of their parts."""
    orders, values = zip(*(_inside(group, gain) for group, gain in unit), strict=True)
    parts, across, _ = _structure(unit[0][0])
    total = torch.stack(values).sum(0)
    stay = torch.arange(parts, device=total.device).expand(len(total), -1)
    places = assign(total) if across else stay
    return [_placed(order, places) for order in orders]


def _placed(order: Tensor, places: Tensor) -> Tensor:
    """The permutation (B, size) of a group from orders inside parts and the old part at every place (B, P)."""
    n = order.shape[3]
    inside = order.gather(2, places[:, :, None, None].expand(-1, -1, 1, n)).squeeze(2)
    return (inside + places[..., None] * n).flatten(1)


def _inside(group: NeuronGroup, gain: Tensor) -> tuple[Tensor, Tensor]:
    """The best order (B, P, P, n) of old part q at place p, and its gain (B, P, P)."""
    parts, _, within = _structure(group)
    size = group.size // parts
    gain = gain.reshape(-1, parts, size, parts, size).transpose(2, 3)
    order = assign(gain) if within else torch.arange(gain.shape[-1], device=gain.device).expand(gain.shape[:-1])
    return order, gain.gather(4, order[..., None]).sum((3, 4))


def _join(group: NeuronGroup, leaves: Leaves) -> Tensor:
    parts, across, within = _structure(group)
    if not across and not within:
        some = next(iter(leaves.values()))
        return torch.eye(group.size, dtype=some.dtype, device=some.device).expand(len(some), -1, -1)
    if not across and parts == 1:
        return leaves["neurons", group.name][:, 0]
    some = leaves["neurons", group.name] if within else leaves["parts", _key(group)]
    eyes = (torch.eye(n, dtype=some.dtype, device=some.device) for n in (parts, group.size // parts))
    outer, inner = (eye.expand(len(some), *eye.shape) for eye in eyes)
    outer = leaves["parts", _key(group)] if across else outer
    inner = leaves["neurons", group.name] if within else inner[:, None].expand(-1, parts, -1, -1)
    return torch.einsum("bik,bkuv->biukv", outer, inner).flatten(3).flatten(1, 2)


def _structure(group: NeuronGroup) -> tuple[int, bool, bool]:
    """Number of parts, whether they change places, and whether neurons inside them do."""
    partition = group.partition
    if partition is None:
        return 1, False, True
    return partition.parts, partition.across and partition.parts > 1, partition.within


def _key(group: NeuronGroup) -> str:
    return (group.partition.key if group.partition else "") or f"alone {group.name}"
