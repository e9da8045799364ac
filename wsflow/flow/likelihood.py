r"""Log-densities of the samples of a flow.

Along a solution of :math:`\dot x = v(x, t)` the log-density changes by minus the divergence
(:mod:`wsflow.flow.divergence`), on spheres as in flat space, so that

.. math:: \log p_1(x_1) = \log p_0(x_0) - \int_0^1 \mathrm{div} \, v(x_t, t) \, dt .

The integral is carried along by the solver: backward from given networks, or forward with samples.  What comes out is
the density of the *solved* flow; its error beside the estimator's is that of the solver, which more steps show.

*Measures.*  A density is one with respect to a volume, which every result names: that of flat weight space or, for
canonical forms, that of the product of spheres and lines, a quotient of weight space.  The two have no common scale and
are not to be compared.  Either way it is the density of neurons in one order; the class of networks that differ in the
order of hidden neurons has :math:`\prod_g n_g!` times as much, where the flow treats neurons alike.

*What has none.*  Samples under noise or guidance follow no flow of one velocity, and those of self-conditioned fields
neither.  ``Normalized`` projects its last states, through a density that would have to be integrated along rays.
Networks decoded from a latent space lie on a subspace of volume zero.  And a prior may have none
(:meth:`wsflow.flow.Prior.log_prob`).

*Endpoint fields* divide by 1 - t.  Their flow is followed between 0 and :math:`1 - \delta`: the density is that of the
law at this time, which is the law of networks drawn towards the prior by :math:`\delta`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsflow.flow.divergence import Hutchinson, Trace, diverging
from wsflow.flow.prior import NoDensityError, Prior
from wsflow.flow.sampler import Sampler
from wsflow.flow.solver import RK4, Counted, VelocityFn, integrate
from wsflow.geometry import Euclidean, Geometric, Geometry

DELTA = 0.01
"""What is left out before a singular end unless another is asked for."""


@dataclass(frozen=True)
class LogDensity:
    """Log-densities of networks.

    Attributes:
        value: (B,), in nats.
        standard_error: (B,), of the estimated divergence; zero for the exact trace.
        measure: What the density is one with respect to.
        evaluations: Of the field, each for all networks of a batch.
    """

    value: Tensor
    standard_error: Tensor
    measure: str
    evaluations: int


class Likelihood:
    """How log-densities are computed.

    Args:
        trace: How divergences are found; :class:`~wsflow.flow.Hutchinson` with 25 probes by default.
        sampler: How the flow is solved; 20 steps of RK4 by default.
        delta: What is left out before t = 1 for fields that predict endpoints, 0.01 by default; other fields are
            followed to the end.

    Attributes:
        end_chosen: Whether a delta was given, which only fields that predict endpoints have a use for.

    Raises:
        ValueError: for a delta out of (0, 1).
        NoDensityError: for a sampler with noise or guidance.
    """

    def __init__(self, trace: Trace | None = None, sampler: Sampler | None = None, delta: float | None = None) -> None:
        if delta is not None and not 0 < delta < 1:
            raise ValueError(f"delta must lie in (0, 1), got {delta}")
        self.trace = trace if trace is not None else Hutchinson()
        self.sampler = sampler if sampler is not None else Sampler(RK4(), 20)
        self.delta = DELTA if delta is None else delta
        self.end_chosen = delta is not None
        if self.sampler.perturbation is not None:
            raise NoDensityError("samples with noise follow no flow and have no density: sample without noise")
        if self.sampler.guidance is not None:
            raise NoDensityError(
                "samples under guidance have no density under the flow: its objective's draws and "
                "second derivatives are no part of it; sample without guidance"
            )

    def times(self, singular_end: bool) -> Tensor:
        """The sampler's times; up to 1 - delta where the end is singular."""
        return self.sampler.times * (1 - self.delta if singular_end else 1.0)

    def log_prob(
        self,
        velocity: VelocityFn,
        geometry: Geometry,
        prior: Prior,
        x: Tensor,
        generators: Sequence[torch.Generator],
        singular_end: bool = False,
    ) -> LogDensity:
        """Log-densities of states at the end.

        Args:
            velocity: The flow's velocity.
            geometry: The space the flow lives in.
            prior: Where it starts.
            x: (B, dim), points of the geometry.
            generators: One for each, the source of its probes.
            singular_end: Whether the velocity must not be evaluated at t = 1.

        Raises:
            NoDensityError: where there is none.
        """
        _check(geometry, prior, x)
        times = self.times(singular_end).flip(0)
        x0, change, evaluations = self._solve(velocity, geometry, x, times, generators)
        return self._result(geometry, prior, x0, -change, evaluations, singular_end)

    def sample(
        self,
        velocity: VelocityFn,
        geometry: Geometry,
        prior: Prior,
        x0: Tensor,
        generators: Sequence[torch.Generator],
        singular_end: bool = False,
    ) -> tuple[Tensor, LogDensity]:
        """States at the end (B, dim) and their log-densities, from states ``x0`` (B, dim) of the prior.

        The other arguments and the errors are those of :meth:`log_prob`.
        """
        _check(geometry, prior, x0)
        x, change, evaluations = self._solve(velocity, geometry, x0, self.times(singular_end), generators)
        return geometry.finish(x), self._result(geometry, prior, x0, change, evaluations, singular_end)

    def trial(
        self, velocity: VelocityFn, geometry: Geometry, x: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """One evaluation with the first few vectors of the trace, (B, dim), to see what it needs."""
        directions = self.trace.directions(x, generators)
        return diverging(velocity, geometry, self.trace, directions, 1)(x, x.new_zeros(len(x)))[0]

    @torch.no_grad()
    def _solve(
        self,
        velocity: VelocityFn,
        geometry: Geometry,
        x: Tensor,
        times: Tensor,
        generators: Sequence[torch.Generator],
    ) -> tuple[Tensor, Tensor, int]:
        """States at the other end, the change of the log-density (B, ...), and evaluations."""
        directions = self.trace.directions(x, generators)
        counted = Counted(diverging(velocity, geometry, self.trace, directions))
        width = self.trace.gathered(x.new_zeros(len(x), sum(len(part) for part in directions()))).shape[1]
        x, change = integrate(counted, geometry, self.sampler.solver, x, times, x.new_zeros(len(x), width))
        assert change is not None
        return x, change, counted.evaluations

    def _result(
        self, geometry: Geometry, prior: Prior, x0: Tensor, change: Tensor, evaluations: int, singular_end: bool
    ) -> LogDensity:
        text = measure(geometry)
        if singular_end:
            text += f"; of the law at t = {1 - self.delta:g}, up to which a field that predicts endpoints is followed"
        gained, error = self.trace.summary(change)
        return LogDensity(prior.log_prob(x0, geometry) + gained, error, text, evaluations)


def _check(geometry: Geometry, prior: Prior, x: Tensor) -> None:
    """Refuse what has no density before anything is computed."""
    measure(geometry)
    prior.log_prob(x, geometry)


def measure(geometry: Geometry) -> str:
    """The volume that densities on a geometry are stated in.

    Raises:
        NoDensityError: where they have none.
    """
    if isinstance(geometry, Euclidean):
        return f"volume of flat weight space of {geometry.dim} dimensions{_orders(geometry)}"
    if isinstance(geometry, Geometric):
        product = geometry.form.product
        spheres = sum(count for count, _ in product.shapes)
        return (
            f"volume of the canonical forms, {spheres} spheres and {product.rest} lines, {geometry.dim - spheres} "
            f"dimensions{_orders(geometry)}"
        )
    if geometry.lossy:
        raise NoDensityError(
            "networks of a latent space lie on a subspace of volume zero and have no density in weight space"
        )
    raise NoDensityError(
        f"samples of {type(geometry).__name__} are projected at the end and have no density in closed form: "
        "use Euclidean or Geometric"
    )


def _orders(geometry: Geometry) -> str:
    """What belongs to all orders of hidden neurons, in words."""
    groups = geometry.space.hidden
    if not groups or any(group.partition is not None for group in groups):
        return ""
    nats = sum(math.lgamma(group.size + 1) for group in groups)
    return f", for one order of hidden neurons (all orders: {nats:+.1f} nats where the flow treats them alike)"
