r"""Solvers of :math:`\dot x = v(x, t)` on a geometry.

*Euler* follows geodesics: :math:`x' = \exp_x(h v(x, t))`.

*Heun* and *RK4* are the flat schemes applied to the field :math:`v(\pi(x), t)` on the ambient space, with
:math:`\pi` the projection to the flow's states, and project once at the end of the step.  They keep their orders,
2 and 4, on spheres; adding stage vectors of different tangent spaces drops RK4 to order 2.  With p the point of the
geometry nearest to x,

.. math:: \pi(x) = p + P_p(x - p) .

On spheres the second term vanishes.  Where flows may leave the geometry (Normalized, whose tangent spaces are the whole
space) it undoes the projection, and :math:`\pi(x) = x`.

Alongside the state a solver carries ``extra``, integrated from rates that the velocity returns as its second value
(a log-determinant, say).  :func:`integrate` is the only loop; it runs in both directions of time.

*Singular ends.*  Where the velocity divides by 1 - t, it must not be evaluated at t = 1.  The step that ends at 1 is
then an Euler step, which only evaluates its beginning.  That step's error is of second order in its size.  A method
that chooses its steps itself (:mod:`wsflow.flow.adaptive`) goes to :data:`LAST` before the end, and takes that step
from there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from wsflow.geometry import Geometry

VelocityFn = Callable[[Tensor, Tensor], "Tensor | tuple[Tensor, Tensor]"]
"""(x (B, dim), t (B,)) -> v (B, dim) or, where extra is carried, (v, rate of extra)."""

Rates = tuple[Tensor, "Tensor | None"]

LAST = 1e-3
"""Length of the step to a singular end, for methods that choose their steps."""


class Counted:
    """A velocity that counts how often it is evaluated.

    Args:
        velocity: The velocity.

    Attributes:
        evaluations: Calls so far, each for all samples at once.
    """

    def __init__(self, velocity: VelocityFn) -> None:
        self.evaluations = 0
        self._velocity = velocity

    def __call__(self, x: Tensor, t: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """What the velocity gives."""
        self.evaluations += 1
        return self._velocity(x, t)


class Solver(ABC):
    """One step of a method.

    Attributes:
        order: The global error falls as the step to this power.
        adaptive: Whether the method chooses its steps between the times of a grid.
    """

    order: int
    adaptive: ClassVar[bool] = False

    @abstractmethod
    def step(
        self,
        velocity: VelocityFn,
        geometry: Geometry,
        x: Tensor,
        t: float,
        dt: float,
        extra: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Advance from time t to t + dt.

        Args:
            velocity: Tangent vectors at states and times; with ``extra``, also its rates.
            geometry: The space the states live in.
            x: (B, dim), states.
            t: The present time.
            dt: The step, negative backward in time.
            extra: (B, ...), what is integrated alongside, or None.

        Returns:
            New states and new extra.
        """


class Euler(Solver):
    """Geodesic Euler steps; one evaluation each."""

    order = 1

    def step(
        self,
        velocity: VelocityFn,
        geometry: Geometry,
        x: Tensor,
        t: float,
        dt: float,
        extra: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """One evaluation, one geodesic."""
        v, rate = _rates(velocity, x, t, extra)
        return geometry.exp(x, dt * v), _add(extra, dt, rate)


class Heun(Solver):
    """Heun's method: the mean of the velocities at both ends of an Euler step; two evaluations."""

    order = 2

    def step(
        self,
        velocity: VelocityFn,
        geometry: Geometry,
        x: Tensor,
        t: float,
        dt: float,
        extra: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Predict, then correct."""
        k1, r1 = _rates(velocity, x, t, extra)
        k2, r2 = _rates(velocity, settle(geometry, x + dt * k1), t + dt, extra)
        x = settle(geometry, x + dt / 2 * (k1 + k2))
        return x, _add(_add(extra, dt / 2, r1), dt / 2, r2)


class RK4(Solver):
    """The classical Runge-Kutta method; four evaluations."""

    order = 4

    def step(
        self,
        velocity: VelocityFn,
        geometry: Geometry,
        x: Tensor,
        t: float,
        dt: float,
        extra: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Four stages, weighted 1, 2, 2, 1."""
        stages: list[Rates] = [_rates(velocity, x, t, extra)]
        for part in (dt / 2, dt / 2, dt):
            y = settle(geometry, x + part * stages[-1][0])
            stages.append(_rates(velocity, y, t + part, extra))
        for weight, (v, rate) in zip((1, 2, 2, 1), stages, strict=True):
            x = x + weight * dt / 6 * v
            extra = _add(extra, weight * dt / 6, rate)
        return settle(geometry, x), extra


def integrate(
    velocity: VelocityFn,
    geometry: Geometry,
    solver: Solver,
    x: Tensor,
    times: Tensor,
    extra: Tensor | None = None,
    singular_end: bool = False,
    before_step: Callable[[Tensor, float], tuple[Tensor, float]] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Solve the flow's equation along a grid of times.

    Args:
        velocity: Tangent vectors at states and times; with ``extra``, also its rates.
        geometry: The space the states live in.
        solver: The method.
        x: (B, dim), states at ``times[0]``.
        times: (n + 1,), strictly increasing or decreasing; n steps.
        extra: (B, ...), what is integrated alongside, or None.
        singular_end: Whether the velocity must not be evaluated at t = 1.
        before_step: From the state and time before every step of the grid to those that it starts from, such as the
            noise of stochastic sampling.

    Returns:
        States and extra at ``times[-1]``.

    Raises:
        ValueError: for times that are no monotone grid, or that start at a singular end.
    """
    grid = _grid(times)
    begins = frozenset(grid)
    if singular_end and grid[0] >= 1:
        raise ValueError("the velocity is singular at t = 1: start a backward integration at some 1 - delta instead")
    if singular_end and solver.adaptive and grid[-1] >= 1 and grid[-2] < 1 - LAST:
        grid.insert(-1, 1 - LAST)
    for t, end in pairwise(grid):
        if before_step is not None and t in begins:
            x, t = before_step(x, t)
        method = Euler() if singular_end and end >= 1 else solver
        x, extra = method.step(velocity, geometry, x, t, end - t, extra)
    return x, extra


def settle(geometry: Geometry, x: Tensor) -> Tensor:
    """The flow's state nearest to each ``x`` (B, dim)."""
    nearest = geometry.project(x)
    return nearest + geometry.tangent(nearest, x - nearest)


def _grid(times: Tensor) -> list[float]:
    steps = times.diff() if times.ndim == 1 else times
    if times.ndim != 1 or len(times) < 2 or not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError(f"times must be a strictly monotone grid of at least two points, got {times}")
    grid: list[float] = times.tolist()
    return grid


def _rates(velocity: VelocityFn, x: Tensor, t: float, extra: Tensor | None) -> Rates:
    return rates_at(velocity, x, torch.full((1,), t, dtype=x.dtype, device=x.device).expand(len(x)), extra)


def rates_at(velocity: VelocityFn, x: Tensor, t: Tensor, extra: Tensor | None) -> Rates:
    """Velocity and, where extra is carried, its rate, at states (B, dim) and times (B,).

    Raises:
        ValueError: where only one of rate and extra is there.
    """
    rates = velocity(x, t)
    if isinstance(rates, Tensor) != (extra is None):
        raise ValueError("a velocity returns (v, rate) where extra is carried and v alone where it is not")
    return (rates, None) if isinstance(rates, Tensor) else rates


def _add(extra: Tensor | None, weight: float, rate: Tensor | None) -> Tensor | None:
    return extra if extra is None or rate is None else extra + weight * rate
