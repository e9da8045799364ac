"""Collecting a zoo: many runs trained together, shard by shard.

Runs 0 .. R - 1 are cut into shards of ``shard_runs`` runs, and each shard into chunks that fit the memory limit and are
trained together.  Both cuts follow from the settings alone, so a collection that was killed and started again with the
same settings writes the same bytes on the same machine as one that was not.  Runs of another cut see the same starts
and the same data in the same order; their weights agree to rounding (:mod:`wsflow.zoo.settings`).

Runs that share an order of the data (``runs_per_order``) are those whose numbers have the same quotient by it.  Chunks
are of one order then.  The zoo keeps the order of each run, and its splits keep runs of one order together.

A run whose weights are not finite at any of its snapshots has diverged: it is dropped with all its snapshots, and its
number stands in the manifest under ``dropped``.
"""

from __future__ import annotations

import sys
import time
import warnings
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from wsflow.description import describe
from wsflow.files import held
from wsflow.memory import parse_bytes
from wsflow.tasks.base import BaseTask
from wsflow.weightspace import GaussianInitializer, Initializer
from wsflow.zoo.optimizer import Adam, RunOptimizer
from wsflow.zoo.settings import MAY_CHANGE, refuse_other_settings
from wsflow.zoo.shards import ZooError, read_json, read_sidecar, shard_tensors, write_json, write_shard
from wsflow.zoo.share import local_rank
from wsflow.zoo.snapshots import FinalSnapshot, SnapshotSchedule
from wsflow.zoo.train import (
    DataOrder,
    Trajectories,
    check_batches,
    draw_starts,
    run_generator,
    steps_per_epoch,
    train_runs,
)
from wsflow.zoo.write import MANIFEST, VERSION, write_manifest

SETTINGS = "settings.json"
SCORED = ("val", "test")


