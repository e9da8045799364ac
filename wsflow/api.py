"""Trained flows in Python.

::

    flow = wsflow.load("runs/breast_cancer/checkpoints/last.ckpt")
    theta = flow.sample(100, seed=0)  # (100, D)
    network = flow.weight_space.to_module(theta[0])  # a ready nn.Module
"""

from __future__ import annotations

import warnings
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from wsflow.fields import Request
from wsflow.flow import Likelihood, LogDensity, Prior, Sampler, Trace
from wsflow.likelihood import Densities
from wsflow.module import FlowMatchingModule
from wsflow.tasks import BaseTask
from wsflow.weightspace import WeightSpace


class Flow:
    """A trained flow, ready to sample; made by :func:`load`.

    Attributes:
        module: The LightningModule, in eval mode, with averaged weights where training kept an average.
        data: How the data module of its training was made, plain data; None where that is not known.
    """

    def __init__(self, module: FlowMatchingModule, checkpoint: dict[str, Any]) -> None:
        self.module = module.eval()
        self.data: dict[str, Any] | None = checkpoint.get("data")
        self.seen_starts: list[str] | None = checkpoint.get("seen_starts")

    @cached_property
    def task(self) -> BaseTask | None:
        """The base task of its training; None where the checkpoint does not say.

        Raises:
            ValueError: where the task cannot be built.
        """
        description = (self.data or {}).get("init_args", {}).get("task")
        return BaseTask.from_description(description) if description else None

    @property
    def weight_space(self) -> WeightSpace:
        """The weight space of the generated networks."""
        return self.module.space

    @overload
    def sample(
        self,
        n: int,
        seed: int = 0,
        sampler: Sampler | None = None,
        batch_size: int | None = None,
        first: int = 0,
        prior: Prior | None = None,
        memory: str | None = None,
        with_log_prob: Literal[False] = False,
        trace: Trace | None = None,
        delta: float | None = None,
        request: Request | None = None,
    ) -> Tensor: ...

    @overload
    def sample(
        self,
        n: int,
        seed: int = 0,
        sampler: Sampler | None = None,
        batch_size: int | None = None,
        first: int = 0,
        prior: Prior | None = None,
        memory: str | None = None,
        *,
        with_log_prob: Literal[True],
        trace: Trace | None = None,
        delta: float | None = None,
        request: Request | None = None,
    ) -> tuple[Tensor, LogDensity]: ...

    def sample(
        self,
        n: int,
        seed: int = 0,
        sampler: Sampler | None = None,
        batch_size: int | None = None,
        first: int = 0,
        prior: Prior | None = None,
        memory: str | None = None,
        with_log_prob: bool = False,
        trace: Trace | None = None,
        delta: float | None = None,
        request: Request | None = None,
    ) -> Tensor | tuple[Tensor, LogDensity]:
        """Generated networks, (n, D); the i-th depends on (seed, first + i) alone.

        Args:
            n: How many.
            seed: Not negative.
            sampler: How the flow is solved; 16 Euler steps by default.  Guidance without a task of its own gets the
                flow's.
            batch_size: Networks solved at once; as many as the memory limit allows by default.
            first: Index of the first sample.
            prior: Where samples start; the flow's own prior by default.
            memory: The limit, such as ``2GiB``; half of the device's free memory by default.
            with_log_prob: Whether to return the samples' log-densities too; the flow is then solved by 20 steps of RK4
                by default, and by fields that predict endpoints up to 1 - delta.
            trace: How divergences are found for them; 25 Rademacher probes by default.
            delta: What is left out before t = 1 for fields that predict endpoints, 0.01 by default.
            request: What a flow with labels is asked for; nothing by default.

        Raises:
            NoDensityError: where densities are asked for and there are none; the message says why.
            ValueError: for a negative number of networks, and as :meth:`FlowMatchingModule.sample` does.
        """
        if n < 0:
            raise ValueError(f"n must not be negative, got {n}")
        if sampler is not None and sampler.guidance is not None:
            sampler.guidance.attach(self.task)
        if with_log_prob:
            densities = self._densities(Likelihood(trace, sampler, delta), seed, prior, request)
            return densities.sample(range(first, first + n), batch_size, memory)
        return self.module.sample(range(first, first + n), seed, sampler, batch_size, prior, memory, request)

    def log_prob(
        self,
        theta: Tensor,
        trace: Trace | None = None,
        sampler: Sampler | None = None,
        delta: float | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        memory: str | None = None,
        request: Request | None = None,
    ) -> LogDensity:
        """Log-densities of networks (n, D) under the flow, with standard errors and the measure they refer to.

        Args:
            theta: The networks.
            trace: How divergences are found; 25 Rademacher probes by default, :class:`wsflow.flow.ExactTrace` for all.
            sampler: How the flow is solved; 20 steps of RK4 by default.
            delta: What is left out before t = 1 for fields that predict endpoints, 0.01 by default.
            seed: Of the probes; those of network i depend on (seed, i) alone.
            batch_size: Networks at once; as many as the memory limit allows by default.
            memory: The limit, such as ``2GiB``; half of the device's free memory by default.
            request: What a flow with labels is asked for: the density is that of what it then generates.

        Raises:
            NoDensityError: where there are none; the message says why.
            ValueError: for networks that do not fit, and as :class:`wsflow.likelihood.Densities` does.
        """
        return self._densities(Likelihood(trace, sampler, delta), seed, None, request).of(theta, batch_size, memory)

    def _densities(self, likelihood: Likelihood, seed: int, prior: Prior | None, request: Request | None) -> Densities:
        return Densities(self.module.generation(seed, likelihood.sampler, prior, request), likelihood)


def load(path: str | Path, device: str | torch.device = "cpu") -> Flow:
    """A trained flow from its checkpoint; no data is needed.

    Args:
        path: The checkpoint file.
        device: Where to sample.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: for a file that is no checkpoint of wsflow.
    """
    checkpoint = read_checkpoint(path)
    with warnings.catch_warnings():
        # lightning 2.6 calls torch's pytree functions by names that torch 2.15 deprecates.
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        module = FlowMatchingModule.load_from_checkpoint(path, map_location=device, weights_only=True)
    return Flow(module, checkpoint)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint: tensors and plain data.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: for a file that is no checkpoint of wsflow.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError and more for damaged files
        raise ValueError(f"{path} is damaged or no checkpoint ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict) or "space" not in checkpoint.get("hyper_parameters", {}):
        raise ValueError(f"{path} is no checkpoint of wsflow: it describes no weight space")
    return checkpoint
