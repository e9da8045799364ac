r"""Noise in sampling: what is done to the states before the solver's steps.

*Added noise* (thesis, section 6.5).  Tangent noise, :math:`x \leftarrow \exp_x(\varepsilon P_x z)` with z standard
normal, before every step or those of a part of the trajectory; none after the last.  It widens samples of a flow that
has become too narrow, and changes the law of any other.

*Churn* (Karras et al. 2022, algorithm 2) keeps the law.  Take a Gaussian prior :math:`x_0 \sim N(0, s^2 I)`,
independent of :math:`x_1`, and straight paths :math:`x_t = (1 - t) x_0 + t x_1` in flat space.  At the noise level
:math:`\sigma = s (1 - t) / t` the state :math:`x_t / t` is :math:`x_1 + \sigma z`.  Raising the level to
:math:`(1 + \gamma) \sigma` therefore leads from the law at t to the law at an earlier time, exactly:

.. math::
    \hat t = \frac{t}{t + (1 + \gamma)(1 - t)}, \qquad
    \hat x = \frac{\hat t}{t} x + \sqrt{\gamma^2 + 2 \gamma} \; s \, \frac{\hat t (1 - t)}{t} \, z ,

and the flow leads back.  No score appears, but it is there.  Since :math:`x_t` given :math:`x_1` is
:math:`N(t x_1, (1 - t)^2 s^2 I)` and :math:`E[x_0 | x_t] = x - t v(x, t)`,

.. math:: \nabla \log p_t(x) = -\frac{E[x_0 | x_t = x]}{(1 - t) s^2} = -\frac{x - t v(x, t)}{(1 - t) s^2} .

For small :math:`\gamma` the noise has the variance :math:`g^2 = 2 \gamma (1 - t)^2 s^2`; going back to :math:`\hat t`
and the flow from there to t move the state by :math:`-\gamma (1 - t)(x - t v) = \frac{g^2}{2} \nabla \log p_t(x)`.
That is the drift that keeps the marginals of :math:`dx = (v + \frac{g^2}{2} \nabla \log p_t) \, dt + g \, dW`.  With
other couplings, priors or spaces this velocity is not that of the score, and churn is refused.

Either way, samples have no density under the flow.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

from torch import Tensor

from wsflow.flow.coupling import Coupling, IndependentCoupling
from wsflow.flow.path import ConstantNoisePath, GeodesicPath, ProbabilityPath
from wsflow.flow.prior import GaussianPrior, LatentNormal, Prior
from wsflow.geometry import Euclidean, Geometry


class Noise(ABC):
    """What is done to states before a step.

    Args:
        start: The first time of the part of the trajectory that has noise.
        end: The time at which that part ends.

    Raises:
        ValueError: for a part that is none.
    """

    def __init__(self, start: float, end: float) -> None:
        if not 0 <= start < end <= 1:
            raise ValueError(f"the part of the trajectory with noise must lie in [0, 1], got {start} to {end}")
        self.start, self.end = start, end

    @abstractmethod
    def for_flow(self, prior: Prior, coupling: Coupling, path: ProbabilityPath, geometry: Geometry) -> Self:
        """This noise for the samples of one flow.

        Args:
            prior: What the flow was trained with.
            coupling: The same.
            path: The same.
            geometry: The space the flow lives in.

        Raises:
            ValueError: where it would be wrong for such a flow.
        """

    @abstractmethod
    def _perturb(self, geometry: Geometry, x: Tensor, t: float, draw: Callable[[], Tensor]) -> tuple[Tensor, float]: ...

    def __call__(self, geometry: Geometry, x: Tensor, t: float, draw: Callable[[], Tensor]) -> tuple[Tensor, float]:
        """States and time that a step starts from.

        Args:
            geometry: The space the flow lives in.
            x: (n, dim), states.
            t: Their time.
            draw: Gives standard normal numbers (n, dim).
        """
        return self._perturb(geometry, x, t, draw) if self.start <= t < self.end else (x, t)


class AddedNoise(Noise):
    """Noise of one size before steps, tangent on manifolds; changes the law of the samples.

    Args:
        std: Standard deviation per coordinate, before each step.
        start: The first time of the part of the trajectory that has noise.
        end: The time at which that part ends.

    Raises:
        ValueError: for a std that is negative, or a part that is none.
    """

    def __init__(self, std: float, start: float = 0.0, end: float = 1.0) -> None:
        super().__init__(start, end)
        if not std >= 0:
            raise ValueError(f"the standard deviation of noise must not be negative, got {std}")
        self.std = std

    def for_flow(self, prior: Prior, coupling: Coupling, path: ProbabilityPath, geometry: Geometry) -> Self:
        """Any flow will do."""
        return self

    def _perturb(self, geometry: Geometry, x: Tensor, t: float, draw: Callable[[], Tensor]) -> tuple[Tensor, float]:
        return geometry.exp(x, geometry.tangent(x, self.std * draw())), t


class Churn(Noise):
    """Back to a higher noise level before steps, in a way that keeps the law of the samples at every time.

    Only for independent coupling, a Gaussian prior and straight paths in flat space.

    Args:
        gamma: The noise level is raised by this factor before each step; 0.41 is the most that Karras et al. take.
        start: The first time of the part of the trajectory that has noise; there is none at t = 0.
        end: The time at which that part ends.
        std: s of the prior; the flow's own where it is not given.

    Raises:
        ValueError: for a gamma or std that is not positive, or a part that is none.
    """

    def __init__(self, gamma: float = 0.2, start: float = 0.0, end: float = 1.0, std: float | None = None) -> None:
        super().__init__(start, end)
        if not gamma > 0 or not (std is None or std > 0):
            raise ValueError(f"gamma and std must be positive, got {gamma} and {std}")
        self.gamma, self.std = gamma, std

    def for_flow(self, prior: Prior, coupling: Coupling, path: ProbabilityPath, geometry: Geometry) -> Self:
        """The noise with the prior's own std; a geodesic path's noise, which widens the prior, counts.

        Raises:
            ValueError: for all but independent coupling, Gaussian priors and straight paths in flat space.
        """
        found = _std(prior, path, geometry) if isinstance(coupling, IndependentCoupling) else None
        if found is None:
            raise ValueError(
                "churn needs the score, which follows from the velocity only with independent coupling, a Gaussian "
                f"prior and GeodesicPath in Euclidean space; this flow has {type(coupling).__name__}, "
                f"{type(prior).__name__}, {type(path).__name__} and {type(geometry).__name__}: use AddedNoise"
            )
        mine = copy.copy(self)
        mine.std = found if self.std is None else self.std
        return mine

    def _perturb(self, geometry: Geometry, x: Tensor, t: float, draw: Callable[[], Tensor]) -> tuple[Tensor, float]:
        if self.std is None:
            raise ValueError("Churn does not know the prior's std: give it, or sample from a flow that has it")
        if t == 0:
            return x, t
        earlier = t / (t + (1 + self.gamma) * (1 - t))
        size = math.sqrt(self.gamma**2 + 2 * self.gamma) * self.std * earlier * (1 - t) / t
        return earlier / t * x + size * draw(), earlier


def _std(prior: Prior, path: ProbabilityPath, geometry: Geometry) -> float | None:
    """Standard deviation of a flow's states at t = 0, where they are Gaussian and its paths are straight."""
    gaussian = isinstance(prior, GaussianPrior) and isinstance(geometry, Euclidean)
    latent = isinstance(prior, LatentNormal) and geometry.flat
    if not (gaussian or latent):
        return None
    assert isinstance(prior, GaussianPrior | LatentNormal)
    if isinstance(path, GeodesicPath):
        return math.hypot(prior.std, path.sigma)
    return prior.std if isinstance(path, ConstantNoisePath) and path.sigma == 0 else None
