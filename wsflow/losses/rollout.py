r"""The base task's own loss of networks that the flow itself is on its way to.

A field is trained at states between real pairs, and asked at states that it has led to: what it gets wrong at early
times puts it where late training never was, and there it has no reason to mend anything (exposure bias; Ranzato et al.
2016, Ross, Gordon and Bagnell 2011).  This term follows the flow, without derivatives, from a fresh draw of the prior
along the sampler's own grid,

.. math:: \bar x_0 \sim p_0, \qquad \bar x_{t_{k+1}} = \exp_{\bar x_{t_k}}((t_{k+1} - t_k) v(\bar x_{t_k}, t_k)) ,

and adds the train loss of the endpoints that the field predicts from the states it has reached,

.. math:: \lambda \, w(t_k) \, L_S(\hat\theta(\bar x_{t_k}, t_k)), \quad t_k \ge t_0 .

The endpoint that is predicted at the last step is the sample itself.  Diffusion models are fine-tuned to a reward in
this way, by a random late step (ReFL: Xu et al. 2023, "ImageReward", section 3) or the last ones (DRaFT-K: Clark et al.
2024).  Here the reward is the train loss, and it stands beside the flow loss, which holds the flow to the law of the
trained networks.  As :class:`wsflow.losses.FunctionalTerm` it is no proper loss of a flow: watch dispersion and
novelty.

Starts are drawn anew at every step, so that no number of runs limits them.

*Many processes* follow the networks that one process with the same global batch would, which takes parts of it that
``every`` divides; others are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from wsflow.flow import Euler, TimeGrid, UniformGrid
from wsflow.geometry import Geometry
from wsflow.losses.functional import FunctionalTerm


class RolloutTerm(FunctionalTerm):
    """Adds the base task's train loss of endpoints predicted at states that the flow reaches; in training only.

    A step of training costs as much more as sampling ``1 / every`` of its batch, and the field's derivative at the late
    states of these.

    Args:
        weight: Of the term, beside a flow loss per coordinate.
        batch_size: Train data points at each step; None for all.
        steps: Euler steps from 0 to 1; choose those of sampling.
        grid: Of their times; equal steps by default.
        every: One network in so many of a batch has its flow followed.
        after: Least time of a state that counts.
        power: Exponent of the time in the term's weight; 0 for equal weight.
        shared: Networks of a step see the same data points, so that this can only be true; kept for checkpoints, which
            name it.
        scale: Multiplies the outputs of predicted networks.

    Raises:
        ValueError: for numbers of steps or networks below 1, data points of each network's own, a time that no step
            begins after, and as the functional term does.
    """

    def __init__(
        self,
        weight: float = 0.02,
        batch_size: int | None = 1024,
        steps: int = 16,
        grid: TimeGrid | None = None,
        every: int = 8,
        after: float = 0.2,
        power: float = 0.0,
        shared: bool = True,
        scale: float = 1.0,
    ) -> None:
        super().__init__(weight, batch_size, power, after, shared, scale)
        if not shared:
            raise ValueError("networks of a rollout see the same data points: leave shared out, or true")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.every = every
        self.times: list[float] = (grid or UniformGrid()).times(steps).tolist()
        if not self.late:
            raise ValueError(f"the last step begins at {self.times[-2]:.3g}, before after = {after}: no state counts")

    @property
    def late(self) -> list[float]:
        """The times of the states that count."""
        return [t for t in self.times[:-1] if self._counts(t)]

    def _counts(self, t: float) -> bool:
        """Whether a state at time t counts; the last digits of a grid's times are chance."""
        return t > self.after - 1e-9

    @torch.no_grad()
    def states(
        self,
        velocity: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        geometry: Geometry,
        x0: Tensor,
        told: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Where the flow is at the times that count, for one in ``every`` of a batch.

        Args:
            velocity: Of the flow, at states and times and for what it is told.
            geometry: The space it lives in.
            x0: (B, dim), draws of the prior.
            told: (B, K), what the flow is told of each network; None for nothing.

        Returns:
            States (m n, dim) of n networks at the m times :attr:`late`, all networks of a time together, the times
            (m n,), and what the flow was told (m n, K).

        Raises:
            ValueError: where a process's part of the batch makes the networks others than one process would follow.
        """
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if processes > 1 and len(x0) % self.every:
            raise ValueError(
                f"every = {self.every} does not divide the {len(x0)} networks of a batch that each of {processes} "
                "processes has, so that RolloutTerm would follow others than in one process: choose another every, or "
                "data.batch_size"
            )
        x, told = x0[:: self.every], None if told is None else told[:: self.every]
        found = []
        for t, end in pairwise(self.times):
            if self._counts(t):
                found.append(x)
            if end < 1:  # the last state that counts is the one before the end
                x, _ = Euler().step(lambda state, time: velocity(state, time, told), geometry, x, t, end - t)
        times = torch.cat([x.new_full((len(x),), t) for t in self.late])
        return torch.cat(found), times, None if told is None else told.repeat(len(found), 1)
