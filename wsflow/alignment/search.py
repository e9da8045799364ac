r"""One search of Sinkhorn re-basin: logits, their momenta, and the networks that are still moving.

With the gradient g of a matrix of logits X, its running mean m and the running mean s of its mean square, both without
bias, a step of length a is :math:`X \leftarrow \tau \log S_\tau(X) - a \, m / \sqrt s`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from wsflow.alignment.rebasin_objectives import RebasinObjective
from wsflow.alignment.relaxation import Leaves, join
from wsflow.alignment.soft import log_sinkhorn, soft_permute
from wsflow.weightspace import Objective, WeightSpace

MOMENTUM, AVERAGE = 0.9, 0.99
"""Weights of the past in the mean gradient and in its mean square."""

DEPTH = 10.0
"""How far the logarithm of an entry may fall below that of a uniform matrix; deeper entries would never come back."""

FINAL_SWEEPS = 4
"""Normalisations of rows and columns before matrices are rounded."""


@dataclass(frozen=True)
class Problem:
    """B networks, what they are aligned to, and what judges them.

    Attributes:
        space: The weight space.
        theta: (B, D).
        reference: (B, D).
        objective: Of softly permuted networks.
        loss: The objective's loss.
        seed: Of the objective's randomness.
    """

    space: WeightSpace
    theta: Tensor
    reference: Tensor
    objective: RebasinObjective
    loss: Objective | None
    seed: int

    def judge(self, rows: Tensor, perms: list[Tensor]) -> Tensor:
        """Values (b,) of permutations (b, size) of the networks ``rows`` (b,), by the same data at every call."""
        moved = self.space.permute(self.theta[rows], perms)
        generator = torch.Generator().manual_seed(self.seed)
        return self.objective.judge(self.reference[rows], moved, self.loss, generator)


class Search:
    """Soft permutations of the networks ``rows``, on their way down.

    Args:
        problem: The networks.
        logits: Where to start, without the batch axis, of the shapes of
            :func:`wsflow.alignment.relaxation.leaf_shapes`; the same for all networks.
        tau: Weight of the entropy.
        sweeps: Normalisations of rows and columns per step.

    Attributes:
        rows: (b,), the networks that still move.
    """

    def __init__(self, problem: Problem, logits: Leaves, tau: float, sweeps: int) -> None:
        self.problem, self.tau, self.sweeps = problem, tau, sweeps
        self.theta, self.reference = problem.theta, problem.reference
        self.rows = torch.arange(len(self.theta), device=self.theta.device)
        self.logits = {k: x.to(self.theta).expand(len(self.rows), *x.shape) for k, x in logits.items()}
        self.mean = {k: torch.zeros_like(x) for k, x in self.logits.items()}
        self.square = {k: x.new_zeros(len(x), *(1,) * (x.ndim - 1)) for k, x in self.logits.items()}
        self.generator = torch.Generator().manual_seed(problem.seed)
        self.steps = 0
        self.before = self.matrices()

    def step(self, length: float) -> None:
        """One step of the given length against the gradient."""
        balanced, grads = self._gradients()
        self.steps += 1
        weights = [1 - past**self.steps for past in (MOMENTUM, AVERAGE)]
        for key, grad in grads.items():
            axes = tuple(range(1, grad.ndim))
            mean = self.mean[key].mul_(MOMENTUM).add_(grad, alpha=1 - MOMENTUM)
            square = self.square[key].mul_(AVERAGE).add_(grad.square().mean(axes, keepdim=True), alpha=1 - AVERAGE)
            scale = (square / weights[1]).sqrt().clamp_min(torch.finfo(grad.dtype).tiny)
            floor = -log(grad.shape[-1]) - DEPTH
            move = mean / (scale * weights[0])
            self.logits[key] = self.tau * balanced[key].clamp_min(floor) - length * move

    def matrices(self) -> Leaves:
        """The matrices as they are, well balanced."""
        return {key: log_sinkhorn(x / self.tau, FINAL_SWEEPS).exp() for key, x in self.logits.items()}

    def moved(self, matrices: Leaves) -> Tensor:
        """Largest change of an entry of each network's matrices since the last call, (b,)."""
        change = [(matrices[key] - old).abs().flatten(1).amax(1) for key, old in self.before.items()]
        self.before = matrices
        return torch.stack(change).amax(0)

    def drop(self, done: Tensor) -> None:
        """Leave out the networks for which ``done`` (b,) is set."""
        left = (~done).nonzero()[:, 0]
        self.rows, self.theta, self.reference = self.rows[left], self.theta[left], self.reference[left]
        for leaves in (self.logits, self.mean, self.square, self.before):
            leaves.update({key: x[left] for key, x in leaves.items()})

    def _gradients(self) -> tuple[Leaves, Leaves]:
        """The logarithms of the balanced matrices, and the gradient of the objective by the logits."""
        with torch.enable_grad():
            leaves = {key: x.detach().requires_grad_() for key, x in self.logits.items()}
            balanced = {key: log_sinkhorn(x / self.tau, self.sweeps) for key, x in leaves.items()}
            matrices = join(self.problem.space, {key: x.exp() for key, x in balanced.items()})
            moved = soft_permute(self.problem.space, self.theta, matrices)
            value = self.problem.objective(self.reference, moved, self.problem.loss, self.generator)
            grads = torch.autograd.grad(value.sum(), list(leaves.values()))
        return (
            {key: x.detach() for key, x in balanced.items()},
            {key: grad.nan_to_num(0.0, 0.0, 0.0) for key, grad in zip(leaves, grads, strict=True)},
        )
