r"""Gradients of the weights that read the data, filtered by the curvature that the data gives them.

The gradient of a linear layer that reads inputs :math:`x` is :math:`G = \sum_i \delta_i x_i^\top`, and the curvature of
the loss along its rows is, up to a factor for each pair of neurons, the second moment of the inputs (Martens and Grosse
2015, "Optimizing neural networks with Kronecker-factored approximate curvature", section 3)

.. math:: A = \frac1N \sum_i x_i x_i^\top .

Descent that is stopped before its end has gone far along the large eigenvalues of A and little along the small ones;
images have hundreds that matter, more than a token of a field has numbers.  Of the layer that reads the inputs a field
is therefore shown

.. math:: G F_\lambda , \qquad F_\lambda = \lambda m \, (A + \lambda m)^{-1}, \quad m = \mathrm{tr} A / n ,

for a few dampings :math:`\lambda`, which together with G span filters that rise, fall or have a band.  F is a function
of the train inputs alone, the same for every hidden neuron, so that nothing depends on their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from wsflow.weightspace import WeightBlock, WeightSpace


def input_blocks(space: WeightSpace) -> list[WeightBlock]:
    """The blocks whose rows multiply whole inputs: linear layers that read the data.

    Raises:
        ValueError: where the space has none.
    """
    size = prod(space.input_shape) if space.input_shape is not None else None
    found = [
        block
        for block in space.blocks
        if block.parts == 1 and space.group(block.source).role == "input" and size in (None, block.in_ * block.depth)
    ]
    if not found:
        raise ValueError("no linear layer reads the inputs of this network, so no gradient can be filtered: no damping")
    return found


def input_filters(inputs: Tensor, damping: Sequence[float]) -> Tensor:
    """F for every damping, all positive, (K, n, n), from inputs (N, ...) of n numbers."""
    rows = inputs.flatten(1).double()
    moment = rows.mT @ rows / len(rows)
    mean = moment.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    unit = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    levels = [level * mean * unit for level in damping]
    return torch.stack([torch.linalg.solve(moment + level, level) for level in levels])


def filtered(space: WeightSpace, gradient: Tensor, filters: Tensor) -> list[Tensor]:
    """A gradient (B, D, ...) whose input layer has been filtered, for each of the filters (K, n, n)."""
    results = [gradient.clone() for _ in filters]
    for block in input_blocks(space):
        rows = block.view(gradient).flatten(2)
        for result, one in zip(results, filters, strict=True):
            block.view(result).copy_((rows @ one).view(len(gradient), block.out, block.in_, block.depth))
    return results
