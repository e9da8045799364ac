"""The forward pass of B networks at once.

``torch.func.functional_call`` runs the architecture with the weights of one network and ``torch.vmap`` maps it over
the batch: a linear layer becomes one batched matrix product, a convolution one grouped convolution.  Convolutional
networks with many inputs run one after another (:mod:`wsflow.weightspace.one_by_one`).  The network runs as in
evaluation: dropout passes its input through.  Outputs have derivatives by running statistics too, where these are
given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call

from wsflow.weightspace.narrow import WeightsFirst
from wsflow.weightspace.one_by_one import each, one_by_one
from wsflow.weightspace.statistics import fixed_tensors, plain_attention, with_differentiable_statistics

if TYPE_CHECKING:
    from wsflow.weightspace.space import WeightSpace


def forward(space: WeightSpace, theta: Tensor, inputs: Tensor, per_network: bool = False) -> Tensor:
    """Outputs of B networks.

    Args:
        space: Their weight space.
        theta: (B, D); with running statistics, (B, D + D_b), or those of the template.
        inputs: (N, ...) shared by all networks or, with ``per_network``, (B, N, ...).
        per_network: Whether each network has its own inputs.

    Returns:
        (B, N, C).

    Raises:
        ValueError: where the weights do not fit the space.
    """
    given, template = space.unflatten(theta), space.template
    if theta.shape[-1] > space.dim and torch.is_grad_enabled():
        template = with_differentiable_statistics(template)
    frozen = fixed_tensors(template, theta, given)

    def single(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        result: Tensor = functional_call(template, {**frozen, **weights}, (x,))
        return result

    with plain_attention(template), WeightsFirst(shared=not per_network):
        if one_by_one(template, inputs.shape[per_network], given):
            own = inputs.unbind() if per_network else [inputs] * len(theta)
            return torch.stack([single(weights, x) for weights, x in zip(each(given), own, strict=True)])
        return torch.vmap(single, (0, 0 if per_network else None))(given, inputs)
