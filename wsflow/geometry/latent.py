r"""A latent space: the principal components of each tensor, for networks too large for an edge per weight.

With the mean :math:`\mu_b` of tensor b over N trained networks, its first :math:`k_b` principal directions
:math:`V_b` and their standard deviations :math:`\sigma_b`,

.. math:: z_b = \mathrm{diag}(\sigma_b)^{-1} V_b^\top (\theta_b - \mu_b), \qquad
          \theta_b = \mu_b + V_b \, \mathrm{diag}(\sigma_b) \, z_b ,

and the flow lives in the flat space of :math:`z \in R^K`, :math:`K = \sum_b k_b`, where the networks it was fitted on
have mean 0 and variance 1 in every coordinate.

*It loses.*  Decoding what was encoded gives the nearest network of the span and not the network; what is lost of each
tensor is in :attr:`PrincipalComponents.kept`.  Starts of runs lie mostly outside the span: encoding one keeps little
of it, and the states of a prior of weights lie far from where trained networks are, since the directions of small
variance are stretched.  Start from :class:`wsflow.flow.LatentNormal` instead.

*Align first.*  Weights of neurons that are not matched have no directions in common, and their components mean nothing.

*The Gaussian null.*  Independent Gaussian coordinates, decoded, are what a flow from LatentNormal gives with the
velocity 0.  Whatever such a flow is worth, it must be worth more than that; evaluations show both.

The eigenvectors are those of the N x N matrix of inner products (or, of tensors with fewer numbers than N, of their
covariance), summed in float64 over blocks of columns; no matrix of D x D is formed.  Memory is that of V, k times the
size of the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wsflow.geometry.base import Geometry, import_geoopt
from wsflow.geometry.euclidean import flat_distances
from wsflow.weightspace import WeightSpace

COLUMNS = 2**16
"""Coordinates whose products are summed at once."""

UNALIGNED = (
    "the components are of networks whose neurons are not matched, and mean little: give the data module an aligner, "
    "and no permute"
)
"""What to say where the zoo of a latent space is not aligned."""

LEAST = 1e-6
"""Standard deviation, as a fraction of the tensor's largest, below which a direction is rounding and is left out."""


