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

Shapes: nodes (n, B, d), edges (B, out, in, d_e), scores (B, 2 heads, out, in), inward heads first.  In node states
neurons come before networks, so that all groups are rows of one tensor that one product maps, and networks and heads
are one index of a batched product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Joins = Sequence[tuple[int, int]]
"""Indices of the target and the source group of each block."""

Messages = list[Tensor | None]
"""(n, B, d) by group, None for a group that nothing reaches."""

Affine = tuple[Tensor, Tensor | None]
"""Weight and bias of an affine map."""


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
        """What receivers see of one block, (n, B, heads, d_e + d_h): mean edges, and mean values of the senders.

        Args:
            weights: (B, heads, n, m), of n receivers over m senders.
            value: (m, B * heads, d_h), of the senders.
            edges: (B * n, m, d_e).
        """
        batch, heads, n, m = weights.shape
        values = torch.bmm(weights.reshape(batch * heads, n, m), value.transpose(0, 1))
        pooled = torch.bmm(weights.transpose(1, 2).reshape(batch * n, heads, m), edges)
        pooled = pooled.view(batch, n, heads, self.edge_width).transpose(0, 1)
        return torch.cat([pooled, values.view(batch, heads, n, self.head_width).permute(2, 0, 1, 3)], dim=3)

    def finish(self, parts: Sequence[Sequence[Tensor]]) -> Messages:
        """Messages by group from what its neurons read of each block."""
        reads = {group: sum(part[1:], part[0]) for group, part in enumerate(parts) if part}
        out = self.out.weight.T.view(self.heads, self.head_width, -1)
        weight = torch.cat([torch.bmm(self.edge_values, out), out], dim=1).flatten(0, 1)
        rows = torch.cat([read.view(-1, len(weight)) for read in reads.values()])
        sizes = [len(read) for read in reads.values()]
        together = torch.addmm(self.out.bias, rows, weight).view(sum(sizes), -1, self.out.out_features)
        messages = dict(zip(reads, torch.split(together, sizes), strict=True))
        return [messages.get(group) for group in range(len(parts))]


class _End(NamedTuple):
    """One end of the edges: (B * 2 heads, n, d_h) and (B * n, 2 heads, d_e), inward first, and (n, B * heads, d_h).

    Queries and keys are in that order in memory too: rows that lie 4 KB apart fall on the same lines of the cache.
    """

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
        hide: Applied to the scores (B, 2 heads, out, in) of each block.
    """
    if not joins:
        return [None] * len(nodes), [None] * len(nodes)
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


def by_group(nodes: Sequence[Tensor], groups: Iterable[int], maps: Sequence[Affine]) -> dict[int, list[Tensor]]:
    """What affine maps give for the states of some groups, (n B, outputs) each, from one product for all of them."""
    chosen = list(dict.fromkeys(groups))
    if not chosen:
        return {}
    rows = torch.cat([nodes[group] for group in chosen]).flatten(0, 1)
    sizes = [nodes[group].shape[:2].numel() for group in chosen]
    results = [torch.split(nn.functional.linear(rows, weight, bias), sizes) for weight, bias in maps]
    return {group: list(parts) for group, *parts in zip(chosen, *results, strict=True)}


def _ends(
    inward: Attention, outward: Attention, nodes: Sequence[Tensor], joins: Joins
) -> tuple[dict[int, _End], dict[int, _End]]:
    """What each group brings as a target and as a source."""
    targets, sources = _maps(inward, outward)
    at_target = by_group(nodes, (i for i, _ in joins), targets)
    at_source = by_group(nodes, (j for _, j in joins), sources)
    return (
        {i: _end(inward, len(nodes[i]), *parts) for i, parts in at_target.items()},
        {j: _end(inward, len(nodes[j]), *parts) for j, parts in at_source.items()},
    )


def _end(sizes: Attention, n: int, nodes: Tensor, edges: Tensor, value: Tensor) -> _End:
    edges = edges.view(n, -1, 2 * sizes.heads, sizes.edge_width).transpose(0, 1).flatten(0, 1)
    heads = nodes.view(n, -1, sizes.head_width).transpose(0, 1).contiguous()
    return _End(heads, edges, value.view(n, -1, sizes.head_width))


def _maps(inward: Attention, outward: Attention) -> tuple[list[Affine], list[Affine]]:
    """The affine maps of targets and of sources to :class:`_End`'s nodes, edges and value, scores' scales included."""
    width, asked = inward.out.in_features, inward.heads * inward.edge_width
    by_node, by_edge = inward.head_width**-0.5, inward.edge_width**-0.5
    targets, sources = [], []
    for kind in ("weight", "bias"):
        query, asks = getattr(inward.receive, kind).split([width, asked])
        query_out, asks_out = getattr(outward.receive, kind).split([width, asked])
        key, value, answers = getattr(inward.send, kind).split([width, width, asked])
        key_out, value_out, answers_out = getattr(outward.send, kind).split([width, width, asked])
        edges = (torch.cat([asks, answers_out, answers, asks_out]) * by_edge).split(2 * asked)
        targets.append([torch.cat([query, key_out]) * by_node, edges[0], value_out])
        sources.append([torch.cat([key, query_out]), edges[1], value])
    return list(zip(*targets, strict=True)), list(zip(*sources, strict=True))


def _scores(target: _End, source: _End, at_target: Tensor, at_source: Tensor) -> Tensor:
    """(B, 2 heads, out, in)."""
    nodes = torch.bmm(target.nodes, source.nodes.transpose(1, 2))
    heads, (out, size) = target.edges.shape[1], nodes.shape[1:]
    by_target = products(target.edges, at_target).view(-1, out, heads, size)
    by_source = products(source.edges, at_source).view(-1, size, heads, out)
    scores = nodes.view(-1, heads, out, size) + by_target.transpose(1, 2)
    scores += by_source.permute(0, 2, 3, 1)
    return scores


def _softmax(scores: Sequence[Tensor], receivers: Sequence[int], dim: int) -> list[Tensor]:
    """Weights of each block, over the senders of all blocks that reach the same group."""
    weights = list(scores)
    for group in dict.fromkeys(receivers):
        blocks = [block for block, receiver in enumerate(receivers) if receiver == group]
        if len(blocks) == 1:
            weights[blocks[0]] = scores[blocks[0]].softmax(dim)
            continue
        together = torch.cat([scores[b] for b in blocks], dim=dim).softmax(dim)
        parts = torch.split(together, [scores[b].shape[dim] for b in blocks], dim=dim)
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
