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
from wsflow.fields.pieces import coordinate_pieces, flat_order
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
    _place: Tensor | None
    _wide_place: Tensor | None

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
        output: Tensor = self.field(self._stack(vectors), t, condition)
        first = [wide.view(output)[..., : piece.depth].flatten(1) for piece, wide in self._pieces]
        extra = self.count * self.space.dim
        return _placed(first, self._place, [output[:, extra : extra + self.extra]])

    def _calibrate(self, vectors: Sequence[Tensor], target: Tensor) -> None:
        """Set the scales of K vectors (n, D + extra), and those of the field that sees them."""
        self.vector_scale.copy_(torch.stack([self._rms(vector, "states") for vector in vectors]))
        self.field.calibrate(self._stack(vectors), self._ordered([target] * self.count))

    def _stack(self, vectors: Sequence[Tensor]) -> Tensor:
        """(B, K (D + extra)), the scaled vectors in the order of the stacked space."""
        return self._ordered([v / scale[self._entry] for v, scale in zip(vectors, self.vector_scale, strict=True)])

    def _ordered(self, vectors: Sequence[Tensor]) -> Tensor:
        pieces = [torch.cat([piece.view(v) for v in vectors], dim=-1).flatten(1) for piece, _ in self._pieces]
        return _placed(pieces, self._wide_place, [vector[:, self.space.dim :] for vector in vectors])

    def _follow(self, space: WeightSpace) -> WeightSpace:
        """Set where the pieces of both spaces stand; returns the space of stacks."""
        stacks = stacked_space(space, self.count)
        self._pieces = list(zip(coordinate_pieces(space), coordinate_pieces(stacks), strict=True))
        for name, one in (("_place", space), ("_wide_place", stacks)):
            place = flat_order(one)
            self.register_buffer(name, None if place is None else place.to(self._entry.device), persistent=False)
        return stacks

    def _bind(self, space: WeightSpace) -> None:
        self.field = self.field.bind(self._follow(space))


def _placed(pieces: list[Tensor], place: Tensor | None, extra: list[Tensor]) -> Tensor:
    """Flattened pieces (B, ...) in the order of coordinates, and then further ones; copied once where it is theirs."""
    if place is not None:
        pieces = [torch.cat(pieces, dim=1)[:, place]]
    return torch.cat([*pieces, *extra], dim=1)


def stacked_space(space: WeightSpace, count: int) -> WeightSpace:
    """The space of stacks of ``count`` networks: every edge and neuron carries the numbers of all.

    It has no rescalings, statistics or network of its own, and ``numbers`` is ``count``.

    Raises:
        ValueError: for a tensor of pieces that cannot be widened alike.
    """
    blocks = tuple(_wide_block(block, count) for block in space.blocks)
    vectors = tuple(_wide_vector(vector, count) for vector in space.vectors)
    stacks = WeightSpace(space.groups, blocks, vectors, numbers=count)
    places = torch.arange(stacks.dim)
    found = torch.cat([piece.view(places).flatten() for piece in coordinate_pieces(stacks)])
    if not torch.equal(found.sort().values, places):
        raise ValueError("tensors that list some neurons by position and others not cannot be stacked")
    return stacks


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
