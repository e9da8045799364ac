"""How far each aligner lowers the loss on the lines between trained networks (the thesis's Figure 7.2).

Four zoos are collected where they are absent, by one thread in a few minutes each: breast cancer 30-16-16-2 by the
thesis's recipe (100 runs, Adam, 50 epochs, a snapshot every four steps after the first ten epochs, starts N(0, 0.1)),
and MNIST 784-10-10 and 784-32-32-10 (20 epochs; the last snapshots of 30 of 50 runs).  A fourth has 784-32-32-10 start
as PyTorch starts it, with smaller weights (5 epochs, 30 runs).  Aligners see train data alone; losses are those of the
test data.  Every aligner brings the networks near one of them, near the zoo's centre, and each pair near each other.

Usage: ``python benchmarks/barrier.py [breast_cancer] [mnist_10] [mnist_32_32] [mnist_small_starts]
[--zoos zoos/barrier] [--output runs/benchmarks/barrier]``; MNIST is looked for in WSFLOW_DATA, or ``data``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from wsflow.alignment import (
    ActivationMatching,
    Aligner,
    L2Objective,
    MidObjective,
    RandomObjective,
    SinkhornRebasin,
    WeightMatching,
)
from wsflow.callbacks.barrier_figures import barrier_matrices, path_curves
from wsflow.callbacks.figures import save
from wsflow.commands.barrier import draw_finals, draw_snapshots, final_of
from wsflow.commands.barrier_report import TABLE_WIDTH, render, write
from wsflow.commands.connectivity import Center, Connectivity, EachOther, Lines, OneNetwork, Target
from wsflow.tasks import MNIST, BaseTask, BreastCancer
from wsflow.weightspace import NetworkInitializer
from wsflow.zoo import Collector, EverySnapshot, Zoo


class Case(NamedTuple):
    """A zoo and what is drawn from it.

    Attributes:
        task: Makes the task.
        collector: Of the zoo.
        networks: How many are drawn.
        snapshots: Whether any snapshots are drawn, not only the last ones.
        batch_size: Train data points that an aligner's loss sees at a time.
        pairs: How many pairs are judged along their whole line.
    """

    task: Callable[[], BaseTask]
    collector: Collector
    networks: int
    snapshots: bool
    batch_size: int | None
    pairs: int = 200


CASES = {
    "breast_cancer": Case(
        BreastCancer, Collector(runs=100, epochs=50, snapshots=EverySnapshot(4, 10)), 250, True, None
    ),
    "mnist_10": Case(partial(MNIST, [784, 10, 10]), Collector(runs=50, epochs=20), 30, False, 512, 50),
    "mnist_32_32": Case(partial(MNIST, [784, 32, 32, 10]), Collector(runs=50, epochs=20), 30, False, 512, 50),
    "mnist_small_starts": Case(
        partial(MNIST, [784, 32, 32, 10]),
        Collector(runs=30, epochs=5, initializer=NetworkInitializer()),
        30,
        False,
        512,
        50,
    ),
}


def aligners() -> list[Aligner]:
    """What is compared, all with their own settings."""
    rebasin = [SinkhornRebasin(objective) for objective in (L2Objective(), MidObjective(), RandomObjective())]
    return [WeightMatching(), ActivationMatching(), *rebasin]


def measure(
    case: Case, path: Path, chosen: Sequence[Aligner], seed: int = 0
) -> tuple[list[Connectivity], dict[str, object]]:
    """Each aligner to each target, the networks as they are first; and what was measured."""
    case.collector.collect(case.task(), path, progress=False)
    zoo = Zoo.open(path)
    rows = (draw_snapshots if case.snapshots else draw_finals)(zoo, case.networks, seed)
    run = zoo.run[rows]
    lines = Lines(case.task(), zoo.rows(rows), run, pairs=case.pairs, batch_size=case.batch_size, seed=seed)
    targets: list[Target] = [OneNetwork(final_of(zoo, int(run[0]))), Center(), EachOther()]
    results = [lines.measure()]
    for aligner in chosen:
        for target in targets:
            results.append(lines.measure(aligner, target))
            print(f"{results[-1].label}: {results[-1].barriers.mean:.4f}, {results[-1].seconds:.1f} s", flush=True)
    origin = {"collector": case.collector.description, "networks": len(rows), "runs": len(torch.unique(run))}
    return results, origin | {"seed": seed, "batch_size": case.batch_size, "reference": int(run[0])}


def shown(results: list[Connectivity]) -> list[Connectivity]:
    """What the small figures show: networks as they are, the first aligner, and the best to one network."""
    alone = [result for result in results if result.target == OneNetwork.name]
    best = min(alone, key=lambda result: result.barriers.mean)
    return list(dict.fromkeys([*results[:3], best]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--zoos", type=Path, default=Path("zoos/barrier"))
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/barrier"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.cases or CASES:
        results, origin = measure(CASES[name], args.zoos / name, aligners())
        folder = write(args.output / name, results, origin)
        few = shown(results)
        save(barrier_matrices({result.label: result.barriers for result in few}), folder / "few-matrices.png")
        save(path_curves({result.label: result.paths for result in few}), folder / "few-curves.png")
        Console(width=TABLE_WIDTH).print(name, render(results, "test"))


if __name__ == "__main__":
    main()
