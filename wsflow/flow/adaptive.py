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

from wsflow.flow.solver import Rates, Solver, VelocityFn, rates_at, settle
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
        end, sign = t + dt, 1.0 if dt > 0 else -1.0
        now = torch.full((len(x),), t, dtype=x.dtype, device=x.device)
        first = rates_at(velocity, x, now, extra)
        h = self._first(x, first[0]).clamp(FIRST * abs(dt), abs(dt))
        for _ in range(self.most):
            left = (end - now).abs()
            h = torch.minimum(h, left)
            stages = _stages(velocity, geometry, x, now, sign * h, first, extra)
            new = settle(geometry, x + _combined(STAGES[-1], [v for v, _ in stages], sign * h))
            ratio = self._error(x, new, [v for v, _ in stages], h)
            carried = extra
            if extra is not None:
                rates = [rate for _, rate in stages if rate is not None]
                carried = extra + _combined(STAGES[-1], rates, sign * h)
                ratio = torch.maximum(ratio, self._error(extra, carried, rates, h))
            taken = (ratio <= 1) & (left > 0)
            now = torch.where(taken, torch.where(h >= left, end, now + sign * h), now)
            x, first = (
                _where(taken, new, x),
                (
                    _where(taken, stages[-1][0], first[0]),
                    None if first[1] is None or stages[-1][1] is None else _where(taken, stages[-1][1], first[1]),
                ),
            )
            extra = extra if extra is None or carried is None else _where(taken, carried, extra)
            if bool((now == end).all()):
                return x, extra
            h = h * (SAFETY * ratio.detach() ** -0.2).nan_to_num(LEAST).clamp(LEAST, MOST)
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
        if not before[0].numel():
            return torch.zeros_like(h)
        scale = self.atol + self.rtol * torch.maximum(before.abs(), after.abs())
        return (_combined(ERROR, rates, h) / scale).detach().square().flatten(1).mean(1).sqrt()


def _stages(
    velocity: VelocityFn,
    geometry: Geometry,
    x: Tensor,
    t: Tensor,
    h: Tensor,
    first: Rates,
    extra: Tensor | None,
) -> list[Rates]:
    """All seven, of which the first is given; the last is that of the new state."""
    stages = [first]
    for node, weights in zip(NODES[1:], STAGES, strict=True):
        y = settle(geometry, x + _combined(weights, [v for v, _ in stages], h))
        stages.append(rates_at(velocity, y, t + node * h, extra))
    return stages


def _combined(weights: tuple[float, ...], rates: list[Tensor], h: Tensor) -> Tensor:
    """H times the weighted sum of rates (B, ...)."""
    total = torch.zeros_like(rates[0])
    for weight, rate in zip(weights, rates, strict=False):
        total = total + weight * rate
    return h.view(-1, *[1] * (total.ndim - 1)) * total


def _where(taken: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(taken.view(-1, *[1] * (new.ndim - 1)), new, old)
