r"""Adaptive steps: the embedded pair of Dormand and Prince (1980), of orders 5 and 4, on every geometry.

With :math:`k_i = v(\pi(x + h \sum_j a_{ij} k_j), t + c_i h)` and :math:`\pi` the projection to the flow's states
(:mod:`wsflow.flow.solver`), a step gives

.. math:: x' = \pi\Bigl(x + h \sum_i b_i k_i\Bigr), \quad e = h \sum_i (b_i - \hat b_i) k_i ,

and is taken where the root mean square of :math:`e / (\mathrm{atol} + \mathrm{rtol} \max(|x|, |x'|))` is at most 1;
the next h is :math:`0.9\, |e|^{-1/5}` times this one, between a fifth and five times.  The last stage is the first one
of the next step, so that a step costs six evaluations.  What is carried alongside is held to the same tolerances.

*One implementation.*  Each sample has steps of its own: the error of one is no matter of another, and a sample depends
on its seed and index alone.  General solvers such as torchdiffeq's take one step for a whole batch, by an error
averaged over it, and know no spheres; the tests hold this one against torchdiffeq's in flat space.  The price: a batch
costs as many evaluations as its slowest sample, since all are evaluated until all have arrived.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsflow.flow.solver import Solver, VelocityFn, rates_at, settle
from wsflow.geometry import Geometry

NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES: tuple[tuple[float, ...], ...] = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
FOURTH = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
ERROR = tuple(b - other for b, other in zip((*STAGES[-1], 0.0), FOURTH, strict=True))

SAFETY, LEAST, MOST = 0.9, 0.2, 5.0
FIRST = 0.01
"""The first step tried, in units of what the velocity takes to move a state by its own size."""


class DormandPrince(Solver):
    """Steps as long as tolerances allow, for each sample its own.

    Args:
        rtol: Error that a step may make, relative to the state.
        atol: The same, absolute; per coordinate.
        most: Steps tried between two times of the grid before giving up.

    Raises:
        ValueError: for tolerances that are not positive, and in use where they are not met in so many steps.
    """

    order = 5
    adaptive = True

    def __init__(self, rtol: float = 1e-5, atol: float = 1e-5, most: int = 1000) -> None:
        if not (rtol > 0 and atol > 0 and most >= 1):
            raise ValueError(f"rtol, atol and most must be positive, got {rtol}, {atol} and {most}")
        self.rtol, self.atol, self.most = rtol, atol, most

    def step(
        self,
        velocity: VelocityFn,
        geometry: Geometry,
        x: Tensor,
        t: float,
        dt: float,
        extra: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As many steps as it takes from t to t + dt."""
        if not len(x):
            return x, extra
        end, sign = t + dt, 1.0 if dt > 0 else -1.0
        state, now = _parts(x, extra), torch.full((len(x),), t, dtype=x.dtype, device=x.device)
        first = _parts(*rates_at(velocity, x, now, extra))
        h = self._first(x, first[0]).clamp(FIRST * abs(dt), abs(dt))
        for _ in range(self.most):
            left = (end - now).abs()
            h = torch.minimum(h, left)
            stages = _stages(velocity, geometry, state, now, sign * h, first)
            new = [part + _combined(STAGES[-1], rates, sign * h) for part, rates in zip(state, stages, strict=True)]
            new[0] = settle(geometry, new[0])
            ratio = torch.stack([self._error(*one, h) for one in zip(state, new, stages, strict=True)]).amax(0)
            taken = (ratio <= 1) & (left > 0)
            now = torch.where(taken, torch.where(h >= left, end, now + sign * h), now)
            state = [_where(taken, *pair) for pair in zip(new, state, strict=True)]
            first = [_where(taken, rates[-1], old) for rates, old in zip(stages, first, strict=True)]
            if bool((now == end).all()):
                return state[0], None if extra is None else state[1]
            h = h * (SAFETY * ratio**-0.2).nan_to_num(LEAST).clamp(LEAST, MOST)
        raise ValueError(
            f"{int((now != end).sum())} of {len(x)} samples do not reach t = {end:g} in {self.most} steps: "
            "the velocity changes too fast, or the tolerances are below what its number type can hold; raise them"
        )

    def _first(self, x: Tensor, v: Tensor) -> Tensor:
        """A first step for each sample (B,)."""
        scale = self.atol + self.rtol * x.detach().abs()
        size, speed = ((y.detach() / scale).square().mean(1).sqrt() for y in (x, v))
        return torch.nan_to_num(FIRST * size / speed, nan=FIRST, posinf=1.0)

    def _error(self, before: Tensor, after: Tensor, rates: list[Tensor], h: Tensor) -> Tensor:
        """Error of a step in units of what is allowed, (B,)."""
        scale = self.atol + self.rtol * torch.maximum(before.abs(), after.abs())
        return (_combined(ERROR, rates, h) / scale).detach().square().flatten(1).mean(1).sqrt()


def _parts(x: Tensor, extra: Tensor | None) -> list[Tensor]:
    return [x] if extra is None else [x, extra]


def _stages(
    velocity: VelocityFn, geometry: Geometry, state: list[Tensor], t: Tensor, h: Tensor, first: list[Tensor]
) -> list[list[Tensor]]:
    """For each part of the state its seven rates, of which the first is given; the last is that of the new state."""
    stages, extra = [[rate] for rate in first], state[1] if len(state) > 1 else None
    for node, weights in zip(NODES[1:], STAGES, strict=True):
        y = settle(geometry, state[0] + _combined(weights, stages[0], h))
        for rates, rate in zip(stages, _parts(*rates_at(velocity, y, t + node * h, extra)), strict=True):
            rates.append(rate)
    return stages


def _combined(weights: tuple[float, ...], rates: list[Tensor], h: Tensor) -> Tensor:
    """Step times the weighted sum of rates (B, ...)."""
    terms = [weight * rate for weight, rate in zip(weights, rates, strict=False) if weight]
    return h.view(-1, *[1] * (rates[0].ndim - 1)) * sum(terms[1:], terms[0])


def _where(taken: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(taken.view(-1, *[1] * (new.ndim - 1)), new, old)