class Collector:
    """Trains R runs of a task's base network and keeps their starts and snapshots.

    Args:
        runs: R.
        epochs: Passes through the train data.
        batch_size: Data points per run and step; the last batch of an epoch may be smaller.
        optimizer: Adam with learning rate 1e-3 by default.
        snapshots: Which points of a run are kept; the last by default.
        initializer: The law of the starts; N(0, 0.1) by default.
        seed: Of starts and data orders.
        shard_runs: Runs per file, the unit of resuming; it must stay what it was when a collection goes on.
        memory: What training may take, such as ``2GiB``; it sets how many runs train together, and may change when a
            collection goes on.
        device: Where to train; the zoo does not record it.  Of several processes on a machine, ``cuda`` gives each
            a GPU of its own.
        max_steps: Steps after which a run ends, even if epochs are left; for runs of less than an epoch, give it with
            ``epochs=1``.
        runs_per_order: Runs that see the data in one order, each from a start of its own; 50 to 100 train several times
            faster than as many with an order each, where images are wide and networks narrow.  A zoo needs many orders
            still, for they are what its splits divide.

    Raises:
        ValueError: where a number is not positive or the memory cannot be read.
    """

    def __init__(
        self,
        runs: int = 1000,
        epochs: int = 50,
        batch_size: int = 64,
        optimizer: RunOptimizer | None = None,
        snapshots: SnapshotSchedule | None = None,
        initializer: Initializer | None = None,
        seed: int = 0,
        shard_runs: int = 250,
        memory: str = "2GiB",
        device: str = "cpu",
        max_steps: int | None = None,
        runs_per_order: int = 1,
    ) -> None:
        counts = {"runs": runs, "epochs": epochs, "batch_size": batch_size, "shard_runs": shard_runs}
        for name, value in {**counts, "runs_per_order": runs_per_order}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}")
        self.runs, self.epochs, self.batch_size, self.seed = runs, epochs, batch_size, seed
        self.optimizer = optimizer if optimizer is not None else Adam()
        self.snapshots = snapshots if snapshots is not None else FinalSnapshot()
        self.initializer = initializer if initializer is not None else GaussianInitializer()
        self.shard_runs, self.memory, self.device = shard_runs, memory, device
        self.max_steps, self.runs_per_order = max_steps, runs_per_order
        self._bytes = parse_bytes(memory)

    @property
    def description(self) -> dict[str, Any]:
        """The settings but the device, plain data; not all of them change the zoo (:mod:`wsflow.zoo.settings`).

        Zoos from before runs could share orders lack that setting, as do those whose runs share none.
        """
        return describe(self, leave_out=["device", *(["runs_per_order"] if self.runs_per_order == 1 else [])])

    @property
    def shards(self) -> int:
        """The number of shards."""
        return ceil(self.runs / self.shard_runs)

    def steps(self, task: BaseTask) -> int:
        """Optimiser steps of a run."""
        return min(steps_per_epoch(task, self.batch_size) * self.epochs, self.max_steps or sys.maxsize)

    def chunk_runs(self, task: BaseTask) -> int:
        """How many runs train together at most."""
        most = min(self.shard_runs, self.runs, self.runs_per_order if self.shares_orders else self.runs)
        return max(1, min(most, self._bytes // self._bytes_per_run(task)))

    @property
    def _place(self) -> str:
        """The device of this process."""
        several = self.device == "cuda" and torch.cuda.device_count() > 1
        return f"cuda:{local_rank() % torch.cuda.device_count()}" if several else self.device

    @property
    def shares_orders(self) -> bool:
        """Whether runs share orders of the data."""
        return self.runs_per_order > 1

    def collect(self, task: BaseTask, path: str | Path, share: tuple[int, int] = (0, 1), progress: bool = True) -> bool:
        """Collect this process's share of the zoo; finished shards are kept.

        Args:
            task: The base task.
            path: The zoo's directory.
            share: (i, n): this process collects the shards whose number is i modulo n.
            progress: Whether to show a progress bar.

        Returns:
            Whether the zoo is now complete; otherwise other processes' shards are missing.

        Raises:
            ZooError: where the directory holds a zoo of other settings, or every run of a shard diverged.
            ValueError: for snapshots, starts and mini-batches that cannot be; nothing is written then.
        """
        path = Path(path)
        self._steps(task)
        if task.has_data:
            task.data("train")  # what cannot be read or drawn ends this before anything is written
            draw_starts(task, self.initializer, self.seed, [0])
            check_batches(task, self.batch_size, self.max_steps)
        self._claim(task, path)
        mine = [i for i in range(self.shards) if i % share[1] == share[0] and read_sidecar(path, i) is None]
        with _progress(progress) as bar:
            bar.add_task("collect", total=self.epochs * sum(len(self._chunks(task, index)) for index in mine))
            for index in mine:
                self._collect_shard(task, path, index, bar)
        sidecars = [read_sidecar(path, index) for index in range(self.shards)]
        finished = [sidecar for sidecar in sidecars if sidecar is not None]
        complete = len(finished) == len(sidecars)
        if complete and (mine or not (path / MANIFEST).exists()):
            write_manifest(path, task.space, finished, task=task, collector=self.description)
        return complete

    def estimate(self, task: BaseTask, steps: int = 5) -> dict[str, float]:
        """Time and memory of a whole collection in one process, extrapolated from a few steps.

        Args:
            task: The base task.
            steps: Steps to time, after one to warm up.

        Returns:
            ``seconds``, ``memory_bytes``, ``disk_bytes``, ``shards``, ``chunk_runs`` and ``steps`` per run.
        """
        dim, size, total, seconds = task.space.dim, self.chunk_runs(task), 0, 0.0
        if task.has_data:
            total = self.steps(task)
            epochs = total / steps_per_epoch(task, self.batch_size)
            seconds = self._time_epoch(task, size, steps) * epochs * self.runs / size
        networks = 4.0 * dim * len(self._steps(task))
        return {
            "seconds": seconds,
            "memory_bytes": size * self._bytes_per_run(task) + 3 * networks * min(self.runs, self.shard_runs),
            "disk_bytes": self.runs * (networks + 4.0 * dim),
            "shards": self.shards,
            "chunk_runs": size,
            "steps": total,
        }

    def _time_epoch(self, task: BaseTask, size: int, steps: int) -> float:
        """Seconds per epoch of a chunk of ``size`` runs, from a few of its steps."""
        start = draw_starts(task, self.initializer, self.seed, range(size))
        order = self._order(task, range(size))
        began = time.perf_counter()
        batch = _OneBatch(order.epoch()[:, : self.batch_size])
        ordering = time.perf_counter() - began

        def timed(count: int) -> float:
            began = time.perf_counter()
            train_runs(task, start, batch, self.optimizer, count, self.batch_size, [count], self._place)
            return time.perf_counter() - began

        timed(1)
        return ordering + timed(steps) / steps * steps_per_epoch(task, self.batch_size)

    def _bytes_per_run(self, task: BaseTask) -> int:
        """A bound on what training one run takes: data, activations and their gradients, optimiser state."""
        point = 4 * sum(task.layer_sizes) + (0 if self.shares_orders else task.probe(1).numel())
        return 4 * (self.batch_size * point + 8 * task.space.dim)

    def _chunks(self, task: BaseTask, shard: int) -> list[range]:
        """The runs of a shard, cut into chunks; those of a chunk share their order, or each has its own."""
        first, size = shard * self.shard_runs, self.chunk_runs(task)
        last = min(self.runs, first + self.shard_runs)
        each = self.runs_per_order if self.shares_orders else self.runs
        ends = [*range((first // each + 1) * each, last, each), last]
        parts = [range(begin, end) for begin, end in zip([first, *ends], ends, strict=False)]
        return [part[i : i + size] for part in parts for i in range(0, len(part), size)]

    def _order(self, task: BaseTask, runs: range) -> DataOrder:
        """How the runs of a chunk see the data."""
        orders = [runs[0] // self.runs_per_order] if self.shares_orders else runs
        return DataOrder(len(task.data("train")[0]), self.seed, orders)

    def _claim(self, task: BaseTask, path: Path) -> None:
        """Write the settings to a new zoo, or compare them with those of one that exists."""
        settings = {
            "version": VERSION,
            "task": task.description,
            "space": dict(task.space.description or {}),
            "collector": self.description,
        }
        file = path / SETTINGS
        with held(file):
            begun = (path / MANIFEST).exists() or any(path.glob("shard-*"))
            if not file.exists():
                if begun:
                    raise ZooError(f"{path} holds networks that 'collect' did not make; give another path")
                write_json(file, settings)
                return
            try:
                refuse_other_settings(path, read_json(file), settings, ignore=MAY_CHANGE)
            except ZooError as error:
                hint = "" if begun else f"; no run is finished there: unless one is being trained, delete {file}"
                raise ZooError(f"{error}{hint}") from None

    def _collect_shard(self, task: BaseTask, path: Path, shard: int, bar: Progress) -> None:
        chunks = self._chunks(task, shard)
        parts = [self._train(task, chunk, bar) for chunk in chunks]
        theta = torch.cat([part.theta for part in parts])
        start = torch.cat([part.start for part in parts]) if task.has_data else None
        run = torch.arange(chunks[0].start, chunks[-1].stop)
        finite = theta.isfinite().flatten(1).all(1)
        dropped = run[~finite].tolist()
        if dropped:
            warnings.warn(f"dropped {len(dropped)} runs that diverged: {dropped}", stacklevel=2)
        if len(dropped) == len(run):
            raise ZooError(f"all runs of shard {shard} diverged; lower the learning rate")
        tensors = self._score(task, theta[finite], run[finite], start[finite] if start is not None else None)
        write_shard(path, shard, tensors, {"dropped": dropped})

    def _train(self, task: BaseTask, runs: range, bar: Progress) -> Trajectories:
        if not task.has_data:
            drawn = torch.cat([task.draw(1, run_generator(self.seed, run)) for run in runs])
            bar.advance(bar.task_ids[0], self.epochs)
            return Trajectories(drawn, drawn[:, None])
        start = draw_starts(task, self.initializer, self.seed, runs)
        order = self._order(task, runs)
        steps, on_epoch = self._steps(task), partial(bar.advance, bar.task_ids[0])
        plan = (self.optimizer, self.epochs, self.batch_size, steps, self._place)
        return train_runs(task, start, order, *plan, on_epoch=on_epoch, max_steps=self.max_steps)

    def _steps(self, task: BaseTask) -> list[int]:
        """The steps at which snapshots are taken; 0 for a network that is drawn."""
        if not task.has_data:
            return [0]
        steps = self.snapshots.steps(steps_per_epoch(task, self.batch_size), self.epochs)
        if steps != sorted(set(steps)) or steps[0] < 1:
            raise ValueError(f"{type(self.snapshots).__name__} gives steps that do not ascend from 1")
        last = self.steps(task)
        return [step for step in steps if step < last] + [last]

    def _score(self, task: BaseTask, theta: Tensor, run: Tensor, start: Tensor | None) -> dict[str, Tensor]:
        """The tensors of a shard: kept snapshots (B, S, D) in rows, with their metrics."""
        steps = torch.tensor(self._steps(task))
        rows = theta.flatten(0, 1)
        metrics: dict[str, Tensor] = {}
        keep = torch.ones(theta.shape[:2], dtype=torch.bool)
        if task.has_data:
            scores = {split: task.evaluate(rows.to(self._place), split) for split in SCORED}
            metrics = {f"{split}.{name}": v.cpu() for split, found in scores.items() for name, v in found.items()}
            keep = self.snapshots.keep(metrics["val.loss"].view(theta.shape[:2]))
            keep[:, -1] = True
        mask = keep.flatten()
        return shard_tensors(
            rows[mask],
            run[:, None].expand(keep.shape).flatten()[mask],
            steps.expand(keep.shape).flatten()[mask],
            {name: value[mask] for name, value in metrics.items()},
            start,
            run,
            order=run // self.runs_per_order if self.shares_orders else None,
        )


class _OneBatch(DataOrder):
    """The same mini-batch (B, n) in every epoch, for timing single steps."""

    def __init__(self, index: Tensor) -> None:
        self._index = index

    def epoch(self) -> Tensor:
        return self._index


def _progress(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not shown)
