"""Ensembles as modules, for libraries that know nothing of weight spaces."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsflow.weightspace import WeightSpace


def as_modules(theta: Tensor, space: WeightSpace) -> list[nn.Module]:
    """Networks as a list of modules in eval mode, each with a copy of its weights.

    Libraries that judge or combine ensembles take such lists.

    Args:
        theta: (n, D), or extended by running statistics.
        space: Their weight space.

    Raises:
        ValueError: for weights of another shape.
    """
    space.check(theta)
    if theta.ndim != 2:
        raise ValueError(f"networks have the shape (n, {space.dim}), got {tuple(theta.shape)}")
    return [space.to_module(row) for row in theta]


class EnsembleModule(nn.Module):
    """One module that predicts with the average of several networks.

    It holds plain modules and no weight space, so that it can be saved, exported (``torch.export``, ONNX) and used
    without wsflow.  Running statistics of batch norm are those that the vectors hold: extend them first
    (:meth:`wsflow.tasks.BaseTask.with_statistics`).

    Args:
        theta: (n, D), or extended.
        space: Their weight space.
        log_weights: (n,), log importance weights; equal weights by default.
        probabilities: Whether outputs are logits whose softmax is averaged; otherwise values are, as of regressions.

    Raises:
        ValueError: for weights of another shape, or none.
    """

    weights: Tensor

    def __init__(
        self, theta: Tensor, space: WeightSpace, log_weights: Tensor | None = None, probabilities: bool = True
    ) -> None:
        super().__init__()
        if not len(theta):
            raise ValueError("an ensemble needs at least one network")
        self.members = nn.ModuleList(as_modules(theta, space)).requires_grad_(False).eval()
        self.probabilities = probabilities
        given = torch.zeros(len(theta)) if log_weights is None else log_weights
        if given.shape != (len(theta),):
            raise ValueError(f"{len(theta)} networks need {len(theta)} log weights, got shape {tuple(given.shape)}")
        self.register_buffer("weights", given.double().softmax(0).to(theta))  # float32 has no room for large ones

    def forward(self, inputs: Tensor) -> Tensor:
        """Averaged class probabilities, or values, (N, C), of inputs (N, ...)."""
        outputs = self.logits(inputs)
        answers = outputs.softmax(-1) if self.probabilities else outputs
        average: Tensor = torch.tensordot(self.weights, answers, 1)
        return average

    def logits(self, inputs: Tensor) -> Tensor:
        """What each member puts out, (n, N, C)."""
        outputs: Tensor = torch.stack([member(inputs) for member in self.members])
        return outputs


class MemberLogits(nn.Module):
    """The logits of all members of an ensemble, one after another along the batch axis.

    Args:
        ensemble: The ensemble.
    """

    def __init__(self, ensemble: EnsembleModule) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, inputs: Tensor) -> Tensor:
        """(n * N, C) of inputs (N, ...), those of the first member first."""
        return self.ensemble.logits(inputs).flatten(0, 1)
