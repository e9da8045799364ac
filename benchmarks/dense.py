"""The Relational Transformer in the obvious layout: every pair of neurons has an edge, a mask hides those that are not.

It has the parameters of :class:`wsflow.fields.RelationalTransformer` and computes the same function, with edge states
(B, N, N, d_e) for N neurons instead of one block (B, out, in, d_e) per weight tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wsflow.fields import RelationalTransformer
from wsflow.fields.attention import Joins, Messages, exchange
from wsflow.fields.relational_transformer import Layer
from wsflow.weightspace import WeightSpace


class DenseLayer(Layer):
    """A layer among all neurons, of which a mask (targets, sources) leaves the edges that exist."""

    hidden: Tensor

    def __init__(self, width: int, edge_width: int, heads: int, mask: Tensor) -> None:
        super().__init__(width, edge_width, heads)
        self.register_buffer("hidden", torch.zeros(mask.shape).masked_fill(~mask, -1e9), persistent=False)
        for name, axis in (("reached", 1), ("read", 0)):
            self.register_buffer(name, mask.any(dim=axis).float()[:, None, None], persistent=False)

    def _messages(self, seen: Sequence[Tensor], normed: list[Tensor], joins: Joins) -> tuple[Messages, Messages]:
        """Zero for neurons without an edge of the direction."""
        into, out_of = exchange(self.inward, self.outward, seen, normed, joins, lambda scores: scores + self.hidden)
        assert into[0] is not None
        assert out_of[0] is not None
        return [into[0] * self.reached], [out_of[0] * self.read]


class DenseRelationalTransformer(RelationalTransformer):
    """The same field, N x N edges wide; for spaces without extra coordinates."""

    def __init__(self, space: WeightSpace, extra: int = 0, **kwargs: Any) -> None:
        super().__init__(space, extra, **kwargs)
        self.sizes = [group.size for group in space.groups]
        starts = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        spans = [slice(start, start + size) for start, size in zip(starts, self.sizes, strict=False)]
        self.places = [(spans[target], spans[source]) for target, source in space.joins]
        mask = torch.zeros(sum(self.sizes), sum(self.sizes), dtype=torch.bool)
        for rows, columns in self.places:
            mask[rows, columns] = True
        sizes = (kwargs["width"], kwargs["edge_width"], kwargs["heads"])
        self.layers = torch.nn.ModuleList(DenseLayer(*sizes, mask) for _ in self.layers)

    def _updated(self, nodes: Tensor, edges: list[Tensor], context: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As the field it stands for."""
        count = len(nodes)
        states = edges[0].new_zeros(len(context), count, count, edges[0].shape[-1])
        for (rows, columns), block in zip(self.places, edges, strict=True):
            states[:, rows, columns] = block
        dense = [states]
        for layer in self.layers:
            nodes, dense = layer(nodes, dense, [count], [(0, 0)], context)
        return nodes, [dense[0][:, rows, columns] for rows, columns in self.places]
