r"""From prior states to generated ones: how the flow is solved at sampling time.

These settings are no part of a trained model; the same checkpoint is sampled with many of them: a solver
(:mod:`wsflow.flow.solver`), a grid of times (:mod:`wsflow.flow.grid`), and noise (:mod:`wsflow.flow.noise`).

A solver that chooses its steps by tolerances needs no grid; where there is noise, it is added at the grid's times.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wsflow.flow.coupling import Coupling
from wsflow.flow.grid import PowerGrid, TimeGrid, UniformGrid
from wsflow.flow.guidance import Guidance
from wsflow.flow.noise import AddedNoise, Noise
from wsflow.flow.path import ProbabilityPath
from wsflow.flow.prior import Prior
from wsflow.flow.solver import Counted, Euler, Solver, VelocityFn, integrate
from wsflow.geometry import Geometry
from wsflow.weightspace.randomness import fork

TRIAL = 1e-2
"""How far a trial goes with a solver that chooses its steps."""


class Sampler:
    """Solves the flow from t = 0 to t = 1.

    Args:
        solver: The method; None for :class:`Euler`.
        steps: Number of steps (the grid has one point more).
        noise: What is done to states before every step; a number is the standard deviation of :class:`AddedNoise`.
        power: Short for ``grid=PowerGrid(power)``: 1 for equal steps, above 1 for smaller ones at early times.
        guidance: What is added to the velocity, to lower an objective; nothing by default.
        grid: The times of the steps; equal steps by default.

    Raises:
        ValueError: for fewer than one step, negative noise, a power that is not positive, a power beside a grid, and
            either of them for a solver that chooses its steps, where there is no noise to add at these times.
    """

    def __init__(
        self,
        solver: Solver | None = None,
        steps: int = 16,
        noise: float | Noise = 0.0,
        power: float = 1.0,
        guidance: Guidance | None = None,
        grid: TimeGrid | None = None,
    ) -> None:
        if steps < 1 or (not isinstance(noise, Noise) and not noise >= 0) or not power > 0:
            raise ValueError(
                f"steps must be at least 1, noise not negative and power positive; got {steps}, {noise} and {power}"
            )
        if grid is not None and power != 1:
            raise ValueError(f"a power of {power} and {type(grid).__name__} exclude each other; give one of them")
        self.solver = solver if solver is not None else Euler()
        self.steps = steps if grid is None else len(grid.times(steps)) - 1  # a list of times says how many there are
        self.noise = noise
        self.power = power
        self.guidance = guidance
        self.grid = grid
        if self.solver.adaptive and self.perturbation is None and (grid is not None or power != 1):
            given = f"power {power}" if grid is None else type(grid).__name__
            raise ValueError(f"{type(self.solver).__name__} chooses its own steps: leave {given} out, or add noise")
        self._spent = [0]  # a list, which copies for one flow share
        self._part: Tensor | None = None

    @property
    def evaluations(self) -> int:
        """Evaluations of the field by the last call, for each of its samples; of several batches the most."""
        return self._spent[0]

    @evaluations.setter
    def evaluations(self, count: int) -> None:
        self._spent[0] = count

    @property
    def perturbation(self) -> Noise | None:
        """The noise, None where there is none."""
        if isinstance(self.noise, Noise):
            return self.noise
        return AddedNoise(self.noise) if self.noise > 0 else None

    @property
    def times(self) -> Tensor:
        """The times of the steps, (steps + 1,); from 0 to 1 at once for a solver that chooses its own."""
        if self._part is not None:
            return self._part
        if self.solver.adaptive and self.perturbation is None:
            return UniformGrid().times(1)
        grid = self.grid or (UniformGrid() if self.power == 1 else PowerGrid(self.power))
        return grid.times(self.steps)

    def for_flow(self, prior: Prior, coupling: Coupling, path: ProbabilityPath, geometry: Geometry) -> Sampler:
        """This sampler for one flow, which noise may have to know.

        Raises:
            ValueError: where the noise does not go with such a flow.
        """
        mine = copy.copy(self)
        if isinstance(self.noise, Noise):
            mine.noise = self.noise.for_flow(prior, coupling, path, geometry)
        return mine

    def trial(self, steps: int) -> Sampler:
        """This sampler for the first few steps alone, to see what they need."""
        mine = copy.copy(self)
        mine.steps = min(steps, self.steps)
        mine._part = torch.tensor([0, TRIAL]).double() if self.solver.adaptive else self.times[: steps + 1]
        return mine

    @torch.no_grad()
    def __call__(
        self,
        velocity: VelocityFn,
        geometry: Geometry,
        x0: Tensor,
        generators: Sequence[torch.Generator] | None = None,
        singular_end: bool = False,
    ) -> Tensor:
        """Generated states.

        Args:
            velocity: The flow's velocity.
            geometry: The space the flow lives in.
            x0: (n, dim), states of the prior.
            generators: One per sample, the source of its noise and of what guidance draws; only needed with these.
                Each is forked, so it may be another copy of the one that drew the sample's ``x0``.
            singular_end: Whether the velocity must not be evaluated at t = 1
                (:attr:`wsflow.fields.Parametrization.singular_end`).

        Returns:
            (n, dim), finished by ``geometry.finish``; ready to decode.

        Raises:
            ValueError: where there is noise or guidance but not one generator per sample, and for a solver that chooses
                its steps with guidance whose objective draws mini-batches.
        """
        counted = Counted(velocity)
        perturb = self._perturb(geometry, x0, generators)
        steered: VelocityFn = counted
        if self.guidance is not None:
            steered = self.guidance.steer(counted, geometry, generators, repeatable=self.solver.adaptive)
        x, _ = integrate(steered, geometry, self.solver, x0, self.times, None, singular_end, perturb)
        self.evaluations = counted.evaluations
        return geometry.finish(x)

    def _perturb(
        self, geometry: Geometry, x0: Tensor, generators: Sequence[torch.Generator] | None
    ) -> Callable[[Tensor, float], tuple[Tensor, float]] | None:
        noise = self.perturbation
        if noise is None:
            return None
        if generators is None or len(generators) != len(x0):
            given = "none" if generators is None else str(len(generators))
            raise ValueError(f"noise > 0 needs one generator for each of the {len(x0)} samples, got {given}")
        streams = [fork(generator) for generator in generators]

        def draw() -> Tensor:
            rows = [torch.randn(x0.shape[1:], generator=stream, dtype=x0.dtype) for stream in streams]
            return torch.stack(rows).to(x0.device)

        return lambda x, t: noise(geometry, x, t, draw)
