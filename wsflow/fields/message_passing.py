r"""Any message-passing network of torch-geometric as a vector field.

The base network becomes a graph: neurons and channels are nodes, and each weight or kernel is an edge from the neuron
that it reads to the one that it feeds (Kofinas et al. 2024).  A batch of networks is one graph of parts that nothing
joins.  With e the edges' numbers read by a projection for each block, n the neurons' (embeddings, biases, norms, whole
weight vectors along fixed axes, as in :mod:`wsflow.fields.relational_transformer`) and c the embedding of time and
condition, the field is

.. math::
    (n', e') &= G(n + c, e) \\
    n &\leftarrow (1 + a(c)) \odot \mathrm{LN}(n + N n') + b(c) \\
    e_{ij} &\leftarrow f_{ij} + \mathrm{MLP}(\hat f_{ij}, n_i, n_j), \quad f = e + E e'

for a network G that the user names, followed by projections of edges to weights and of nodes to biases, low-rank
products of node states for whole blocks, and whole weight vectors along fixed axes.  A G that gives no edge states
leaves e' out.

G knows no order of nodes, so the field is exactly equivariant to permutations of hidden neurons, and as its parameters
do not depend on the number of nodes, it runs on other hidden widths.  There are as many edges as weights of depth one,
or twice as many with ``reverse``; nothing is formed for pairs of neurons that no weight joins.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wsflow.fields.base import VectorField, check_same_ends
from wsflow.fields.graph_network import GraphNetwork
from wsflow.fields.pieces import Piece, coordinate_pieces, flat_order, graph, refuse_parts
from wsflow.fields.relational_transformer import BlockWriter, FixedAxes, NodeEncoder
from wsflow.fields.time_embedding import TimeEmbedding
from wsflow.weightspace import WeightSpace


class MessagePassingField(VectorField):
    """A message-passing network over the neural graph of a base network.

    Args:
        space: The weight space.
        extra: Trailing coordinates that are not weights, such as a log-scale.
        network: Makes the network from ``width``, the size of the node states; called as
            :class:`wsflow.fields.graph_network.GraphNetwork` says.  It has to be told ``edge_width`` itself, which
            torch-geometric calls ``edge_dim``.
        width: d, width of the node states that the network is given.
        edge_width: d_e, width of the edge features that it is given.
        condition: Number of values that each network is conditioned on, 0 for none.
        neuron_embedding: Gives each hidden neuron an embedding of its own, which breaks equivariance on purpose: for
            aligned zoos, whose neurons have a fixed order.  Such a field cannot be bound to another width.
        reverse: Gives each edge a second time from the neuron that it feeds to the one that it reads, with features
            that tell the two apart; without, only networks that send messages against edges, too, let neurons see
            what they feed.

    Raises:
        ValueError: for a network that is no field on a graph (:class:`wsflow.fields.graph_network.GraphNetwork`), and
            for grouped convolutions, attention heads and groups of norms, by the name of the tensor.
    """

    _order: Tensor | None
    _edge_index: Tensor

    def __init__(
        self,
        space: WeightSpace,
        extra: int = 0,
        *,
        network: Callable[[int], nn.Module],
        width: int = 64,
        edge_width: int = 16,
        condition: int = 0,
        neuron_embedding: bool = False,
        reverse: bool = True,
    ) -> None:
        refuse_parts(space)
        super().__init__(space, extra)
        self.neuron_embedding, self.reverse = neuron_embedding, reverse
        self._follow(space)
        self.network = GraphNetwork(network(width), width, edge_width)
        self.time = TimeEmbedding(width)
        self.condition = nn.Linear(condition, width) if condition else None
        self.extra_in = nn.Linear(extra, width) if extra else None
        self.edge_in = nn.ModuleList(nn.Linear(block.depth, edge_width) for block in space.blocks)
        self.backward = nn.Parameter(0.5 * torch.randn(edge_width)) if reverse else None
        self.node_in = nn.ModuleList(NodeEncoder(space, i, width, neuron_embedding) for i in range(len(space.groups)))
        self.read = nn.ModuleList(FixedAxes(space, block, width) for block in space.blocks)
        self.nodes = nn.Linear(self.network.out, width)
        self.edges = nn.Linear((1 + reverse) * self.network.edge_out, edge_width) if self.network.edge_out else None
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.edge_update = EdgeUpdate(width, edge_width)
        self.edge_out = nn.ModuleList(nn.Linear(edge_width, block.depth) for block in space.blocks)
        self.write = nn.ModuleList(BlockWriter(space, block, width) for block in space.blocks)
        self.node_out = nn.ModuleList(_vector_head(space, group.name, width) for group in space.groups)
        self.extra_out = nn.Linear(width, extra) if extra else None
        for head in (self.modulation, *self.edge_out, *self.node_out, self.extra_out):
            zero(head)

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
        nodes, edges = self._pass(*self._encode(scaled), context)
        return self._scaled_out(self._decode(nodes, edges))

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """States of nodes (B, N, d) and edges (B, E, d_e)."""
        space, nodes = self.space, []
        for group, encode in zip(space.groups, self.node_in, strict=True):
            values = [vector.view(x) for vector in space.vectors if vector.group == group.name]
            nodes.append(encode(values, x.shape[0], group.size))
        weights = [block.view(x) for block in space.blocks]
        for (target, source), read, weight in zip(space.joins, self.read, weights, strict=True):
            into, out_of = read(weight)
            nodes[target] = nodes[target] if into is None else nodes[target] + into
            nodes[source] = nodes[source] if out_of is None else nodes[source] + out_of
        edges = [encode(weight).flatten(1, 2) for encode, weight in zip(self.edge_in, weights, strict=True)]
        return torch.cat(nodes, dim=1), torch.cat(edges, dim=1)

    def _pass(self, nodes: Tensor, edges: Tensor, context: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """States of nodes (B, n, d) by group and of edges (B, out, in, d_e) by block, after the network."""
        batch, count, _ = nodes.shape
        given = edges if self.backward is None else torch.cat([edges, edges + self.backward], dim=1)
        offset = count * torch.arange(batch, device=nodes.device)[:, None]
        index = (self._edge_index[:, None] + offset).flatten(1)
        states = nodes + context[:, None]
        found, updated = self.network(states.flatten(0, 1), index, given.flatten(0, 1), context)
        shift, scale = self.modulation(nn.functional.silu(context))[:, None].chunk(2, dim=-1)
        nodes = torch.addcmul(shift, self.norm(nodes + self.nodes(found).view_as(nodes)), 1 + scale)
        if self.edges is not None and updated is not None:
            both = updated.view(batch, 1 + self.reverse, edges.shape[1], updated.shape[1])
            edges = edges + self.edges(both.transpose(1, 2).flatten(2))
        by_group = torch.split(nodes, [group.size for group in self.space.groups], dim=1)
        parts = torch.split(edges, [block.out * block.in_ for block in self.space.blocks], dim=1)
        by_block = [
            self.edge_update(
                part.view(batch, block.out, block.in_, part.shape[2]), by_group[i][:, :, None], by_group[j][:, None]
            )
            for part, block, (i, j) in zip(parts, self.space.blocks, self.space.joins, strict=True)
        ]
        return list(by_group), by_block

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
        order, device = flat_order(space), self._entry.device
        self._pieces = coordinate_pieces(space)
        self.register_buffer("_order", None if order is None else order.to(device), persistent=False)
        edge_index = edges_of(space)
        if self.reverse:
            edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
        self.register_buffer("_edge_index", edge_index.to(device), persistent=False)

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


class EdgeUpdate(nn.Module):
    """Adds to each edge a function of its own state and those of its ends.

    Args:
        width: d, of the nodes.
        edge_width: d_e, of the edges.
    """

    def __init__(self, width: int, edge_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(edge_width)
        self.edge = nn.Linear(edge_width, 2 * edge_width)
        self.target = nn.Linear(width, 2 * edge_width, bias=False)
        self.source = nn.Linear(width, 2 * edge_width, bias=False)
        self.mlp = nn.Sequential(nn.GELU(), nn.Linear(2 * edge_width, edge_width))

    def forward(self, edges: Tensor, target: Tensor, source: Tensor, edge_index: Tensor | None = None) -> Tensor:
        """New edge states, of the shape of ``edges``.

        Args:
            edges: (..., d_e).
            target: (..., d), states of the neurons that the edges feed, which broadcast against the edges.
            source: (..., d), of those that they read.
            edge_index: (2, E), which rows of ``source`` and ``target`` each edge joins, unless they broadcast.
        """
        into, out_of = self.target(target), self.source(source)
        if edge_index is not None:
            into, out_of = into.index_select(0, edge_index[1]), out_of.index_select(0, edge_index[0])
        result: Tensor = edges + self.mlp(self.edge(self.norm(edges)) + into + out_of)
        return result


def edges_of(space: WeightSpace) -> Tensor:
    """The neural graph's edges (2, E): source and target neuron of each, counted through all groups.

    Blocks follow one another, each with its edges in the order (out, in).
    """
    sizes = torch.tensor([0, *(group.size for group in space.groups)])
    start = sizes.cumsum(0)
    parts = []
    for block, (target, source) in zip(space.blocks, space.joins, strict=True):
        ends = torch.cartesian_prod(start[target] + torch.arange(block.out), start[source] + torch.arange(block.in_))
        parts.append(ends.flip(1).T)
    return torch.cat(parts, dim=1)


def zero(head: nn.Module | None) -> None:
    """Let a layer give zero at first; a head that does not exist, or has no output, is passed over."""
    if isinstance(head, nn.Linear):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)


def _vector_head(space: WeightSpace, group: str, width: int) -> nn.Module:
    count = sum(vector.depth for vector in space.vectors if vector.group == group)
    return nn.Linear(width, count) if count else nn.Identity()
