"""Fields that see further vectors beside the state: an estimate, a gradient.

A stack of K networks of one architecture is a point of the weight space of the same network with K numbers in the place
of each weight, a kernel of K times the size (:func:`stacked_space`).  Any field runs on that space, and the part of its
output that stands for the first network is used.  A field that is equivariant there is so in all K arguments.

Each vector is divided by its own root mean square in each tensor, since a gradient may be a thousand times smaller than
the weights and would then not be seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wsflow.fields.base import VectorField
from wsflow.weightspace import GroupVector, WeightBlock, WeightSpace


class StackedField(VectorField):
    """A field that runs another one on stacks of its state and further vectors.

    Args:
        space: The weight space.
        extra: Trailing coordinates that are no weights.
        field: Makes the field, on a space with K numbers for each weight.
        count: K, the state included.
        condition: Number of values that each network is conditioned on, 0 for none.
    """

    vector_scale: Tensor
    _first: Tensor
    _order: Tensor

    def __init__(
        self, space: WeightSpace, extra: int, field: Callable[..., VectorField], count: int, condition: int = 0
    ) -> None:
        super().__init__(space, extra)
        self.count = count
        self.register_buffer("vector_scale", torch.ones(count, len(self.input_scale)))
        told = {"condition": condition} if condition else {}
        self.field = field(self._follow(space), count * extra, **told)

    def _on_stack(self, vectors: Sequence[Tensor], t: Tensor, condition: Tensor | None) -> Tensor:
        """The output (B, D + extra) that stands for the first of K vectors (B, D + extra), the states."""
        output: Tensor = self.field(self._stack(vectors), t, condition)[:, self._first]
        return output

    def _calibrate(self, vectors: Sequence[Tensor], target: Tensor) -> None:
        """Set the scales of K vectors (n, D + extra), and those of the field that sees them."""
        self.vector_scale.copy_(torch.stack([self._rms(vector, "states") for vector in vectors]))
        self.field.calibrate(self._stack(vectors), self._ordered([target] * self.count))

    def _stack(self, vectors: Sequence[Tensor]) -> Tensor:
        """(B, K (D + extra)), the scaled vectors in the order of the stacked space."""
        return self._ordered([v / scale[self._entry] for v, scale in zip(vectors, self.vector_scale, strict=True)])

    def _ordered(self, vectors: Sequence[Tensor]) -> Tensor:
        dim = self.space.dim
        weights = torch.cat([vector[:, :dim] for vector in vectors], dim=1)[:, self._order]
        return torch.cat([weights, *(vector[:, dim:] for vector in vectors)], dim=1)

    def _follow(self, space: WeightSpace) -> WeightSpace:
        """Set the order of coordinates; returns the space of stacks."""
        stacks, order = stacked_space(space, self.count)
        extra = torch.arange(self.extra) + stacks.dim
        self.register_buffer("_order", order.to(self._entry.device), persistent=False)
        first = torch.cat([order.argsort()[: space.dim], extra])
        self.register_buffer("_first", first.to(self._entry.device), persistent=False)
        return stacks

    def _bind(self, space: WeightSpace) -> None:
        self.field = self.field.bind(self._follow(space))


def stacked_space(space: WeightSpace, count: int) -> tuple[WeightSpace, Tensor]:
    """The space of stacks of ``count`` networks: every edge and neuron carries the numbers of all.

    It has no rescalings, statistics or network of its own, and ``numbers`` is ``count``.

    Returns:
        The space, and (count D,) where each of its coordinates stands in the networks one after the other.

    Raises:
        ValueError: for a tensor of pieces that cannot be widened alike.
    """
    blocks = tuple(_wide_block(block, count) for block in space.blocks)
    vectors = tuple(_wide_vector(vector, count) for vector in space.vectors)
    pieces: tuple[WeightBlock | GroupVector, ...] = (*space.blocks, *space.vectors)
    wides: tuple[WeightBlock | GroupVector, ...] = (*blocks, *vectors)
    stacks = WeightSpace(space.groups, blocks, vectors, numbers=count)
    places, order = torch.arange(count * space.dim), torch.full((count * space.dim,), -1)
    for piece, wide in zip(pieces, wides, strict=True):
        first = piece.view(places[: space.dim])
        order[wide.view(places)] = torch.cat([first + k * space.dim for k in range(count)], dim=-1)
    if not torch.equal(order.sort().values, places):
        raise ValueError("tensors that list some neurons by position and others not cannot be stacked")
    return stacks, order


def _wide_block(block: WeightBlock, count: int) -> WeightBlock:
    return dataclasses.replace(
        block,
        kernel=(count, *block.kernel),
        shape=(*block.shape, count),
        start=count * block.start,
        column=count * block.column,
        source_scale=None,
        target_scale=None,
    )


def _wide_vector(vector: GroupVector, count: int) -> GroupVector:
    return dataclasses.replace(
        vector,
        depth=count * vector.depth,
        shape=(count, *vector.shape) if vector.leading else (*vector.shape, count),
        start=count * vector.start,
        row=vector.row if vector.leading else count * vector.row,
        scale=None,
        source_scale=None,
    )
