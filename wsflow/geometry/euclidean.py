"""Flat weight space (thesis section 6.2.1): points are the weights themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wsflow.geometry.base import Geometry, import_geoopt


class Euclidean(Geometry):
    """Weight space as it is; scaling symmetries are left in.

    Args:
        space: The weight space.
    """

    flat = True

    def encode(self, theta: Tensor) -> Tensor:
        """The weights themselves, (B, D)."""
        self.space.check(theta)
        return theta

    def decode(self, x: Tensor) -> Tensor:
        """The weights themselves, (B, D)."""
        self.space.check(x)
        return x

    def project(self, x: Tensor) -> Tensor:
        """``x``: every vector is a point."""
        return x

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """``v``: every vector is tangent."""
        return v

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """``x + v``."""
        return x + v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """``y - x``."""
        return y - x

    def to_geoopt(self) -> Any:
        """A product of one Euclidean factor of D coordinates, in flat order."""
        geoopt = import_geoopt()
        return geoopt.ProductManifold((geoopt.Euclidean(1), self.dim))

    def _pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        return flat_distances(x, y)


def flat_distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances (..., n, m) of (..., n, K) to (..., m, K), in which small ones are right too.

    Up to float32 by matrix products in float64, whose cancellation is below float32's own rounding; in float64 by
    differences, which is slower.
    """
    if x.dtype == torch.float64:
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.cdist(x.double(), y.double(), compute_mode="use_mm_for_euclid_dist").to(x.dtype)
