r"""Where flows start: laws p0 of states at t = 0.

Each prior is a law of weights, carried to the geometry by ``encode``, but for :class:`LatentNormal` and
:class:`ProjectedNormal`, which are laws of coordinates.  Drawing always happens on the CPU, so that a sample does not
depend on the device; :func:`sample_prior` gives every sample its own generator.

*Densities* on canonical forms.  Encoding divides a hidden neuron's weights by their norm r and multiplies the next
layer's by it.  Given all r, the directions of the next layer follow an angular Gaussian law and no uniform one, and the
biases, divided by r, have a spread of their own: the density of an encoded Gaussian prior is an integral over all r,
and known in closed form nowhere.  ProjectedNormal is the law whose coordinates separate.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor

from wsflow.geometry import Euclidean, Geometric, Geometry
from wsflow.geometry.canonical import CanonicalGeometry
from wsflow.weightspace import GaussianInitializer, Initializer, NetworkInitializer
from wsflow.weightspace.randomness import draw_rows, sample_generator, sample_generators
from wsflow.weightspace.transfer import send

WIDENING = 2
"""Tells the streams of a path's noise at t = 0 from those of the starts (0) and of probes (1)."""

TOLERANCE = 1.25
"""Ratio of sizes of starts that is taken for chance."""


class NoDensityError(ValueError):
    """A density that does not exist or is not known in closed form."""


