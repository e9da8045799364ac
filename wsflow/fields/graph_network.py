r"""Any message-passing network, called in one way and checked when it is taken.

Networks of torch-geometric differ in what they take and give back.  A field on a graph needs three things of one: that
it reads edge features, since those are the weights; that what it gives a node depends on the node's own network alone,
although a batch of networks is one large graph; and that it knows no order of nodes or edges.  Each is tried on a small
graph, with parameters moved away from where they start, because layers that start at zero would hide what they do.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

OPTIONAL = ("batch", "batch_size", "context")
"""Keywords that are given to a network whose ``forward`` names them."""

NODES, COPIES = 5, 2
"""Size and number of the graphs that a network is tried on."""

TOLERANCE = 1e-6
"""Largest difference, relative to the largest output, that is taken for rounding in float64."""


class GraphNetwork(nn.Module):
    """A message-passing network as a field on a graph calls it.

    Args:
        network: Called as ``network(x, edge_index, edge_attr=edge_attr)`` with node states (N, width), edges (2, E)
            from the first row to the second and edge features (E, edge_width); it gives node states (N, any), or a
            pair of these and edge states (E, any).  Where its ``forward`` names them, it also gets ``batch`` (N,), the
            graph of each node, ``batch_size``, the number B of graphs, and ``context`` (B, width), the embedding of
            each graph's time and condition.
        width: Size of the node states.
        edge_width: Size of the edge features.

    Attributes:
        out: Size of the node states that the network gives.
        edge_out: Size of the edge states that it gives, 0 where it gives none.

    Raises:
        ValueError: for a network that cannot be called so, does not read edge features, lets graphs of one batch
            change each other, or depends on the order of nodes or edges.
    """

    def __init__(self, network: nn.Module, width: int, edge_width: int) -> None:
        super().__init__()
        self.network, self.name = network, type(network).__name__
        self._takes = set(inspect.signature(network.forward).parameters) & set(OPTIONAL)
        training = network.training
        self.eval()
        with torch.no_grad():
            self.out, self.edge_out = self._sizes(width, edge_width)
            self._try(width, edge_width)
        self.train(training)

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, context: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Node states (N, out), and edge states (E, edge_out) or None.

        Args:
            x: (N, width), the nodes of one graph after those of another, as many in each.
            edge_index: (2, E).
            edge_attr: (E, edge_width).
            context: (B, width).
        """
        graphs = len(context)
        given: dict[str, Any] = {"context": context, "batch_size": graphs}
        if "batch" in self._takes:
            given["batch"] = torch.arange(graphs, device=x.device).repeat_interleave(len(x) // max(1, graphs))
        result = self.network(x, edge_index, edge_attr=edge_attr, **{name: given[name] for name in self._takes})
        nodes, edges = result if isinstance(result, tuple) else (result, None)
        return nodes, edges

    def _sizes(self, width: int, edge_width: int) -> tuple[int, int]:
        x, edge_index, edge_attr, context = _graphs(width, edge_width, torch.float32)
        try:
            nodes, edges = self(x, edge_index, edge_attr, context)
        except (TypeError, RuntimeError, ValueError, AssertionError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{self.name} cannot run on nodes of width {width} and edges of width {edge_width}: {reason}; it is "
                "called as network(x, edge_index, edge_attr=edge_attr)"
            ) from error
        if not _rows(nodes, len(x)) or not (edges is None or _rows(edges, len(edge_attr))):
            raise ValueError(
                f"{self.name} must give node states, one row for each of {len(x)} nodes, or a pair of these and edge "
                f"states, one row for each of {len(edge_attr)} edges"
            )
        return nodes.shape[1], 0 if edges is None else edges.shape[1]

    def _try(self, width: int, edge_width: int) -> None:
        inputs, state = _graphs(width, edge_width, torch.float64), self._moved()
        x, edge_index, edge_attr, context = inputs
        if _same(self._run(state, *inputs), self._run(state, x, edge_index, edge_attr.square(), context)):
            raise ValueError(
                f"{self.name} does not read edge_attr, so that it would not see the weights between hidden neurons; "
                f"many networks of torch-geometric do where they are given edge_dim={edge_width}"
            )
        first = _first(*inputs)
        alone = self._run(state, *first)
        if self._norms_batches() or not _same(self._run(state, *inputs)[:NODES], alone):
            raise ValueError(
                f"{self.name} lets the networks of one batch change each other; take norms of single nodes, or of "
                "graphs that are told apart by batch"
            )
        order = torch.randperm(NODES, generator=torch.Generator().manual_seed(1))
        if not _same(alone[order], self._run(state, *_reordered(order, *first))):
            raise ValueError(f"{self.name} depends on the order of nodes or edges, which hidden neurons do not have")

    def _norms_batches(self) -> bool:
        """Whether there is a batch norm, which joins graphs in training alone and thus escapes the trial."""
        return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in self.modules())

    def _run(self, state: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        found: tuple[Tensor, Tensor | None] = functional_call(self, state, inputs)
        return found[0]

    def _moved(self) -> dict[str, Tensor]:
        """Parameters moved at random, and buffers, in float64."""
        generator = torch.Generator().manual_seed(0)
        moved = {
            name: p.double() + 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
            for name, p in self.named_parameters()
        }
        buffers = {name: b.double() if b.is_floating_point() else b for name, b in self.named_buffers()}
        return moved | buffers


def _graphs(width: int, edge_width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Graphs in which every node feeds every other: node states, edges, edge features and contexts."""
    generator = torch.Generator().manual_seed(0)
    one = torch.cartesian_prod(torch.arange(NODES), torch.arange(NODES))
    one = one[one[:, 0] != one[:, 1]].T
    edge_index = torch.cat([one + NODES * copy for copy in range(COPIES)], dim=1)
    sizes = ((NODES * COPIES, width), (edge_index.shape[1], edge_width), (COPIES, width))
    x, edge_attr, context = (torch.randn(size, generator=generator, dtype=dtype) for size in sizes)
    return x, edge_index, edge_attr, context


def _first(x: Tensor, edge_index: Tensor, edge_attr: Tensor, context: Tensor) -> tuple[Tensor, ...]:
    """The first of the graphs."""
    edges = len(edge_attr) // COPIES
    return x[:NODES], edge_index[:, :edges], edge_attr[:edges], context[:1]


def _reordered(order: Tensor, x: Tensor, edge_index: Tensor, edge_attr: Tensor, context: Tensor) -> tuple[Tensor, ...]:
    """A graph with its nodes in another order, and its edges from last to first."""
    return x[order], order.argsort()[edge_index].flip(1), edge_attr.flip(0), context


def _rows(states: object, count: int) -> bool:
    return isinstance(states, Tensor) and states.ndim == 2 and len(states) == count


def _same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= TOLERANCE * b.abs().max())
