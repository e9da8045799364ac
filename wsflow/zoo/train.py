r"""Training many runs together.

The weights of B runs are one leaf tensor (B, D).  One step draws a mini-batch for every run, in the run's own order,
and descends

.. math:: \sum_{b=1}^{B} \frac{1}{n_b} \sum_{i=1}^{n_b} \ell(f_{\theta_b}(x_{b,i}), y_{b,i}),

whose gradient in :math:`\theta_b` is that of run b alone.  The last, smaller mini-batch of an epoch is kept.  Batch
norm normalises by the moments of each run's own mini-batch; running statistics are recomputed where networks are judged
(:mod:`wsflow.tasks.base`).

Runs may also share one order of the data, as in the usual ensembling with ``torch.vmap``.  Their mini-batch is then
gathered once, and their first layers are one matrix product (:mod:`wsflow.weightspace.narrow`).  The law of each run is
the same; but runs of one order are not independent, so a split of a zoo keeps them together
(:func:`wsflow.zoo.split_runs`).

The start of run r comes from (seed, r), its data order from (seed, r) by another stream: neither depends on which runs
share a chunk.  No two runs of a seed have the same start (:mod:`wsflow.weightspace.randomness`); data orders come from
generators of 128 bits, all of which the seed sets.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from wsflow.tasks.base import BaseTask
from wsflow.weightspace import Initializer, WeightSpace
from wsflow.weightspace.randomness import sample_generator
from wsflow.weightspace.statistics import without_statistics
from wsflow.zoo.optimizer import RunOptimizer

START, ORDER = 0, 1


class Trajectories(NamedTuple):
    """What B runs leave behind.

    Attributes:
        start: (B, D), initial weights.
        theta: (B, S, D), S snapshots of each run.
    """

    start: Tensor
    theta: Tensor


def run_generator(seed: int, run: int) -> torch.Generator:
    """The generator of a run's start; no two runs of a seed share one."""
    return sample_generator(seed, run, purpose=[START])


def draw_starts(task: BaseTask, initializer: Initializer, seed: int, runs: Sequence[int]) -> Tensor:
    """(B, D), the start of every run from its own generator."""
    return torch.cat([initializer.sample(task.space, 1, run_generator(seed, run)) for run in runs])


class DataOrder:
    """The order in which each run sees the data.

    Args:
        count: N, the number of data points.
        seed: The collector's seed.
        orders: Numbers of the orders: of B runs, one each, or one that all of them share.  A run that shares its order
            with no other has the order of its own number.
    """

    def __init__(self, count: int, seed: int, orders: Sequence[int]) -> None:
        self.count = count
        seeds = [np.random.SeedSequence(seed, spawn_key=(ORDER, order)) for order in orders]
        self._generators = [np.random.Generator(np.random.PCG64(one)) for one in seeds]

    def epoch(self) -> Tensor:
        """(B, N), the next epoch's permutation of every run, or (1, N) where they share it."""
        return torch.from_numpy(np.stack([generator.permutation(self.count) for generator in self._generators]))


def train_runs(
    task: BaseTask,
    start: Tensor,
    order: DataOrder,
    optimizer: RunOptimizer,
    epochs: int,
    batch_size: int,
    snapshots: Sequence[int],
    device: str = "cpu",
    on_epoch: Callable[[], object] = lambda: None,
    max_steps: int | None = None,
) -> Trajectories:
    """Train B runs together.

    Args:
        task: Data, network and loss.
        start: (B, D), initial weights.
        order: Data order of the B runs, or the one that they share.
        optimizer: Of the weights.
        epochs: Passes through the train split.
        batch_size: Data points per run and step.
        snapshots: Steps, counted from 1, after which the weights are kept.
        device: Where to train.
        on_epoch: Called after every epoch.
        max_steps: Training ends after so many steps, even if epochs are left.
    """
    space = _training(task.space)
    inputs, targets = (tensor.to(device) for tensor in task.data("train"))
    inputs = inputs.to(start.dtype)
    shape, rows = inputs.shape[1:], inputs.reshape(len(inputs), -1)  # whole rows are gathered faster than images
    drawn: Tensor | None = None
    theta = start.to(device, copy=True).requires_grad_(True)
    descent, wanted, kept, step = optimizer.build(theta), set(snapshots), [], 0
    for _ in range(epochs):
        points = order.epoch().to(device)
        batches, own = torch.split(points, batch_size, dim=1), len(points) == len(theta)
        if drawn is None:  # once: memory that is new is slow
            drawn = rows.new_empty(batches[0].numel(), rows.shape[1])
        for index in islice(batches, None if max_steps is None else max_steps - step):
            batch = torch.index_select(rows, 0, index.flatten(), out=drawn[: index.numel()])
            seen, wanted_out = batch.view(*index.shape, *shape), targets[index]
            logits = space.forward(theta, seen if own else seen[0], per_network=own)
            descent.zero_grad()
            torch.autograd.backward(task.loss(logits, wanted_out if own else wanted_out[0]).sum())
            descent.step()
            step += 1
            if step in wanted:
                kept.append(theta.detach().cpu().clone())
        on_epoch()
    return Trajectories(start, torch.stack(kept, dim=1))


def check_batches(task: BaseTask, batch_size: int, max_steps: int | None = None) -> None:
    """Refuse mini-batches of one data point to batch norm, which then has no variance to divide by.

    Args:
        task: The base task.
        batch_size: Data points per run and step.
        max_steps: Of a run; None for whole epochs.

    Raises:
        ValueError: where a mini-batch that a run trains on has one data point, and the network cannot take it.
    """
    inputs, each = task.data("train")[0], steps_per_epoch(task, batch_size)
    last = len(inputs) - (each - 1) * batch_size
    if last > 1 or (max_steps is not None and max_steps < each):
        return
    try:
        theta = torch.zeros(1, task.space.dim)
        _training(task.space).forward(theta, inputs[:1].to(theta))
    except ValueError as error:
        raise ValueError(
            f"of {len(inputs)} data points, mini-batches of {batch_size} leave one over, which batch norm cannot "
            "normalise by itself: give the collector another batch_size"
        ) from error


def steps_per_epoch(task: BaseTask, batch_size: int) -> int:
    """Mini-batches in an epoch, the last and smaller one included."""
    return ceil(len(task.data("train")[0]) / batch_size)


def _training(space: WeightSpace) -> WeightSpace:
    """The space whose forward pass is that of training: batch norm takes the moments of each batch.

    Dropout is left out, and warned of: a forward pass of many networks draws nothing.
    """
    if any(isinstance(layer, _DropoutNd) and layer.p > 0 for layer in space.template.modules()):
        warnings.warn("networks are trained without their dropout, which passes its input through", stacklevel=3)
    if not space.buffers:
        return space
    recomputed = {tensor.name for tensor in space.buffer_tensors}
    return replace(space, template=without_statistics(space.template, recomputed))
