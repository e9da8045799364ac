"""What generated networks have to beat.

Each baseline makes networks from training networks with no flow.  Whether they are as new as the samples is the
business of :mod:`wsflow.metrics.matching`; what a geometry makes of them, of :mod:`wsflow.metrics.evaluation`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from wsflow.geometry import Geometry
from wsflow.metrics.weight_space import CanonicalWeights


@dataclass(frozen=True)
class Material:
    """What baselines are made of.

    Args:
        form: The canonical form.
        theta: (m, D), training networks as they were trained, in no geometry's form: ``theta - starts`` is what
            training did.
        x: (m, dim), canonical coordinates of what the geometry makes of them, all matched to one reference.
        starts: (m, D), the start of each, its neurons in the order of the network's, or None.
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


class LatentGaussianBaseline(Baseline):
    """The Gaussian null of a latent space: independent coordinates with the zoo's mean and deviation, decoded.

    It stands beside every flow in a latent space as it is, without noise that would bring it to the samples' novelty.

    Args:
        geometry: The latent space.
    """

    name = "latent_gaussian"
    compared = False

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry

    def generate(self, material: Material, n: int, generator: torch.Generator) -> Tensor:
        """(n, D) decoded draws."""
        z = self.geometry.encode(material.theta)
        return self.geometry.decode(z.mean(dim=0) + z.std(dim=0) * _normal(n, z, generator))


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

    def __init__(self, candidates: int = 100) -> None:
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


def _normal(n: int, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(n, like.shape[1], generator=generator).to(like)


def _draw(n: int, pool: Tensor, generator: torch.Generator) -> Tensor:
    """Places of n members of a pool, different ones as long as they last."""
    rounds = -(-n // len(pool))
    return torch.cat([torch.randperm(len(pool), generator=generator) for _ in range(rounds)])[:n].to(pool.device)
