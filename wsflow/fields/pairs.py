"""Fields that see a second vector beside the state: an estimate, a gradient.

The pair of two networks of one architecture is a point of the weight space of the same network with two numbers in the
place of each weight, a kernel of twice the size (:func:`pair_space`).  Any field runs on that space, and the half of
its output that stands for the first network is used.  A field that is equivariant there is so in both arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from wsflow.fields.base import VectorField
from wsflow.weightspace import GroupVector, WeightBlock, WeightSpace


class PairField(VectorField):
    """A field that runs another one on pairs of its state and a second vector.

    Args:
        space: The weight space.
        extra: Trailing coordinates that are no weights.
        field: Makes the field, on a space with two numbers for each weight.
        condition: Number of values that each network is conditioned on, 0 for none.
    """

    _first: Tensor
    _order: Tensor

    def __init__(self, space: WeightSpace, extra: int, field: Callable[..., VectorField], condition: int = 0) -> None:
        super().__init__(space, extra)
        told = {"condition": condition} if condition else {}
        self.field = field(self._follow(space), 2 * extra, **told)

    def _on_pair(self, x: Tensor, second: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The output (B, D + extra) that stands for the states ``x`` beside second vectors, both (B, D + extra)."""
        output: Tensor = self.field(self._pair(x, second), t, condition)[:, self._first]
        return output

    def _pair(self, x: Tensor, second: Tensor) -> Tensor:
        dim = self.space.dim
        weights = torch.cat([x[:, :dim], second[:, :dim]], dim=1)[:, self._order]
        return torch.cat([weights, x[:, dim:], second[:, dim:]], dim=1)

    def _follow(self, space: WeightSpace) -> WeightSpace:
        """Set the order of coordinates; returns the space of pairs."""
        pairs, order = pair_space(space)
        extra = torch.arange(self.extra) + pairs.dim
        self.register_buffer("_order", order.to(self._entry.device), persistent=False)
        first = torch.cat([order.argsort()[: space.dim], extra])
        self.register_buffer("_first", first.to(self._entry.device), persistent=False)
        return pairs

    def _bind(self, space: WeightSpace) -> None:
        self.field = self.field.bind(self._follow(space))


def pair_space(space: WeightSpace) -> tuple[WeightSpace, Tensor]:
    """The space of pairs of networks: every edge and neuron carries the numbers of both.

    It has no rescalings, statistics or network of its own.

    Returns:
        The space, and (2 D,) where each of its coordinates stands in the two networks one after the other.

    Raises:
        ValueError: for a tensor of pieces that cannot be widened alike.
    """
    blocks, vectors = tuple(map(_wide_block, space.blocks)), tuple(map(_wide_vector, space.vectors))
    pieces: tuple[WeightBlock | GroupVector, ...] = (*space.blocks, *space.vectors)
    wides: tuple[WeightBlock | GroupVector, ...] = (*blocks, *vectors)
    pairs = WeightSpace(space.groups, blocks, vectors)
    places, order = torch.arange(2 * space.dim), torch.full((2 * space.dim,), -1)
    for piece, wide in zip(pieces, wides, strict=True):
        first = piece.view(places[: space.dim])
        order[wide.view(places)] = torch.cat([first, first + space.dim], dim=-1)
    if not torch.equal(order.sort().values, places):
        raise ValueError("tensors that list some neurons by position and others not cannot be paired")
    return pairs, order


def _wide_block(block: WeightBlock) -> WeightBlock:
    return dataclasses.replace(
        block,
        kernel=(2, *block.kernel),
        shape=(*block.shape, 2),
        start=2 * block.start,
        column=2 * block.column,
        source_scale=None,
        target_scale=None,
    )


def _wide_vector(vector: GroupVector) -> GroupVector:
    return dataclasses.replace(
        vector,
        depth=2 * vector.depth,
        shape=(2, *vector.shape) if vector.leading else (*vector.shape, 2),
        start=2 * vector.start,
        row=vector.row if vector.leading else 2 * vector.row,
        scale=None,
        source_scale=None,
    )
