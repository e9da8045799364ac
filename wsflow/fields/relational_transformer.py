r"""The Relational Transformer over the neural graph of a base network.

Neurons are nodes with states :math:`n_i` of width d, weights are edges with states :math:`e_{ij}` of width d_e, kept per
weight block as ``(B, out, in, d_e)``; no edge is stored that the base network does not have (Diao and Loynd 2023; edge
updates as in Kofinas et al. 2024).  Each layer does, with one head written out,

.. math::
    s_{ij} &= \langle q_i, k_j \rangle + \langle A q_i + C k_j + w, e_{ij} \rangle \\
    n_i &\leftarrow n_i + W \sum_j \mathrm{softmax}_j(s_{ij}) (v_j + V e_{ij}) \\
    n_i &\leftarrow n_i + \mathrm{MLP}(n_i), \qquad
    e_{ij} \leftarrow e_{ij} + \mathrm{MLP}(e_{ij}, n_i, n_j)

where j runs over the neurons that feed neuron i and, with parameters of its own, over those that it feeds.  Keys and
values are read from the neighbour and the edge (thesis eqs. 5.5 and 5.6, where n_i must read n_j).  By linearity no key
or value is ever formed per edge, so an edge costs d_e multiplications a head and not d_e d; only the quadratic
edge-edge term of the score is left out.

Input and output neurons have a fixed order, so they carry embeddings of their own, and a hidden neuron reads its whole
weight vector to and from them by a learned projection and writes it back the same way.  Hidden neurons carry no
embedding: the field is exactly equivariant to their permutations and runs on other hidden widths.  Time enters by
adaptive layer norm (Peebles and Xie 2023).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wsflow.fields.base import VectorField
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

    Raises:
        ValueError: where ``heads`` does not divide ``width``.
    """

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
    ) -> None:
        if width % heads:
            raise ValueError(f"width {width} is not divisible by heads {heads}")
        super().__init__(space, extra)
        self.neuron_embedding = neuron_embedding
        self.time = TimeEmbedding(width)
        self.condition = nn.Linear(condition, width) if condition else None
        self.extra_in = nn.Linear(extra, width) if extra else None
        self.extra_out = nn.Linear(width, extra) if extra else None
        self.edge_in = nn.ModuleList(nn.Linear(block.depth, edge_width) for block in space.blocks)
        self.edge_out = nn.ModuleList(nn.Linear(edge_width, block.depth) for block in space.blocks)
        self.node_in = nn.ModuleList(NodeEncoder(space, i, width, neuron_embedding) for i in range(len(space.groups)))
        counts = [self._vectors(space, group.name) for group in space.groups]
        self.node_out = nn.ModuleList(nn.Linear(width, count) if count else nn.Identity() for count in counts)
        self.read = nn.ModuleList(FixedAxes(space, block, width) for block in space.blocks)
        self.write = nn.ModuleList(BlockWriter(space, block, width) for block in space.blocks)
        self.layers = nn.ModuleList(Layer(width, edge_width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        heads = [head for head in (*self.edge_out, *self.node_out, self.extra_out) if isinstance(head, nn.Linear)]
        for head in heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    @staticmethod
    def _vectors(space: WeightSpace, group: str) -> int:
        return sum(vector.group == group for vector in space.vectors)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The field's output, (B, D + extra), at points x (B, D + extra) and times t (B,).

        Args:
            x: Points.
            t: Times in [0, 1].
            condition: (B, K) where the field is conditional.
        """
        scaled = self._scaled_in(x)
        context = self.time(t)
        if self.condition is not None and condition is not None:
            context = context + self.condition(condition)
        if self.extra_in is not None:
            context = context + self.extra_in(scaled[:, self.space.dim :])
        nodes, edges = self._encode(scaled)
        for layer in self.layers:
            nodes, edges = layer(self.space, nodes, edges, context)
        nodes = {name: self.norm(state) for name, state in nodes.items()}
        return self._scaled_out(self._decode(nodes, edges))

    def _encode(self, x: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        space, batch = self.space, x.shape[0]
        weights = [x[:, b.slice].view(batch, b.out, b.in_, b.depth) for b in space.blocks]
        edges = [encode(w) for encode, w in zip(self.edge_in, weights, strict=True)]
        nodes = {}
        for group, encode in zip(space.groups, self.node_in, strict=True):
            values = [x[:, v.slice] for v in space.vectors if v.group == group.name]
            nodes[group.name] = encode(values, batch, group.size)
        for block, read, weight in zip(space.blocks, self.read, weights, strict=True):
            into, out_of = read(weight)
            if into is not None:
                nodes[block.target] = nodes[block.target] + into
            if out_of is not None:
                nodes[block.source] = nodes[block.source] + out_of
        return nodes, edges

    def _decode(self, nodes: dict[str, Tensor], edges: list[Tensor]) -> Tensor:
        space = self.space
        parts: dict[str, Tensor] = {}
        for i, block in enumerate(space.blocks):
            written = self.write[i](nodes[block.target], nodes[block.source])
            parts[block.name] = (self.edge_out[i](edges[i]) + written).flatten(1)
        for group, head in zip(space.groups, self.node_out, strict=True):
            names = [vector.name for vector in space.vectors if vector.group == group.name]
            if names:
                parts.update(zip(names, head(nodes[group.name]).unbind(-1), strict=True))
        flat = [parts[tensor.name] for tensor in space.tensors]
        if self.extra_out is not None:
            flat.append(self.extra_out(nodes[space.groups[-1].name].mean(dim=1)))
        return torch.cat(flat, dim=1)

    def _bind(self, space: WeightSpace) -> None:
        if self.neuron_embedding:
            raise ValueError("a field with neuron_embedding=True is tied to its widths and cannot be bound to others")


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
        count = sum(vector.group == group.name for vector in space.vectors)
        self.vectors = nn.Linear(count, width, bias=False) if count else None

    def forward(self, values: list[Tensor], batch: int, size: int) -> Tensor:
        """(B, size, d) from the group's vectors, (B, size) each."""
        state = self.embedding.expand(batch, size, -1)
        return state if self.vectors is None else state + self.vectors(torch.stack(values, dim=-1))


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
            if head is not None:
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """(B, out, in, kernel) from node states (B, out, d) and (B, in, d)."""
        (batch, out, width), size = target.shape, source.shape[1]
        left = self.left(target).view(batch, out * self.depth, width) / math.sqrt(width)
        product = left @ self.right(source).transpose(1, 2)
        block = product.view(batch, out, self.depth, size).transpose(2, 3)
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
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        nn.init.zeros_(self.modulation[1].weight)
        nn.init.zeros_(self.modulation[1].bias)
        self.inward = Attention(width, edge_width, heads)
        self.outward = Attention(width, edge_width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))
        self.edge_norm = nn.LayerNorm(edge_width)
        self.edge_self = nn.Linear(edge_width, 2 * edge_width)
        self.edge_ends = nn.ModuleList(nn.Linear(width, 2 * edge_width, bias=False) for _ in range(2))
        self.edge_mlp = nn.Sequential(nn.GELU(), nn.Linear(2 * edge_width, edge_width))

    def forward(
        self, space: WeightSpace, nodes: dict[str, Tensor], edges: list[Tensor], context: Tensor
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """New node states (B, n, d) by group and edge states (B, out, in, d_e) by block.

        Args:
            space: Which groups the blocks join.
            nodes: Node states by group.
            edges: Edge states by block.
            context: (B, d), embedding of time and condition.
        """
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(context)[:, None].chunk(6, dim=-1)
        sizes = [group.size for group in space.groups]
        names = [group.name for group in space.groups]
        state = torch.cat([nodes[name] for name in names], dim=1)
        seen = self.norms[0](state) * (1 + scale) + shift
        normed = [self.edge_norm(e) for e in edges]
        index = {name: i for i, name in enumerate(names)}
        joins = [(index[b.target], index[b.source]) for b in space.blocks]
        back = [(source, target) for target, source in joins]
        update = self.inward(seen, sizes, normed, joins)
        update = update + self.outward(seen, sizes, [e.transpose(1, 2) for e in normed], back)
        state = state + (1 + gate) * update
        seen = self.norms[1](state) * (1 + scale2) + shift2
        state = state + (1 + gate2) * self.mlp(seen)
        ends = [list(end(state).split(sizes, dim=1)) for end in self.edge_ends]
        edges = [
            edge + self.edge_mlp(self.edge_self(n) + ends[0][i][:, :, None] + ends[1][j][:, None])
            for edge, n, (i, j) in zip(edges, normed, joins, strict=True)
        ]
        return dict(zip(names, state.split(sizes, dim=1), strict=True)), edges


class Attention(nn.Module):
    """Attention of receiving nodes over their edges to sending nodes, block by block.

    Args:
        width: d.
        edge_width: d_e.
        heads: Attention heads.
    """

    def __init__(self, width: int, edge_width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.nodes = nn.Linear(width, 3 * width)
        self.edge_scores = nn.Linear(width, 2 * heads * edge_width)
        self.edge_values = nn.Parameter(torch.randn(heads, edge_width, self.head_width) / math.sqrt(edge_width))
        self.out = nn.Linear(width, width)

    def forward(self, state: Tensor, sizes: list[int], edges: list[Tensor], joins: list[tuple[int, int]]) -> Tensor:
        """Messages to all nodes, (B, n, d); zero for nodes that no block of this direction reaches.

        Args:
            state: (B, n, d), all groups one after another.
            sizes: Group sizes.
            edges: (B, receivers, senders, d_e) by block.
            joins: Indices of the receiving and the sending group of each block.
        """
        batch, h = state.shape[0], self.heads
        query, key, value = (
            [x.unflatten(-1, (h, self.head_width)).transpose(1, 2) for x in part.split(sizes, dim=1)]
            for part in self.nodes(state).chunk(3, dim=-1)
        )
        to_query, to_key = (
            [x.unflatten(-1, (h, -1)) for x in part.split(sizes, dim=1)]
            for part in self.edge_scores(state).chunk(2, dim=-1)
        )
        messages = [state.new_zeros(batch, size, h * self.head_width) for size in sizes]
        for receiver in {i for i, _ in joins}:
            blocks = [(edge, j) for edge, (i, j) in zip(edges, joins, strict=True) if i == receiver]
            scores = [
                self._scores(query[receiver], key[j], to_query[receiver], to_key[j], edge) for edge, j in blocks
            ]
            weights = torch.cat(scores, dim=-1).softmax(dim=-1).split([s.shape[-1] for s in scores], dim=-1)
            read = [self._read(w, value[j], edge) for w, (edge, j) in zip(weights, blocks, strict=True)]
            messages[receiver] = torch.stack(read).sum(dim=0)
        return self.out(torch.cat(messages, dim=1))

    def _scores(self, query: Tensor, key: Tensor, to_query: Tensor, to_key: Tensor, edge: Tensor) -> Tensor:
        """(B, h, receivers, senders)."""
        nodes = query @ key.transpose(-1, -2) / math.sqrt(self.head_width)
        by_query = (edge @ to_query.transpose(-1, -2)).permute(0, 3, 1, 2)
        by_key = (edge.transpose(1, 2) @ to_key.transpose(-1, -2)).permute(0, 3, 2, 1)
        return nodes + (by_query + by_key) / math.sqrt(edge.shape[-1])

    def _read(self, weights: Tensor, value: Tensor, edge: Tensor) -> Tensor:
        """(B, receivers, d)."""
        from_nodes = weights @ value
        pooled = weights.transpose(1, 2) @ edge
        from_edges = pooled.transpose(1, 2) @ self.edge_values
        return (from_nodes + from_edges).transpose(1, 2).flatten(2)
