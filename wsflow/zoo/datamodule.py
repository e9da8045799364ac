"""Serving a zoo to training: splits by run, alignment, batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from wsflow.alignment import Aligner
from wsflow.tasks.base import BaseTask
from wsflow.tasks.without_data import WithoutData
from wsflow.weightspace import Objective, ZooBatch
from wsflow.weightspace.symmetry import random_permutations
from wsflow.weightspace.transfer import send
from wsflow.zoo.align import align_zoo
from wsflow.zoo.collect import Collector
from wsflow.zoo.held import fits, hold, pinned
from wsflow.zoo.labels import Label
from wsflow.zoo.loader import NetworkLoader
from wsflow.zoo.settings import MAY_DIFFER, refuse_other_settings
from wsflow.zoo.shards import ZooError
from wsflow.zoo.store import Zoo, in_turn, split_runs
from wsflow.zoo.write import MANIFEST

PROBES = 16
"""Inputs on which aligned networks are compared with the networks they were."""

POINTS = 1024
"""Train data points that a loss looks at in one step of an alignment."""


class ZooDataModule(LightningDataModule):
    """Yields batches of trained networks, split into train, validation and test runs.

    A run and all its snapshots belong to one split, and so do runs that saw the data in one order.  Where a network is
    permuted, by an aligner or at random, its start is permuted with it; for an aligned network this makes the start
    depend on the trained weights, which biases the law of the starts unless the field is equivariant.

    Args:
        task: The base task; it must be the one the zoo was trained on.  By default the one that the zoo names or, where
            it names none, its network :class:`wsflow.tasks.WithoutData`.
        path: The zoo's directory; it must be given.
        collector: Collects the zoo where it is absent or incomplete; a zoo that is there must have its settings, but
            for ``memory``, ``shard_runs`` and ``device``.
        batch_size: Networks per batch and process.
        aligner: Aligns the networks to the first train run or, as :class:`wsflow.alignment.ZooCenter`, to the centre
            of the train runs; none by default.
        fractions: Of runs in train, validation and test.
        split_seed: Of the split.
        final_only: Whether only each run's final snapshot is used.
        train_runs: Train with the first so many runs of the train split only, to see what more runs bring; validation
            and test runs stay the same.
        permute: Whether every network of a train batch gets random permutations, as augmentation.
        seed: Of the order of batches and of random permutations.
        passes: How often an epoch goes through the train networks; more make epochs of a small zoo longer.
        snapshots: Whether batches also hold the earlier snapshots of each network's run, permuted with it; a snapshot
            of step k in a run of K steps was taken at k / K.
        labels: What a conditional flow is told of each network, such as :class:`wsflow.zoo.MetricLabel`; nothing by
            default.
        on_device: Whether the networks of a split are put on the training's device once, and batches are drawn there;
            by default on devices other than the CPU, if they take at most a quarter of the free memory.

    Raises:
        ValueError: unless batch size and passes are positive, for earlier snapshots of others than final ones, and
            without a path, or without a task and a zoo.
    """

    def __init__(
        self,
        task: BaseTask | None = None,
        path: str = "",
        collector: Collector | None = None,
        batch_size: int = 32,
        aligner: Aligner | None = None,
        fractions: Sequence[float] = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        final_only: bool = True,
        permute: bool = False,
        seed: int = 0,
        passes: int = 1,
        snapshots: bool = False,
        train_runs: int | None = None,
        on_device: bool | None = None,
        labels: Sequence[Label] | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or passes < 1:
            raise ValueError(f"batch_size and passes must be at least 1, got {batch_size} and {passes}")
        if snapshots and not final_only:
            raise ValueError("snapshots=True gives the way to each run's final snapshot and needs final_only=True")
        if not path:
            raise ValueError("path is missing: give the zoo's directory")
        self.task = task if task is not None else _task_of(path)
        self.path, self.collector, self.batch_size = path, collector, batch_size
        self.aligner, self.fractions, self.split_seed, self.final_only = aligner, fractions, split_seed, final_only
        self.permute, self.seed, self.passes, self.snapshots = permute, seed, passes, snapshots
        self.train_runs, self.on_device = train_runs, on_device
        self.labels = list(labels) if labels else None
        self._zoo: Zoo | None = None
        self._perms: list[Tensor] | None = None
        self._held: dict[str, ZooBatch] = {}

    @property
    def space_description(self) -> dict[str, Any]:
        """The base network's description, plain data, from which a module builds the weight space."""
        return cast("dict[str, Any]", json.loads(json.dumps(dict(self.task.space.description or {}))))

    @property
    def label_description(self) -> list[dict[str, Any]] | None:
        """What a module must know of the labels, plain data."""
        return [label.description for label in self.labels] if self.labels else None

    @cached_property
    def label_values(self) -> Tensor | None:
        """(N, K), the labels of every snapshot of the zoo; None where there are none."""
        if not self.labels:
            return None
        values = [label.values(self.zoo, self.task).float() for label in self.labels]
        for label, found in zip(self.labels, values, strict=True):
            if found.shape != (len(self.zoo),):
                raise ValueError(
                    f"label {label.name!r} gives values of shape {tuple(found.shape)}, and {self.path} has "
                    f"{len(self.zoo)} snapshots"
                )
        return torch.stack(values, dim=1)

    def told(self, split: str) -> Tensor | None:
        """Labels (n, K) of a split's networks."""
        return None if self.label_values is None else self.label_values[self.rows(split)]

    @property
    def zoo(self) -> Zoo:
        """The zoo; opened, and its weights checked, on first use.

        Raises:
            ZooError: where it is missing, damaged, of another task or weight space, or holds weights that are not
                finite.
        """
        if self._zoo is None:
            zoo = Zoo.open(self.path)
            self._check(zoo)
            self._zoo = zoo
        return self._zoo

    @property
    def runs(self) -> dict[str, Tensor]:
        """The runs of each split."""
        found = split_runs(self.zoo.run_ids, self.fractions, self.split_seed, self.zoo.order)
        if self.train_runs is not None and not 0 < self.train_runs <= len(found["train"]):
            raise ValueError(f"train_runs is {self.train_runs}, the train split has {len(found['train'])} runs")
        return {**found, "train": found["train"][: self.train_runs]}

    @property
    def reference_run(self) -> int:
        """The first run of the train split, which networks are aligned to unless the aligner finds a reference."""
        return int(self.runs["train"][0])

    @property
    def aligned(self) -> bool:
        """Whether a place in the weights of two networks means the same; so it is without neurons that permute."""
        return not self.task.space.hidden or (self.aligner is not None and not self.permute)

    def prepare_data(self) -> None:
        """Collect the zoo where it is absent or incomplete, and fill the alignment's cache; in one process only."""
        if self.collector is not None and not (Path(self.path) / MANIFEST).exists():
            runs = torch.arange(self.collector.runs)
            orders = runs // self.collector.runs_per_order if self.collector.shares_orders else None
            split_runs(runs, self.fractions, self.split_seed, orders)  # what cannot be split is not collected
            self.collector.collect(self.task, self.path)
        self._permutations()

    def setup(self, stage: str | None = None) -> None:
        """Open the zoo and check that the train split fills a batch and every process has networks to validate on.

        Raises:
            ValueError: where this is not so.
        """
        train, world = self.rows("train"), self._processes[1]
        if len(train) * self.passes < self.batch_size * world:
            raise ValueError(
                f"batch_size {self.batch_size} in {world} process(es) is larger than the train split of "
                f"{len(train)} networks in {self.path}; lower batch_size or collect more runs"
            )
        for split in ("val", "test"):
            if 0 < (count := len(self.rows(split))) < world:
                raise ValueError(
                    f"the {split} split of {self.path} has {count} networks, fewer than the {world} processes that "
                    "share it; use fewer processes, larger fractions, or collect more runs"
                )
        self._permutations()

    def rows(self, split: str, final_only: bool | None = None) -> Tensor:
        """Row numbers of a split's snapshots in the zoo; runs that share orders of the data come in turns.

        Args:
            split: ``train``, ``val`` or ``test``.
            final_only: Whether only final snapshots count; as set for the data module by default.
        """
        if split not in self.runs:
            raise ValueError(f"unknown split {split!r}; splits are {', '.join(self.runs)}")
        final = self.final_only if final_only is None else final_only
        rows = self.zoo.final() if final else torch.arange(len(self.zoo))
        rows = rows[torch.isin(self.zoo.run[rows], self.runs[split])]
        order = self.zoo.order
        return rows if order is None else rows[in_turn(order[self.zoo.position(self.zoo.run[rows])])]

    def networks(self, split: str) -> ZooBatch:
        """The final snapshots alone of all runs of a split, aligned if training is."""
        return self._batch(self.rows(split, final_only=True), snapshots=False)

    def calibration(self, n: int) -> ZooBatch:
        """The first n train networks, aligned if training is."""
        return self._batch(self.rows("train")[:n], self.snapshots)

    def train_dataloader(self) -> NetworkLoader:
        """Shuffled batches of train networks."""
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        return self._loader("train", self.permute, shuffle=True, seed=self.seed, passes=self.passes, first_epoch=epoch)

    def val_dataloader(self) -> NetworkLoader:
        """Batches of networks of validation runs."""
        return self._loader("val")

    def test_dataloader(self) -> NetworkLoader:
        """Batches of networks of test runs."""
        return self._loader("test")

    def teardown(self, stage: str) -> None:
        """Give back the device's memory."""
        self._held.clear()

    @property
    def _processes(self) -> tuple[int, int]:
        """This process's number and how many there are."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    @property
    def _device(self) -> torch.device:
        """Where batches are going."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _loader(self, split: str, permute: bool = False, **order: Any) -> NetworkLoader:
        """Batches of a split, drawn on the device where its networks are there."""
        rows, where = self.rows(split), torch.device("cpu")
        get: Callable[[Tensor], ZooBatch] = self._plain
        if len(rows) and self._holds(rows):
            if split not in self._held:
                self._held[split] = hold(self._plain, rows, self._device)
            rows, get, where = torch.arange(len(rows)), self._held[split].select, self._device
        rank, world = self._processes
        fetch = partial(self._fetch, get, permute)
        return NetworkLoader(fetch, rows, self.batch_size, rank=rank, world=world, device=where, **order)

    def _holds(self, rows: Tensor) -> bool:
        if self.on_device is not None:
            return self.on_device
        vectors = 1 + self.zoo.has_start + (self._earlier_rows.shape[1] if self.snapshots else 0)
        return fits(len(rows), vectors * self.zoo.space.dim, self._device)

    def _check(self, zoo: Zoo) -> None:
        if zoo.space != self.task.space:
            there, here = zoo.manifest["space"]["init_args"], self.space_description.get("init_args")
            raise ZooError(
                f"{self.path} holds weights of another architecture than the base network of task {self.task.name}: "
                f"{there} there, {here} here"
            )
        wanted = {
            "task": self.task.description,
            "collector": self.collector.description if self.collector is not None else None,
        }
        known = {name: value for name, value in wanted.items() if value and zoo.manifest.get(name)}
        refuse_other_settings(Path(self.path), {name: zoo.manifest[name] for name in known}, known, ignore=MAY_DIFFER)
        zoo.check_finite()

    def _permutations(self) -> list[Tensor] | None:
        if self.aligner is not None and self._perms is None:
            train = self.runs["train"].tolist()
            objective = self._loss() if self.task.has_data else None
            about = (self.task.probe(PROBES), objective, self.task.description)
            self._perms = align_zoo(self.zoo, self.aligner, train, *about)
        return self._perms

    def _loss(self) -> Objective:
        """The loss that aligners may look at: on train data, in mini-batches where there are many points."""
        many = len(self.task.data("train")[0]) > POINTS
        return self.task.objective("train", POINTS if many else None)

    def _batch(self, rows: Tensor, snapshots: bool) -> ZooBatch:
        run = self.zoo.run[rows]
        theta = self.zoo.rows(rows)
        label = None if self.label_values is None else self.label_values[rows]
        batch = ZooBatch(theta, self.zoo.starts_of(run) if self.zoo.has_start else None, run, label)
        if snapshots:
            batch = batch._replace(**self._earlier(rows))
        perms = self._permutations()
        if perms is None:
            return batch
        position = self.zoo.position(run)
        return self._move(batch, [p[position] for p in perms])

    def _plain(self, rows: Tensor) -> ZooBatch:
        return self._batch(rows, self.snapshots)

    def _fetch(
        self, get: Callable[[Tensor], ZooBatch], permute: bool, rows: Tensor, generator: torch.Generator
    ) -> ZooBatch:
        """A part of a batch; permutations are drawn for all processes' parts, so that they are those of one process."""
        batch, (rank, world) = get(rows), self._processes
        if permute:
            perms = random_permutations(self.zoo.space, world * len(rows), generator)
            part = slice(rank * len(rows), (rank + 1) * len(rows))
            batch = self._move(batch, [send(perm[part], batch.x1.device) for perm in perms])
        return pinned(batch, self._device)

    def _earlier(self, rows: Tensor) -> dict[str, Tensor]:
        """Earlier snapshots (B, S, D) of the runs of some final snapshots, and their times (B, S)."""
        index = self._earlier_rows[self.zoo.position(self.zoo.run[rows])]
        path = self.zoo.rows(index.flatten()).view(*index.shape, -1)
        return {"path": path, "path_times": self.zoo.step[index] / self.zoo.step[rows, None]}

    @cached_property
    def _earlier_rows(self) -> Tensor:
        return self.zoo.earlier()

    def _move(self, batch: ZooBatch, perms: list[Tensor]) -> ZooBatch:
        """The networks of a batch, their starts and earlier snapshots, permuted alike."""
        space, start, path = self.zoo.space, batch.start, batch.path
        if path is not None:
            each = [perm.repeat_interleave(path.shape[1], 0) for perm in perms]
            path = space.permute(path.flatten(0, 1), each).view_as(path)
        return batch._replace(
            x1=space.permute(batch.x1, perms),
            start=None if start is None else space.permute(start, perms),
            path=path,
        )


def _task_of(path: str) -> BaseTask:
    """The task that a zoo names, or its network without data."""
    if not (Path(path) / MANIFEST).exists():
        raise ValueError(
            f"there is no zoo in {path} to take the task from; give data.task, and a collector to make one"
        )
    zoo = Zoo.open(path)
    return zoo.task or WithoutData.of(zoo.manifest["space"])
