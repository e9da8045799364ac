"""How fast perceptrons are trained on MNIST together, against one after another, from memory and from a DataLoader.

The network is 784-10-10 and the optimiser SGD with Nesterov momentum of configs/mnist.yaml, one thread, on:

- *together*: ``train_runs``, the loop inside ``Collector``, for as many runs as the ``memory`` of the collector allows,
  the order of the data included;
- *one order*: the same for runs that share an order of the data, ``--per-order`` of them;
- *one by one*: a PyTorch module and ``torch.optim.SGD`` on the same tensors, in memory and scaled beforehand;
- *DataLoader*: the same with torchvision's MNIST, ``ToTensor`` and ``Normalize``, and a shuffling DataLoader.

A slice of an epoch is timed on each side and scaled to a whole epoch; networks per second are of processor time, best
of the repetitions.  Evaluation and files are left out on all sides.

Usage: ``WSFLOW_DATA=... python benchmarks/collect_images.py [--batches 250 64] [--steps 8] [--epochs 1]
[--per-order 100] [--output benchmarks/results/collect_images.json] [--device cuda]``
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from work import synchronise

from wsflow.tasks import MNIST
from wsflow.tasks.base import BaseTask
from wsflow.tasks.mnist import unpacked
from wsflow.weightspace import GaussianInitializer, mlp
from wsflow.zoo import SGD, Collector
from wsflow.zoo.train import DataOrder, draw_starts, train_runs

HERE = Path(__file__).parent
LR, MOMENTUM, DECAY, STD = 0.08, 0.9, 1e-3, 0.07


def timed(function: Callable[[], Any], repeats: int, device: str = "cpu") -> float:
    """Least processor time of a call."""
    times = []
    for _ in range(repeats):
        synchronise(device)
        began = time.process_time()
        function()
        synchronise(device)
        times.append(time.process_time() - began)
    return min(times)


def together(task: BaseTask, batch: int, memory: str, steps: int, device: str, per_order: int = 1) -> tuple[float, int]:
    """Seconds of a step for all of the runs that train together, the data's order included, and how many these are."""
    optimizer, initializer = SGD(LR, MOMENTUM, DECAY, nesterov=True), GaussianInitializer(std=STD)
    collector = Collector(
        runs=5000, batch_size=batch, optimizer=optimizer, memory=memory, runs_per_order=per_order, shard_runs=5000
    )
    runs = collector.chunk_runs(task)
    orders = 1 if per_order > 1 else runs
    start, points = draw_starts(task, initializer, 0, range(runs)), len(task.data("train")[0])
    ordering = timed(DataOrder(points, 0, range(orders)).epoch, 1) * batch / points

    def slice_of(count: int) -> float:
        fixed = _Fixed(torch.randint(points, (orders, batch * count)))
        return timed(lambda: train_runs(task, start, fixed, optimizer, 1, batch, [count], device), 2, device)

    long, short = slice_of(1 + steps), slice_of(1)
    return (long - short) / steps + ordering, runs


class _Fixed(DataOrder):
    """One epoch that is given."""

    def __init__(self, index: Tensor) -> None:
        self._index = index

    def epoch(self) -> Tensor:
        """(B, points)."""
        return self._index


def one_network(widths: list[int], batches: Iterable[tuple[Tensor, Tensor]], device: str) -> None:
    """Train a network on these batches."""
    network = mlp(widths).to(device)
    optimizer = torch.optim.SGD(network.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
    for inputs, targets in batches:
        optimizer.zero_grad()
        F.cross_entropy(network(inputs.flatten(1)), targets).backward()
        optimizer.step()


def in_memory(task: BaseTask, widths: list[int], batch: int, steps: int, device: str) -> float:
    """Seconds of a step of one network on tensors in memory."""
    inputs, targets = (tensor.to(device) for tensor in task.data("train"))

    def train(count: int) -> None:
        order = torch.randperm(len(inputs), device=device).split(batch)
        one_network(widths, ((inputs[index], targets[index]) for index in islice(order, count)), device)

    train(2)
    shuffle = timed(lambda: torch.randperm(len(inputs), device=device).split(batch), 3, device)
    return (timed(lambda: train(steps), 3, device) - shuffle) / steps + shuffle * batch / len(inputs)


def from_loader(dataset: Dataset[Any], widths: list[int], batch: int, steps: int, device: str) -> float:
    """Seconds of a step of one network on batches of a DataLoader in this process."""
    loader = DataLoader(dataset, batch, shuffle=True)

    def train(count: int) -> None:
        batches = ((x.to(device), y.to(device)) for x, y in islice(loader, count))
        one_network(widths, batches, device)

    train(1)
    return timed(lambda: train(steps), 2, device) / steps


def images() -> Dataset[Any]:
    """Torchvision's MNIST with the usual transforms."""
    from torchvision import datasets, transforms

    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    root = unpacked(datasets.MNIST, Path(os.environ.get("WSFLOW_DATA", "data")), download=False)
    return datasets.MNIST(root, train=True, transform=usual)


def measure(
    task: BaseTask,
    widths: list[int],
    dataset: Dataset[Any],
    batch: int,
    steps: int,
    memory: str = "38MB",
    epochs: int = 1,
    device: str = "cpu",
    per_order: int = 100,
) -> dict[str, Any]:
    """Networks per second of the four ways."""
    total = -(-len(task.data("train")[0]) // batch) * epochs
    step, runs = together(task, batch, memory, steps, device)
    shared, sharing = together(task, batch, memory, steps, device, per_order)
    rates = {
        "together": runs / (step * total),
        "one_order": sharing / (shared * total),
        "one_by_one": 1 / (in_memory(task, widths, batch, max(steps, 20), device) * total),
        "loader": 1 / (from_loader(dataset, widths, batch, steps, device) * total),
    }
    ratios = {f"times_{name}": rates["together"] / rates[name] for name in ("one_by_one", "loader")}
    ratios |= {f"one_order_times_{name}": rates["one_order"] / rates[name] for name in ("one_by_one", "loader")}
    setting = {"epochs": epochs, "memory": memory, "device": device, "torch": torch.__version__, "threads": 1}
    counts = {"batch": batch, "runs_together": runs, "runs_per_order": sharing}
    return {**counts, "networks_per_second": rates, **ratios, "setting": setting}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[250, 64])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--per-order", type=int, default=100, help="runs that share an order of the data")
    parser.add_argument("--memory", default="38MB", help="of the runs that train together, as Collector takes it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "collect_images.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    task, dataset = MNIST([784, 10, 10]), images()
    ways = ("together", "one_order", "one_by_one", "loader")
    ratios = ("times_one_by_one", "times_loader", "one_order_times_one_by_one", "one_order_times_loader")
    columns = ("batch", "runs together", "per order", *(name.replace("_", " ") for name in (*ways, *ratios)))
    table, rows = Table(*columns, title=f"784-10-10, networks per second, {args.epochs} epoch(s)"), []
    for batch in args.batches:
        settings = (args.memory, args.epochs, args.device, args.per_order)
        row = measure(task, task.widths, dataset, batch, args.steps, *settings)
        rates = [f"{row['networks_per_second'][name]:.3f}" for name in ways]
        found = [f"{row[name]:.1f}" for name in ratios]
        table.add_row(str(batch), str(row["runs_together"]), str(row["runs_per_order"]), *rates, *found)
        rows.append(row)
    Console(width=160).print(table)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
