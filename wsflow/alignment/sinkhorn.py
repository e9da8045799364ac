r"""Sinkhorn re-basin (Peña et al. 2023; thesis section 4.3), batched over networks.

The permutation of every hidden group is relaxed to a doubly stochastic matrix :math:`S_\tau(X)`
(:mod:`wsflow.alignment.soft`), and an objective of the softly permuted network is followed downhill in X, for all
networks at once.  Matrices are then rounded to permutations by assignments.

*Where it starts.*  At X = 0, the middle of all permutations, where the order of the neurons does not matter.  An
identity start sits beside one vertex and needs many more steps to leave it.

*Steps* are momentum steps whose length is fixed by the gradient's root mean square over each matrix (Adam has one scale
per entry instead, and is several times slower here), and shrink to zero linearly.  Adding numbers to whole rows or
columns of X changes nothing, so X is replaced by :math:`\tau \log S_\tau(X)` after every step: the next Sinkhorn
iteration then starts almost balanced and two sweeps are enough.

*Rounding.*  Every few steps the matrices are rounded and the permutations judged by the objective; the best so far is
kept, and the first are those of the start, so that an aligned network is never judged worse than these.  A network
whose matrices stand still is done.

A network's result does not depend on which others are aligned with it: lambda, mini-batches and random logits come from
the seed alone.  Running statistics of batch norm are not used: a task's loss recomputes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from wsflow.alignment.base import Aligner, check_networks
from wsflow.alignment.rebasin_objectives import L2Objective, RebasinObjective
from wsflow.alignment.relaxation import best_permutations, join, leaf_shapes
from wsflow.alignment.search import Problem, Search
from wsflow.alignment.weight_matching import WeightMatching
from wsflow.weightspace import Objective, WeightSpace

ELEMENTS = 2**19
"""Weights and matrix entries that are aligned at once; with more, the processor's cache is too small."""

NETWORKS = 128
"""Networks whose loss on data is differentiated at once."""

EVERY = 10
"""Steps between roundings."""

STILL = 0.02
"""Matrices whose entries have all moved less between two roundings stand still."""


@dataclass
class Rebasin:
    """What Sinkhorn re-basin found for B networks.

    Attributes:
        perms: (B, size) per hidden group.
        value: (B,), what the objective judges the aligned networks by.
        searches: (B,), the number of the search that found it: 1 for the first, larger for restarts, 0 where nothing
            was better than the start.
    """

    perms: list[Tensor]
    value: Tensor
    searches: Tensor

    def improve(self, rows: Tensor, perms: list[Tensor], value: Tensor, number: int) -> None:
        """Take over permutations of the networks ``rows`` (b,) where they are judged better."""
        better = value < self.value[rows]
        chosen = rows[better]
        self.value[chosen], self.searches[chosen] = value[better], number
        for mine, theirs in zip(self.perms, perms, strict=True):
            mine[chosen] = theirs[better]


class AsGiven(Aligner):
    """Leaves networks in the order they have."""

    def align(
        self, space: WeightSpace, theta: Tensor, reference: Tensor, objective: Objective | None = None
    ) -> list[Tensor]:
        """Identities (B, size) per hidden group."""
        return [torch.arange(group.size, device=theta.device).repeat(len(theta), 1) for group in space.hidden]


