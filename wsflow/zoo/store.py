"""The zoo on disk: many trained networks in safetensors shards and one JSON manifest.

The manifest ``zoo.json`` is written last, so a directory that has one is complete.  It holds the format and its
version, the kind (``zoo`` of trained networks or ``samples`` of generated ones), descriptions of the task, the weight
space and the collector, library versions, and the size and SHA-256 of every shard (:mod:`wsflow.zoo.shards`).
Generated networks use the same format, without starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsflow.tasks.base import BaseTask
from wsflow.tasks.splits import split_indices
from wsflow.weightspace import WeightSpace
from wsflow.zoo.shards import ZooError, cat, file_hash, read_json, read_tensors, refuse_non_finite
from wsflow.zoo.write import FORMAT, MANIFEST, VERSION


class Zoo:
    """A zoo of N snapshots of R runs, opened for reading; weights are memory-mapped.

    Open one with :meth:`open`.

    Attributes:
        path: Its directory.
        manifest: Its manifest, plain data.
        space: The weight space of its networks.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], space: WeightSpace) -> None:
        self.path = path
        self.manifest = manifest
        self.space = space

    @classmethod
    def open(cls, path: str | Path) -> Zoo:
        """Open a zoo and check its manifest, the sizes of its files and the shapes of its tensors.

        Raises:
            ZooError: where there is no complete zoo, a file is missing or truncated, the manifest is foreign or of a
                newer version, or the weights are of another architecture than the manifest says.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        zoo = cls(path, manifest, WeightSpace.from_description(manifest["space"]))
        zoo._check_files()
        zoo._check_shapes()
        return zoo

    def __len__(self) -> int:
        """N, the number of snapshots."""
        return len(self.run)

    @property
    def kind(self) -> str:
        """``zoo`` or ``samples``."""
        return str(self.manifest["kind"])

    @property
    def task(self) -> BaseTask | None:
        """The base task, rebuilt from the manifest; None where the manifest names none.

        Generated networks are of the task of the data that their flow was trained on.
        """
        data = self.manifest.get("data") or {}
        known = self.manifest.get("task") or (data.get("init_args") or {}).get("task")
        return BaseTask.from_description(known) if known else None

    @cached_property
    def theta(self) -> Tensor:
        """(N, D) float32 weights; memory-mapped if the zoo has one shard, else read into memory."""
        return cat([shard["theta"] for shard in self._shards])

    @cached_property
    def buffers(self) -> Tensor | None:
        """(N, D_b) float32, running statistics of norm layers; None where the zoo keeps none."""
        return cat([shard["buffers"] for shard in self._shards]) if self.has_buffers else None

    @cached_property
    def run(self) -> Tensor:
        """(N,) int64, the run of each snapshot."""
        return cat([shard["run"] for shard in self._shards])

    @cached_property
    def step(self) -> Tensor:
        """(N,) int64, the number of optimiser steps behind each snapshot."""
        return cat([shard["step"] for shard in self._shards])

    @cached_property
    def metrics(self) -> dict[str, Tensor]:
        """(N,) float32 each, such as ``val.loss`` and ``test.accuracy``."""
        names = [name for name in self._shards[0] if name.startswith("metric.")]
        return {name.removeprefix("metric."): cat([shard[name] for shard in self._shards]) for name in names}

    @cached_property
    def start(self) -> Tensor | None:
        """(R, D) float32, the initial weights of the runs in ``run_ids``; None where they are not known."""
        return cat([shard["start"] for shard in self._shards]) if self.has_start else None

    @cached_property
    def run_ids(self) -> Tensor:
        """(R,) int64, the runs, in the order of ``start``."""
        return cat([shard["start_run"] for shard in self._shards]) if self.has_start else torch.unique(self.run)

    @cached_property
    def order(self) -> Tensor | None:
        """(R,) int64, the order of the data that each run in ``run_ids`` saw; None where no two runs share one."""
        return cat([shard["start_order"] for shard in self._shards]) if "start_order" in self._shards[0] else None

    @property
    def collected_by(self) -> dict[str, Any] | None:
        """The settings of its collector, or of that of the zoo that it is a part of; None where none is recorded."""
        found: dict[str, Any] | None = self.manifest.get("collector") or self.manifest.get("subset_of")
        return found

    @property
    def has_start(self) -> bool:
        """Whether the runs' initial weights are known."""
        return "start" in self._shards[0]

    @property
    def has_buffers(self) -> bool:
        """Whether the running statistics of its networks' norm layers are known."""
        return "buffers" in self._shards[0]

    def rows(self, index: Tensor) -> Tensor:
        """Weights of the snapshots ``index`` (B,), a copy (B, D) that reads only these."""
        return self._rows("theta", index)

    def extended(self, index: Tensor) -> Tensor:
        """Weights and running statistics of the snapshots ``index`` (B,), a copy.

        Returns:
            (B, D + D_b); (B, D) where the zoo keeps no running statistics.
        """
        theta = self.rows(index)
        return torch.cat([theta, self._rows("buffers", index)], dim=1) if self.has_buffers else theta

    def starts_of(self, run: Tensor) -> Tensor:
        """Initial weights (B, D) of the runs (B,), a copy.

        Raises:
            ZooError: where the zoo keeps no starts, or not of these runs.
        """
        if not self.has_start:
            raise ZooError(f"{self.path} keeps no initial weights")
        return self._rows("start", self.position(run))

    def position(self, run: Tensor) -> Tensor:
        """Where the runs (B,) stand in ``run_ids``, (B,).

        Raises:
            ZooError: for a run that the zoo does not have.
        """
        ids, order = self._sorted_ids
        place = torch.searchsorted(ids, run).clamp(max=len(ids) - 1)
        if not torch.equal(ids[place], run):
            raise ZooError(f"{self.path} has no run {int(run[ids[place] != run][0])}")
        return order[place]

    def final(self) -> Tensor:
        """Indices (R,) of the last snapshot of each run, in the order of ``run_ids``."""
        by_step = self.step.argsort(stable=True)
        place, rank = self.position(self.run[by_step]), torch.arange(len(by_step))
        # not last[place] = by_step: of rows written to one place, several threads leave any
        latest = torch.full((len(self.run_ids),), -1).scatter_reduce(0, place, rank, "amax")
        return by_step[latest]

    def earlier(self) -> Tensor:
        """Indices (R, S) of the snapshots before the last one of each run, by step, in the order of ``run_ids``.

        Raises:
            ZooError: where there are none, or runs have different numbers of them.
        """
        place = self.position(self.run)
        by_step = self.step.argsort(stable=True)
        order = by_step[place[by_step].argsort(stable=True)]
        counts = place.bincount(minlength=len(self.run_ids))
        least, most = int(counts.min()), int(counts.max())
        if most == 1 or least != most:
            raise ZooError(
                f"{self.path} keeps {least} to {most} snapshots per run; snapshots on the way are read from zoos that "
                "keep several, and of every run as many, such as those collected with EverySnapshot"
            )
        return order.view(-1, most)[:, :-1]

    def verify(self) -> None:
        """Read everything: checksums, finite weights, and that runs and starts belong together.

        Raises:
            ZooError: with the file and what is wrong with it.
        """
        for shard in self.manifest["shards"]:
            if file_hash(self.path / shard["file"]) != shard["sha256"]:
                raise ZooError(f"{self.path / shard['file']} is damaged: its SHA-256 is not the manifest's")
        self.check_finite()
        if len(self) != self.manifest["rows"] or not torch.equal(torch.unique(self.run), self.run_ids.sort().values):
            raise ZooError(f"{self.path} is inconsistent: rows or runs are not those of the manifest")

    def check_finite(self) -> None:
        """Raise ZooError where weights or starts hold NaN or infinity; the message names the runs."""
        for shard in self._shards:
            refuse_non_finite(shard["theta"], shard["run"], f"{self.path}: weights")
            if "buffers" in shard:
                refuse_non_finite(shard["buffers"], shard["run"], f"{self.path}: running statistics")
            if "start" in shard:
                refuse_non_finite(shard["start"], shard["start_run"], f"{self.path}: starts")

    def _rows(self, name: str, index: Tensor) -> Tensor:
        """Rows ``index`` (B,) of a tensor of the shards, a copy."""
        offsets = self._run_offsets if name == "start" else self._offsets
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise ZooError(
                f"{self.path} has snapshots 0 to {len(self) - 1}, not {int(index.min())} to {int(index.max())}"
            )
        shard_of = torch.bucketize(index, offsets[1:], right=True)
        result = torch.empty(len(index), self._shards[0][name].shape[1])
        for number in torch.unique(shard_of).tolist():
            where = shard_of == number
            result[where] = self._shards[number][name][index[where] - offsets[number]]
        return result

    @cached_property
    def _shards(self) -> list[dict[str, Tensor]]:
        return [read_tensors(self.path / shard["file"]) for shard in self.manifest["shards"]]

    @cached_property
    def _offsets(self) -> Tensor:
        return torch.tensor([0, *(len(shard["run"]) for shard in self._shards)]).cumsum(0)

    @cached_property
    def _run_offsets(self) -> Tensor:
        return torch.tensor([0, *(len(shard["start_run"]) for shard in self._shards)]).cumsum(0)

    @cached_property
    def _sorted_ids(self) -> tuple[Tensor, Tensor]:
        ids, order = self.run_ids.sort()
        return ids, order

    def _check_files(self) -> None:
        for shard in self.manifest["shards"]:
            file = self.path / shard["file"]
            if not file.exists():
                raise ZooError(f"{file} is missing; the manifest lists it")
            if file.stat().st_size != shard["bytes"]:
                raise ZooError(f"{file} is truncated or damaged: {file.stat().st_size} bytes, not {shard['bytes']}")

    def _check_shapes(self) -> None:
        for shard, tensors in zip(self.manifest["shards"], self._shards, strict=True):
            missing = {"theta", "run", "step"} - set(tensors)
            if missing:
                raise ZooError(f"{self.path / shard['file']} lacks the tensors {sorted(missing)}")
            if tensors["theta"].shape[1:] != (self.space.dim,):
                raise ZooError(
                    f"{self.path / shard['file']} holds weights of another architecture: shape "
                    f"{tuple(tensors['theta'].shape)}, but the manifest's weight space has D = {self.space.dim}"
                )
            if ("start_order" in tensors) != ("start_order" in self._shards[0]):
                raise ZooError(f"{self.path}: some files say which runs share an order of the data, and others do not")
            known = tensors["buffers"].shape[1:] if "buffers" in tensors else None
            if known not in (None, (self.space.full_dim - self.space.dim,)) or (known is None) == self.has_buffers:
                raise ZooError(
                    f"{self.path / shard['file']} holds running statistics of another architecture, or lacks those "
                    "that the zoo's other files hold"
                )


