r"""How much each coordinate of a residual counts.

The flow matching loss of a residual r sums squares over coordinates, so that the tensors whose weights move most decide
what is learned.  A weighting replaces the sum by

.. math:: \sum_i w_i r_i^2, \quad w_i > 0 \text{ constant}.

*The minimiser stays.*  Weighted least squares is still least at the conditional mean of the target, whatever the
weights: on a flat space coordinate by coordinate, on a product of spheres because :math:`\sum_i w_i r_i^2` is positive
on tangent vectors too.  Weights only say where a field that cannot fit everything errs, and which coordinates drive the
optimiser.  The validation loss is never weighted.

*Symmetry.*  The loss must not change when the hidden neurons of a network are permuted.  Weights are therefore averaged
over the neurons of every hidden group; input and output neurons and kernel positions keep their own.  Where geodesics
are curved, they are first averaged over each factor of the geometry (a sphere, the lines of a tensor), so that the
weighted inner product is that of a product metric and does not depend on the axes of a sphere.

*Scale.*  With :math:`m_i` the mean square of coordinate i of :math:`\log_{x_0} x_1`, weights are scaled to
:math:`\sum_i w_i m_i = \sum_i m_i`: along geodesics without noise, the loss of a velocity of zero is that of plain flow
matching; on other paths, and of endpoints, nearly.

Weights are computed whenever a fit begins, from train networks and train data with draws of their own, so that a
training that goes on has those it had.  They are no part of a checkpoint.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor

from wsflow.geometry import Geometry
from wsflow.weightspace import WeightSpace

LEAST = 1e-6
"""Least mean square of a tensor, relative to that of all coordinates, that a weighting divides by."""

ELEMENTS = 2**23
"""Weights, or coordinates where these are more, whose derivatives are held at once."""


class Weighting(ABC):
    """A way to weight residuals; a variant writes :meth:`importance`."""

    @abstractmethod
    def importance(self, geometry: Geometry, x0: Tensor, x1: Tensor, task: Any, generator: torch.Generator) -> Tensor:
        """Relative weights of the coordinates, not negative.

        Args:
            geometry: The space the flow lives in.
            x0: (n, dim), starts of paths.
            x1: (n, dim), trained networks, their ends.
            task: The base task (:class:`wsflow.tasks.BaseTask`), or None.
            generator: Source of randomness.

        Returns:
            (dim,).

        Raises:
            ValueError: where the weighting needs a task and there is none.
        """

    @final
    def __call__(
        self, geometry: Geometry, x0: Tensor, x1: Tensor, task: Any = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Weights (dim,), symmetric and scaled; the arguments are those of :meth:`importance`."""
        generator = generator if generator is not None else torch.Generator().manual_seed(0)
        weights = self.importance(geometry, x0, x1, task, generator)
        weights = neuron_means(geometry.space, weights if geometry.flat else geometry.factor_means(weights))
        size = displacement(geometry, x0, x1)
        total = (weights * size).sum()
        return weights * torch.where(total > 0, size.sum() / total, 1.0)


class PerTensor(Weighting):
    r"""Every tensor counts by how far it moves: :math:`w = m^{-p}`, m its mean of :math:`m_i`.

    Of canonical forms, the spheres of a layer and the lines of a tensor count apart.

    Args:
        power: p; with 1 every tensor's residual is relative to how far that tensor moves, with 0 weights are equal.

    Raises:
        ValueError: for a negative power.
    """

    def __init__(self, power: float = 1.0) -> None:
        if not power >= 0:
            raise ValueError(f"power must not be negative, got {power}")
        self.power = power

    def importance(self, geometry: Geometry, x0: Tensor, x1: Tensor, task: Any, generator: torch.Generator) -> Tensor:
        """(dim,), equal within a tensor."""
        size = displacement(geometry, x0, x1)
        floor = LEAST * size.mean()
        means = neuron_means(geometry.space, geometry.factor_means(size))
        return means.clamp_min(torch.where(floor > 0, floor, 1.0)) ** -self.power


class Fisher(Weighting):
    r"""Coordinates count by what they do to the base task's loss: the diagonal of the empirical Fisher matrix.

    .. math:: F_i = E_\theta E_n \left(\frac{\partial \ell(f_\theta(x_n), y_n)}{\partial x_i}\right)^2, \quad
              w_i = (1 - \epsilon) \frac{F_i}{\bar F} + \epsilon ,

    over train networks and train points, with derivatives by the coordinates of the geometry (Amari 1998; empirical,
    as it takes the labels of the data and not the network's own).  A small error r of the weights changes the loss by
    about :math:`\frac12 \sum_{ij} r_i F_{ij} r_j`; the diagonal forgets how errors add up.

    Networks with batch norm get their statistics recomputed for every pair of a network and a point, which is slow.

    Args:
        networks: Train networks that the mean goes over, the first ones.
        points: Data points drawn for each network, with replacement.
        floor: Epsilon, the weight that even coordinates without effect keep.

    Raises:
        ValueError: for less than one network or point, or a floor out of (0, 1].
    """

    def __init__(self, networks: int = 64, points: int = 64, floor: float = 0.1) -> None:
        if networks < 1 or points < 1:
            raise ValueError(f"networks and points must be at least 1, got {networks} and {points}")
        if not 0 < floor <= 1:
            raise ValueError(
                f"floor must lie in (0, 1], got {floor}: without it some coordinates are not learned at all"
            )
        self.networks, self.points, self.floor = networks, points, floor

    def importance(self, geometry: Geometry, x0: Tensor, x1: Tensor, task: Any, generator: torch.Generator) -> Tensor:
        """(dim,)."""
        fisher = self.diagonal(geometry, x1, task, generator)
        mean = fisher.mean()
        return self.floor + (1 - self.floor) * fisher / torch.where(mean > 0, mean, 1.0)

    def diagonal(self, geometry: Geometry, x1: Tensor, task: Any, generator: torch.Generator) -> Tensor:
        """F, (dim,)."""
        if not getattr(task, "has_data", False):
            raise ValueError("Fisher needs the train data of the base task, and there is none: choose PerTensor")
        objective = task.objective("train", 1, shared=False)
        pairs = x1[: self.networks].repeat_interleave(self.points, dim=0)
        total = torch.zeros_like(pairs[0])
        each = max(geometry.dim, geometry.space.dim)  # coordinates of a latent space decode to many more weights
        for part in torch.split(pairs, max(1, ELEMENTS // each)):
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                loss = objective(geometry.decode(part), generator).sum()
                (gradient,) = torch.autograd.grad(loss, part)
            total += gradient.square().sum(0)
        return total / len(pairs)


def displacement(geometry: Geometry, x0: Tensor, x1: Tensor) -> Tensor:
    """Mean square (dim,) of each coordinate of the way from ``x0`` to ``x1`` (n, dim)."""
    return geometry.log(x0, x1).square().mean(0)


def neuron_means(space: WeightSpace, values: Tensor) -> Tensor:
    """Values (dim,) averaged over the neurons of each hidden group; others than the D weights' stay."""
    if len(values) < space.dim:
        return values  # coordinates of a latent space belong to no neuron
    hidden, result = {group.name for group in space.hidden}, values.clone()
    for block in space.blocks:
        axes = [axis for axis, group in ((-3, block.target), (-2, block.source)) if group in hidden]
        block.view(result)[...] = _mean(block.view(values), axes)
    for vector in space.vectors:
        vector.view(result)[...] = _mean(vector.view(values), [-2] * (vector.group in hidden))
    return result


def _mean(values: Tensor, axes: list[int]) -> Tensor:
    return values.mean(axes, keepdim=True) if axes else values
