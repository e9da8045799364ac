r"""Weight matching (Ainsworth et al. 2023, algorithm 1), batched over networks.

Sought are the permutations of all hidden groups that maximise the inner product of a network with its reference.  With
all groups but one held that is a linear assignment problem (:mod:`wsflow.alignment.gains`), so groups are visited in
random order until no visit gains anything: a local maximum.

*The first descent* starts from a forward pass: groups in forward order, each matched by the weights that join it to
groups matched before.  A permuted copy of the reference is recovered by that pass alone, whatever its depth; and the
result does not depend on the order that a network's neurons had.  Where it is below the network as given, another
descent starts from there, so that alignment takes no network away from its reference.

*Scales.*  Permutations are chosen by inner products of weights.  Where networks differ by rescalings that keep their
functions, bring them to canonical form first: otherwise neurons with large weights outvote the others.

A network's result does not depend on which others are aligned with it: the orders of the groups and the random starts
come from the seed alone.  Running statistics of batch norm are not compared.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wsflow.alignment.base import Aligner, check_networks, similarity
from wsflow.alignment.descent import Descent, Plan
from wsflow.weightspace import Objective, WeightSpace
from wsflow.weightspace.symmetry import random_permutations

ELEMENTS = 2**20
"""Weights that are aligned at once; with more, the processor's cache is too small."""

ROUNDING = 1e-12
"""A rise of the inner product below this share of the product of norms is none."""


class Matching(NamedTuple):
    """What weight matching found for B networks.

    Attributes:
        perms: (B, size) per hidden group.
        similarity: (B,), float64, inner products of the aligned networks with their references.
        descents: (B,), the number of the descent that found it: 1 for the first, larger for restarts, 0 where nothing
            was better than the order given.
    """

    perms: list[Tensor]
    similarity: Tensor
    descents: Tensor


class WeightMatching(Aligner):
    """Coordinate descent over hidden groups on the inner product with the reference.

    Args:
        iterations: Largest number of sweeps over the groups; most networks need fewer than ten.
        restarts: Further descents from random permutations; the best result of all is kept.
        seed: Of the order of groups and the random permutations.

    Raises:
        ValueError: for fewer than one sweep or a negative number of restarts.
    """

    def __init__(self, iterations: int = 50, restarts: int = 0, seed: int = 0) -> None:
        if iterations < 1 or restarts < 0:
            raise ValueError(f"iterations must be at least 1 and restarts at least 0, got {iterations} and {restarts}")
        self.iterations = iterations
        self.restarts = restarts
        self.seed = seed

    def align(
        self, space: WeightSpace, theta: Tensor, reference: Tensor, objective: Objective | None = None
    ) -> list[Tensor]:
        """Permutations (B, size) per hidden group; see :meth:`Aligner.align`.  The objective is passed over."""
        return self.match(space, theta, reference).perms

    @torch.no_grad()
    def match(self, space: WeightSpace, theta: Tensor, reference: Tensor) -> Matching:
        """Align, and say how near the networks came and by which descent.

        Args:
            space: The weight space.
            theta: (B, D), or extended by running statistics.
            reference: (D,) or (B, D), or extended.

        Raises:
            ValueError: as :meth:`Aligner.align` does.
        """
        check_networks(space, theta, reference)
        theta, reference = theta[:, : space.dim], reference[..., : space.dim].to(theta.device)
        plan, rows, parts = Plan(space), max(1, ELEMENTS // space.dim), []
        for i in range(0, max(1, len(theta)), rows):
            goal = reference if reference.ndim == 1 else reference[i : i + rows]
            parts.append(self._match(plan, theta[i : i + rows], goal))
        perms = [torch.cat(group) for group in zip(*(part.perms for part in parts), strict=True)]
        found = [torch.cat([getattr(part, name) for part in parts]) for name in ("similarity", "descents")]
        return Matching(perms, *found)

    def _match(self, plan: Plan, theta: Tensor, reference: Tensor) -> Matching:
        """All descents of one chunk of networks; one that has come to equal its reference needs no more."""
        generator = torch.Generator().manual_seed(self.seed)
        search = _Search(plan, theta, reference, self.iterations)
        for number in range(1, self.restarts + 2):
            seed = int(torch.randint(2**62, (), generator=generator))
            start = random_permutations(plan.space, 1, generator) if number > 1 else None
            search.descend(search.unfinished(), start, seed, number)
            if number == 1:
                identity = [torch.arange(group.size)[None] for group in plan.space.hidden]
                search.descend(search.fallen, identity, seed, number)
        return search.best


class _Search:
    """The best of several descents, network by network."""

    def __init__(self, plan: Plan, theta: Tensor, reference: Tensor, iterations: int) -> None:
        self.plan, self.theta, self.reference, self.iterations = plan, theta, reference, iterations
        given = similarity(plan.space, theta, reference)
        self.most = _norm(theta) * _norm(reference)
        self.margin = ROUNDING * self.most
        perms = [torch.arange(group.size, device=theta.device).repeat(len(theta), 1) for group in plan.space.hidden]
        self.best = Matching(perms, given, torch.zeros_like(given, dtype=torch.long))
        self.fallen = torch.empty(0, dtype=torch.long, device=theta.device)

    def unfinished(self) -> Tensor:
        """The networks that do not equal their reference."""
        return (self.best.similarity < self.most - self.margin).nonzero()[:, 0]

    def descend(self, rows: Tensor, start: list[Tensor] | None, seed: int, number: int) -> None:
        """Let the networks ``rows`` descend from permutations (1, size), or from a forward pass.

        What is better than the best so far is kept; ``fallen`` are then the networks that ended below it.
        """
        if len(rows) == 0:
            self.fallen = rows
            return
        goal = self.reference if self.reference.ndim == 1 else self.reference[rows]
        descent = Descent(self.plan, self.theta[rows], goal, self.margin[rows])
        descent.forward() if start is None else descent.start(start)
        descent.sweep(self.iterations, torch.Generator().manual_seed(seed))
        near = similarity(self.plan.space, descent.theta, goal)
        before, margin = self.best.similarity[rows], self.margin[rows]
        self.fallen, better = rows[near < before - margin], near > before + margin
        chosen = rows[better]
        self.best.similarity[chosen], self.best.descents[chosen] = near[better], number
        for mine, found in zip(self.best.perms, descent.perms, strict=True):
            mine[chosen] = found[better]


def _norm(theta: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(theta, dim=-1, dtype=torch.float64)
    return norm
