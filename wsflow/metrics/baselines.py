r"""What generated networks have to beat.

Each baseline makes networks from training networks with no flow.  Good networks that lie close to training networks
are easy to make, so a baseline is compared at equal novelty: one that is less new than the samples (by
``nn_ratio.function``) gets noise, :math:`x + s\,\sigma_\tau \epsilon` in canonical coordinates with
:math:`\sigma_\tau` the zoo's standard deviation in tensor :math:`\tau`, and s is raised until the ratios agree within
2 %.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from wsflow.metrics.weight_space import CanonicalWeights

LIMIT = 64.0
"""The largest noise tried, in standard deviations of the zoo."""


@dataclass(frozen=True)
class Material:
    """What baselines are made of.

    Args:
        form: The canonical form.
        theta: (m, D), training networks.
        x: (m, dim), their canonical coordinates, all matched to one reference.
        starts: (m, D), the start of each, or None.
        fresh: (r, D), starts of no training run, or None.
    """

    form: CanonicalWeights
    theta: Tensor
    x: Tensor
    starts: Tensor | None = None
    fresh: Tensor | None = None

    def tensor_std(self) -> Tensor:
        """The zoo's standard deviation, one value for each tensor, repeated over its coordinates, (dim,)."""
        parts = self.form.tensors(self.x).values()
        return torch.cat([part.var(dim=0).mean().sqrt().expand(part.shape[1]) for part in parts])


class Baseline(ABC):
    """Makes networks without a flow.

    Attributes:
        name: The name in reports.
        compared: Whether it is brought to the samples' novelty and compared; otherwise it is only printed.
    """

    name: ClassVar[str]
    compared: ClassVar[bool] = True

    @abstractmethod
    def generate(self, material: Material, n: int, generator: torch.Generator) -> Tensor:
        """At most n networks, (n, D).

        Raises:
            ValueError: where the material lacks what the baseline needs.
        """


class GaussianBaseline(Baseline):
    """Independent coordinates, with the mean and standard deviation of the aligned canonical zoo."""

    name = "gaussian"

    def generate(self, material: Material, n: int, generator: torch.Generator) -> Tensor:
        """(n, D) draws."""
        x = material.x
        return material.form.invert(x.mean(dim=0) + x.std(dim=0) * _normal(n, x, generator))


class NoiseBaseline(Baseline):
    """Training networks plus noise, as much as equal novelty takes."""

    name = "noise"

    def generate(self, material: Material, n: int, generator: torch.Generator) -> Tensor:
        """(n, D) training networks; the noise comes when novelty is matched."""
        return material.theta[_draw(n, material.theta, generator)]


class AverageBaseline(Baseline):
    """Averages of two training networks, the second matched to the first."""

    name = "average"

    def generate(self, material: Material, n: int, generator: torch.Generator) -> Tensor:
        """(n, D) averages of pairs of different networks.

        Raises:
            ValueError: for fewer than two training networks.
        """
        m = len(material.x)
        if m < 2:
            raise ValueError("the average baseline needs at least 2 training networks")
        first = _draw(n, material.x, generator)
        second = (first + 1 + torch.randint(m - 1, (n,), generator=generator).to(first)) % m
        a, b = material.x[first], material.x[second]
        return material.form.invert((a + material.form.match(b, a)) / 2)


class DisplacementBaseline(Baseline):
    """A fresh start plus the displacement of the training run whose start is nearest once its neurons are matched.

    Args:
        candidates: The nearest is sought among so many starts, those nearest when all are matched to one reference.
    """

    name = "displacement"

    def __init__(self, candidates: int = 10) -> None:
        self.candidates = candidates

    def generate(self, material: Material, n: int, generator: torch.Generator) -> Tensor:
        """(n, D), or as many as there are fresh starts.

        Raises:
            ValueError: without the training runs' starts or fresh starts.
        """
        if material.starts is None or material.fresh is None:
            raise ValueError("the displacement baseline needs the zoo's starts and fresh starts")
        space, align, starts = material.form.space, material.form.aligner.align, material.starts
        fresh = material.fresh[torch.randperm(len(material.fresh), generator=generator)[:n].to(starts.device)]
        near, far = (space.permute(x, align(space, x, starts[0])) for x in (fresh, starts))
        runs = torch.cdist(near, far).topk(min(self.candidates, len(starts)), largest=False).indices
        target = fresh.repeat_interleave(runs.shape[1], 0)
        perms = align(space, starts[runs.flatten()], target)
        best = (space.permute(starts[runs.flatten()], perms) - target).norm(dim=1).view(runs.shape).argmin(1)
        displacement = space.permute((material.theta - starts)[runs.flatten()], perms).view(*runs.shape, -1)
        return fresh + displacement[torch.arange(len(fresh), device=fresh.device), best]


