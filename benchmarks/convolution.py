"""How fast small convolutional networks are trained and judged together, against one after another in plain PyTorch.

Both sides run in one process on one thread, on Fashion-MNIST tensors that are already in memory, with the base network
of ``configs/fashion_cnn.yaml`` (2,476 parameters; with batch norm 2,494) and Adam.

- Training: ``train_runs`` on ``--runs`` networks for ``--steps`` steps of batch 32, against a loop that trains a few of
  the same runs one after another, half of them before and half after; seconds per run.
- Judging: loss and accuracy of the same networks on the 5,000 validation images by ``BaseTask.evaluate`` against a loop
  of ``load_state_dict`` and forward; seconds per network.  With batch norm both sides recompute the running statistics
  on 1,000 train images.

The results of both sides are compared before anything is timed.

Usage: ``python benchmarks/convolution.py [--runs 50] [--steps 100] [--plain-runs 6] [--output FILE]``
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from wsflow.tasks import BaseTask, ConvFashionMNIST
from wsflow.weightspace import NetworkInitializer
from wsflow.zoo import Adam
from wsflow.zoo.train import DataOrder, draw_starts, train_runs

BATCH, LR = 32, 1e-3


def train_plainly(task: BaseTask, start: Tensor, runs: range, steps: int) -> Tensor:
    """Train runs one after another, (n, D)."""
    inputs, targets = task.data("train")
    trained = []
    for run in runs:
        network = task.space.to_module(start[run]).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=LR)
        batches = torch.split(DataOrder(len(inputs), 0, [run]).epoch()[0], BATCH)
        for index in batches[:steps]:
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(inputs[index]), targets[index]))
            optimizer.step()
        trained.append(task.space.flatten(network.state_dict()))
    return torch.stack(trained)


@torch.no_grad()
def judge_plainly(task: BaseTask, theta: Tensor) -> Tensor:
    """Validation losses of networks one after another, (n,)."""
    images, (inputs, targets) = task.data("train")[0][: task.statistics_points], task.data("val")
    losses = []
    for row in theta:
        network = task.space.to_module(row).train()
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
                layer.momentum = None
        if task.space.buffers:
            network(images)
        losses.append(F.cross_entropy(network.eval()(inputs), targets))
    return torch.stack(losses)


def seconds(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def measure(batch_norm: bool, runs: int, steps: int, plain_runs: int) -> dict[str, float]:
    task = ConvFashionMNIST(batch_norm=batch_norm)
    start = draw_starts(task, NetworkInitializer(), 0, range(runs))
    count, half = len(task.data("train")[0]), max(1, plain_runs // 2)

    def together(steps: int) -> Tensor:
        order = DataOrder(count, 0, range(runs))
        return train_runs(task, start, order, Adam(LR), 1, BATCH, [steps], max_steps=steps).theta[:, 0]

    torch.testing.assert_close(together(3)[:2], train_plainly(task, start, range(2), 3), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(task.evaluate(start[:2], "val")["loss"], judge_plainly(task, start[:2]))
    plain = seconds(lambda: train_plainly(task, start, range(half), steps))
    batched = seconds(lambda: together(steps))
    plain += seconds(lambda: train_plainly(task, start, range(half), steps))
    judged = seconds(lambda: judge_plainly(task, start[:half]))
    judged_together = seconds(lambda: task.evaluate(start, "val"))
    judged += seconds(lambda: judge_plainly(task, start[:half]))
    return {
        "train_plain": plain / (2 * half),
        "train_together": batched / runs,
        "judge_plain": judged / (2 * half),
        "judge_together": judged_together / runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--plain-runs", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/convolution.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        name: measure(batch_norm, args.runs, args.steps, args.plain_runs)
        for name, batch_norm in {"plain": False, "batch_norm": True}.items()
    }
    table = Table("", "one after another", "together", "ratio", title="seconds per network, one thread")
    for name, row in results.items():
        for what in ("train", "judge"):
            one, all_ = row[f"{what}_plain"], row[f"{what}_together"]
            table.add_row(f"{what}, {name}", f"{one:.4f}", f"{all_:.4f}", f"{one / all_:.1f}")
    Console().print(table)
    setting = {"runs": args.runs, "steps": args.steps, "batch": BATCH, "threads": 1}
    results["setting"] = setting | {"torch": torch.__version__, "machine": platform.machine()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
