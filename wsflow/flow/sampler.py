r"""From prior states to generated ones: how the flow is solved at sampling time.

These settings are no part of a trained model; the same checkpoint is sampled with many of them.

*Time grid.*  Step k of K goes from :math:`(k / K)^p` to :math:`((k + 1) / K)^p`.  A flow that pairs a start with its
own trained network decides near t = 0 what becomes of a start, and changes fast there: with p = 3, 16 steps solved the
flow of 784-10-10 more exactly than 32 equal ones (docs/results.md).

*Stochastic sampling* (thesis, section 6.5) adds tangent noise before every step,
:math:`x \leftarrow \exp_x(\varepsilon P_x z)` with z standard normal, and none after the last.  Such samples have no
density under the flow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wsflow.flow.solver import Euler, Solver, VelocityFn, integrate
from wsflow.geometry import Geometry
from wsflow.weightspace.randomness import fork


class Sampler:
    """Solves the flow from t = 0 to t = 1.

    Args:
        solver: The method; None for :class:`Euler`.
        steps: Number of steps (the grid has one point more).
        noise: Standard deviation, per coordinate, of what is added before every step.
        power: p of the time grid; 1 for equal steps, above 1 for smaller ones at early times.

    Raises:
        ValueError: for fewer than one step, negative noise or a power that is not positive.
    """

    def __init__(self, solver: Solver | None = None, steps: int = 16, noise: float = 0.0, power: float = 1.0) -> None:
        if steps < 1 or not noise >= 0 or not power > 0:
            raise ValueError(
                f"steps must be at least 1, noise not negative and power positive; got {steps}, {noise} and {power}"
            )
        self.solver = solver if solver is not None else Euler()
        self.steps = steps
        self.noise = noise
        self.power = power

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
            generators: One per sample, the source of its noise; only needed with noise.  Each is forked, so it may be
                another copy of the one that drew the sample's ``x0``.
            singular_end: Whether the velocity must not be evaluated at t = 1
                (:attr:`wsflow.fields.Parametrization.singular_end`).

        Returns:
            (n, dim), finished by ``geometry.finish``; ready to decode.

        Raises:
            ValueError: where there is noise but not one generator per sample.
        """
        times = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64) ** self.power
        perturb = self._perturb(geometry, x0, generators) if self.noise > 0 else None
        x, _ = integrate(velocity, geometry, self.solver, x0, times, None, singular_end, perturb)
        return geometry.finish(x)

    def _perturb(
        self, geometry: Geometry, x0: Tensor, generators: Sequence[torch.Generator] | None
    ) -> Callable[[Tensor], Tensor]:
        if generators is None or len(generators) != len(x0):
            given = "none" if generators is None else str(len(generators))
            raise ValueError(f"noise > 0 needs one generator for each of the {len(x0)} samples, got {given}")
        streams = [fork(generator) for generator in generators]

        def perturb(x: Tensor) -> Tensor:
            z = torch.stack([torch.randn(x.shape[1:], generator=stream, dtype=x.dtype) for stream in streams])
            return geometry.exp(x, geometry.tangent(x, self.noise * z.to(x.device)))

        return perturb
