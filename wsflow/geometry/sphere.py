r"""Unit spheres, stable in float32.

For unit vectors :math:`x, y` at the angle :math:`\theta` and a vector :math:`v` tangent at :math:`x`,

.. math::
    \exp_x(v) = \cos|v| \, x + \frac{\sin|v|}{|v|} v, \qquad
    \log_x(y) = \frac{\theta}{\sin\theta} u, \quad u = y - \langle x, y \rangle x, \quad
    \theta = \mathrm{atan2}(|u|, \langle x, y \rangle).

- ``u`` is computed from ``y - x``, which loses no digits where ``y`` is close to ``x``, and projected twice, so that it
  is tangent to rounding where ``y`` is close to ``-x``.
- :math:`\cos`, :math:`\sin|v|/|v|` and :math:`\theta / \sin\theta` are functions of the squares :math:`|v|^2` and
  :math:`|u|^2`, by their series where these are below :math:`\epsilon^{1/3}` (:math:`\epsilon` the rounding unit): no
  root is taken near zero, and gradients there are finite and right.
- Antipodes: where :math:`|u| < 16 \epsilon` and ``y`` is opposite, every direction is as good as any other.
  The one taken is that of the coordinate axis with the smallest :math:`|x_k|` (the first of equals), made tangent; the
  logarithm has length :math:`\pi` there and no gradient with respect to ``y``.
- A zero vector has no nearest unit vector.  The one taken has all coordinates equal, which commutes with permutations.

All functions act on the last axis, of two or more coordinates, and broadcast over the others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wsflow.geometry.euclidean import flat_distances


def project(x: Tensor) -> Tensor:
    """The unit vectors nearest to ``x``; for zero vectors, the one with all coordinates equal."""
    return direction(x)[0]


def direction(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors and norms of ``x``.

    Args:
        x: (..., K).

    Returns:
        Unit vectors (..., K) and norms (..., 1).  A vector whose squared norm is no normal number counts as zero: its
        norm is 0 and its direction has all coordinates equal.
    """
    square = _dot(x, x)
    dead = square < torch.finfo(x.dtype).tiny
    norm = torch.where(dead, 1.0, square).sqrt()
    return torch.where(dead, x.shape[-1] ** -0.5, x / norm), torch.where(dead, 0.0, norm)


def tangent(x: Tensor, v: Tensor) -> Tensor:
    """The part of ``v`` orthogonal to the unit vectors ``x``."""
    return v - _dot(x, v) * x


def exp(x: Tensor, v: Tensor) -> Tensor:
    """Where the great circle that leaves ``x`` with the tangent velocity ``v`` is at time 1; a unit vector."""
    square = _dot(v, v)
    small = square < _small(v)
    norm = torch.where(small, 1.0, square).sqrt()
    cos = torch.where(small, 1 - square / 2 * (1 - square / 12), norm.cos())
    sinc = torch.where(small, 1 - square / 6 * (1 - square / 20), norm.sin() / norm)
    return project(cos * x + sinc * v)


def log(x: Tensor, y: Tensor) -> Tensor:
    """The tangent vector at ``x`` whose :func:`exp` is ``y``, both unit vectors."""
    u = tangent(x, tangent(x, y - x))
    square, cos = _dot(u, u), _dot(x, y)
    near = (cos > 0) & (square < _small(x))
    opposite = (cos < 0) & (square < (16 * torch.finfo(x.dtype).eps) ** 2)
    sin = torch.where(near | opposite, 1.0, square).sqrt()
    series = 1 + square / 6 * (1 + square * (9 / 20))
    ratio = torch.where(near, series, torch.atan2(sin, cos) / sin)
    return torch.where(opposite, math.pi * _some_tangent(x), ratio * u)


def pairwise_angles(x: Tensor, y: Tensor) -> Tensor:
    """Angles (..., n, m) between the unit vectors (..., n, K) and (..., m, K).

    Twice the arc tangent of |x - y| / |x + y| (Kahan), as accurate near 0 and pi as between.
    """
    return 2 * torch.atan2(flat_distances(x, y), flat_distances(x, -y))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)


def _small(x: Tensor) -> float:
    """Below this square, three terms of each series are exact to rounding."""
    return float(torch.finfo(x.dtype).eps ** (1 / 3))


def _some_tangent(x: Tensor) -> Tensor:
    """A unit tangent vector at each ``x`` that depends on ``x`` alone."""
    x = x.detach()
    axis = torch.zeros_like(x).scatter(-1, x.abs().argmin(-1, keepdim=True), 1.0)
    return project(tangent(x, axis))
