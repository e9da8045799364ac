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

from wsflow.fields.ends import BlockWriter, FixedAxes, NodeEncoder, vector_head, zero
from wsflow.fields.graph_field import GraphField
from wsflow.fields.graph_network import GraphNetwork
from wsflow.weightspace import WeightSpace


class MessagePassingField(GraphField):
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
        super().__init__(space, extra, width, condition, neuron_embedding)
        self.reverse = reverse
        self._add_edges(space)
        self.network = GraphNetwork(network(width), width, edge_width)
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
        self.node_out = nn.ModuleList(vector_head(space, group.name, width) for group in space.groups)
        for head in (self.modulation, *self.edge_out, *self.node_out):
            zero(head)

    def _field(self, x: Tensor, context: Tensor) -> Tensor:
        states = self._first_states(x, self.space.groups, self.node_in, self.read)
        read = [
            encode(block.view(x)).flatten(1, 2) for encode, block in zip(self.edge_in, self.space.blocks, strict=True)
        ]
        nodes, edges = self._pass(torch.cat(list(states.values()), dim=1), torch.cat(read, dim=1), context)
        blocks = [
            out(edge) + write(nodes[target], nodes[source])
            for out, write, edge, (target, source) in zip(
                self.edge_out, self.write, edges, self.space.joins, strict=True
            )
        ]
        return self._flat(blocks, dict(zip(states, nodes, strict=True)), self.node_out, nodes[-1])

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

    def _bind(self, space: WeightSpace) -> None:
        super()._bind(space)
        self._add_edges(space)

    def _add_edges(self, space: WeightSpace) -> None:
        edge_index = edges_of(space)
        if self.reverse:
            edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
        self.register_buffer("_edge_index", edge_index.to(self._entry.device), persistent=False)


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
