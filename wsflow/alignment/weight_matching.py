r"""Weight matching (Ainsworth et al. 2023, algorithm 1), batched over networks.

Sought is the permutation of every hidden group that maximises the inner product of a network with its reference.  With
all groups but one held, a neuron's *profile* is the vector of its incoming weights, its outgoing weights and its
biases; :math:`C_{ij}` is the inner product of the reference's profile of neuron i with the network's profile of
neuron j, and the best permutation of the group solves the linear assignment problem :math:`\max_p \sum_i C_{i p(i)}`.
Groups are visited in random order, sweep after sweep, until a sweep changes nothing: a local maximum.

A change must raise the inner product by more than rounding, so that ties cannot cycle.  A network's result does not
depend on which others are aligned with it: the orders of the groups and the random starts come from the seed alone.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from wsflow.alignment.base import Aligner, similarity
from wsflow.weightspace import NeuronGroup, Objective, WeightSpace
from wsflow.weightspace.symmetry import random_permutations

ELEMENTS = 2**24
"""Weights that are aligned at once."""


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
        _check(space, theta, reference)
        rows = max(1, ELEMENTS // space.dim)
        parts = [
            self._align(space, theta[i : i + rows], reference if reference.ndim == 1 else reference[i : i + rows])
            for i in range(0, theta.shape[0], rows)
        ]
        if not parts:
            return [torch.empty(0, group.size, dtype=torch.long, device=theta.device) for group in space.hidden]
        return [torch.cat(perms) for perms in zip(*parts, strict=True)]

    def _align(self, space: WeightSpace, theta: Tensor, reference: Tensor) -> list[Tensor]:
        theta, reference = theta.detach().double(), reference.detach().to(theta.device).double()
        generator = torch.Generator().manual_seed(self.seed)
        identity = [torch.arange(group.size)[None] for group in space.hidden]
        best = self._descend(space, theta, reference, identity, generator)
        for _ in range(self.restarts):
            start = random_permutations(space, 1, generator)
            other = self._descend(space, theta, reference, start, generator)
            gain = _score(space, theta, other, reference) - _score(space, theta, best, reference)
            better = (gain > 0)[:, None]
            best = [torch.where(better, new, old) for new, old in zip(other, best, strict=True)]
        return best

    def _descend(
        self, space: WeightSpace, theta: Tensor, reference: Tensor, start: list[Tensor], generator: torch.Generator
    ) -> list[Tensor]:
        """Sweeps from the permutations ``start`` (1, size); networks that no longer change are left alone."""
        seeds = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
        profiles = [_profile(space, group).to(theta.device) for group in space.hidden]
        perms = [p.to(theta.device).repeat(theta.shape[0], 1) for p in start]
        moved = space.permute(theta, perms)
        active = torch.arange(theta.shape[0], device=theta.device)
        for _ in range(self.iterations):
            changed = torch.zeros(len(active), dtype=torch.bool, device=theta.device)
            current = moved[active]
            targets = reference if reference.ndim == 1 else reference[active]
            for g in torch.randperm(len(profiles), generator=seeds).tolist():
                profile = current[:, profiles[g]]
                step, better = _assign(profile, targets[..., profiles[g]])
                current[:, profiles[g]] = profile.gather(1, step[..., None].expand_as(profile))
                perms[g][active] = perms[g][active].gather(1, step)
                changed |= better
            moved[active] = current
            active = active[changed]
            if len(active) == 0:
                break
        return perms


def _assign(profile: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """The best permutations (B, S) of the profiles (B, S, M), and whether they are better than none (B,)."""
    gain = (profile @ reference.mT).mT
    costs = gain.cpu().numpy()
    best = torch.from_numpy(np.stack([linear_sum_assignment(cost, maximize=True)[1] for cost in costs]))
    best = best.to(profile.device)
    now, then = gain.diagonal(dim1=1, dim2=2).sum(1), gain.gather(2, best[..., None]).sum((1, 2))
    better = then - now > 1e-12 * gain.abs().sum((1, 2))
    stay = torch.arange(best.shape[1], device=best.device)
    return torch.where(better[:, None], best, stay), better


def _profile(space: WeightSpace, group: NeuronGroup) -> Tensor:
    """All coordinates that move with each neuron of a group, (size, M)."""
    kinds = dict.fromkeys(vector.kind for vector in space.vectors if vector.group == group.name)
    vectors = [space.attached(group.name, kind) for kind in kinds]
    return torch.cat([space.incoming(group.name), space.outgoing(group.name), *vectors], dim=1)


def _score(space: WeightSpace, theta: Tensor, perms: list[Tensor], reference: Tensor) -> Tensor:
    return similarity(space, space.permute(theta, perms), reference)


def _check(space: WeightSpace, theta: Tensor, reference: Tensor) -> None:
    space.check(theta)
    space.check(reference)
    if theta.ndim != 2 or reference.shape not in ((space.dim,), theta.shape):
        raise ValueError(
            f"weight matching takes networks (B, {space.dim}) and a reference ({space.dim},) or one per network; "
            f"got {tuple(theta.shape)} and {tuple(reference.shape)}"
        )
    for group in space.hidden:
        if group.partition is not None:
            raise ValueError(f"weight matching does not support the structured permutations of group {group.name!r}")
    names = {group.name for group in space.hidden}
    for block in space.blocks:
        if block.source == block.target and block.source in names:
            raise ValueError(f"weight matching does not support {block.name!r}, which joins a group to itself")
    for what, value in (("network", theta), ("reference", reference.reshape(-1, space.dim))):
        wrong = ~value.isfinite().all(1)
        if bool(wrong.any()):
            first = int(wrong.nonzero()[0])
            raise ValueError(f"{what} {first} has weights that are not finite ({int(wrong.sum())} in all)")