class PrincipalComponents(Geometry):
    """Coordinates along the principal components of each tensor, in units of their standard deviation; flat.

    A module fits it on the train networks of its data module before training; a checkpoint holds the components.

    Args:
        space: The weight space.
        components: Of each tensor, or as many as it has numbers.

    Attributes:
        fitted: Whether there are components yet.
        kept: (T,), the fraction of each tensor's variance that its components hold.

    Raises:
        ValueError: for fewer than one component.
    """

    flat = True
    lossy = True
    fitted: Tensor
    kept: Tensor
    mean: Tensor
    scale: Tensor
    basis: Tensor

    def __init__(self, space: WeightSpace, components: int = 32) -> None:
        if components < 1:
            raise ValueError(f"components must be at least 1, got {components}")
        self.counts = [min(components, tensor.numel) for tensor in space.tensors]
        places = torch.split(torch.arange(sum(self.counts)), self.counts)
        names = [tensor.name for tensor in space.tensors]
        super().__init__(space, sum(self.counts), list(zip(names, places, strict=True)))
        numbers = sum(tensor.numel * k for tensor, k in zip(space.tensors, self.counts, strict=True))
        self._known = False  # as fitted, for a process that has read it: reading it from a GPU makes that wait
        self.register_buffer("fitted", torch.tensor(False))
        self.register_buffer("kept", torch.zeros(len(self.counts)))
        self.register_buffer("mean", torch.zeros(space.dim))
        self.register_buffer("scale", torch.ones(self.dim))
        self.register_buffer("basis", torch.zeros(numbers))

    @torch.no_grad()
    def fit(self, theta: Tensor) -> None:
        """Find the components of trained, aligned networks (N, D).

        Raises:
            ValueError: for weights that do not fit the space, and for so few networks that components could hold each
                of them exactly.
        """
        self._check(theta, self.space.dim, "weights")
        if len(theta) < max(self.counts) + 2:
            raise ValueError(
                f"{len(theta)} networks are too few for {max(self.counts)} components of a tensor, which would hold "
                "nearly every one of them exactly; lower components or collect more runs"
            )
        mean, scale, kept = self.mean, torch.split(self.scale, self.counts), self.kept
        for number, (tensor, basis) in enumerate(zip(self.space.tensors, self._bases(), strict=True)):
            part = theta[:, tensor.slice]
            center = part.double().mean(0)
            found, deviation, fraction = _components(part, center, basis.shape[1])
            mean[tensor.slice], kept[number] = center.to(mean), fraction.to(kept)
            basis.copy_(found)
            scale[number].copy_(deviation)
        self.fitted.fill_(True)

    def encode(self, theta: Tensor) -> Tensor:
        """Weights (B, D) to their coordinates (B, K).

        Raises:
            ValueError: before :meth:`fit`, and for weights that do not fit the space; running statistics do not follow
                the projection and are not taken.
        """
        self._check(theta, self.space.dim, "weights")
        self._need_fit()
        pairs = zip(self.space.tensors, self._bases(), strict=True)
        z = torch.cat([(theta[:, t.slice] - self.mean[t.slice].to(theta)) @ v.to(theta) for t, v in pairs], dim=1)
        return z / self.scale.to(theta)

    def decode(self, x: Tensor) -> Tensor:
        """Coordinates (B, K) to weights (B, D)."""
        self._check(x, self.dim, "coordinates")
        self._need_fit()
        parts = torch.split(x * self.scale.to(x), self.counts, dim=1)
        return torch.cat([z @ v.mT.to(x) for z, v in zip(parts, self._bases(), strict=True)], 1) + self.mean.to(x)

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
        """A product of one Euclidean factor of K coordinates."""
        geoopt = import_geoopt()
        return geoopt.ProductManifold((geoopt.Euclidean(1), self.dim))

    def summary(self) -> str:
        """What the components keep, in one line for each tensor."""
        lines = [
            f"{tensor.name}: {count} of {tensor.numel} coordinates keep {fraction:.1%} of the variance"
            for tensor, count, fraction in zip(self.space.tensors, self.counts, self.kept.tolist(), strict=True)
        ]
        return "\n".join([f"latent space of {self.dim} coordinates for {self.space.dim} weights", *lines])

    def _pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        return flat_distances(x, y)

    def _bases(self) -> list[Tensor]:
        """V of each tensor, (numel, k), as views."""
        sizes = [tensor.numel * k for tensor, k in zip(self.space.tensors, self.counts, strict=True)]
        return [part.view(-1, k) for part, k in zip(torch.split(self.basis, sizes), self.counts, strict=True)]

    def _need_fit(self) -> None:
        self._known = self._known or bool(self.fitted)
        if not self._known:
            raise ValueError("the principal components are not known yet: call fit with trained networks (N, D)")

    def _check(self, x: Tensor, dim: int, what: str) -> None:
        if x.ndim != 2 or x.shape[1] != dim:
            raise ValueError(f"{what} have shape {tuple(x.shape)}, PrincipalComponents takes (B, {dim})")


def _components(x: Tensor, mean: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first k principal directions (n, k) of ``x`` (N, n), their deviations (k,), and the variance they keep."""
    count, size = x.shape
    blocks = [slice(i, i + COLUMNS) for i in range(0, size, COLUMNS)]
    if size <= count:
        centered = x.double() - mean
        values, vectors = _largest(centered.mT @ centered, k)
        total = centered.square().sum()
    else:
        products = x.new_zeros(count, count, dtype=torch.float64)
        for block in blocks:
            part = x[:, block].double() - mean[block]
            products.addmm_(part, part.mT)
        values, left = _largest(products, k)
        total = products.trace()
        weights = left * values.rsqrt().where(values > 0, 0.0)
        vectors = torch.cat([(x[:, block].double() - mean[block]).mT @ weights for block in blocks])
    real = values > LEAST**2 * values[0]
    largest = vectors.abs().argmax(0, keepdim=True)
    signs = vectors.gather(0, largest).sign()  # an eigenvector's sign is chance
    deviations = torch.where(real, (values / (count - 1)).sqrt(), 1.0)
    kept = torch.where(total > 0, values.where(real, 0.0).sum() / total, 1.0)
    return (vectors * signs).where(real, 0.0), deviations, kept


def _largest(matrix: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues of a symmetric matrix, in descending order, not negative, and their vectors."""
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0)[:k].clamp_min(0), vectors.flip(1)[:, :k]
