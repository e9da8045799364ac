r"""Comparison at equal novelty: noise that makes networks as new as others.

Good networks that lie close to training networks are easy to make, so a baseline that is less new than the samples gets
noise, :math:`x + s\,\sigma_\tau \epsilon` in canonical coordinates with :math:`\sigma_\tau` the zoo's standard
deviation in tensor :math:`\tau`, and s is raised until novelty agrees within 2 %.

Noise :math:`s` adds to distances in squares, nearly: :math:`d(s)^2 \approx d(0)^2 + c s^2`.  So s is doubled until it
is too large, and then interpolated between squares, with a bisection at every other step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wsflow.metrics.baselines import Material

FIRST, LIMIT = 2.0**-4, 2.0**4
"""The smallest noise tried first and the largest tried, in standard deviations of the zoo."""

TOLERANCE = 0.02
"""How far from 1 relative novelty may end."""


class Noisy:
    """Networks plus noise of any size; one draw serves every size, so that what is measured is continuous in it.

    Args:
        theta: (n, D).
        material: Gives the noise its size in each tensor.
        generator: Of the noise.
    """

    def __init__(self, theta: Tensor, material: Material, generator: torch.Generator) -> None:
        self.theta, self.form = theta, material.form
        self.x = self.form(theta)
        self.noise = torch.randn(self.x.shape, generator=generator).to(self.x) * material.tensor_std()

    def __call__(self, size: float) -> Tensor:
        """(n, D), with noise of so many standard deviations of the zoo; the networks themselves for 0."""
        return self.form.invert(self.x + size * self.noise) if size else self.theta


def match_noise(novelty: Callable[[float], float], start: float = 0.0) -> float:
    """The size of noise that makes networks as new as asked.

    Args:
        novelty: Takes the size to novelty relative to what is asked for, which noise raises, to be brought to 1.
        start: The smallest size considered.

    Returns:
        ``start`` where that is new enough.  :data:`LIMIT` where even that is not; where novelty jumps over 1, the size
        behind the jump.
    """
    value = novelty(start)
    if not value < 1 - TOLERANCE:
        return start
    low, high = (start, value), (math.inf, math.inf)
    size, bisect = max(2 * start, FIRST), False
    while math.isinf(high[0]) or high[0] - low[0] > 1e-3 * high[0]:
        value = novelty(size)
        if abs(value - 1) <= TOLERANCE or (value < 1 and size >= LIMIT):
            return size
        low, high = ((size, value), high) if value < 1 else (low, (size, value))
        size = min(2 * size, LIMIT) if math.isinf(high[0]) else _between(low, high, bisect)
        bisect = not bisect
    return high[0]


def _between(low: tuple[float, float], high: tuple[float, float], bisect: bool) -> float:
    """A size between two, from sizes and their novelty."""
    (a, f), (b, g) = low, high
    if bisect or not math.isfinite(g):
        return (a + b) / 2
    share = (1 - f**2) / (g**2 - f**2)
    return math.sqrt(a**2 + min(max(share, 0.02), 0.98) * (b**2 - a**2))