def split_runs(
    run_ids: Tensor,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    order: Tensor | None = None,
) -> dict[str, Tensor]:
    """Split runs (R,) into ``train``, ``val`` and ``test`` runs, sorted; a function of the runs and the seed alone.

    Runs that share orders of the data come in turns, so that the first few of a split are of many orders.

    Args:
        run_ids: (R,), the runs.
        fractions: Of runs in train, validation and test.
        seed: Of the split.
        order: (R,), the order of the data that each run saw; runs of one order are not independent and come into one
            split.  None where every run has its own.

    Raises:
        ValueError: where there are not three fractions that add up to 1, or too few runs, or orders.
    """
    if len(fractions) != 3:
        raise ValueError(f"fractions must be three, of train, validation and test runs; got {list(fractions)}")
    units = run_ids if order is None else order
    ids = torch.unique(units)
    try:
        parts = split_indices(len(ids), fractions, seed)
    except ValueError as error:
        if order is None:
            raise
        raise ValueError(
            f"{error}: runs that saw the data in one order stay together, and these are what is split"
        ) from None
    chosen = {name: ids[part] for name, part in zip(("train", "val", "test"), parts, strict=True)}
    found = {name: torch.isin(units, part).nonzero().squeeze(1) for name, part in chosen.items()}
    found = {name: rows[run_ids[rows].argsort()] for name, rows in found.items()}
    if order is not None:
        found = {name: rows[in_turn(order[rows])] for name, rows in found.items()}
    return {name: run_ids[rows] for name, rows in found.items()}


