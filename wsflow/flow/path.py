r"""Probability paths between prior and weights.

Given a pair :math:`(x_0, x_1)` of a coupling and times t, a path gives states :math:`x_t` and the velocity
:math:`u_t` that a field should have there on average (conditional flow matching).

*Geodesic path.*  With :math:`\gamma_t` the geodesic from :math:`x_0` to :math:`x_1` and a standard normal tangent
vector :math:`\epsilon` at :math:`\gamma_t`,

.. math:: x_t = \exp_{\gamma_t}(\sigma (1 - t) \epsilon), \quad u_t = \frac{\log_{x_t} x_1}{1 - t} .

The noise ends with the path, so the flow ends at :math:`p_1`; it starts at :math:`p_0` widened by :math:`\sigma`, and
so does sampling (:meth:`ProbabilityPath.start`).  The velocity starts from the noisy state: on a flat space
:math:`u_t = x_1 - x_0 - \sigma \epsilon = \frac{d}{dt} x_t`.

*Constant noise* (thesis, equations 3.11 and 3.12).

.. math:: x_t = \gamma_t + \sigma \epsilon, \quad u_t = \dot\gamma_t .

It starts and ends at :math:`p_0` and :math:`p_1` widened by :math:`\sigma`; sampling starts at :math:`p_0` itself, as
in the thesis, and :math:`\sigma` has to be small.  Shapes: states and velocities (B, dim), times (B,).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from wsflow.flow.prior import Prior, Widened
from wsflow.geometry import Geometry
from wsflow.weightspace import ZooBatch
from wsflow.weightspace.randomness import normal_like


@dataclass(frozen=True)
class PathSample:
    """States on conditional paths.

    Attributes:
        x0: (B, dim), where the paths start.
        x1: (B, dim), where they end.
        t: (B,), times in [0, 1).
        x_t: (B, dim), states.
        u_t: (B, dim), velocities, tangent at ``x_t``.
    """

    x0: Tensor
    x1: Tensor
    t: Tensor
    x_t: Tensor
    u_t: Tensor


class ProbabilityPath(ABC):
    """A law of states between the ends of a pair."""

    @abstractmethod
    def sample(
        self, x0: Tensor, x1: Tensor, t: Tensor, geometry: Geometry, generator: torch.Generator | None = None
    ) -> PathSample:
        """Draw one state per pair.

        Args:
            x0: (B, dim), starts, on the geometry.
            x1: (B, dim), ends, on the geometry.
            t: (B,), times in [0, 1); at 1 itself the velocity is 0 / 0.
            geometry: The space the flow lives in.
            generator: Source of the noise.
        """

    def along(
        self,
        batch: ZooBatch,
        x0: Tensor,
        x1: Tensor,
        t: Tensor,
        geometry: Geometry,
        generator: torch.Generator | None = None,
    ) -> PathSample:
        """As :meth:`sample`; for paths that read more of a batch than its ends.

        Args:
            batch: The B networks whose encodings are ``x1``.
            x0: (B, dim), starts.
            x1: (B, dim), ends.
            t: (B,), times in [0, 1).
            geometry: The space the flow lives in.
            generator: Source of the noise.
        """
        return self.sample(x0, x1, t, geometry, generator)

    def start(self, prior: Prior) -> Prior:
        """The law of states at t = 0 where pairs start at ``prior``: where samples have to start."""
        return prior


class GeodesicPath(ProbabilityPath):
    """The geodesic, with tangent noise sigma (1 - t).

    Args:
        sigma: Standard deviation of the noise at t = 0, per coordinate.

    Raises:
        ValueError: for a negative sigma.
    """

    def __init__(self, sigma: float = 0.0) -> None:
        self.sigma = _not_negative(sigma)

    def sample(
        self, x0: Tensor, x1: Tensor, t: Tensor, geometry: Geometry, generator: torch.Generator | None = None
    ) -> PathSample:
        """States near the geodesic and the velocities from there to x1."""
        x_t = geometry.interpolate(x0, x1, t)
        if self.sigma > 0:
            noise = self.sigma * (1 - t)[:, None] * normal_like(x_t, generator)
            x_t = geometry.exp(x_t, geometry.tangent(x_t, noise))
        return PathSample(x0, x1, t, x_t, geometry.velocity(x_t, x1, t))

    def start(self, prior: Prior) -> Prior:
        """The prior, with the noise of t = 0."""
        return Widened(prior, self.sigma) if self.sigma > 0 else prior


class ConstantNoisePath(ProbabilityPath):
    r"""The thesis's path: the geodesic with noise of one size at all times.

    Exact where the geometry's paths are straight (Euclidean, Normalized).  On spheres the velocity of the mean path is
    projected to the tangent space at the noisy state, which is right to first order in sigma.

    *Endpoint parametrizations* do not follow this path's flow.  On a flat space, what they learn is

    .. math:: \frac{E[x_1 | x_t] - x_t}{1 - t} = E[u_t | x_t] - \frac{\sigma \, E[\epsilon | x_t]}{1 - t} ,

    which is not the marginal velocity.  The last term is at most of the order of sigma / (1 - t) per coordinate: with
    the thesis's sigma = 0.001 and 16 Euler steps, whose last one starts at t = 15/16, about 0.016.  The velocity
    parametrization learns :math:`E[u_t | x_t]`; :class:`GeodesicPath` is exact with both.

    Args:
        sigma: Standard deviation of the noise, per coordinate.

    Raises:
        ValueError: for a negative sigma.
    """

    def __init__(self, sigma: float = 0.001) -> None:
        self.sigma = _not_negative(sigma)

    def sample(
        self, x0: Tensor, x1: Tensor, t: Tensor, geometry: Geometry, generator: torch.Generator | None = None
    ) -> PathSample:
        """States near the geodesic and the geodesic's own velocities."""
        mean = geometry.interpolate(x0, x1, t)
        noise = geometry.tangent(mean, self.sigma * normal_like(mean, generator))
        x_t = geometry.exp(mean, noise)
        return PathSample(x0, x1, t, x_t, geometry.tangent(x_t, geometry.velocity(mean, x1, t)))


def _not_negative(sigma: float) -> float:
    if not sigma >= 0:
        raise ValueError(f"sigma must not be negative, got {sigma}")
    return sigma
