"""Generating networks: the flow solved for many at once, in batches that fit a memory limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from wsflow.fields import Conditioning, Parametrization, Request, SelfConditioned, VectorField, follow_request
from wsflow.flow import Coupling, Prior, Sampler, sample_generators, sample_prior, size_mismatch
from wsflow.geometry import Geometry
from wsflow.memory import BatchPlan, limit_bytes, plan_batch

TRIAL_STEPS = 2
"""Solver steps after which memory has seen its peak: every step holds what the first ones hold."""


@dataclass(frozen=True)
class Generation:
    """How networks are generated; each depends on (seed, its index) alone.

    Attributes:
        field: The vector field.
        parametrization: What its output means.
        geometry: The space the flow lives in.
        prior: Where samples start.
        sampler: How the flow is solved.
        seed: Not negative.
        device: Where the field is.
        conditioning: The labels of a flow that has some.
        request: What it is asked for.

    Warns of a request for what no train network was like.

    Raises:
        ValueError: for a self-conditioned field with a solver that chooses its steps.
    """

    field: VectorField
    parametrization: Parametrization
    geometry: Geometry
    prior: Prior
    sampler: Sampler
    seed: int
    device: torch.device
    conditioning: Conditioning | None = None
    request: Request | None = None

    def __post_init__(self) -> None:
        if isinstance(self.field, SelfConditioned) and self.sampler.solver.adaptive:
            raise ValueError(
                f"{type(self.sampler.solver).__name__} tries steps again, but the velocity of a self-conditioned field "
                "depends on what was tried before: use Euler, Heun or RK4"
            )
        if self.conditioning is not None and self.request is not None:
            self.conditioning.warn(self.request)

    @torch.no_grad()
    def __call__(self, indices: Iterable[int], batch_size: int | None = None, memory: str | None = None) -> Tensor:
        """Decoded weights (n, D) on the device; the sampler then says what the batch that needed most evaluated.

        Args:
            indices: Which samples.
            batch_size: Networks solved at once; as many as the memory limit allows by default.
            memory: The limit, such as ``2GiB``; half of the device's free memory by default.

        Raises:
            ValueError: for a negative seed, a batch size below 1 or beside a limit, where one network takes more than
                the limit, and where a generated weight is not finite.
        """
        check_batch(batch_size, memory)
        numbers = torch.as_tensor(list(indices), dtype=torch.long)
        if not len(numbers):
            return torch.empty(0, self.geometry.space.dim, device=self.device)
        if batch_size is None:
            batch_size = self.plan(numbers.tolist(), limit_bytes(memory, self.device)).networks
        parts, spent = [], 0
        with evaluating(self.field):
            for part in torch.split(numbers, batch_size):
                parts.append(self._solve(part.tolist(), self.sampler))
                spent = max(spent, self.sampler.evaluations)
        self.sampler.evaluations = spent * (1 if self.request is None else self.request.evaluations)
        return torch.cat(parts)

    def plan(self, indices: list[int], limit: int) -> BatchPlan:
        """How many networks are solved at once within a limit in bytes, tried on the first few.

        Raises:
            ValueError: where one network takes more than the limit.
        """
        short = self.sampler.trial(TRIAL_STEPS)
        with evaluating(self.field):
            return plan_batch(lambda n: self._solve(indices[:n], short), len(indices), limit, self.device)

    def velocity(self, indices: Sequence[int]) -> Callable[[Tensor, Tensor], Tensor]:
        """The velocity of one solution of the flow for samples with these indices, as requested.

        Raises:
            ValueError: for a request that does not fit the flow.
        """
        parts = (self.field, self.parametrization, self.geometry, self.conditioning, self.request)
        return follow_request(*parts, indices)

    def _solve(self, indices: list[int], sampler: Sampler) -> Tensor:
        x0 = sample_prior(self.prior, self.geometry, self.seed, indices).to(self.device)
        generators = sample_generators(self.seed, indices)
        x = sampler(self.velocity(indices), self.geometry, x0, generators, self.parametrization.singular_end)
        theta = self.geometry.decode(x)
        finite = theta.isfinite().all(1)
        if not finite.all():
            bad = indices[int(finite.logical_not().nonzero()[0])]
            text = f"sample {bad} (seed {self.seed}) has weights that are not finite: the field diverges there"
            raise ValueError(text)
        return theta


def check_batch(batch_size: int | None, memory: str | None) -> None:
    """Raise ValueError for a batch size below 1, or both a batch size and a memory limit."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if batch_size is not None and memory is not None:
        raise ValueError(f"batch_size {batch_size} and the memory limit {memory} exclude each other; give one of them")


def compare_with_prior(
    prior: Prior, coupling: Coupling, geometry: Geometry, x0: Tensor, generator: torch.Generator
) -> None:
    """Warn where the starts ``x0`` (B, dim) of training's pairs are of another size than those of sampling."""
    found = size_mismatch(geometry, x0, prior.sample(len(x0), geometry, generator).to(x0))
    if found is not None:
        rank_zero_warn(
            f"training starts where sampling does not: {type(coupling).__name__} gives starts whose "
            f"{found[0]} is {found[1]:.2f} times the size of what {type(prior).__name__} draws; "
            "give the prior the law of the zoo's initial weights",
            category=UserWarning,
        )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
