r"""Guidance: sampling pulled towards low values of an objective of the weights (thesis, section 6.5.1).

For a velocity v, an objective L and a strength :math:`\lambda(t) \ge 0`, samples follow

.. math:: \dot x = v(x, t) - c\bigl(\lambda(t) \, P_x g(x, t)\bigr)

with :math:`P_x` the projection to the tangent space at x and c a bound on the length.  Equation 6.1 of the thesis adds
:math:`+ \lambda \nabla L`, which climbs the loss; the sign that lowers it is minus.  To first order a step of length dt
then changes L by :math:`- \lambda \, dt \, |P_x g|^2`.

Objectives are functions of weights, so every gradient goes through ``geometry.decode``.  With
:math:`D = \mathrm{decode} \circ \mathrm{finish}`, which gives the network that sampling would return for a state,

- :class:`StateGuidance`: :math:`g = \nabla_x L(D(x))`, at the present state;
- :class:`EndpointGuidance`: :math:`g = \nabla_y L(D(y))` at the endpoint that the flow predicts,
  :math:`y = \exp_x((1 - t) v(x, t))`.  Early states are noise, and the gradient there says little of the network that
  they become.  The field is not differentiated.

Either costs one evaluation of the objective with its derivative at each evaluation of the velocity, for all networks at
once.

*Randomness.*  What an objective draws (a mini-batch) comes from each sample's own stream, so that a sample depends on
(seed, index) alone; what it draws for all networks in common comes from ``seed`` of the guidance.  A solver that tries
steps again would tell the noise of mini-batches from the error of a step by chance: it takes objectives that draw
nothing.

*No density.*  Guided samples follow another flow, whose divergence holds second derivatives of L and whose random
mini-batches are no function of the state: their density is refused.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from wsflow.flow.solver import VelocityFn
from wsflow.geometry import Geometry
from wsflow.geometry.base import safe_sqrt
from wsflow.weightspace import Objective
from wsflow.weightspace.randomness import RowGenerator, fork, sample_generator

SHARED = 6
"""Tells the stream that all samples share from those of other uses of a seed."""


class Strength(ABC):
    r""":math:`\lambda(t)`, how much guidance counts at a time."""

    @abstractmethod
    def __call__(self, t: Tensor) -> Tensor:
        """Strengths of times ``t``, elementwise."""


class PowerStrength(Strength):
    r""":math:`\lambda \, t^a (1 - t)^b`: guidance that grows, or fades.

    Args:
        strength: :math:`\lambda`.
        rise: a; 0 for full strength from the beginning.
        fall: b; 0 for full strength to the end.  Above 0 the noise of mini-batches dies out.

    Raises:
        ValueError: for negative numbers.
    """

    def __init__(self, strength: float, rise: float = 0.0, fall: float = 0.0) -> None:
        if not min(strength, rise, fall) >= 0:
            raise ValueError(f"strength, rise and fall must not be negative, got {strength}, {rise} and {fall}")
        self.strength, self.rise, self.fall = strength, rise, fall

    def __call__(self, t: Tensor) -> Tensor:
        """Elementwise."""
        return self.strength * t**self.rise * (1 - t) ** self.fall


class IntervalStrength(Strength):
    r""":math:`\lambda` at times in [begin, end), nothing elsewhere.

    Args:
        strength: :math:`\lambda`.
        begin: The first time.
        end: Where it ends; above 1 for a strength that holds to the end.

    Raises:
        ValueError: for a negative strength or an empty interval.
    """

    def __init__(self, strength: float, begin: float = 0.0, end: float = 2.0) -> None:
        if not strength >= 0 or not begin < end:
            raise ValueError(f"strength must not be negative and begin below end; got {strength}, {begin} and {end}")
        self.strength, self.begin, self.end = strength, begin, end

    def __call__(self, t: Tensor) -> Tensor:
        """Lambda or 0."""
        return self.strength * ((t >= self.begin) & (t < self.end)).to(t)


class Clip(ABC):
    """A bound on the length of what guidance adds."""

    @abstractmethod
    def limit(self, velocity: Tensor) -> Tensor:
        """The longest push (B,) beside velocities of these lengths (B,)."""

    @final
    def __call__(self, geometry: Geometry, x: Tensor, push: Tensor, velocity: Tensor) -> Tensor:
        """Pushes (B, dim) at states ``x`` (B, dim), shortened where they are longer than the limit."""
        length, speed = (safe_sqrt(geometry.inner(x, v, v)) for v in (push, velocity))
        factor = self.limit(speed) / length.clamp_min(torch.finfo(length.dtype).tiny)
        return factor.clamp(max=1.0)[:, None] * push


class NormClip(Clip):
    """At most a given length.

    Args:
        largest: The length.

    Raises:
        ValueError: unless it is positive.
    """

    def __init__(self, largest: float) -> None:
        if not largest > 0:
            raise ValueError(f"largest must be positive, got {largest}")
        self.largest = largest

    def limit(self, velocity: Tensor) -> Tensor:
        """(B,), the same for all."""
        return torch.full_like(velocity, self.largest)


class RelativeClip(Clip):
    """At most so many times as long as the flow's own velocity.

    Args:
        ratio: How many times.

    Raises:
        ValueError: unless it is positive.
    """

    def __init__(self, ratio: float) -> None:
        if not ratio > 0:
            raise ValueError(f"ratio must be positive, got {ratio}")
        self.ratio = ratio

    def limit(self, velocity: Tensor) -> Tensor:
        """(B,)."""
        return self.ratio * velocity


class Guidance(ABC):
    """Adds to a velocity what lowers an objective; a variant says where its gradient is taken.

    Args:
        objective: A function of the weights, lower is better.
        strength: Lambda, a number or one that changes with time.
        clip: A bound on the length of what is added; none by default.
        seed: Of what the objective draws for all networks in common.

    Raises:
        ValueError: for a negative strength or seed.
    """

    def __init__(
        self, objective: Objective, strength: float | Strength = 1.0, clip: Clip | None = None, seed: int = 0
    ) -> None:
        self.objective, self.strength, self.clip, self.seed = objective, strength, clip, seed
        self._schedule = strength if isinstance(strength, Strength) else PowerStrength(float(strength))
        sample_generator(seed, 0, [SHARED])

    @abstractmethod
    def gradient(self, geometry: Geometry, x: Tensor, t: Tensor, velocity: Tensor, draws: RowGenerator) -> Tensor:
        """g, (B, dim), not yet projected.

        Args:
            geometry: The space the flow lives in.
            x: (B, dim), states.
            t: (B,), times.
            velocity: (B, dim), the flow's own.
            draws: Source of the objective's randomness.
        """

    def attach(self, task: Any) -> None:
        """Give an objective that was given no base task of its own this one."""
        self.objective.attach(task)

    @final
    def steer(
        self,
        velocity: VelocityFn,
        geometry: Geometry,
        generators: Sequence[torch.Generator] | None,
        repeatable: bool = False,
    ) -> VelocityFn:
        """The guided velocity, for one solution of the flow.

        Args:
            velocity: The flow's own, which carries nothing alongside.
            geometry: The space the flow lives in.
            generators: One per sample; each is forked.
            repeatable: Whether the velocity must be a function of state and time, for a solver that tries steps again.

        Returns:
            A function of states (B, dim) and times (B,), to be called with the same samples each time.

        Raises:
            ValueError: without generators, and where the objective misses a task; the function's, for a velocity that
                carries a log-density, and for an objective that draws where it must be repeatable.
        """
        if generators is None:
            raise ValueError("guidance needs one generator per sample, the source of what its objective draws")
        draws = self._draws(generators)
        with torch.inference_mode(False):  # what is read for the objective must be fit for derivatives
            self.attach(None)

        looked: list[bool] = []  # at the first step alone

        def guided(x: Tensor, t: Tensor) -> Tensor:
            v = velocity(x, t)
            if not isinstance(v, Tensor):
                raise ValueError("samples under guidance have no density: leave out the guidance or the density")
            if len(x) != len(draws.rows):
                raise ValueError(f"guidance was made for {len(draws.rows)} samples and is asked about {len(x)}")
            before = draws.states() if repeatable else []
            slope = self.gradient(geometry, x, t, v, draws)
            if not looked:
                looked.append(True)
                if not slope.any():
                    warnings.warn("the guidance's objective has no gradient, so that it guides nothing", stacklevel=2)
            push = self._schedule(t)[:, None] * geometry.tangent(x, slope)
            if repeatable and not all(map(torch.equal, before, draws.states())):
                raise ValueError(
                    "the guidance's objective draws at random at each call, such as a mini-batch, and a solver that "
                    "chooses its steps would take that noise for its own error: take an objective that draws nothing "
                    "(TaskLoss with batch_size: null), or Euler, Heun or RK4"
                )
            return v - (push if self.clip is None else self.clip(geometry, x, push, v))

        return guided

    def _draws(self, generators: Sequence[torch.Generator]) -> RowGenerator:
        draws = RowGenerator()
        draws.rows = [fork(generator) for generator in generators]
        draws.common = sample_generator(self.seed, 0, [SHARED])
        draws.manual_seed(draws.common.initial_seed())
        return draws

    def _slope(self, geometry: Geometry, x: Tensor, draws: RowGenerator) -> Tensor:
        """Gradient (B, dim) of the objective of the networks that states ``x`` would end as."""

        def total(state: Tensor) -> Tensor:
            return self.objective(geometry.decode(geometry.finish(state)), draws).sum()

        # autograd.grad has nothing to work with in inference mode, in which predictions run; torch.func.grad has.
        gradient: Tensor = torch.func.grad(total)(x)
        return gradient


class StateGuidance(Guidance):
    """Guidance by the gradient at the present state, as in the thesis.

    Args:
        objective: A function of the weights, lower is better.
        strength: Lambda, a number or one that changes with time.
        clip: A bound on the length of what is added; none by default.
        seed: Of what the objective draws for all networks in common.
    """

    def gradient(self, geometry: Geometry, x: Tensor, t: Tensor, velocity: Tensor, draws: RowGenerator) -> Tensor:
        """At x, (B, dim)."""
        return self._slope(geometry, x, draws)


class EndpointGuidance(Guidance):
    """Guidance by the gradient at the endpoint that the flow predicts.

    Args:
        objective: A function of the weights, lower is better.
        strength: Lambda, a number or one that changes with time.
        clip: A bound on the length of what is added; none by default.
        seed: Of what the objective draws for all networks in common.
    """

    def gradient(self, geometry: Geometry, x: Tensor, t: Tensor, velocity: Tensor, draws: RowGenerator) -> Tensor:
        """At the endpoint, (B, dim)."""
        return self._slope(geometry, geometry.exp(x, (1 - t)[:, None] * velocity), draws)