class Prior(ABC):
    """A law of states at t = 0."""

    @abstractmethod
    def sample(self, n: int, geometry: Geometry, generator: torch.Generator) -> Tensor:
        """Draw states.

        Args:
            n: How many.
            geometry: The space the flow lives in.
            generator: Source of all randomness, on the CPU; in training a
                :class:`~wsflow.weightspace.randomness.RowGenerator`.

        Returns:
            (n, dim), on the geometry and on its device.
        """

    @abstractmethod
    def log_prob(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Log density (B,) of states (B, dim), in the geometry's volume.

        Raises:
            NoDensityError: where there is none in closed form; the message says why.
        """

    def sample_each(self, seed: int, indices: Iterable[int], geometry: Geometry) -> Tensor:
        """States (n, dim), each a function of (seed, its index) alone; see :func:`sample_prior`."""
        rows = [self.sample(1, geometry, generator) for generator in sample_generators(seed, indices)]
        return torch.cat(rows) if rows else torch.empty(0, geometry.dim)


class GaussianPrior(Prior):
    """Every weight and bias independent, N(0, std^2).

    Args:
        std: Standard deviation; the default is the variance 0.1 that the thesis initialises its networks with.

    Raises:
        ValueError: unless std is positive.
    """

    def __init__(self, std: float = 0.1**0.5) -> None:
        self.std = std
        self._initializer = GaussianInitializer(std)

    def sample(self, n: int, geometry: Geometry, generator: torch.Generator) -> Tensor:
        """(n, dim), encoded Gaussian weights."""
        return _draw(self._initializer, n, geometry, generator)

    def log_prob(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Gaussian log density on Euclidean; refused elsewhere."""
        if not isinstance(geometry, Euclidean):
            raise NoDensityError(
                f"the Gaussian prior has no closed density on {type(geometry).__name__}: its states are canonical "
                "forms of Gaussian weights, and the law of those is not Gaussian: the norm that is taken from one "
                "layer's weights goes into the next one's; use Euclidean, or Geometric with ProjectedNormal"
            )
        return _normal(x, self.std)


class LatentNormal(Prior):
    """Every coordinate independent, N(0, std^2), where the geometry's coordinates are flat and free.

    In a latent space in units of the zoo's standard deviations, std 1 is where trained networks are.

    Args:
        std: Standard deviation.

    Raises:
        ValueError: unless std is positive.
    """

    def __init__(self, std: float = 1.0) -> None:
        if not std > 0:
            raise ValueError(f"std must be positive, got {std}")
        self.std = std

    def sample(self, n: int, geometry: Geometry, generator: torch.Generator) -> Tensor:
        """(n, dim).

        Raises:
            ValueError: for a geometry whose coordinates cannot be drawn freely.
        """
        self._refuse(geometry)
        x = draw_rows(lambda count, source: torch.randn(count, geometry.dim, generator=source), n, generator)
        return _place(self.std * x, geometry)

    def log_prob(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Gaussian log density in the volume of the geometry's coordinates."""
        self._refuse(geometry)
        return _normal(x, self.std)

    @staticmethod
    def _refuse(geometry: Geometry) -> None:
        if not (geometry.lossy or isinstance(geometry, Euclidean)):
            raise ValueError(
                f"LatentNormal draws coordinates, but not every vector is a point of {type(geometry).__name__}: "
                "use GaussianPrior or NetworkPrior, which draw weights"
            )


class ProjectedNormal(Prior):
    """Canonical forms with a density: uniform on every sphere, normal on the lines.

    Each sphere's vector is drawn from an isotropic normal law and projected.  On a flat space all are lines.

    Args:
        std: Standard deviation on the lines, among them the log-scales of a classifier's last layer.
        scale: Median of these scales.

    Raises:
        ValueError: unless both are positive.
    """

    def __init__(self, std: float = 1.0, scale: float = 1.0) -> None:
        if not (std > 0 and scale > 0):
            raise ValueError(f"std and scale must be positive, got {std} and {scale}")
        self.std, self.scale = std, scale

    def sample(self, n: int, geometry: Geometry, generator: torch.Generator) -> Tensor:
        """(n, dim), projected."""
        x = draw_rows(lambda count, source: torch.randn(count, geometry.dim, generator=source), n, generator)
        return geometry.project(_place(self._mean(geometry) + self.std * x, geometry))

    def log_prob(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Log density in the volume of the product of spheres and lines.

        Raises:
            NoDensityError: for ``Normalized``, whose states on spheres have no density in the flat space around.
        """
        shapes: tuple[tuple[int, int], ...] = ()
        lines = x - self._mean(geometry).to(x)
        if isinstance(geometry, Geometric):
            shapes, lines = geometry.form.product.shapes, geometry.form.product.split(lines)[1]
        elif isinstance(geometry, CanonicalGeometry):
            raise NoDensityError(
                f"states on spheres have no density in the flat space of {type(geometry).__name__}: use Geometric"
            )
        areas = sum(count * log_area(size) for count, size in shapes)
        return _normal(lines, self.std) - areas

    def _mean(self, geometry: Geometry) -> Tensor:
        mean = torch.zeros(geometry.dim)
        if isinstance(geometry, CanonicalGeometry):
            mean[geometry.space.dim :] = math.log(self.scale)
        return mean


class NetworkPrior(Prior):
    """The base network's own initialiser (:class:`wsflow.weightspace.NetworkInitializer`)."""

    def sample(self, n: int, geometry: Geometry, generator: torch.Generator) -> Tensor:
        """(n, dim), encoded initial weights."""
        return _draw(NetworkInitializer(), n, geometry, generator)

    def log_prob(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Refused: the initialiser can be drawn from but not evaluated."""
        raise NoDensityError("the network's initialiser is only known as a program that draws; use GaussianPrior")


class StartsPrior(Prior):
    """Given initial weights, such as those of a zoo's runs.

    One call of :meth:`sample` draws without replacement, but with where every row has its own stream.  One seed of
    :func:`sample_prior` draws without: sample index i gets entry i of a shuffle that the seed chooses; past R samples
    every start comes again.  The flow is deterministic and maps the start of a training run to (about) its trained
    network: for new networks attach starts that no training run had.

    Args:
        starts: (R, D), initial weights; None until :meth:`attach`.
    """

    def __init__(self, starts: Tensor | None = None) -> None:
        self.starts = starts

    def attach(self, starts: Tensor | None) -> Self:
        """Use these initial weights (R, D).

        Raises:
            ValueError: unless they are a matrix with at least one row.
        """
        if starts is None:
            raise ValueError(
                "StartsPrior needs the initial weights of every run, and this zoo has none; collect a zoo that keeps "
                "them, or choose another prior"
            )
        if starts.ndim != 2 or not len(starts):
            raise ValueError(f"starts must be of shape (R, D) with R at least 1, got {tuple(starts.shape)}")
        self.starts = starts
        return self

    def sample(self, n: int, geometry: Geometry, generator: torch.Generator) -> Tensor:
        """(n, dim), encoded starts."""
        return self._take(draw_rows(self._choose, n, generator), geometry)

    def sample_each(self, seed: int, indices: Iterable[int], geometry: Geometry) -> Tensor:
        """(n, dim), encoded starts at the shuffled places of the indices."""
        order = torch.randperm(len(self._given()), generator=sample_generator(seed, 0))
        return self._take(order[torch.tensor(list(indices), dtype=torch.long) % len(order)], geometry)

    def log_prob(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Refused: finitely many points have no density."""
        raise NoDensityError("a finite set of starts has no density; use GaussianPrior with their std")

    def _choose(self, n: int, generator: torch.Generator | None) -> Tensor:
        count = len(self._given())
        rounds = [torch.randperm(count, generator=generator) for _ in range(-(-n // count))]
        return torch.cat([*rounds, torch.empty(0, dtype=torch.long)])[:n]

    def _given(self) -> Tensor:
        if self.starts is None:
            raise ValueError("StartsPrior has no starts: attach the initial weights (R, D) to draw from")
        return self.starts

    def _take(self, rows: Tensor, geometry: Geometry) -> Tensor:
        starts = self._given()
        return geometry.encode(_place(starts[send(rows, starts.device)], geometry))


class Widened(Prior):
    """Another prior's states with tangent noise: what a path starts from whose noise ends at t = 1.

    Args:
        prior: The law without noise.
        sigma: Standard deviation of the noise, per coordinate.
    """

    def __init__(self, prior: Prior, sigma: float) -> None:
        self.prior, self.sigma = prior, sigma

    def sample(self, n: int, geometry: Geometry, generator: torch.Generator) -> Tensor:
        """(n, dim), states of the prior and then the noise."""
        return self._moved(self.prior.sample(n, geometry, generator), geometry, generator)

    def sample_each(self, seed: int, indices: Iterable[int], geometry: Geometry) -> Tensor:
        """(n, dim), the prior's own states of these indices with noise from a stream of each."""
        numbers = list(indices)
        x = self.prior.sample_each(seed, numbers, geometry)
        rows = zip(torch.split(x, 1), sample_generators(seed, numbers, [WIDENING]), strict=True) if numbers else ()
        moved = [self._moved(row, geometry, generator) for row, generator in rows]
        return torch.cat(moved) if moved else x

    def log_prob(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Of a wider Gaussian where the prior is one on a flat space; refused elsewhere."""
        if not isinstance(self.prior, GaussianPrior | LatentNormal):
            raise NoDensityError(
                f"{type(self.prior).__name__} with the noise of its path, sigma = {self.sigma:g}, has no density in "
                "closed form: use sigma = 0 in training, or GaussianPrior on Euclidean"
            )
        return type(self.prior)(math.hypot(self.prior.std, self.sigma)).log_prob(x, geometry)

    def _moved(self, x: Tensor, geometry: Geometry, generator: torch.Generator) -> Tensor:
        z = draw_rows(lambda count, source: torch.randn(count, geometry.dim, generator=source), len(x), generator)
        return geometry.exp(x, geometry.tangent(x, self.sigma * send(z, x)))


def sample_prior(prior: Prior, geometry: Geometry, seed: int, indices: Iterable[int]) -> Tensor:
    """States (n, dim) of the samples with these indices, however the indices are split over calls and processes."""
    return prior.sample_each(seed, indices, geometry)


def size_mismatch(geometry: Geometry, x0: Tensor, drawn: Tensor) -> tuple[str, float] | None:
    """The first tensor whose size in ``x0`` (n, dim) is another than in as many draws of a prior, and the ratio.

    The coordinates of a latent space count as one tensor.
    """
    tensors = {tensor.name: tensor.slice for tensor in geometry.space.tensors}
    for name, part in ({"latent vector": slice(None)} if geometry.lossy else tensors).items():
        size, other = (x[:, part].square().mean().sqrt().clamp_min(1e-12) for x in (x0, drawn))
        ratio, chance = float(size / other), 5 / math.sqrt(x0[:, part].numel())
        if abs(math.log(ratio)) > math.log(TOLERANCE) + chance:
            return name, ratio
    return None


def log_area(size: int) -> float:
    """Logarithm of the area of the unit sphere in R^size."""
    return math.log(2) + size / 2 * math.log(math.pi) - math.lgamma(size / 2)


def _normal(x: Tensor, std: float) -> Tensor:
    """Log density (B,) of independent normal coordinates (B, K)."""
    constant = x.shape[1] * (math.log(std) + math.log(2 * math.pi) / 2)
    return -(x / std).square().sum(dim=1) / 2 - constant


def _draw(initializer: Initializer, n: int, geometry: Geometry, generator: torch.Generator) -> Tensor:
    def draw(count: int, source: torch.Generator | None) -> Tensor:
        assert source is not None
        return initializer.sample(geometry.space, count, source)

    return geometry.encode(_place(draw_rows(draw, n, generator), geometry))


def _place(theta: Tensor, geometry: Geometry) -> Tensor:
    buffer = next(geometry.buffers(), None)
    return theta if buffer is None else send(theta, buffer.device)
