r"""Attention over the edges of bipartite blocks, both ways at once.

In a weight block every target neuron i reads its sources j (*inward*) and every source reads its targets (*outward*).
For each head, with :math:`\hat e_{ij}` the normed edge states and primes for what belongs to the outward direction,

.. math::
    s_{ij} = \langle q_i, k_j \rangle / \sqrt{d_h} + \langle a_i + c_j, \hat e_{ij} \rangle / \sqrt{d_e}, \qquad
    s'_{ij} = \langle q'_j, k'_i \rangle / \sqrt{d_h} + \langle a'_j + c'_i, \hat e_{ij} \rangle / \sqrt{d_e} .

Inward weights are the softmax of s over j, outward ones that of s' over i.  Both directions look at the same edges, so
that what one end of the edges asks is asked together: target i multiplies its edges by all heads of :math:`a_i` and
:math:`c'_i`, source j by all of :math:`c_j` and :math:`a'_j`.  An edge then takes part in four small products in all,
of which none forms anything of its size.

Shapes: nodes (B, n, d), edges (B, out, in, d_e), scores (B, 2 heads, out, in), inward heads first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Joins = Sequence[tuple[int, int]]
"""Indices of the target and the source group of each block."""

Messages = list[Tensor | None]
"""(B, n, d) by group, None for a group that nothing reaches."""


class Attention(nn.Module):
    """Parameters of one direction.

    Args:
        width: d.
        edge_width: d_e.
        heads: Attention heads; they divide ``width``.
    """

    def __init__(self, width: int, edge_width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width, self.edge_width = heads, width // heads, edge_width
        self.receive = nn.Linear(width, width + heads * edge_width)
        self.send = nn.Linear(width, 2 * width + heads * edge_width)
        self.edge_values = nn.Parameter(torch.randn(heads, edge_width, self.head_width) / math.sqrt(edge_width))
        self.out = nn.Linear(width, width)

    def read(self, weights: Tensor, value: Tensor, edges: Tensor) -> Tensor:
        """What receivers read of one block, (B, n, d), before :attr:`out`.

        Args:
            weights: (B, heads, n, m), of n receivers over m senders.
            value: (B, m, d), of the senders.
            edges: (B * n, m, d_e).
        """
        batch, heads, n, m = weights.shape
        from_nodes = weights @ value.view(batch, m, heads, self.head_width).transpose(1, 2)
        pooled = torch.bmm(weights.transpose(1, 2).reshape(batch * n, heads, m), edges)
        from_edges = pooled.transpose(0, 1) @ self.edge_values
        return (
            (from_nodes + from_edges.view(heads, batch, n, self.head_width).transpose(0, 1)).transpose(1, 2).flatten(2)
        )

    def finish(self, parts: Sequence[Sequence[Tensor]]) -> Messages:
        """Messages by group from what its neurons read of each block."""
        return [self.out(sum(reads[1:], reads[0])) if reads else None for reads in parts]


class _End(NamedTuple):
    """One end of the edges: (B, 2 heads, n, d_h) and (B * n, 2 heads, d_e), inward heads first, and (B, n, d)."""

    nodes: Tensor
    edges: Tensor
    value: Tensor


def exchange(
    inward: Attention,
    outward: Attention,
    nodes: Sequence[Tensor],
    edges: Sequence[Tensor],
    joins: Joins,
    hide: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Messages, Messages]:
    """Messages that targets get from their sources, and sources from their targets.

    Args:
        inward: Parameters of the first.
        outward: Parameters of the second.
        nodes: Normed node states by group.
        edges: Normed edge states by block.
        joins: The groups of each block.
        hide: Applied to the scores of each block.
    """
    at_target = [edge.flatten(0, 1) for edge in edges]
    at_source = [edge.transpose(1, 2).flatten(0, 1) for edge in edges]
    targets, sources = _ends(inward, outward, nodes, joins)
    scores = [_scores(targets[i], sources[j], *pair) for *pair, (i, j) in zip(at_target, at_source, joins, strict=True)]
    halves = [(score if hide is None else hide(score)).chunk(2, dim=1) for score in scores]
    into = _softmax([half[0] for half in halves], [i for i, _ in joins], dim=3)
    out_of = _softmax([half[1] for half in halves], [j for _, j in joins], dim=2)
    received: list[list[Tensor]] = [[] for _ in nodes]
    returned: list[list[Tensor]] = [[] for _ in nodes]
    for block, (i, j) in enumerate(joins):
        received[i].append(inward.read(into[block], sources[j].value, at_target[block]))
        returned[j].append(outward.read(out_of[block].transpose(2, 3), targets[i].value, at_source[block]))
    return inward.finish(received), outward.finish(returned)


def _ends(
    inward: Attention, outward: Attention, nodes: Sequence[Tensor], joins: Joins
) -> tuple[dict[int, _End], dict[int, _End]]:
    """What each group brings as a target and as a source."""
    by_node, by_edge, heads = inward.head_width**-0.5, inward.edge_width**-0.5, 2 * inward.heads
    at_target = _maps(inward.receive, outward.send, True, (by_node, by_edge, 1.0))
    at_source = _maps(outward.receive, inward.send, False, (1.0, by_edge, 1.0))
    targets = {i: _end(nodes[i], heads, *at_target) for i in dict.fromkeys(i for i, _ in joins)}
    sources = {j: _end(nodes[j], heads, *at_source) for j in dict.fromkeys(j for _, j in joins)}
    return targets, sources


def _maps(
    receive: nn.Linear, send: nn.Linear, receiver_first: bool, scales: tuple[float, float, float]
) -> tuple[Tensor, Tensor, list[int]]:
    """Weight, bias and sizes of the affine maps of one end, stacked: to :class:`_End`'s nodes, edges and value.

    Args:
        receive: Gives what the end asks where it receives.
        send: Gives what it answers, and its value, where it sends.
        receiver_first: Whether it receives inward.
        scales: Multiply the three maps.
    """
    width, asked = receive.in_features, receive.out_features - receive.in_features
    sizes, stacked = [2 * width, 2 * asked, width], []
    scale = torch.cat([send.bias.new_full((n,), factor) for n, factor in zip(sizes, scales, strict=True)])
    for mine, others in ((receive.weight, send.weight), (receive.bias, send.bias)):
        query, to_edges = torch.split(mine, [width, asked])
        key, value, of_edges = torch.split(others, [width, width, asked])
        parts = [query, key, to_edges, of_edges] if receiver_first else [key, query, of_edges, to_edges]
        stacked.append(torch.cat([*parts, value]) * (scale if mine.ndim == 1 else scale[:, None]))
    return stacked[0], stacked[1], sizes


def _end(state: Tensor, heads: int, weight: Tensor, bias: Tensor, sizes: list[int]) -> _End:
    batch, n = state.shape[:2]
    nodes, edges, value = torch.split(nn.functional.linear(state, weight, bias), sizes, dim=2)
    return _End(
        nodes.view(batch, n, heads, sizes[0] // heads).transpose(1, 2),
        edges.view(batch * n, heads, sizes[1] // heads),
        value,
    )


def _scores(target: _End, source: _End, at_target: Tensor, at_source: Tensor) -> Tensor:
    """(B, 2 heads, out, in)."""
    nodes = target.nodes @ source.nodes.transpose(2, 3)
    batch, heads, out, size = nodes.shape
    by_target = products(target.edges, at_target).view(batch, out, heads, size)
    by_source = products(source.edges, at_source).view(batch, size, heads, out)
    return nodes + by_target.transpose(1, 2) + by_source.permute(0, 2, 3, 1)


def _softmax(scores: Sequence[Tensor], receivers: Sequence[int], dim: int) -> list[Tensor]:
    """Weights of each block, over the senders of all blocks that reach the same group."""
    weights = list(scores)
    for group in dict.fromkeys(receivers):
        blocks = [block for block, receiver in enumerate(receivers) if receiver == group]
        together = torch.cat([scores[b] for b in blocks], dim=dim) if len(blocks) > 1 else scores[blocks[0]]
        parts = torch.split(together.softmax(dim), [scores[b].shape[dim] for b in blocks], dim=dim)
        for block, part in zip(blocks, parts, strict=True):
            weights[block] = part
    return weights


class _Products(torch.autograd.Function):
    """Inner products (n, k, m) of vectors (n, k, c) and (n, m, c).

    As ``torch.bmm`` gives them; but the gradient of the long operand comes in its own memory order, not transposed.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(few: Tensor, many: Tensor) -> Tensor:
        return torch.bmm(few, many.transpose(1, 2))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        few, many = ctx.saved_tensors
        return torch.bmm(grad, many), torch.bmm(grad.transpose(1, 2), few)

    @staticmethod
    def jvp(ctx: Any, few_t: Tensor, many_t: Tensor) -> Tensor:
        few, many = ctx.saved_tensors
        return torch.bmm(few_t, many.transpose(1, 2)) + torch.bmm(few, many_t.transpose(1, 2))


def products(few: Tensor, many: Tensor) -> Tensor:
    """Inner products (n, k, m) of vectors (n, k, c) and (n, m, c), k small; in autocast's type where it is on."""
    result: Tensor = _Products.apply(*(computed(x) for x in (few, many)))
    return result


def computed(x: Tensor) -> Tensor:
    """``x`` in the type that matrix products are computed in here."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
