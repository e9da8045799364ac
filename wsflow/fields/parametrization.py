r"""What a field's output means, and the loss that follows.

Let :math:`f` be the field's output at :math:`(x_t, t)`, :math:`P_x` the projection to the tangent space at x and
:math:`\log_x` the logarithmic map (on a flat space :math:`P_x v = v` and :math:`\log_x y = y - x`).

*Endpoint prediction.*  The field predicts :math:`x_1`:

.. math:: w = P_{x_t}(f - x_t), \quad v = \frac{w}{1 - t}, \quad
          L = \lVert w - \log_{x_t} x_1 \rVert^2 .

The velocity comes from the *current* state, not from :math:`f - x_0`: Euler steps with the latter return the time
average of all predictions, which is far too narrow.  And the loss is taken in the tangent space: regressing an ambient
:math:`x_1` on a sphere and projecting the result is biased against minority modes.

*Velocity prediction.*  :math:`v = P_{x_t} f` and :math:`L = \lVert v - u_t \rVert^2`.

Either output predicts an endpoint: :math:`\hat x_1 = \exp_{x_t}(w)`, or :math:`\exp_{x_t}((1 - t) v)`.

The squared norm of a residual is a plain sum of squares over coordinates for every geometry of wsflow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor

from wsflow.geometry import Geometry


class ConditionalSample(Protocol):
    """What a parametrization reads of a :class:`wsflow.flow.PathSample`."""

    @property
    def x1(self) -> Tensor:
        """(B, dim), endpoints."""

    @property
    def t(self) -> Tensor:
        """(B,), times."""

    @property
    def x_t(self) -> Tensor:
        """(B, dim), states on the path."""

    @property
    def u_t(self) -> Tensor:
        """(B, dim), velocities of the path."""


class Parametrization(ABC):
    """How the velocity and the loss follow from a field's output.

    Attributes:
        singular_end: Whether :meth:`velocity` divides by 1 - t, so that it must not be evaluated at t = 1.
    """

    singular_end: bool

    @abstractmethod
    def velocity(self, output: Tensor, geometry: Geometry, x: Tensor, t: Tensor) -> Tensor:
        """Velocity of the flow.

        Args:
            output: (B, dim), the field's output at ``x`` and ``t``.
            geometry: The space the flow lives in.
            x: (B, dim), states.
            t: (B,), times; below 1 where ``singular_end``.

        Returns:
            (B, dim), tangent at ``x``.
        """

    def endpoint(self, output: Tensor, geometry: Geometry, x: Tensor, t: Tensor) -> Tensor:
        """The state at t = 1 that the output predicts: where the velocity leads if it is kept to.

        Args:
            output: (B, dim), the field's output at ``x`` and ``t``.
            geometry: The space the flow lives in.
            x: (B, dim), states.
            t: (B,), times.

        Returns:
            (B, dim); on spheres a point of the geometry, for ``Normalized`` one of the flat space around it.
        """
        return geometry.exp(x, (1 - t)[:, None] * self.velocity(output, geometry, x, t))

    @abstractmethod
    def residual(self, output: Tensor, geometry: Geometry, sample: ConditionalSample) -> Tensor:
        """(B, dim), tangent at ``sample.x_t``; its squared norm is the loss."""

    @abstractmethod
    def target(self, geometry: Geometry, sample: ConditionalSample) -> Tensor:
        """(B, dim), outputs with zero residual; what a field is calibrated to."""


class Endpoint(Parametrization):
    """The field predicts the endpoint x1.

    Args:
        project: Project every prediction to the geometry before the velocity is taken, as the thesis does.  Biased,
            since the mean of points on a sphere lies inside it; off by default, and without effect on a flat space.
    """

    singular_end = True

    def __init__(self, project: bool = False) -> None:
        self.project = project

    def velocity(self, output: Tensor, geometry: Geometry, x: Tensor, t: Tensor) -> Tensor:
        """(B, dim), the step to the predicted endpoint over the time that is left."""
        return self._step(output, geometry, x) / (1 - t)[:, None]

    def endpoint(self, output: Tensor, geometry: Geometry, x: Tensor, t: Tensor) -> Tensor:
        """(B, dim), where the predicted step leads; with no division by the time that is left."""
        return geometry.exp(x, self._step(output, geometry, x))

    def residual(self, output: Tensor, geometry: Geometry, sample: ConditionalSample) -> Tensor:
        """(B, dim), predicted minus true step to the endpoint."""
        return self._step(output, geometry, sample.x_t) - geometry.log(sample.x_t, sample.x1)

    def target(self, geometry: Geometry, sample: ConditionalSample) -> Tensor:
        """(B, dim), x1 on a flat space; on a sphere the point of the tangent plane that stands for it."""
        if self.project:
            return sample.x1
        return sample.x_t + geometry.log(sample.x_t, sample.x1)

    def _step(self, output: Tensor, geometry: Geometry, x: Tensor) -> Tensor:
        if self.project:
            return geometry.log(x, geometry.project(output))
        return geometry.tangent(x, output - x)


class Velocity(Parametrization):
    """The field predicts the velocity; nothing is singular at t = 1."""

    singular_end = False

    def velocity(self, output: Tensor, geometry: Geometry, x: Tensor, t: Tensor) -> Tensor:
        """(B, dim), the output's tangent part."""
        return geometry.tangent(x, output)

    def residual(self, output: Tensor, geometry: Geometry, sample: ConditionalSample) -> Tensor:
        """(B, dim), predicted minus true velocity."""
        return geometry.tangent(sample.x_t, output) - sample.u_t

    def target(self, geometry: Geometry, sample: ConditionalSample) -> Tensor:
        """(B, dim), the path's velocity."""
        return sample.u_t
