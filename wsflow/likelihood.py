"""Log-densities of networks under a trained flow, in batches that fit a memory limit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wsflow.fields import Request, SelfConditioned
from wsflow.flow import Likelihood, LogDensity, NoDensityError, sample_generators, sample_prior
from wsflow.memory import BatchPlan, limit_bytes, plan_batch
from wsflow.sampling import Generation, check_batch, evaluating
from wsflow.weightspace.transfer import send

PROBES = 1
"""Tells the streams of probes from those that samples start from."""


@dataclass(frozen=True)
class Densities:
    """Log-densities under one flow; each depends on its network and on (seed, its place) alone.

    Attributes:
        generation: The flow, and how it is solved.
        likelihood: How densities are computed; its sampler is the one that counts.

    Raises:
        NoDensityError: for a self-conditioned field.
        ValueError: for a delta that the flow's field has no use for.
    """

    generation: Generation
    likelihood: Likelihood

    def __post_init__(self) -> None:
        if isinstance(self.generation.field, SelfConditioned):
            raise NoDensityError(
                "samples of a self-conditioned field follow no one vector field, since its velocity depends on the "
                "steps before, and have no density; train a flow without self-conditioning"
            )
        if self.likelihood.end_chosen and not self._singular:
            name = type(self.generation.parametrization).__name__
            raise ValueError(
                f"a delta of {self.likelihood.delta:g} changes nothing for {name} fields, which are followed to t = 1: "
                "leave it out"
            )

    @torch.no_grad()
    def of(self, theta: Tensor, batch_size: int | None = None, memory: str | None = None) -> LogDensity:
        """Log-densities of networks (n, D).

        Args:
            theta: The networks; they take the number type of the flow.
            batch_size: Networks at once; as many as the memory limit allows by default.
            memory: The limit, such as ``2GiB``; half of the device's free memory by default.

        Raises:
            NoDensityError: where there is none; the message says why.
            ValueError: for networks that do not fit, a batch size below 1 or beside a limit, and where a result is not
                finite.
        """
        flow, solve = self.generation, self.likelihood.log_prob
        _refuse_misfit(theta, flow.geometry.space.dim)
        x = flow.geometry.encode(send(theta, flow.field.input_scale))
        densities = [
            solve(flow.velocity(part), flow.geometry, flow.prior, x[part], self._probes(part), self._singular)
            for part in self._parts(range(len(x)), x, batch_size, memory)
        ]
        return _joined(densities, flow.request)

    @torch.no_grad()
    def sample(
        self, indices: Iterable[int], batch_size: int | None = None, memory: str | None = None
    ) -> tuple[Tensor, LogDensity]:
        """Samples (n, D) with these indices, and their log-densities; other arguments and errors as for :meth:`of`."""
        flow, numbers = self.generation, list(indices)
        x0 = sample_prior(flow.prior, flow.geometry, flow.seed, numbers).to(flow.device)
        states, densities = [], []
        for part in self._parts(numbers, x0, batch_size, memory):
            mine, solve = [numbers[i] for i in part], self.likelihood.sample
            arguments = (flow.geometry, flow.prior, x0[part], self._probes(mine), self._singular)
            x, density = solve(flow.velocity(mine), *arguments)
            states.append(x)
            densities.append(density)
        return flow.geometry.decode(torch.cat(states)), _joined(densities, flow.request)

    def plan(self, x: Tensor, limit: int) -> BatchPlan:
        """How many networks fit at once, tried on the first states ``x`` (n, dim).

        Raises:
            ValueError: where one network takes more than the limit.
        """

        def trial(n: int) -> Tensor:
            return self.likelihood.trial(flow.velocity(range(n)), flow.geometry, x[:n], self._probes(range(n)))

        flow = self.generation
        return plan_batch(trial, len(x), limit, flow.device)

    def _parts(
        self, numbers: Sequence[int], x: Tensor, batch_size: int | None, memory: str | None
    ) -> Iterable[list[int]]:
        """Places of the networks of each batch, in evaluation mode."""
        check_batch(batch_size, memory)
        if not len(numbers):
            raise ValueError("there are no networks to compute densities of")
        with evaluating(self.generation.field):
            if batch_size is None:
                batch_size = self.plan(x, limit_bytes(memory, self.generation.device)).networks
            for part in torch.split(torch.arange(len(numbers)), batch_size):
                yield part.tolist()

    @property
    def _singular(self) -> bool:
        return self.generation.parametrization.singular_end

    def _probes(self, numbers: Sequence[int]) -> list[torch.Generator]:
        return sample_generators(self.generation.seed, numbers, [PROBES])


def _refuse_misfit(theta: Tensor, dim: int) -> None:
    if theta.ndim != 2 or theta.shape[1] != dim:
        shape = tuple(theta.shape)
        raise ValueError(f"densities are of weights (n, {dim}), without running statistics; these have shape {shape}")


def _joined(parts: Sequence[LogDensity], request: Request | None) -> LogDensity:
    """Results of several batches as one; evaluations are the field's in the batch that needed most.

    Raises:
        ValueError: where one is not finite.
    """
    value, error = (torch.cat([getattr(part, name) for part in parts]) for name in ("value", "standard_error"))
    bad = (~(value.isfinite() & error.isfinite())).nonzero()[:, 0].tolist()
    if bad:
        raise ValueError(f"the log-density of network {bad[0]} is not finite: the field diverges on its way")
    most = max(part.evaluations for part in parts) * (1 if request is None else request.evaluations)
    return replace(parts[0], value=value, standard_error=error, evaluations=most)
