r"""The space a flow lives in.

A geometry maps weights :math:`\theta \in R^D` to points :math:`x` and back, and says what straight lines between points
are.  With :math:`\exp_x` and :math:`\log_x` of the geometry (thesis section 3.3):

- distance :math:`d(x, y) = |\log_x y|`;
- path :math:`x_t = \exp_{x_0}(t \log_{x_0} x_1)` (thesis eq. 3.15);
- velocity :math:`u_t = \log_{x_t}(x_1) / (1 - t)` (thesis eq. 3.16).

Every geometry here is a product of *factors* (spheres and Euclidean parts) whose metric is that of the space around
it, so that the inner product is :math:`\sum_f w_f \langle u_f, v_f \rangle` with weights :math:`w_f`, 1 by default.

Shapes: ``theta`` (B, D); points ``x`` and tangent vectors ``v`` (B, dim), where ``dim`` is D or, with a log-scale
coordinate behind the weights for each classifier, D + 1 or more; in a latent space, fewer.  ``encode`` also takes
extended vectors (B, D + D_b), but in a latent space, and gives their running statistics, moved along, behind the point;
``decode`` takes (B, dim + D_b) back.  Statistics are no coordinates: nothing else takes them.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import Any, final

import torch
from torch import Tensor, nn

from wsflow.weightspace import WeightSpace

CHUNK = 2**23
"""Elements of a block of pairwise distances that is held at once."""


class Geometry(nn.Module, ABC):
    """The space a flow lives in; a variant writes the abstract methods and inherits the rest.

    Args:
        space: The weight space.
        dim: Coordinates of a point; D unless given.
        factors: A name and the indices of the coordinates of each factor; one factor per tensor unless given.

    Attributes:
        space: The weight space.
        dim: Coordinates of a point.
        factors: Names of the factors, in the order of the weights that :meth:`inner` takes.
        flat: Whether geodesics are straight lines and every vector is tangent.
        lossy: Whether decoding what was encoded gives another function, so that networks are judged as they are.
    """

    flat: bool = False
    lossy: bool = False
    _factor: Tensor

    def __init__(
        self, space: WeightSpace, dim: int | None = None, factors: Sequence[tuple[str, Tensor]] | None = None
    ) -> None:
        super().__init__()
        self.space = space
        self.dim = space.dim if dim is None else dim
        if factors is None:
            factors = [(t.name, torch.arange(t.start, t.start + t.numel)) for t in space.tensors]
        self.factors = tuple(name for name, _ in factors)
        factor = torch.zeros(self.dim, dtype=torch.long)
        for number, (_, index) in enumerate(factors):
            factor[index] = number
        self.register_buffer("_factor", factor, persistent=False)

    @abstractmethod
    def encode(self, theta: Tensor) -> Tensor:
        """Weights (B, D) to points (B, dim), or extended ones (B, D + D_b) to (B, dim + D_b).

        Raises:
            ValueError: where the weights do not fit the space, or have no point in this geometry.
        """

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """Points (B, dim) to weights (B, D), or with statistics behind them to extended ones."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """The point of the geometry nearest to each ``x`` (B, dim)."""

    @abstractmethod
    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """The part of ``v`` (B, dim) that is tangent at ``x``."""

    @abstractmethod
    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Where the geodesic that leaves ``x`` with velocity ``v`` (B, dim) is at time 1."""

    @abstractmethod
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The tangent vector at ``x`` whose :meth:`exp` is ``y``, (B, dim)."""

    @abstractmethod
    def to_geoopt(self) -> Any:
        """A ``geoopt.ProductManifold`` for geoopt's optimisers and samplers."""

    @abstractmethod
    def _pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances (n, m) of (n, dim) to (m, dim), all at once."""

    @final
    def inner(self, x: Tensor, u: Tensor, v: Tensor, weight: Tensor | None = None) -> Tensor:
        """Inner product of tangent vectors at ``x``.

        Args:
            x: (B, dim).
            u: (B, dim).
            v: (B, dim).
            weight: (F,), a weight per factor in the order of :attr:`factors`.

        Returns:
            (B,).

        Raises:
            ValueError: where there is not one weight per factor.
        """
        if weight is None:
            return (u * v).sum(-1)
        if weight.shape != (len(self.factors),):
            raise ValueError(f"weight has shape {tuple(weight.shape)}, the geometry has {len(self.factors)} factors")
        return (u * v * weight[self._factor]).sum(-1)

    @final
    def factor_means(self, values: Tensor) -> Tensor:
        """Values (dim,), one per coordinate, averaged over each factor."""
        counts = torch.bincount(self._factor, minlength=len(self.factors))
        sums = values.new_zeros(len(self.factors)).index_add_(0, self._factor, values)
        return (sums / counts)[self._factor]

    @final
    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Lengths (B,) of the geodesics from ``x`` to ``y``; their gradient at coincident points is zero."""
        v = self.log(x, y)
        return safe_sqrt(self.inner(x, v, v))

    @final
    def pairwise_distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances (n, m) of every ``x`` (n, dim) to every ``y`` (m, dim), in blocks of bounded memory."""
        rows = max(1, CHUNK // max(1, y.shape[0] * len(self.factors)))
        return torch.cat([self._pairwise(part, y) for part in torch.split(x, rows)])

    @final
    def interpolate(self, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        """Points (B, dim) at times ``t`` (B,) of the geodesics from ``x0`` to ``x1``."""
        return self.exp(x0, t.unsqueeze(-1) * self.log(x0, x1))

    @final
    def velocity(self, x_t: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        """Velocity (B, dim) that leads from ``x_t`` at time ``t`` (B,) to ``x1`` at time 1.

        1 - t is held above the rounding unit of its type: finite at t = 1, where there is no velocity to speak of.
        """
        rest = (1 - t).clamp_min(torch.finfo(t.dtype).eps)
        return self.log(x_t, x1) / rest.unsqueeze(-1)

    @final
    def finish(self, x: Tensor) -> Tensor:
        """The point that sampling returns for its final state ``x`` (B, dim): the nearest one of the geometry."""
        return self.project(x)


def safe_sqrt(square: Tensor) -> Tensor:
    """The root, with gradient zero at zero; NaN stays NaN."""
    positive = ~(square <= 0)
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def import_geoopt() -> Any:
    """The geoopt package, imported where it is asked for."""
    with warnings.catch_warnings():
        # geoopt 0.5.1 compiles with torch.jit.script when imported, which torch >= 2.9 calls deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return import_module("geoopt")
