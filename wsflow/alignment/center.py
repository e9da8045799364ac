r"""Alignment without a chosen reference: a zoo's own centre.

The centre of aligned networks is their mean, :math:`c = \frac{1}{B} \sum_b \pi_b \theta_b`.  All are aligned to the
centre as it is, the centre is taken anew, and so on until no permutation changes.  Both steps lower
:math:`\sum_b \|\pi_b \theta_b - c\|^2` where the aligner brings no network away from its reference, as weight matching
does; then it ends.  Other aligners may need the limit on rounds.

The end depends on the start: a member of the zoo, by default the one among a few that is nearest to all others once
these are aligned to it (a medoid).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wsflow.alignment.base import Aligner, similarity
from wsflow.alignment.weight_matching import WeightMatching
from wsflow.weightspace import Objective, WeightSpace
from wsflow.weightspace.symmetry import compose


class Centered(NamedTuple):
    """A zoo aligned to its own centre.

    Attributes:
        perms: (B, size) per hidden group.
        center: (D,), the mean of the aligned networks.
        spread: (rounds + 1,), float64, the mean squared distance of the networks from their centre: at the start, where
            the centre is a member, and after each round.
    """

    perms: list[Tensor]
    center: Tensor
    spread: Tensor


class ZooCenter(Aligner):
    """Aligns as another aligner does; the reference it finds is the centre of the networks.

    Args:
        aligner: Aligns to the centre; weight matching by default.
        rounds: Largest number of centres.
        candidates: How many members, evenly spaced, are tried as the start; all networks are aligned to each.

    Raises:
        ValueError: for fewer than one round or candidate.
    """

    def __init__(self, aligner: Aligner | None = None, rounds: int = 30, candidates: int = 8) -> None:
        if rounds < 1 or candidates < 1:
            raise ValueError(f"rounds and candidates must be at least 1, got {rounds} and {candidates}")
        self.aligner = WeightMatching() if aligner is None else aligner
        self.rounds = rounds
        self.candidates = candidates

    def align(
        self, space: WeightSpace, theta: Tensor, reference: Tensor, objective: Objective | None = None
    ) -> list[Tensor]:
        """Permutations (B, size) per hidden group that bring each network near a given reference."""
        return self.aligner.align(space, theta, reference, objective)

    def reference(self, space: WeightSpace, theta: Tensor, objective: Objective | None = None) -> Tensor:
        """The centre (D,) of networks (B, D)."""
        return self.align_to_center(space, theta, objective=objective).center

    @torch.no_grad()
    def align_to_center(
        self, space: WeightSpace, theta: Tensor, start: Tensor | None = None, objective: Objective | None = None
    ) -> Centered:
        """Align networks to their own centre.

        Args:
            space: The weight space.
            theta: (B, D), or extended by running statistics, which do not count.
            start: (D,), the first centre; by default the best candidate among the networks.
            objective: As for :meth:`Aligner.align`.

        Raises:
            ValueError: for no networks, and as :meth:`Aligner.align` does.
        """
        if theta.ndim != 2 or len(theta) == 0:
            raise ValueError(f"a centre needs networks (B, {space.dim}), got {tuple(theta.shape)}")
        moved, spread = theta[:, : space.dim], []
        center = self._medoid(space, moved, objective) if start is None else start[: space.dim].to(moved)
        perms = [torch.arange(group.size, device=theta.device).repeat(len(theta), 1) for group in space.hidden]
        for _ in range(self.rounds):
            step = self.aligner.align(space, moved, center, objective)
            moved, perms = space.permute(moved, step), compose(perms, step)
            spread.append(_spread(space, moved, center))
            center = moved.mean(0)
            if len(spread) > 1 and _identical(step):
                break
        return Centered(perms, center, torch.stack([*spread, _spread(space, moved, center)]))

    def _medoid(self, space: WeightSpace, theta: Tensor, objective: Objective | None) -> Tensor:
        """The candidate with the least mean squared distance to all networks, these aligned to it."""
        places = torch.linspace(0, len(theta) - 1, min(self.candidates, len(theta))).round().long().tolist()
        if len(places) == 1:
            return theta[0]
        steps = [self.aligner.align(space, theta, theta[i], objective) for i in places]
        away = [_spread(space, space.permute(theta, step), theta[i]) for i, step in zip(places, steps, strict=True)]
        return theta[places[int(torch.stack(away).argmin())]]


def _spread(space: WeightSpace, theta: Tensor, center: Tensor) -> Tensor:
    """Mean squared distance, a number in float64."""
    inner, norm = similarity(space, theta, center), similarity(space, center, center)
    return (similarity(space, theta, theta) - 2 * inner + norm).mean()


def _identical(perms: list[Tensor]) -> bool:
    return all(bool((p == torch.arange(p.shape[1], device=p.device)).all()) for p in perms)
