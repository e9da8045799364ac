r"""Soft permutations: the Sinkhorn operator, and weights permuted by doubly stochastic matrices.

*Sinkhorn operator* (thesis eq. 4.3).  With the entropy :math:`h(P) = -\sum P \log P` and :math:`\Pi` the doubly
stochastic matrices, which are the mixtures of permutations,

.. math:: S_\tau(X) = \arg\max_{P \in \Pi} \langle P, X \rangle + \tau h(P), \qquad
          P_{ij} = \exp(X_{ij} / \tau + f_i + g_j),

where f and g follow from the row and column sums being one.  Rows and columns are normalised in turns, in log space
(Sinkhorn 1964).  For small :math:`\tau` it tends to the permutation that solves the assignment problem of X.

*Its gradient* is implicit (Eisenberger et al. 2022).  With :math:`L_{ij} = \partial \ell / \partial \log P_{ij}`,
differentiating the sums gives

.. math:: \frac{\partial \ell}{\partial X_{ij}} = \frac{1}{\tau} [L_{ij} - P_{ij} (u_i + v_j)], \qquad
          u + P v = L 1, \quad v + P^T u = L^T 1,

solved by substitution in turns, which converges as the forward iteration does: no iterate is kept.

*Soft permutation.*  As a permutation p acts by the matrix with ones at (i, p(i)), a block becomes
:math:`W' = P W Q^T`, and a vector :math:`P b`.  With permutation matrices it is ``space.permute``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsflow.weightspace import GroupVector, WeightBlock, WeightSpace
from wsflow.weightspace.elements import split_last

Piece = WeightBlock | GroupVector


def sinkhorn(logits: Tensor, tau: float = 1.0, sweeps: int = 20) -> Tensor:
    """The Sinkhorn operator, differentiable.

    Args:
        logits: (..., n, n).
        tau: Weight of the entropy, positive.
        sweeps: How often rows and columns are normalised.  Columns come last: their sums are one, those of the rows
            as far as the sweeps got.

    Returns:
        (..., n, n), not negative.
    """
    return log_sinkhorn(logits / tau, sweeps).exp()


def log_sinkhorn(logits: Tensor, sweeps: int) -> Tensor:
    """The logarithm of :func:`sinkhorn` with tau = 1, (..., n, n); differentiable once."""
    result: Tensor = _LogSinkhorn.apply(logits, sweeps)
    return result


def soft_permute(space: WeightSpace, theta: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Mix the hidden neurons of B networks; differentiable by the weights and by the matrices.

    Args:
        space: Their weight space.
        theta: (B, D).
        matrices: One tensor (B, size, size) per hidden group, in the order of ``space.hidden``.  Where a grouped
            convolution joins two groups, only what stays between equal parts is kept.

    Returns:
        (B, D).
    """
    mix = {group.name: matrix for group, matrix in zip(space.hidden, matrices, strict=True)}
    blocks = [block for block in space.blocks if block.target in mix or block.source in mix]
    vectors = [vector for vector in space.vectors if vector.group in mix]
    values = [_mixed_block(block, theta, mix.get(block.target), mix.get(block.source)) for block in blocks]
    values += [_along(mix[vector.group], vector.view(theta), 1) for vector in vectors]
    result: Tensor = _Written.apply(theta, (*blocks, *vectors), *values)
    return result


def _mixed_block(block: WeightBlock, theta: Tensor, out: Tensor | None, into: Tensor | None) -> Tensor:
    """P W Q^T of a block, (B, out, fan_in, depth); None stands for the identity."""
    value = block.view(theta)
    if block.parts > 1:
        return _mixed_parts(block, value, out, into)
    value = value if out is None else _along(out, value, 1)
    return value if into is None else _along(into, value, 2)


def _mixed_parts(block: WeightBlock, value: Tensor, out: Tensor | None, into: Tensor | None) -> Tensor:
    """The same for a grouped convolution: part i of the result gathers from all parts k."""
    eyes = (torch.eye(n, dtype=value.dtype, device=value.device)[None] for n in (block.out, block.in_))
    left, right = (
        _cut(split_last(eye if mix is None else mix, block.parts, -1), block.parts)
        for eye, mix in zip(eyes, (out, into), strict=True)
    )
    value = torch.einsum("biukv,bkvyd->biukyd", left, _cut(value, block.parts))
    return torch.einsum("biukyd,bixky->biuxd", value, right).flatten(1, 2)


def _along(matrix: Tensor, value: Tensor, axis: int) -> Tensor:
    """Products of matrices (B, n, n) with ``value`` (B, ...) along one of its axes."""
    moved = value.transpose(1, axis)
    return (matrix @ moved.flatten(2)).view(moved.shape).transpose(1, axis)


def _cut(value: Tensor, parts: int) -> Tensor:
    """``value`` (B, parts * n, ...) as (B, parts, n, ...)."""
    return value.reshape(len(value), parts, -1, *value.shape[2:])


class _LogSinkhorn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, sweeps: int) -> Tensor:
        for _ in range(sweeps):
            logits = logits.log_softmax(-1).log_softmax(-2)
        ctx.save_for_backward(logits)
        ctx.sweeps = sweeps
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        p = ctx.saved_tensors[0].exp()
        rows, columns = grad.sum(-1, keepdim=True), grad.sum(-2, keepdim=True)
        v = torch.zeros_like(columns)
        for _ in range(ctx.sweeps):
            u = rows - (p * v).sum(-1, keepdim=True)
            v = columns - (p * u).sum(-2, keepdim=True)
        return grad - p * (u + v), None


class _Written(torch.autograd.Function):
    """A copy of flat vectors with some pieces replaced."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, pieces: tuple[Piece, ...], *values: Tensor) -> Tensor:
        ctx.pieces = pieces
        result = theta.clone()
        for piece, value in zip(pieces, values, strict=True):
            piece.view(result)[...] = value
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rest = None
        if ctx.needs_input_grad[0]:
            rest = grad.clone()
            for piece in ctx.pieces:
                piece.view(rest)[...] = 0
        return rest, None, *(piece.view(grad) for piece in ctx.pieces)
