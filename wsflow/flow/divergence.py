r"""Divergences of velocities, exact and estimated.

With :math:`J` the Jacobian of :math:`v \circ \pi` at x, the velocity after the projection to the geometry, the
divergence is its trace, on spheres too: the projection is constant along normals, so that J maps them to zero, and what
is left of the trace is :math:`\sum_k \langle e_k, \nabla_{e_k} v \rangle` over tangent unit vectors (the metric is that
of the space around).

*Exact*: :math:`\sum_k \langle e_k, J e_k \rangle` over all dim coordinates.

*Hutchinson* (1990): for independent :math:`\epsilon_k` with :math:`E \epsilon \epsilon^\top = I`,

.. math:: \mathrm{tr} J = E \langle P \epsilon, J P \epsilon \rangle
          \approx \frac 1 K \sum_{k=1}^K \langle P \epsilon_k, J P \epsilon_k \rangle ,

P the projection to the tangent space.  Probes are drawn once for each sample and kept along its trajectory (Grathwohl
et al. 2019), so that solvers keep their orders and the integrals of the K terms are K independent, unbiased estimates:
their spread gives the standard error.  Gaussian probes have the variance :math:`2 |S|_F^2 / K`, S the symmetric part of
J; Rademacher probes, of signs, have less by what the diagonal of S contributes.

All products :math:`J^\top c` of one point share one forward pass (``torch.func.vjp``), and many are computed at once
(``vmap``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from wsflow.flow.solver import VelocityFn
from wsflow.geometry import Geometry

PAIRS = 128
"""Products of one network with one vector that are computed at once."""

Directions = Callable[[], Iterator[Tensor]]
"""Gives vectors (k, B, dim), some at a time."""


class Probes(ABC):
    """A law of vectors with independent coordinates of mean 0 and variance 1."""

    @abstractmethod
    def draw(self, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Random vectors of a size."""


class GaussianProbes(Probes):
    """Standard normal coordinates."""

    def draw(self, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """N(0, 1)."""
        return torch.randn(size, generator=generator)


class RademacherProbes(Probes):
    """Coordinates 1 or -1, equally likely."""

    def draw(self, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Signs."""
        return 2.0 * torch.randint(2, size, generator=generator) - 1.0


class Trace(ABC):
    """A way to find the trace of a Jacobian.

    Args:
        pairs: Products of one network with one vector that are computed at once.

    Raises:
        ValueError: for fewer than one.
    """

    def __init__(self, pairs: int) -> None:
        if pairs < 1:
            raise ValueError(f"pairs must be at least 1, got {pairs}")
        self.pairs = pairs

    @abstractmethod
    def directions(self, x: Tensor, generators: Sequence[torch.Generator]) -> Directions:
        """The vectors c of one solution, whose products <c, J c> are integrated.

        Args:
            x: (B, dim), states; only their shape and type matter.
            generators: One for each sample.
        """

    @abstractmethod
    def gathered(self, products: Tensor) -> Tensor:
        """What is integrated, (B, ...), from products (B, K) with all vectors."""

    @abstractmethod
    def summary(self, integrals: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates (B,) and their standard errors (B,) from what was integrated."""

    def _at_once(self, x: Tensor) -> int:
        return max(1, self.pairs // max(1, len(x)))


class ExactTrace(Trace):
    """All dim diagonal entries; costs dim products for each evaluation.

    Args:
        pairs: Products of one network with one vector that are computed at once.
    """

    def __init__(self, pairs: int = PAIRS) -> None:
        super().__init__(pairs)

    def directions(self, x: Tensor, generators: Sequence[torch.Generator]) -> Directions:
        """Unit vectors."""

        def unit_vectors() -> Iterator[Tensor]:
            for part in torch.split(torch.arange(x.shape[1], device=x.device), self._at_once(x)):
                yield torch.nn.functional.one_hot(part, x.shape[1]).to(x.dtype)[:, None].expand(-1, *x.shape)

        return unit_vectors

    def gathered(self, products: Tensor) -> Tensor:
        """The sum, (B, 1)."""
        return products.sum(1, keepdim=True)

    def summary(self, integrals: Tensor) -> tuple[Tensor, Tensor]:
        """No error but the solver's."""
        return integrals[:, 0], torch.zeros_like(integrals[:, 0])


class Hutchinson(Trace):
    """The mean over random vectors; costs one product for each and evaluation.

    Args:
        count: K, number of probes; at least 2, since their spread gives the standard error.
        probes: Their law; :class:`RademacherProbes` by default.
        pairs: Products of one network with one vector that are computed at once.

    Raises:
        ValueError: for fewer than two probes.
    """

    def __init__(self, count: int = 25, probes: Probes | None = None, pairs: int = PAIRS) -> None:
        super().__init__(pairs)
        if count < 2:
            raise ValueError(f"count must be at least 2, for a standard error, got {count}")
        self.count = count
        self.probes = probes if probes is not None else RademacherProbes()

    def directions(self, x: Tensor, generators: Sequence[torch.Generator]) -> Directions:
        """Probes, drawn now and kept."""
        size = (self.count, x.shape[1])
        drawn = torch.stack([self.probes.draw(size, generator) for generator in generators], dim=1).to(x)
        return lambda: iter(torch.split(drawn, self._at_once(x)))

    def gathered(self, products: Tensor) -> Tensor:
        """Each probe's own, (B, K)."""
        return products

    def summary(self, integrals: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard error of the mean."""
        return integrals.mean(1), integrals.std(1) / self.count**0.5


def diverging(
    velocity: VelocityFn, geometry: Geometry, trace: Trace, directions: Directions, most: int | None = None
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The velocity together with minus its divergence, the rate of the log-density along the flow.

    Args:
        velocity: Tangent vectors (B, dim) at states and times.
        geometry: The space the states live in.
        trace: How the divergence is found.
        directions: The trace's vectors for these samples.
        most: How many groups of vectors to take; all by default.
    """

    @torch.no_grad()  # torch.func differentiates all the same
    def rates(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        def projected(y: Tensor) -> Tensor:
            v = velocity(geometry.project(y), t)
            assert isinstance(v, Tensor)
            return v

        # Fused attention on the CPU has no derivative for many vectors at once.
        with sdpa_kernel(SDPBackend.MATH):
            v, pull = torch.func.vjp(projected, x)[:2]
            products = [_products(pull, geometry, x, part) for part in islice(directions(), most)]
        return v, -trace.gathered(torch.cat(products).T)

    return rates


def _products(pull: Callable[[Tensor], tuple[Tensor]], geometry: Geometry, x: Tensor, part: Tensor) -> Tensor:
    """<c, J c> of tangent vectors (k, B, dim), (k, B)."""
    part = geometry.tangent(x.expand_as(part), part)
    pulled: Tensor = torch.vmap(pull)(part)[0]
    return (pulled * part).sum(-1)
