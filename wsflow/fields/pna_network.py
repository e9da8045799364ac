r"""A message-passing network with principal neighbourhood aggregation, edge updates and FiLM.

With hats for layer norm, modulated by time and condition where it is that of nodes, each layer does

.. math::
    e_{ij} &\leftarrow e_{ij} + \mathrm{MLP}(\hat e_{ij}, \hat n_i, \hat n_j) \\
    m_{ij} &= (1 + \gamma(\hat e_{ij})) \odot (A \hat n_i + B \hat n_j) + \beta(\hat e_{ij}) \\
    n_i &\leftarrow n_i + (1 + g) \odot (W z_i + W' z'_i) \\
    n_i &\leftarrow n_i + (1 + g') \odot \mathrm{MLP}(\hat n_i)

where :math:`\gamma, \beta, A, B, W` are affine.  Messages are modulated by features as in FiLM (Brockschmidt 2020),
which are those of the edge (Kofinas et al. 2024), and gathered by principal neighbourhood aggregation (Corso et al.
2020, eqs. 5 to 8): with d_i the number of neurons j that feed neuron i,

.. math::
    z_i = (1, s_i, s_i^{-1}) \otimes (\mathrm{mean}, \mathrm{min}, \mathrm{max}, \mathrm{std})_j\, m_{ij},
    \quad s_i = \log(d_i + 1) / \delta,

and :math:`\delta` the mean of :math:`\log(d + 1)` over the neurons of the network that the layers were made for.
:math:`z'_i` is the same over the neurons that i feeds, with parameters and a :math:`\delta` of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.aggr import DegreeScalerAggregation

from wsflow.fields.ends import zero
from wsflow.fields.message_passing import EdgeUpdate

AGGREGATORS = ("mean", "min", "max", "std")
SCALERS = ("identity", "amplification", "attenuation")


class PNANetwork(nn.Module):
    """Layers of principal neighbourhood aggregation, along edges and against them.

    Args:
        width: d, width of the node states.
        edge_width: d_e, width of the edge states.
        message_width: d_m, width of the messages.
        depth: Number of layers.
        inward: (k,), how many nodes 0, 1, ... edges enter, of those that any enters.
        outward: The same for edges that leave.
    """

    def __init__(
        self, width: int, edge_width: int, message_width: int, depth: int, inward: Tensor, outward: Tensor
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PNALayer(width, edge_width, message_width, inward, outward) for _ in range(depth))

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """New states of nodes and edges.

        Args:
            x: (B n, d), the nodes of one graph after those of another.
            edge_index: (2, E), sources and targets.
            edge_attr: (E, d_e).
            context: (B, d), what modulates each graph's nodes.
        """
        for layer in self.layers:
            x, edge_attr = layer(x, edge_index, edge_attr, context)
        return x, edge_attr


class PNALayer(nn.Module):
    """One update of all edges and nodes; arguments as for :class:`PNANetwork`."""

    def __init__(self, width: int, edge_width: int, message_width: int, inward: Tensor, outward: Tensor) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 6 * width)
        zero(self.modulation)
        self.edge_update = EdgeUpdate(width, edge_width)
        self.edge_norm = nn.LayerNorm(edge_width)
        self.inward = FiLMAggregation(width, edge_width, message_width, inward)
        self.outward = FiLMAggregation(width, edge_width, message_width, outward)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`PNANetwork.forward`."""
        nodes = x.view(len(context), len(x) // max(1, len(context)), x.shape[-1])
        modulation = self.modulation(nn.functional.silu(context))[:, None].chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        seen = torch.addcmul(shift, self.norm(nodes), 1 + scale).flatten(0, 1)
        edge_attr = self.edge_update(edge_attr, seen, seen, edge_index)
        normed = self.edge_norm(edge_attr)
        found = self.inward(seen, edge_index, normed) + self.outward(seen, edge_index.flip(0), normed)
        nodes = torch.addcmul(nodes, 1 + gate, found.view_as(nodes))
        seen = torch.addcmul(mlp_shift, self.norm(nodes), 1 + mlp_scale)
        return torch.addcmul(nodes, 1 + mlp_gate, self.mlp(seen)).flatten(0, 1), edge_attr


class FiLMAggregation(MessagePassing):  # type: ignore[misc]  # torch-geometric ships no types
    """Aggregated messages that edges modulate, in one direction.

    Args:
        width: d, width of the node states.
        edge_width: d_e, width of the edge states.
        message_width: d_m, width of the messages.
        degrees: (k,), how many nodes receive 0, 1, ... messages, of those that receive any.
    """

    def __init__(self, width: int, edge_width: int, message_width: int, degrees: Tensor) -> None:
        super().__init__(aggr=DegreeScalerAggregation(list(AGGREGATORS), list(SCALERS), degrees))
        self.target = nn.Linear(width, message_width)
        self.source = nn.Linear(width, message_width, bias=False)
        self.film = nn.Linear(edge_width, 2 * message_width)
        self.out = nn.Linear(len(AGGREGATORS) * len(SCALERS) * message_width, width)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        """(N, d) from node states (N, d), edges (2, E) from first row to second, and edge states (E, d_e)."""
        found = self.propagate(edge_index, target=self.target(x), source=self.source(x), film=self.film(edge_attr))
        result: Tensor = self.out(found)
        return result

    def message(self, target_i: Tensor, source_j: Tensor, film: Tensor) -> Tensor:
        """(E, d_m)."""
        scale, shift = film.chunk(2, dim=-1)
        return torch.addcmul(shift, 1 + scale, target_i + source_j)
