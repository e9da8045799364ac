"""The pieces of a network's tensors that a field on the neural graph reads and writes.

Edges carry what a block holds of them, (B, out, in, depth): one number, a kernel, or the positions of a flattened map.
Blocks of different kernels have projections of their own, so that no kernel has to be padded to the size of another:
a projection of the zero-padded kernel is a projection of the kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsflow.weightspace import GroupVector, WeightBlock, WeightSpace

Piece = WeightBlock | GroupVector


def refuse_parts(space: WeightSpace) -> None:
    """Raise ValueError, naming the tensor, where only structured permutations of a group are symmetries.

    A field whose hidden neurons are all alike cannot tell which part of its group a neuron belongs to.
    """
    for block in space.blocks:
        if block.parts > 1:
            raise ValueError(
                f"tensor {block.name!r} is a grouped convolution of {block.parts} parts; fields on the neural "
                "graph take ungrouped and depthwise ones only: leave it out with select=, or use MLPField"
            )
    for group in space.hidden:
        if group.partition is not None:
            tensor = next(piece.name for piece in space.pieces if group.name in dict(piece.ends))
            raise ValueError(
                f"the {group.size} neurons of tensor {tensor!r} fall into {group.partition.parts} parts (attention "
                "heads, or the groups of a norm or a convolution); fields on the neural graph take layers whose "
                "neurons all permute: leave the layer out with select=, or use MLPField"
            )


def coordinate_pieces(space: WeightSpace) -> list[Piece]:
    """Blocks and vectors in the order of their first coordinate."""
    places = torch.arange(space.dim)
    return sorted((*space.blocks, *space.vectors), key=lambda piece: int(piece.view(places).min()))


def flat_order(space: WeightSpace) -> Tensor | None:
    """Where each coordinate stands among the flattened :func:`coordinate_pieces`, (D,); None where they are in order.

    Pieces of one tensor interleave where a layer reads a concatenation, and position embeddings list positions first.
    """
    places = torch.arange(space.dim)
    found = torch.cat([piece.view(places).flatten() for piece in coordinate_pieces(space)])
    return None if torch.equal(found, places) else found.argsort()


def graph(space: WeightSpace) -> list[tuple[int, ...]]:
    """What parameters depend on apart from the ends: places of the groups each piece joins, and its depth."""
    place = {group.name: i for i, group in enumerate(space.groups)}
    return [(*(place[name] for name, _ in piece.ends), piece.depth) for piece in coordinate_pieces(space)]
