r"""The Relational Transformer over the neural graph of a base network.

Neurons and channels are nodes with states :math:`n_i` of width d, weights and kernels are edges with states
:math:`e_{ij}` of width d_e, kept per weight block as ``(B, out, in, d_e)``; no edge is stored that the base network
does not have (Diao and Loynd 2023; edge updates as in Kofinas et al. 2024).  With hats for layer norm, one head written
out, each layer does

.. math::
    s_{ij} &= \langle q_i, k_j \rangle / \sqrt{d_h} + \langle a_i + c_j, \hat e_{ij} \rangle / \sqrt{d_e} \\
    m_i &= W \sum_j \mathrm{softmax}_j(s_{ij}) (v_j + V \hat e_{ij}) \\
    n_i &\leftarrow n_i + g \odot (m_i + m'_i) \\
    n_i &\leftarrow n_i + g' \odot \mathrm{MLP}(\hat n_i) \\
    e_{ij} &\leftarrow e_{ij} + \mathrm{MLP}(\hat e_{ij}, n_i, n_j)

with :math:`d_h` the width of a head and j over all neurons that feed neuron i, of one block or of several.
:math:`m'_i` is the same over the neurons that i feeds, with parameters of its own, and a neuron that nothing feeds has
no m.  Queries q and a are affine in :math:`\hat n_i`, keys k and c and values v in :math:`\hat n_j` (thesis eqs. 5.5
and 5.6, where n_i must read n_j), and W is affine.  The score is that of queries :math:`q_i + A \hat e_{ij}` and keys
:math:`k_j + C \hat e_{ij}` without its term in e alone, with :math:`a_i` and :math:`c_j` freed of the factorisation.
By linearity no key or value is ever formed per edge, so an edge costs d_e multiplications a head and not d_e d.

Time (and a condition) enter by adaptive layer norm (Peebles and Xie 2023): the norms of nodes are scaled and shifted by
a linear function of its embedding, which gives the gates g and g' too.

Input and output neurons have a fixed order, so they carry embeddings of their own, and a hidden neuron reads its whole
weight vector to and from them by a learned projection and writes it back the same way.  Hidden neurons carry no
embedding: the field is exactly equivariant to their permutations and runs on other hidden widths.

The positions of a kernel, or of a feature map that was flattened, have a fixed order too: an edge is read and written
by full projections between its numbers and d_e (:mod:`wsflow.fields.pieces`), and the numbers of a neuron's biases,
norms and depthwise kernels by projections between them and d.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wsflow.fields.attention import Attention, Joins, Messages, computed, exchange
from wsflow.fields.base import VectorField, check_same_ends
from wsflow.fields.pieces import Piece, coordinate_pieces, flat_order, graph, refuse_parts
from wsflow.fields.time_embedding import TimeEmbedding
from wsflow.weightspace import WeightBlock, WeightSpace


class RelationalTransformer(VectorField):
    """Relational Transformer with edge updates over the bipartite weight blocks of a network.

    Args:
        space: The weight space.
        extra: Trailing coordinates that are not weights, such as a log-scale.
        width: d, width of the node states.
        edge_width: d_e, width of the edge states.
        depth: Number of layers.
        heads: Attention heads; they divide ``width``.
        condition: Number of values that each network is conditioned on, 0 for none.
        neuron_embedding: Gives each hidden neuron an embedding of its own, which breaks equivariance on purpose: for
            aligned zoos, whose neurons have a fixed order.  Such a field cannot be bound to another width.
        recompute: Keeps only the states between layers for the backward pass of a training and computes each layer
            again there: a third more time, and memory for one layer instead of ``depth``.

    Raises:
        ValueError: where ``heads`` does not divide ``width``, and for grouped convolutions, attention heads and
            groups of norms, by the name of the tensor.
    """

    _order: Tensor | None

    def __init__(
        self,
        space: WeightSpace,
        extra: int = 0,
        width: int = 64,
        edge_width: int = 16,
        depth: int = 4,
        heads: int = 4,
        condition: int = 0,
        neuron_embedding: bool = False,
        recompute: bool = False,
    ) -> None:
        if width % heads:
            raise ValueError(f"width {width} is not divisible by heads {heads}")
        refuse_parts(space)
        super().__init__(space, extra)
        self._follow(space)
        self.neuron_embedding, self.recompute = neuron_embedding, recompute
        self.time = TimeEmbedding(width)
        self.condition = nn.Linear(condition, width) if condition else None
        self.extra_in = nn.Linear(extra, width) if extra else None
        self.extra_out = nn.Linear(width, extra) if extra else None
        self.edge_in = nn.ModuleList(nn.Linear(block.depth, edge_width) for block in space.blocks)
        self.edge_out = nn.ModuleList(nn.Linear(edge_width, block.depth) for block in space.blocks)
        self.node_in = nn.ModuleList(NodeEncoder(space, i, width, neuron_embedding) for i in range(len(space.groups)))
        self.node_out = nn.ModuleList(self._vector_head(space, group.name, width) for group in space.groups)
        self.read = nn.ModuleList(FixedAxes(space, block, width) for block in space.blocks)
        self.write = nn.ModuleList(BlockWriter(space, block, width) for block in space.blocks)
        self.layers = nn.ModuleList(Layer(width, edge_width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for head in (*self.edge_out, *self.node_out, self.extra_out):
            _zero(head)

    @staticmethod
    def _vector_head(space: WeightSpace, group: str, width: int) -> nn.Module:
        count = sum(vector.depth for vector in space.vectors if vector.group == group)
        return nn.Linear(width, count) if count else nn.Identity()

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The field's output, (B, D + extra), at points x (B, D + extra) and times t (B,).

        Args:
            x: Points.
            t: Times in [0, 1].
            condition: (B, K) where the field is conditional.

        Raises:
            ValueError: where a condition is missing, or given to a field that takes none.
        """
        if (condition is None) != (self.condition is None):
            raise ValueError("a field with condition > 0 needs a condition for every state, any other field takes none")
        scaled = self._scaled_in(x)
        context = self.time(t)
        if self.condition is not None:
            context = context + self.condition(condition)
        if self.extra_in is not None:
            context = context + self.extra_in(scaled[:, self.space.dim :])
        nodes, edges = self._encode(scaled)
        for layer in self.layers:
            if self.recompute and self.training and torch.is_grad_enabled():
                nodes, edges = checkpoint(
                    layer, nodes, edges, self.space.joins, context, use_reentrant=False, preserve_rng_state=False
                )
            else:
                nodes, edges = layer(nodes, edges, self.space.joins, context)
        return self._scaled_out(self._decode([self.norm(state) for state in nodes], edges))

    def _encode(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        space, batch = self.space, x.shape[0]
        weights = [block.view(x) for block in space.blocks]
        edges = [encode(w) for encode, w in zip(self.edge_in, weights, strict=True)]
        nodes = []
        for group, encode in zip(space.groups, self.node_in, strict=True):
            values = [vector.view(x) for vector in space.vectors if vector.group == group.name]
            nodes.append(encode(values, batch, group.size))
        for (target, source), read, weight in zip(space.joins, self.read, weights, strict=True):
            into, out_of = read(weight)
            nodes[target] = nodes[target] if into is None else nodes[target] + into
            nodes[source] = nodes[source] if out_of is None else nodes[source] + out_of
        return nodes, edges

    def _decode(self, nodes: list[Tensor], edges: list[Tensor]) -> Tensor:
        space = self.space
        parts: dict[Piece, Tensor] = {}
        for i, (block, (target, source)) in enumerate(zip(space.blocks, space.joins, strict=True)):
            parts[block] = self.edge_out[i](edges[i]) + self.write[i](nodes[target], nodes[source])
        for group, state, head in zip(space.groups, nodes, self.node_out, strict=True):
            vectors = [vector for vector in space.vectors if vector.group == group.name]
            if vectors:
                values = torch.split(head(state), [vector.depth for vector in vectors], dim=-1)
                parts.update(zip(vectors, values, strict=True))
        flat = [parts[piece].flatten(1) for piece in self._pieces]
        if self._order is not None:
            flat = [torch.cat(flat, dim=1)[:, self._order]]
        if self.extra_out is not None:
            flat.append(self.extra_out(nodes[-1].mean(dim=1)))
        return torch.cat(flat, dim=1)

    def _follow(self, space: WeightSpace) -> None:
        """Set what follows from the space alone."""
        order = flat_order(space)
        self._pieces = coordinate_pieces(space)
        self.register_buffer("_order", None if order is None else order.to(self._entry.device), persistent=False)

    def _bind(self, space: WeightSpace) -> None:
        if self.neuron_embedding:
            raise ValueError("a field with neuron_embedding=True is tied to its widths and cannot be bound to others")
        check_same_ends(self.space, space)
        refuse_parts(space)
        if graph(self.space) != graph(space):
            raise ValueError(
                f"the field was made for blocks and vectors {graph(self.space)} (places of the groups they join, "
                f"weights per edge) and cannot be bound to {graph(space)}"
            )
        self._follow(space)


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
            _zero(head)

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


class Layer(nn.Module):
    """One update of all nodes and edges.

    Args:
        width: d.
        edge_width: d_e.
        heads: Attention heads.
    """

    def __init__(self, width: int, edge_width: int, heads: int) -> None:
        super().__init__()
        self.node_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 6 * width)
        _zero(self.modulation)
        self.inward = Attention(width, edge_width, heads)
        self.outward = Attention(width, edge_width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))
        self.edge_norm = nn.LayerNorm(edge_width)
        self.edge_self = nn.Linear(edge_width, 2 * edge_width)
        self.edge_target = nn.Linear(width, 2 * edge_width, bias=False)
        self.edge_source = nn.Linear(width, 2 * edge_width, bias=False)
        self.edge_mlp = nn.Sequential(nn.GELU(), nn.Linear(2 * edge_width, edge_width))

    def forward(
        self, nodes: list[Tensor], edges: list[Tensor], joins: Joins, context: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """New node states (B, n, d) by group and edge states (B, out, in, d_e) by block.

        Args:
            nodes: Node states by group.
            edges: Edge states by block.
            joins: Indices of the target and the source group of each block.
            context: (B, d), embedding of time and condition.
        """
        modulation = self.modulation(nn.functional.silu(context))[:, None].chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        seen = [torch.addcmul(shift, self.node_norm(state), 1 + scale) for state in nodes]
        normed = [computed(self.edge_norm(edge)) for edge in edges]
        into, out_of = self._messages(seen, normed, joins)
        nodes = [
            torch.addcmul(state, 1 + gate, sum(updates[1:], updates[0]))
            if (updates := [u for u in pair if u is not None])
            else state
            for state, pair in zip(nodes, zip(into, out_of, strict=True), strict=True)
        ]
        nodes = [
            torch.addcmul(state, 1 + mlp_gate, self.mlp(torch.addcmul(mlp_shift, self.node_norm(state), 1 + mlp_scale)))
            for state in nodes
        ]
        return nodes, self._edges(nodes, edges, normed, joins)

    def _messages(self, seen: list[Tensor], normed: list[Tensor], joins: Joins) -> tuple[Messages, Messages]:
        return exchange(self.inward, self.outward, seen, normed, joins)

    def _edges(self, nodes: list[Tensor], edges: list[Tensor], normed: list[Tensor], joins: Joins) -> list[Tensor]:
        targets = {i: nn.functional.linear(nodes[i], self.edge_target.weight, self.edge_self.bias) for i, _ in joins}
        sources = {j: self.edge_source(nodes[j]) for _, j in joins}
        result = []
        for edge, seen, (i, j) in zip(edges, normed, joins, strict=True):
            ends = targets[i][:, :, None] + sources[j][:, None]
            hidden = torch.addmm(ends.flatten(0, 2), seen.flatten(0, 2), self.edge_self.weight.T)
            result.append(edge + self.edge_mlp(hidden).view(edge.shape))
        return result


def _zero(head: nn.Module | None) -> None:
    """Let a layer give zero at first; a head that does not exist, or has no output, is passed over."""
    if isinstance(head, nn.Linear):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
