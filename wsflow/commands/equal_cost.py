"""What a zoo records of how its runs were trained, and the baseline that trains as long as sampling took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wsflow.description import build
from wsflow.flow import sample_generator
from wsflow.metrics import EqualCostBaseline
from wsflow.tasks import BaseTask
from wsflow.zoo import Collector
from wsflow.zoo.train import DataOrder, steps_per_epoch, train_runs

FRESH = 2
"""What a seed is used for here; collectors use 0 and 1."""

TRAINING = ("optimizer", "batch_size", "epochs", "max_steps", "initializer")
"""Settings in which the parts of a merged zoo must agree to have one collector."""


def recorded_collector(manifest: Mapping[str, Any]) -> Collector | None:
    """The collector that trained a zoo's runs, from its manifest.

    Returns:
        None where none is recorded, and for a zoo merged of runs that were trained differently.

    Raises:
        ValueError: where what is recorded is no collector of this version.
    """
    found = manifest.get("merged") or [manifest.get("subset_of") or manifest.get("collector")]
    if not all(found) or any(_training(one) != _training(found[0]) for one in found):
        return None
    collector = build(found[0])
    if not isinstance(collector, Collector):
        raise ValueError(f"the zoo's manifest names the collector {found[0].get('class_path')}, which is none")
    return collector


def fresh_starts(collector: Collector, task: BaseTask, n: int, seed: int) -> Tensor:
    """New initial weights (n, D) by the law of a zoo's, of no run of it."""
    return collector.initializer.sample(task.space, n, sample_generator(seed, 0, purpose=[FRESH]))


def equal_cost(task: BaseTask, collector: Collector, seconds: float) -> EqualCostBaseline:
    """Training as in the zoo, stopped when it has cost as many seconds per network as sampling did.

    Seconds of training are of the collector's device, those of sampling of the device it ran on.
    """

    def train(starts: Tensor, budget: float) -> Tensor:
        count = len(task.data("train")[0])
        each = steps_per_epoch(task, collector.batch_size)

        def descend(steps: int) -> Tensor:
            plan = (collector.optimizer, -(-steps // each), collector.batch_size, [steps], collector.device)
            if not collector.shares_orders:
                order = DataOrder(count, collector.seed + 1, range(len(starts)))
                return train_runs(task, starts, order, *plan, max_steps=steps).theta[:, 0]
            trained = [
                train_runs(task, part, DataOrder(count, collector.seed + 1, [i]), *plan, max_steps=steps).theta[:, 0]
                for i, part in enumerate(torch.split(starts, collector.runs_per_order))
            ]
            return torch.cat(trained)

        descend(1)
        timed = min(each, collector.steps(task))
        begin = time.perf_counter()
        descend(timed)
        step = int(budget * len(starts) / ((time.perf_counter() - begin) / timed))
        step = min(step, collector.steps(task))
        return descend(step) if step else starts

    return EqualCostBaseline(train, seconds)


def _training(collector: Mapping[str, Any]) -> list[Any]:
    args = collector.get("init_args", {})
    return [args.get(name) for name in TRAINING]
