"""``wsflow barrier``: how high the loss rises between the networks of a zoo, before and after alignment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import Tensor

from wsflow.alignment import Aligner, WeightMatching, ZooCenter
from wsflow.commands.barrier_report import TABLE_WIDTH, render, write
from wsflow.commands.connectivity import Center, EachOther, Lines, OneNetwork, Target, name
from wsflow.zoo import Zoo, ZooError


def barrier(
    zoo: str,
    aligner: Sequence[Aligner] | None = None,
    n: int = 50,
    snapshots: bool = False,
    split: Literal["val", "test"] = "test",
    output: str = "runs/barrier",
    reference: int | None = None,
    center: bool = False,
    pairwise: bool = False,
    pairs: int = 200,
    points: int = 11,
    batch_size: int | None = None,
    seed: int = 0,
) -> None:
    """Measure the loss on the lines between the networks of a zoo, before and after alignment.

    Args:
        zoo: The zoo's directory.
        aligner: How networks are aligned, WeightMatching by default; give the option several times to compare.
        n: How many networks are drawn, the last snapshots of as many runs; fewer where there are fewer.
        snapshots: Whether any snapshots are drawn instead, as many of each run as of the others.
        split: Data that the lines are judged on; aligners see train data alone.
        output: Folder for barrier.json, the matrices and the pictures.
        reference: The run whose last snapshot the others are aligned to; the first of those drawn by default.
        center: Whether all networks are also aligned to their own centre; ZooCenter aligns to nothing else.
        pairwise: Whether the two networks of each pair are also aligned to each other.
        pairs: How many pairs of different runs are judged along their whole line.
        points: How many points of a line, both ends among them.
        batch_size: Train data points that the loss of an aligner that asks for one sees at a time; all by default.
        seed: Of what is drawn.

    Raises:
        ValueError: where the zoo or a setting does not fit.
    """
    aligners = list(aligner or [WeightMatching()])
    if len({name(one) for one in aligners}) < len(aligners):
        raise ValueError(f"an aligner is given twice: {', '.join(name(one) for one in aligners)}")
    store = Zoo.open(zoo)
    task = store.task
    if task is None or not task.has_data:
        raise ZooError(f"the networks of {zoo} have no data to be judged on: barriers need a task with data")
    rows = (draw_snapshots if snapshots else draw_finals)(store, n, seed)
    run = store.run[rows]
    reference = int(run[0]) if reference is None else reference
    targets: list[Target] = [OneNetwork(final_of(store, reference))]
    targets += [Center()] * center + [EachOther()] * pairwise
    lines = Lines(task, store.rows(rows), run, split, pairs, points, batch_size, seed)
    results = [lines.measure()]
    for one in aligners:
        chosen = [Center()] if isinstance(one, ZooCenter) else targets
        results += [lines.measure(one, target) for target in chosen]
    origin = {"zoo": zoo, "split": split, "snapshots": snapshots, "reference": reference, "seed": seed}
    origin |= {"batch_size": batch_size, "run": run.tolist(), "step": store.step[rows].tolist()}
    folder = write(Path(output), results, origin)
    Console(width=max(Console().width, TABLE_WIDTH)).print(render(results, split))
    print(f"numbers, matrices and pictures in {folder}")


def final_of(zoo: Zoo, run: int) -> Tensor:
    """The last snapshot (D,) of a run.

    Raises:
        ZooError: for a run that the zoo does not have.
    """
    return zoo.rows(zoo.final()[zoo.position(torch.tensor([run]))])[0]


def draw_finals(zoo: Zoo, n: int, seed: int = 0) -> Tensor:
    """Indices of the last snapshots of n runs drawn at random, or of all runs where there are fewer, ascending.

    Raises:
        ValueError: for fewer than two networks.
    """
    final = zoo.final()
    return final[_shuffled(len(final), n, seed)[:n]].sort().values


def draw_snapshots(zoo: Zoo, n: int, seed: int = 0) -> Tensor:
    """Indices of n snapshots drawn at random, ascending; numbers of two runs differ by one as far as there are enough.

    Raises:
        ValueError: for fewer than two networks.
    """
    order = _shuffled(len(zoo), n, seed)
    runs, by_run = zoo.run[order].sort(stable=True)
    _, sizes = torch.unique_consecutive(runs, return_counts=True)
    rank = torch.arange(len(runs)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    turn = torch.empty_like(rank)
    turn[by_run] = rank
    return order[turn.argsort(stable=True)[:n]].sort().values


def _shuffled(count: int, n: int, seed: int) -> Tensor:
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}")
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
