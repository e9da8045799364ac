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

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wsflow.fields.attention import Affine, Attention, Joins, Messages, by_group, computed, exchange
from wsflow.fields.ends import BlockWriter, FixedAxes, NodeEncoder, vector_head, zero
from wsflow.fields.graph_field import GraphField
from wsflow.weightspace import WeightSpace


class RelationalTransformer(GraphField):
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
        super().__init__(space, extra, width, condition, neuron_embedding)
        self.recompute = recompute
        self.edge_in = nn.ModuleList(nn.Linear(block.depth, edge_width) for block in space.blocks)
        self.edge_out = nn.ModuleList(nn.Linear(edge_width, block.depth) for block in space.blocks)
        self.node_in = nn.ModuleList(NodeEncoder(space, i, width, neuron_embedding) for i in range(len(space.groups)))
        self.node_out = nn.ModuleList(vector_head(space, group.name, width) for group in space.groups)
        self.read = nn.ModuleList(FixedAxes(space, block, width) for block in space.blocks)
        self.write = nn.ModuleList(BlockWriter(space, block, width) for block in space.blocks)
        self.layers = nn.ModuleList(Layer(width, edge_width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for head in (*self.edge_out, *self.node_out):
            zero(head)

    def _field(self, x: Tensor, context: Tensor) -> Tensor:
        first = self._first_states(x, self.space.groups, self.node_in, self.read)
        states = torch.cat([state.transpose(0, 1) for state in first.values()])
        edges = [encode(block.view(x)) for encode, block in zip(self.edge_in, self.space.blocks, strict=True)]
        states, edges = self._updated(states, edges, context)
        nodes = self.norm(states).transpose(0, 1).split([group.size for group in self.space.groups], dim=1)
        blocks = [
            out(edge) + write(nodes[target], nodes[source])
            for out, write, edge, (target, source) in zip(
                self.edge_out, self.write, edges, self.space.joins, strict=True
            )
        ]
        return self._flat(blocks, dict(zip(first, nodes, strict=True)), self.node_out, nodes[-1])

    def _updated(self, nodes: Tensor, edges: list[Tensor], context: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Node states (N, B, d) and edge states (B, out, in, d_e) after all layers."""
        sizes = [group.size for group in self.space.groups]
        for layer in self.layers:
            arguments = (nodes, edges, sizes, self.space.joins, context)
            if self.recompute and self.training and torch.is_grad_enabled():
                nodes, edges = checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                nodes, edges = layer(*arguments)
        return nodes, edges


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
        zero(self.modulation)
        self.inward = Attention(width, edge_width, heads)
        self.outward = Attention(width, edge_width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))
        self.edge_norm = nn.LayerNorm(edge_width)
        self.edge_self = nn.Linear(edge_width, 2 * edge_width)
        self.edge_target = nn.Linear(width, 2 * edge_width, bias=False)
        self.edge_source = nn.Linear(width, 2 * edge_width, bias=False)
        self.edge_mlp = nn.Sequential(nn.GELU(), nn.Linear(2 * edge_width, edge_width))

    def forward(
        self, nodes: Tensor, edges: list[Tensor], sizes: list[int], joins: Joins, context: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """New states of all N nodes (N, B, d) and of the edges of each block (B, out, in, d_e).

        Args:
            nodes: Node states, group after group.
            edges: Edge states by block.
            sizes: Neurons of each group.
            joins: Indices of the target and the source group of each block.
            context: (B, d), embedding of time and condition.
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(nn.functional.silu(context)).chunk(6, -1)
        seen = torch.addcmul(shift, self.node_norm(nodes), 1 + scale)
        normed = [computed(self.edge_norm(edge)) for edge in edges]
        groups = torch.split(seen, sizes)
        into, out_of = self._messages(groups, normed, joins)
        read = torch.cat([_sum(pair, state) for state, *pair in zip(groups, into, out_of, strict=True)])
        nodes = torch.addcmul(nodes, 1 + gate, read)
        seen = torch.addcmul(mlp_shift, self.node_norm(nodes), 1 + mlp_scale)
        nodes = torch.addcmul(nodes, 1 + mlp_gate, self.mlp(seen))
        return nodes, self._edges(torch.split(nodes, sizes), edges, normed, joins)

    def _messages(self, seen: Sequence[Tensor], normed: list[Tensor], joins: Joins) -> tuple[Messages, Messages]:
        return exchange(self.inward, self.outward, seen, normed, joins)

    def _edges(self, nodes: Sequence[Tensor], edges: list[Tensor], normed: list[Tensor], joins: Joins) -> list[Tensor]:
        into = self._at_ends(nodes, [i for i, _ in joins], (self.edge_target.weight, self.edge_self.bias))
        out_of = self._at_ends(nodes, [j for _, j in joins], (self.edge_source.weight, None))
        weight, result = computed(self.edge_self.weight).T.contiguous(), []
        for edge, seen, (i, j) in zip(edges, normed, joins, strict=True):
            ends = (into[i][:, :, None] + out_of[j][:, None]).flatten(0, 2)
            hidden = torch.addmm(ends, seen.flatten(0, 2), weight)  # the product adds to the ends while it is cached
            result.append(edge + self.edge_mlp(hidden).view_as(edge))
        return result

    def _at_ends(self, nodes: Sequence[Tensor], groups: Sequence[int], end: Affine) -> dict[int, Tensor]:
        """What an affine map gives for the states of some groups, (B, n, 2 d_e)."""
        found = by_group(nodes, groups, [end])
        rows = {group: one.view(len(nodes[group]), -1, one.shape[-1]) for group, (one,) in found.items()}
        return {group: one.transpose(0, 1).contiguous() for group, one in rows.items()}


def _sum(messages: Sequence[Tensor | None], state: Tensor) -> Tensor:
    """The sum of those messages that exist, of the shape of the states."""
    found = [message for message in messages if message is not None]
    return sum(found[1:], found[0]) if found else torch.zeros_like(state)
