r"""Laws of the time that a flow is trained at.

A law is its quantile function: :math:`t = F^{-1}(u)` with u uniform.  The flow's loss at one time does not depend on
other times, so a law only says where training effort goes; Beta(1, 2), with density 2 (1 - t), gives early times more
(thesis, section 6.4).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from scipy.special import betaincinv
from torch import Tensor

from wsflow.weightspace.randomness import draw_rows

LATEST = 1 - 1e-4
"""Later draws are moved here: a velocity log(x1) / (1 - t) amplifies float32 rounding by 1 / (1 - t)."""


class TimeLaw(ABC):
    """A law of times in [0, 1)."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The inverse distribution function, elementwise on float64 numbers in [0, 1)."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n,) times in [0, :data:`LATEST`], of torch's default dtype, on the generator's device."""
        device = "cpu" if generator is None else generator.device

        def uniform(count: int, source: torch.Generator | None) -> Tensor:
            return torch.rand(count, generator=source, device=device, dtype=torch.float64)

        u = draw_rows(uniform, n, generator)
        return self.quantile(u).clamp(0, LATEST).to(torch.get_default_dtype())


class UniformTime(TimeLaw):
    """Uniform times."""

    def quantile(self, u: Tensor) -> Tensor:
        """The identity."""
        return u


class BetaTime(TimeLaw):
    """Beta(a, b) times; the default Beta(1, 2) trains early times more.

    Args:
        a: Positive; above 1 for fewer early times.
        b: Positive; above 1 for fewer late times.

    Raises:
        ValueError: unless both are positive.
    """

    def __init__(self, a: float = 1.0, b: float = 2.0) -> None:
        if not (a > 0 and b > 0):
            raise ValueError(f"the parameters of a Beta law must be positive, got a = {a} and b = {b}")
        self.a, self.b = a, b

    def quantile(self, u: Tensor) -> Tensor:
        """1 - (1 - u)^(1/b) for a = 1, u^(1/a) for b = 1, the inverse incomplete beta function otherwise."""
        if self.a == 1:
            return 1 - (1 - u) ** (1 / self.b)
        if self.b == 1:
            return u ** (1 / self.a)
        return torch.as_tensor(betaincinv(self.a, self.b, u.cpu().numpy())).to(u)
