"""Canonical networks in flat space (thesis section 6.2.2).

The ends of a path are in canonical form; the path between them is straight and leaves the spheres, and the velocity is
that of flat space.  Only the final state of sampling is projected.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from wsflow.geometry.base import Geometry, import_geoopt
from wsflow.geometry.canonical import CanonicalForm
from wsflow.geometry.euclidean import flat_distances
from wsflow.weightspace import WeightSpace


class Normalized(Geometry):
    """Canonical forms joined by straight lines; the final state is projected.

    Args:
        space: The weight space.
        keep_scale: Whether the scale of a classifier's last layer is a coordinate (then dim is D + 1); otherwise
            every decoded network has a last layer of norm sqrt(C).

    Raises:
        ValueError: where the space has no canonical form; see :class:`wsflow.geometry.canonical.CanonicalForm`.
    """

    def __init__(self, space: WeightSpace, keep_scale: bool = True) -> None:
        form = CanonicalForm(space, keep_scale)
        super().__init__(space, form.dim, form.factors)
        self.form = form

    def encode(self, theta: Tensor) -> Tensor:
        """Weights (B, D) to canonical forms (B, dim)."""
        return self.form.encode(theta)

    def decode(self, x: Tensor) -> Tensor:
        """Points (B, dim) to weights (B, D)."""
        return self.form.decode(x)

    def project(self, x: Tensor) -> Tensor:
        """``x`` with every sphere's coordinates divided by their norm."""
        return self.form.project(x)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """``v``: the velocity is that of flat space."""
        return v

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """``x + v``."""
        return x + v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """``y - x``."""
        return y - x

    def to_geoopt(self) -> Any:
        """The flat space that paths run in: one Euclidean factor of dim coordinates."""
        geoopt = import_geoopt()
        return geoopt.ProductManifold((geoopt.Euclidean(1), self.dim))

    def _pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        return flat_distances(x, y)