def in_turn(order: Tensor) -> Tensor:
    """Indices (n,) that go through entries with orders (n,) by turns: the first of each order, then the second, ..."""
    sorted_order, by_order = order.sort(stable=True)
    counts = torch.unique_consecutive(sorted_order, return_counts=True)[1]
    turn = torch.empty_like(order)
    firsts = counts.cumsum(0) - counts
    turn[by_order] = torch.arange(len(order)) - firsts.repeat_interleave(counts)
    return turn.argsort(stable=True)


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        where = "" if path.is_absolute() else f" below {Path.cwd()}"
        raise ZooError(f"there is no zoo at {path}{where}; give its path, or make one with 'wsflow collect'")
    if not (path / MANIFEST).exists():
        done = len(list(path.glob("shard-*.json")))
        hint = f"{done} shards are finished; run the same command again to complete it" if done else "empty"
        raise ZooError(f"there is no complete zoo at {path}: {hint}")
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ZooError(f"{path / MANIFEST} is not the manifest of a wsflow zoo")
    _refuse_other_types(path / MANIFEST, manifest)
    if manifest.get("version", 0) > VERSION:
        raise ZooError(f"{path} has format version {manifest['version']}; this wsflow reads up to {VERSION}: update it")
    missing = {"kind", "task", "space", "rows", "shards"} - set(manifest)
    if missing or not manifest["shards"]:
        raise ZooError(f"{path / MANIFEST} is damaged: it lacks {sorted(missing) or 'shards'}")
    return manifest


def _refuse_other_types(file: Path, manifest: Mapping[str, Any]) -> None:
    """Raise ZooError where a part of a manifest is not what it should be."""
    plain: dict[str, Any] = {"version": int, "rows": int, "seconds_per_network": (int, float), "space": dict}
    wrong = [name for name, kind in plain.items() if name in manifest and not isinstance(manifest[name], kind)]
    described = ("task", "data", "geometry", "sampling")
    wrong += [name for name in described if not isinstance(manifest.get(name), dict | None)]
    shards = manifest.get("shards", [])
    if not isinstance(shards, list) or not all(
        isinstance(one, dict) and isinstance(one.get("file"), str) for one in shards
    ):
        wrong.append("shards")
    if wrong:
        raise ZooError(f"{file} is damaged: {', '.join(wrong)} cannot be read")
