r"""A field that is known exactly.

Between the prior :math:`N(m_0, s_0^2 I)` and the target :math:`N(m_1, s_1^2 I)`, with independent coupling and straight
paths without noise, the law at time t is :math:`N(\mu_t, \sigma_t^2 I)` with

.. math:: \mu_t = (1 - t) m_0 + t m_1, \quad \sigma_t^2 = (1 - t)^2 s_0^2 + t^2 s_1^2,

and the flow's velocity is

.. math:: v(x, t) = m_1 - m_0 + \frac{t s_1^2 - (1 - t) s_0^2}{\sigma_t^2} (x - \mu_t) .

Its endpoint form is the posterior mean :math:`E[x_1 | x_t] = x_t + (1 - t) v(x_t, t)`.  Path noise sigma (1 - t) is the
same as a prior of variance :math:`s_0^2 + \sigma^2`.  Solvers, sampling and likelihoods are tested against it.
"""

from __future__ import annotations

from torch import Tensor

from wsflow.fields.base import VectorField
from wsflow.weightspace import WeightSpace


class GaussianField(VectorField):
    """The exact field between two isotropic Gaussians on a flat space.  It has no parameters.

    Args:
        space: The weight space.
        extra: Trailing coordinates that are no weights; they follow the same law.
        mean0: Mean of every coordinate at t = 0.
        std0: Standard deviation at t = 0, positive.
        mean1: Mean of every coordinate at t = 1.
        std1: Standard deviation at t = 1, positive.
        endpoint: Give the posterior mean of x1, for the endpoint parametrization, instead of the velocity.

    Raises:
        ValueError: for standard deviations that are not positive.
    """

    def __init__(
        self,
        space: WeightSpace,
        extra: int = 0,
        mean0: float = 0.0,
        std0: float = 1.0,
        mean1: float = 0.0,
        std1: float = 1.0,
        endpoint: bool = False,
    ) -> None:
        super().__init__(space, extra)
        if not (std0 > 0 and std1 > 0):
            raise ValueError(f"standard deviations must be positive, got {std0} and {std1}")
        self.mean0, self.std0, self.mean1, self.std1 = mean0, std0, mean1, std1
        self.endpoint = endpoint

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, D + extra), the exact velocity or posterior mean; there is no condition to depend on."""
        self._check(x, "states")
        t = t[:, None]
        mean, variance = (1 - t) * self.mean0 + t * self.mean1, (1 - t) ** 2 * self.std0**2 + t**2 * self.std1**2
        slope = (t * self.std1**2 - (1 - t) * self.std0**2) / variance
        velocity = self.mean1 - self.mean0 + slope * (x - mean)
        return x + (1 - t) * velocity if self.endpoint else velocity
