"""Coordinates that lie on a product of unit spheres and a Euclidean rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class SphereProduct(nn.Module):
    """Index sets of spheres of equal dimension, taken together, and of all other coordinates.

    Args:
        dim: Number of coordinates.
        spheres: Per set of S spheres in R^K, their coordinates (S, K); no coordinate twice.

    Attributes:
        order: (dim,), all coordinates: the spheres row by row, set by set, then the rest in ascending order.
    """

    order: Tensor
    _inverse: Tensor

    def __init__(self, dim: int, spheres: Sequence[Tensor]) -> None:
        super().__init__()
        rest = torch.ones(dim, dtype=torch.bool)
        for index in spheres:
            rest[index] = False
        order = torch.cat([*(index.flatten() for index in spheres), rest.nonzero()[:, 0]])
        self.shapes = tuple((index.shape[0], index.shape[1]) for index in spheres)
        self.rest = int(rest.sum())
        self._sizes = [*(s * k for s, k in self.shapes), self.rest]
        self.register_buffer("order", order, persistent=False)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(dim)
        self.register_buffer("_inverse", inverse, persistent=False)

    def split(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Coordinates (..., dim) to spheres (..., S, K), one tensor per set, and the rest (..., R)."""
        *parts, rest = torch.split(x[..., self.order], self._sizes, dim=-1)
        return [part.reshape(*part.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)], rest

    def join(self, spheres: Sequence[Tensor], rest: Tensor) -> Tensor:
        """The inverse of :meth:`split`."""
        return torch.cat([*(part.flatten(-2) for part in spheres), rest], dim=-1)[..., self._inverse]

    def apply_pairs(
        self,
        on_sphere: Callable[[Tensor, Tensor], Tensor],
        on_rest: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        y: Tensor,
    ) -> Tensor:
        """A function of two points, or of a point and a vector, computed on each sphere and on the rest."""
        (x_spheres, x_rest), (y_spheres, y_rest) = self.split(x), self.split(y)
        return self.join([on_sphere(a, b) for a, b in zip(x_spheres, y_spheres, strict=True)], on_rest(x_rest, y_rest))
