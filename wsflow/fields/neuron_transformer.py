r"""A transformer whose tokens are neurons, for networks with wide layers.

Hidden and output neurons, n of width d, are tokens of one sequence.  Weights have no states of their own: a block W
between two hidden groups, or from a hidden group to the outputs, is read anew in every layer, as the matrix that it is.
With hats for adaptive layer norm (Peebles and Xie 2023), each layer does

.. math::
    n_i &\leftarrow n_i + g \odot \Bigl( \mathrm{Attention}(\hat n)_i
        + \sum_{j \to i} \frac{W_{ij}}{\sqrt{\mathrm{in}}} V \hat n_j
        + \sum_{i \to j} \frac{W_{ji}}{\sqrt{\mathrm{out}}} U \hat n_j \Bigr) \\
    n_i &\leftarrow n_i + g' \odot \mathrm{MLP}(\hat n_i)

with attention over all tokens of the network (Vaswani et al. 2017), so that every neuron sees every other one.  A
kernel's positions k have V and U of their own, and the sums run over them too.

Along a fixed axis (inputs, outputs) a neuron's whole weight vector is read by a learned projection at first, and
written by one at last.  What is written to a weight between groups is

.. math:: f_{ij} = \langle L n_i, R n_j \rangle / \sqrt d + (a(n_i) + b(n_j)) w_{ij}

with w the weight itself, so that what a flow leaves alone (noise that training never moved) costs no width; where an
end is fixed, the product is the projection's.  On a stacked space (:mod:`wsflow.fields.stacks`), where an edge carries
the numbers :math:`w^{(k)}` of several vectors, the last term is :math:`\sum_k (a_k(n_i) + b_k(n_j)) w^{(k)}_{ij}`: a
neuron can be moved along its whole gradient, which has more directions than a token has numbers.

Everything is a function of sets of neurons: permuting hidden neurons permutes the output exactly, and no parameter
depends on a hidden width.  A step costs :math:`O(D d + N d^2 + N^2 d)` for N tokens, and memory O(D + N d): no state
is held for a weight.  :class:`~wsflow.fields.RelationalTransformer` holds d_e numbers for each.  Weights as tokens'
features are the plan of Peebles et al. 2022 (G.pt), without its fixed order of neurons.
"""

from __future__ import annotations

import math
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint

from wsflow.fields.ends import FixedAxes, NodeEncoder, vector_head, zero
from wsflow.fields.graph_field import GraphField
from wsflow.weightspace import WeightBlock, WeightSpace


