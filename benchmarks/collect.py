"""How fast networks are trained and evaluated together, against one after another in plain PyTorch.

Both sides run in one process on one thread, on tensors that are already in memory, with the same network (30-16-16-2),
data (breast cancer), optimiser (Adam, 1e-3), batch size (64) and epochs (50).

- Collecting: ``Collector.collect`` for 1,000 runs, files and metrics included, against a loop that trains a few runs
  one after another, half of them before and half after; the loop's time is scaled to 1,000 runs, and the number of
  runs timed is printed.
- Evaluating: loss and accuracy of 1,000 networks on the test split by ``BaseTask.evaluate`` against a loop of
  ``load_state_dict`` and forward; medians of several repetitions.

Usage: ``python benchmarks/collect.py [--runs 1000] [--plain-runs 20] [--output runs/benchmarks/collect.json]``
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from wsflow.tasks import BreastCancer
from wsflow.weightspace import mlp
from wsflow.zoo import Adam, Collector, Zoo

EPOCHS, BATCH, LR = 50, 64, 1e-3


def train_plainly(task: BreastCancer, runs: int) -> None:
    """Train runs one after another."""
    inputs, targets = task.data("train")
    for run in range(runs):
        torch.manual_seed(run)
        network = mlp(task.widths)
        optimizer = torch.optim.Adam(network.parameters(), lr=LR)
        for _ in range(EPOCHS):
            for index in torch.randperm(len(inputs)).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(network(inputs[index]), targets[index]).backward()
                optimizer.step()


@torch.no_grad()
def evaluate_plainly(task: BreastCancer, states: list[dict[str, Tensor]]) -> tuple[list[float], list[float]]:
    """Loss and accuracy of networks one after another."""
    inputs, targets = task.data("test")
    network, losses, accuracies = mlp(task.widths).eval(), [], []
    for state in states:
        network.load_state_dict(state)
        logits = network(inputs)
        losses.append(F.cross_entropy(logits, targets).item())
        accuracies.append((logits.argmax(1) == targets).float().mean().item())
    return losses, accuracies


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Median wall time."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def collecting(task: BreastCancer, runs: int, plain_runs: int, path: Path) -> dict[str, float]:
    collector = Collector(runs=runs, epochs=EPOCHS, batch_size=BATCH, optimizer=Adam(LR))
    train_plainly(task, 1)
    plain = seconds(lambda: train_plainly(task, plain_runs), 1) / plain_runs * runs
    batched = seconds(lambda: collector.collect(task, path, progress=False), 1)
    return {
        "plain_seconds": plain,
        "plain_runs_timed": plain_runs,
        "batched_seconds": batched,
        "ratio": plain / batched,
    }


def evaluating(task: BreastCancer, path: Path) -> dict[str, float]:
    theta = Zoo.open(path).theta
    states = [{name: value.clone() for name, value in task.space.unflatten(row).items()} for row in theta]
    losses, accuracies = evaluate_plainly(task, states)
    scores = task.evaluate(theta, "test")
    torch.testing.assert_close(scores["loss"], torch.tensor(losses), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(scores["accuracy"], torch.tensor(accuracies), rtol=0, atol=1e-6)
    plain = seconds(lambda: evaluate_plainly(task, states), 5)
    batched = seconds(lambda: task.evaluate(theta, "test"), 11)
    return {"plain_seconds": plain, "batched_seconds": batched, "ratio": plain / batched}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--plain-runs", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/collect.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    task = BreastCancer()
    task.data("train")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "zoo"
        results = {
            "collect": collecting(task, args.runs, args.plain_runs, path),
            "evaluate": evaluating(task, path),
            "zoo": {name: float(value.mean()) for name, value in Zoo.open(path).metrics.items()},
        }
    results["setting"] = {"runs": args.runs, "threads": 1, "torch": torch.__version__, "machine": platform.machine()}
    table = Table("", "one after another", "together", "ratio", title=f"{args.runs} networks 30-16-16-2, one thread")
    for name in ("collect", "evaluate"):
        row = results[name]
        table.add_row(name, f"{row['plain_seconds']:.3f} s", f"{row['batched_seconds']:.3f} s", f"{row['ratio']:.1f}")
    Console().print(table)
    print(f"one after another: {results['collect']['plain_runs_timed']} runs timed, scaled to {args.runs}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
