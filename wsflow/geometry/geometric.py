r"""Canonical networks on a product of spheres and lines (thesis section 6.2.3).

Each normalised hidden neuron or filter is a point of the unit sphere of its incoming weights (or of its norm's weight
and bias), the last layer of a classifier one of the sphere of all its weights; every other coordinate is a line.
Geodesics are great circles on the spheres and straight on the lines, and squared distances add up.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor

from wsflow.geometry import sphere
from wsflow.geometry.base import import_geoopt, safe_sqrt
from wsflow.geometry.canonical import CanonicalGeometry
from wsflow.geometry.euclidean import flat_distances


class Geometric(CanonicalGeometry):
    """Canonical forms joined by geodesics of a product of spheres and lines.

    Args:
        space: The weight space.
        keep_scale: Whether the scale of a classifier's last layer is a coordinate (then dim is D + 1, or D and the
            number of heads); otherwise every decoded network has a last layer of norm sqrt(C).

    Raises:
        ValueError: where the space has no canonical form; see :class:`wsflow.geometry.canonical.CanonicalForm`.
    """

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """``v`` less its radial part on every sphere."""
        return self.form.product.apply_pairs(sphere.tangent, lambda _, rest: rest, x, v)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Great circles on the spheres, straight on the lines."""
        return self.form.product.apply_pairs(sphere.exp, operator.add, x, v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The initial velocity of the geodesic to ``y``; see :mod:`wsflow.geometry.sphere` for antipodes."""
        return self.form.product.apply_pairs(sphere.log, lambda a, b: b - a, x, y)

    def to_geoopt(self) -> Any:
        """A product of spheres and a Euclidean rest.

        Its coordinates are those of :attr:`order`: ``x[..., geometry.order]`` is the point of the product that belongs
        to ``x``.
        """
        geoopt = import_geoopt()
        spheres = [(geoopt.Sphere(), shape) for shape in self.form.product.shapes]
        return geoopt.ProductManifold(*spheres, (geoopt.Euclidean(1), self.form.product.rest))

    @property
    def order(self) -> Tensor:
        """(dim,), coordinates in the order of the product: per rescaling its neurons, the last layers, the lines."""
        return self.form.product.order

    def _pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        (x_spheres, x_rest), (y_spheres, y_rest) = self.form.product.split(x), self.form.product.split(y)
        square = flat_distances(x_rest, y_rest).square()
        for a, b in zip(x_spheres, y_spheres, strict=True):
            square = square + sphere.pairwise_angles(a.transpose(0, 1), b.transpose(0, 1)).square().sum(0)
        return safe_sqrt(square)