class NeuronTransformer(GraphField):
    """Transformer over the hidden and output neurons of a network.

    Args:
        space: The weight space.
        extra: Trailing coordinates that are not weights, such as a log-scale.
        width: d, width of a token.
        depth: Number of layers.
        heads: Attention heads; they divide ``width``.
        mlp: Width of the MLP's hidden layer, in multiples of d.
        condition: Number of values that each network is conditioned on, 0 for none.
        dropout: Probability with which, in training, each number that a layer adds to a token is left out.
        neuron_embedding: Gives each hidden neuron an embedding of its own, which breaks equivariance on purpose: for
            aligned zoos, whose neurons have a fixed order.  Such a field cannot be bound to another width.
        recompute: Keeps only the states between layers for the backward pass of a training and computes each layer
            again there.

    Raises:
        ValueError: where ``heads`` does not divide ``width``, and for grouped convolutions, attention heads and
            groups of norms, by the name of the tensor.
    """

    def __init__(
        self,
        space: WeightSpace,
        extra: int = 0,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        mlp: int = 3,
        condition: int = 0,
        dropout: float = 0.0,
        neuron_embedding: bool = False,
        recompute: bool = False,
    ) -> None:
        if width % heads:
            raise ValueError(f"width {width} is not divisible by heads {heads}")
        super().__init__(space, extra, width, condition, neuron_embedding)
        self.recompute = recompute
        self.token_in = nn.ModuleList(NodeEncoder(space, i, width, neuron_embedding) for i in self._groups)
        readers = [FixedAxes(space, block, width) for block in space.blocks]
        for block, reader in zip(space.blocks, readers, strict=True):
            if block.source not in self._names:
                reader.column = None  # inputs are no tokens
        self.read = nn.ModuleList(readers)
        self.write = nn.ModuleList(TokenWriter(space, block, width) for block in space.blocks)
        self.vectors_out = nn.ModuleList(vector_head(space, space.groups[i].name, width) for i in self._groups)
        depths = [block.depth for block in self._inner]
        self.layers = nn.ModuleList(Layer(width, heads, mlp, depths, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for head in self.vectors_out:
            zero(head)

    def _field(self, x: Tensor, context: Tensor) -> Tensor:
        groups = [self.space.groups[i] for i in self._groups]
        tokens = torch.cat(list(self._first_states(x, groups, self.token_in, self.read).values()), dim=1)
        weights, context = [block.view(x) for block in self._inner], silu(context)
        for layer in self.layers:
            arguments = (tokens, context, weights, self._spans)
            if self.recompute and self.training and torch.is_grad_enabled():
                tokens = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                tokens = layer(*arguments)
        tokens = self.norm(tokens)
        states = dict(zip(self._names, torch.split(tokens, self._sizes, dim=1), strict=True))
        blocks = [
            write(states.get(block.target), states.get(block.source), block.view(x))
            for block, write in zip(self.space.blocks, self.write, strict=True)
        ]
        return self._flat(blocks, states, self.vectors_out, tokens)

    def _follow(self, space: WeightSpace) -> None:
        """Set what follows from the space alone."""
        super()._follow(space)
        with_vectors = {vector.group for vector in space.vectors}
        groups = [(i, g) for i, g in enumerate(space.groups) if g.role != "input" or g.name in with_vectors]
        self._groups = [i for i, _ in groups]
        self._names, self._sizes = [group.name for _, group in groups], [group.size for _, group in groups]
        ends = [0, *accumulate(self._sizes)]
        span = {name: slice(a, b) for name, (a, b) in zip(self._names, pairwise(ends), strict=True)}
        self._inner = [block for block in space.blocks if {block.source, block.target} <= set(span)]
        self._spans = [(span[block.target], span[block.source]) for block in self._inner]


class TokenWriter(nn.Module):
    """Writes a block from its ends: whole vectors along fixed axes, a low-rank product, and multiples of itself.

    Args:
        space: The weight space.
        block: The block.
        width: d, also the rank of the product.
    """

    def __init__(self, space: WeightSpace, block: WeightBlock, width: int) -> None:
        super().__init__()
        source, target = space.group(block.source), space.group(block.target)
        self.numbers = space.numbers
        self.row = nn.Linear(width, block.in_ * block.depth) if source.role != "hidden" else None
        self.column = (
            nn.Linear(width, block.out * block.depth) if target.role != "hidden" and source.role == "hidden" else None
        )
        inner = self.row is None and self.column is None
        self.left = nn.Linear(width, width * block.depth) if inner else None
        self.right = nn.Linear(width, width) if inner else None
        self.by_target = nn.Linear(width, block.depth) if target.role == "hidden" or self.row is not None else None
        self.by_source = nn.Linear(width, block.depth) if source.role == "hidden" else None
        for head in (self.left, self.row, self.column, self.by_target, self.by_source):
            zero(head)

    def forward(self, target: Tensor, source: Tensor | None, weight: Tensor) -> Tensor:
        """(B, out, in, depth) from tokens (B, out, d) and (B, in, d), the latter None for inputs, and the block itself.

        Args:
            target: Tokens of the neurons that the block feeds.
            source: Tokens of the neurons that it reads.
            weight: (B, out, in, depth).
        """
        batch, out, size, depth = weight.shape
        parts = []
        if self.row is not None:
            parts.append(self.row(target).view(batch, out, size, depth))
        if self.column is not None and source is not None:
            parts.append(self.column(source).view(batch, size, out, depth).transpose(1, 2))
        if self.left is not None and self.right is not None and source is not None:
            left = self.left(target).view(batch, out * depth, target.shape[-1]) / math.sqrt(target.shape[-1])
            product = left @ self.right(source).transpose(1, 2)
            parts.append(product.view(batch, out, depth, size).transpose(2, 3))
        if self.by_target is not None:
            parts.append(self._sum(self.by_target(target)[:, :, None] * weight))
        if self.by_source is not None and source is not None:
            parts.append(self._sum(self.by_source(source)[:, None] * weight))
        return torch.stack(parts).sum(dim=0) if len(parts) > 1 else parts[0]

    def _sum(self, products: Tensor) -> Tensor:
        """On a stacked space, each number is written as a sum over all the numbers of its edge, (B, out, in, depth)."""
        if self.numbers == 1:
            return products
        cut = products.view(*products.shape[:-1], self.numbers, -1)
        return cut.sum(dim=-2, keepdim=True).expand_as(cut).flatten(-2)


class Layer(nn.Module):
    """One update of all tokens.

    Args:
        width: d.
        heads: Attention heads.
        mlp: Width of the hidden layer, in multiples of d.
        depths: Numbers that an edge of each block between tokens carries.
        dropout: Probability of leaving out a number that is added.
    """

    def __init__(self, width: int, heads: int, mlp: int, depths: list[int], dropout: float) -> None:
        super().__init__()
        self.heads, self.depths = heads, depths
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 6 * width)
        zero(self.modulation)
        self.attend = nn.Linear(width, 3 * width)
        self.inward = nn.ModuleList(nn.Linear(width, width * depth, bias=False) for depth in depths)
        self.outward = nn.ModuleList(nn.Linear(width, width * depth, bias=False) for depth in depths)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp * width), nn.GELU(), nn.Linear(mlp * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Tensor, context: Tensor, weights: list[Tensor], spans: list[tuple[slice, slice]]
    ) -> Tensor:
        """New tokens (B, N, d).

        Args:
            tokens: (B, N, d).
            context: (B, d), embedding of time and condition.
            weights: Blocks between tokens, (B, out, in, depth).
            spans: Which tokens the block of each place feeds and reads.
        """
        modulation = self.modulation(context)[:, None].chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        seen = torch.addcmul(shift, self.norm(tokens), 1 + scale)
        messages = self.out(self._attention(seen) + self._along_weights(seen, weights, spans))
        tokens = torch.addcmul(tokens, 1 + gate, self.dropout(messages))
        seen = torch.addcmul(mlp_shift, self.norm(tokens), 1 + mlp_scale)
        return torch.addcmul(tokens, 1 + mlp_gate, self.dropout(self.mlp(seen)))

    def _attention(self, seen: Tensor) -> Tensor:
        batch, count, width = seen.shape
        query, key, value = (
            self.attend(seen).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )
        return scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, count, width)

    def _along_weights(self, seen: Tensor, weights: list[Tensor], spans: list[tuple[slice, slice]]) -> Tensor:
        """Messages (B, N, d) that weights carry, both ways."""
        messages, width = torch.zeros_like(seen), seen.shape[-1]
        for weight, (target, source), into, out_of in zip(weights, spans, self.inward, self.outward, strict=True):
            batch, out, size, depth = weight.shape
            sent = into(seen[:, source]).view(batch, size * depth, width)
            messages[:, target] += weight.flatten(2) @ sent / math.sqrt(size * depth)
            sent = out_of(seen[:, target]).view(batch, out * depth, width)
            messages[:, source] += weight.permute(0, 2, 1, 3).flatten(2) @ sent / math.sqrt(out * depth)
        return messages