class EqualCostBaseline(Baseline):
    """Training from fresh starts, stopped when it has cost as much as sampling.

    Args:
        train: Takes starts (n, D) and the seconds that may be spent on each, gives trained networks (n, D).
        seconds: Seconds that one generated network costs.
    """

    name = "equal_cost"

    def __init__(self, train: Callable[[Tensor, float], Tensor], seconds: float) -> None:
        self.train = train
        self.seconds = seconds

    def generate(self, material: Material, n: int, generator: torch.Generator) -> Tensor:
        """(n, D), or as many as there are fresh starts.

        Raises:
            ValueError: without fresh starts.
        """
        if material.fresh is None:
            raise ValueError("the equal-cost baseline needs fresh starts")
        order = torch.randperm(len(material.fresh), generator=generator)[:n].to(material.fresh.device)
        return self.train(material.fresh[order], self.seconds)


class RetrievalBaseline(Baseline):
    """Training networks themselves; what copying would score."""

    name = "retrieval"
    compared = False

    def generate(self, material: Material, n: int, generator: torch.Generator) -> Tensor:
        """(n, D) different training networks, or all of them."""
        order = torch.randperm(len(material.theta), generator=generator)[:n]
        return material.theta[order.to(material.theta.device)]


def default_baselines(material: Material) -> list[Baseline]:
    """The baselines that the material is enough for and that need no training."""
    baselines: list[Baseline] = [GaussianBaseline(), NoiseBaseline(), AverageBaseline()]
    if material.starts is not None and material.fresh is not None:
        baselines.append(DisplacementBaseline())
    return [*baselines, RetrievalBaseline()]


def match_novelty(
    theta: Tensor,
    material: Material,
    novelty: Callable[[Tensor], float],
    generator: torch.Generator,
    tolerance: float = 0.02,
) -> tuple[Tensor, float]:
    """Add noise to networks until they are as new as asked.

    Args:
        theta: (n, D).
        material: Gives the noise its size in each tensor.
        novelty: Of networks (n, D), relative to what is asked for: a number that noise raises, to be brought to 1.
        generator: Of the noise; one draw serves every size, so that novelty is continuous in it.
        tolerance: How far from 1 novelty may end.

    Returns:
        The networks, and the noise in standard deviations of the zoo; 0 and the networks unchanged where they are new
        enough.  Noise of at most :data:`LIMIT` is tried; where that is not enough, it is what is returned.
    """
    if not novelty(theta) < 1 - tolerance:
        return theta, 0.0
    x = material.form(theta)
    noise = _normal(len(x), x, generator) * material.tensor_std()
    low, size, high = 0.0, LIMIT / 2**10, math.inf
    while True:
        noisy = material.form.invert(x + size * noise)
        value = novelty(noisy)
        if abs(value - 1) <= tolerance or size >= LIMIT or high - low < 1e-6:
            return noisy, size
        low, high = (size, high) if value < 1 else (low, size)
        size = min(2 * size, LIMIT) if math.isinf(high) else (low + high) / 2


def _normal(n: int, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(n, like.shape[1], generator=generator).to(like)


def _draw(n: int, pool: Tensor, generator: torch.Generator) -> Tensor:
    """Places of n members of a pool, different ones as long as they last."""
    rounds = -(-n // len(pool))
    return torch.cat([torch.randperm(len(pool), generator=generator) for _ in range(rounds)])[:n].to(pool.device)
