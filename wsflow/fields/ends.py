"""How fields on the neural graph read weights into the states of neurons, and write them back.

Vectors (biases, norms) sit on one neuron; along an axis whose order is fixed, a neuron's whole weight vector is read
and written by learned projections.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wsflow.weightspace import WeightBlock, WeightSpace


class NodeEncoder(nn.Module):
    """First state of a group's neurons: its embedding and the vectors (biases) that sit on it.

    Args:
        space: The weight space.
        index: Which group.
        width: d.
        per_neuron: Whether hidden neurons get an embedding each, too.
    """

    def __init__(self, space: WeightSpace, index: int, width: int, per_neuron: bool) -> None:
        super().__init__()
        group = space.groups[index]
        ordered = per_neuron or group.role != "hidden"
        self.embedding = nn.Parameter(0.5 * torch.randn(group.size if ordered else 1, width))
        count = sum(vector.depth for vector in space.vectors if vector.group == group.name)
        self.vectors = nn.Linear(count, width, bias=False) if count else None

    def forward(self, values: list[Tensor], batch: int, size: int) -> Tensor:
        """(B, size, d) from the group's vectors, (B, size, depth) each."""
        state = self.embedding.expand(batch, size, -1)
        if self.vectors is not None:
            state = state + self.vectors(torch.cat(values, dim=-1))
        return state


class FixedAxes(nn.Module):
    """Reads whole weight vectors along the axes of a block whose order is fixed.

    A neuron fed by the input group reads its row by a learned (in * kernel, d) projection, and a neuron that feeds the
    output group its column.

    Args:
        space: The weight space.
        block: The block.
        width: d.
    """

    def __init__(self, space: WeightSpace, block: WeightBlock, width: int) -> None:
        super().__init__()
        source, target = space.group(block.source), space.group(block.target)
        self.row = nn.Linear(block.in_ * block.depth, width) if source.role != "hidden" else None
        self.column = nn.Linear(block.out * block.depth, width) if target.role != "hidden" else None

    def forward(self, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What target and source neurons read, (B, out, d) and (B, in, d), from a block (B, out, in, kernel)."""
        into = None if self.row is None else self.row(weight.flatten(2))
        out_of = None if self.column is None else self.column(weight.transpose(1, 2).flatten(2))
        return into, out_of


class BlockWriter(nn.Module):
    """Writes a block from the states of its two ends: a low-rank product, and whole vectors along fixed axes.

    Args:
        space: The weight space.
        block: The block.
        width: d, also the rank of the product.
    """

    def __init__(self, space: WeightSpace, block: WeightBlock, width: int) -> None:
        super().__init__()
        source, target = space.group(block.source), space.group(block.target)
        self.depth = block.depth
        self.left = nn.Linear(width, width * block.depth)
        self.right = nn.Linear(width, width)
        self.row = nn.Linear(width, block.in_ * block.depth) if source.role != "hidden" else None
        self.column = nn.Linear(width, block.out * block.depth) if target.role != "hidden" else None
        for head in (self.left, self.row, self.column):
            zero(head)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """(B, out, in, kernel) from node states (B, out, d) and (B, in, d)."""
        (batch, out, width), size = target.shape, source.shape[1]
        left = self.left(target).view(batch, out * self.depth, width) / math.sqrt(width)
        product = left @ self.right(source).transpose(1, 2)
        block: Tensor = product.view(batch, out, self.depth, size).transpose(2, 3)
        if self.row is not None:
            block = block + self.row(target).view(batch, out, size, self.depth)
        if self.column is not None:
            block = block + self.column(source).view(batch, size, out, self.depth).transpose(1, 2)
        return block


def vector_head(space: WeightSpace, group: str, width: int) -> nn.Module:
    """Projection from states of a group's neurons to the vectors on them; nothing where it has none."""
    count = sum(vector.depth for vector in space.vectors if vector.group == group)
    return nn.Linear(width, count) if count else nn.Identity()


def zero(head: nn.Module | None) -> None:
    """Let a layer give zero at first; a head that does not exist, or has no output, is passed over."""
    if isinstance(head, nn.Linear):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
