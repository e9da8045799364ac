"""Canonical networks in flat space (thesis section 6.2.2).

The ends of a path are in canonical form; the path between them is straight and leaves the spheres, and the velocity is
that of flat space.  Only the final state of sampling is projected.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from wsflow.geometry.base import import_geoopt
from wsflow.geometry.canonical import CanonicalGeometry
from wsflow.geometry.euclidean import flat_distances


class Normalized(CanonicalGeometry):
    """Canonical forms joined by straight lines; the final state is projected.

    Args:
        space: The weight space.
        keep_scale: Whether the scale of a classifier's last layer is a coordinate (then dim is D + 1, or D and the
            number of heads); otherwise every decoded network has a last layer of norm sqrt(C).

    Raises:
        ValueError: where the space has no canonical form; see :class:`wsflow.geometry.canonical.CanonicalForm`.
    """

    flat = True

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