class SinkhornRebasin(Aligner):
    """Gradient descent on soft permutations.

    Args:
        objective: What it minimises; :class:`L2Objective` by default.  Those that look at a loss take it from the
            ``objective`` of :meth:`align`, which must be of train data.
        start: Finds the permutations that a search must beat.  By default :class:`WeightMatching` where the objective
            looks at a loss, so that no network is judged worse than weight matching leaves it, and :class:`AsGiven`
            otherwise.
        iterations: Steps of a search.
        learning_rate: Length of the first step: its root mean square over a matrix of logits.
        tau: Weight of the entropy; what a step does depends on its length over tau.
        sweeps: Normalisations of rows and columns per step.
        restarts: Further searches from random logits; the best result of all is kept.
        seed: Of lambda, mini-batches and random logits.

    Raises:
        ValueError: where a number is out of range.
    """

    def __init__(
        self,
        objective: RebasinObjective | None = None,
        start: Aligner | None = None,
        iterations: int = 50,
        learning_rate: float = 1.0,
        tau: float = 1.0,
        sweeps: int = 2,
        restarts: int = 0,
        seed: int = 0,
    ) -> None:
        for name, number, least in (("iterations", iterations, 1), ("sweeps", sweeps, 1), ("restarts", restarts, 0)):
            if number < least:
                raise ValueError(f"{name} must be at least {least}, got {number}")
        for name, value in (("learning_rate", learning_rate), ("tau", tau)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self.objective = objective if objective is not None else L2Objective()
        self.start = start if start is not None else WeightMatching() if self.objective.needs_loss else AsGiven()
        self.iterations, self.learning_rate, self.tau, self.sweeps = iterations, learning_rate, tau, sweeps
        self.restarts, self.seed = restarts, seed

    def align(
        self, space: WeightSpace, theta: Tensor, reference: Tensor, objective: Objective | None = None
    ) -> list[Tensor]:
        """Permutations (B, size) per hidden group; see :meth:`Aligner.align`."""
        return self.match(space, theta, reference, objective).perms

    @torch.no_grad()
    def match(
        self, space: WeightSpace, theta: Tensor, reference: Tensor, objective: Objective | None = None
    ) -> Rebasin:
        """Align, and say how the results are judged and which search found them.

        Args:
            space: The weight space.
            theta: (B, D), or extended by running statistics.
            reference: (D,) or (B, D), or extended.
            objective: A task's loss on train data, for objectives that look at one.

        Raises:
            ValueError: as :meth:`Aligner.align` does, and where a loss is needed and missing, or judges each network
                by data of its own, so that results would depend on the networks beside it.
        """
        if self.objective.needs_loss and objective is None:
            raise ValueError(f"{type(self.objective).__name__} needs a loss: give align() an objective on train data")
        if self.objective.needs_loss and not getattr(objective, "shared", True):
            raise ValueError(
                "the objective draws data points for each network by itself, and values by other data cannot be "
                "compared: give task.objective(..., shared=True)"
            )
        check_networks(space, theta, reference)
        theta, reference = theta.detach()[:, : space.dim], reference.detach()[..., : space.dim].to(theta)
        reference, rows, parts = reference.expand_as(theta), self._rows(space), []
        for i in range(0, max(1, len(theta)), rows):
            problem = Problem(space, theta[i : i + rows], reference[i : i + rows], self.objective, objective, self.seed)
            parts.append(self._match(problem))
        perms = [torch.cat(group) for group in zip(*(part.perms for part in parts), strict=True)]
        found = [torch.cat([getattr(part, name) for part in parts]) for name in ("value", "searches")]
        return Rebasin(perms, *found)

    def _rows(self, space: WeightSpace) -> int:
        """Networks that are aligned at once."""
        size = space.dim + sum(prod(shape) for shape in leaf_shapes(space).values())
        return max(1, min(ELEMENTS // size, NETWORKS if self.objective.needs_loss else ELEMENTS))

    def _match(self, problem: Problem) -> Rebasin:
        """All searches of one chunk of networks."""
        best = self._start(problem)
        shapes = leaf_shapes(problem.space)
        if len(problem.theta) == 0 or not shapes:
            return best
        generator = torch.Generator().manual_seed(self.seed)
        for number in range(1, self.restarts + 2):
            logits = {
                role: torch.randn(shape, generator=generator) if number > 1 else torch.zeros(shape)
                for role, shape in shapes.items()
            }
            self._search(problem, Search(problem, logits, self.tau, self.sweeps), best, number)
        return best

    def _start(self, problem: Problem) -> Rebasin:
        perms = self.start.align(problem.space, problem.theta, problem.reference, problem.loss)
        rows = torch.arange(len(problem.theta), device=problem.theta.device)
        value = problem.judge(rows, perms).nan_to_num(nan=torch.inf)
        return Rebasin(perms, value, torch.zeros_like(rows))

    def _search(self, problem: Problem, search: Search, best: Rebasin, number: int) -> None:
        """Improve ``best`` by one search; networks that stand still are left alone."""
        for i in range(self.iterations):
            search.step(self.learning_rate * (1 - i / self.iterations))
            if (i + 1) % EVERY != 0 and i + 1 < self.iterations:
                continue
            matrices = search.matrices()
            perms = best_permutations(problem.space, join(problem.space, matrices))
            best.improve(search.rows, perms, problem.judge(search.rows, perms), number)
            search.drop(search.moved(matrices) < STILL)
            if len(search.rows) == 0:
                return
