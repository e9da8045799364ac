r"""Principal neighbourhood aggregation over the neural graph of a base network.

The network of :mod:`wsflow.fields.message_passing` is here one of our own, with edge updates and messages that edges
modulate (NG-GNN: Kofinas et al. 2024); :mod:`wsflow.fields.pna_network` has its layers.
"""

from __future__ import annotations

import warnings
from functools import partial

import torch
from torch import Tensor

from wsflow.fields.message_passing import MessagePassingField, edges_of
from wsflow.weightspace import WeightSpace


class PNAField(MessagePassingField):
    """Message passing with four aggregators, degree scalers, edge updates and FiLM.

    Args:
        space: The weight space; the degrees of its neurons normalise the scalers, also on spaces that the field is
            bound to.
        extra: Trailing coordinates that are not weights, such as a log-scale.
        width: d, width of the node states.
        edge_width: d_e, width of the edge states.
        message_width: d_m, width of the messages.
        depth: Number of layers.
        condition: Number of values that each network is conditioned on, 0 for none.
        neuron_embedding: Gives each hidden neuron an embedding of its own, which breaks equivariance on purpose: for
            aligned zoos, whose neurons have a fixed order.  Such a field cannot be bound to another width.

    Raises:
        ValueError: for grouped convolutions, attention heads and groups of norms, by the name of the tensor.
    """

    def __init__(
        self,
        space: WeightSpace,
        extra: int = 0,
        width: int = 64,
        edge_width: int = 16,
        message_width: int = 32,
        depth: int = 4,
        condition: int = 0,
        neuron_embedding: bool = False,
    ) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch.jit.script.*")  # torch-geometric scripts functions on import
            from wsflow.fields.pna_network import PNANetwork  # here, since loading torch-geometric takes seconds
        source, target = edges_of(space)
        network = partial(
            PNANetwork,
            edge_width=edge_width,
            message_width=message_width,
            depth=depth,
            inward=degrees(target),
            outward=degrees(source),
        )
        super().__init__(
            space,
            extra,
            network=network,
            width=width,
            edge_width=edge_width,
            condition=condition,
            neuron_embedding=neuron_embedding,
            reverse=False,
        )


def degrees(receivers: Tensor) -> Tensor:
    """How many neurons have 0, 1, ... edges, of those that have any, from the receiving neuron of each edge (E,)."""
    counts = torch.bincount(receivers)
    return torch.bincount(counts[counts > 0])
