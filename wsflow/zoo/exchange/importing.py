"""Making a zoo of networks that were trained elsewhere.

Networks are read and written shard by shard, so that memory holds one shard, whatever the zoo's size.  Beside the
shards lies ``networks.csv``, which says where every network came from.  The zoo appears under its name when it is
complete; a failed import leaves nothing.

Float16 and bfloat16 become float32 exactly; float64 is rounded, with one warning where a number changes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsflow.files import write_whole
from wsflow.tasks.base import BaseTask
from wsflow.weightspace import WeightSpace
from wsflow.zoo.exchange.fitting import Fitter
from wsflow.zoo.exchange.folder import new_folder, refuse_existing
from wsflow.zoo.exchange.labels import Labels, from_names, from_table, labels, merged
from wsflow.zoo.exchange.sources import Files, Source, open_source
from wsflow.zoo.shards import ZooError, shard_tensors, write_shard
from wsflow.zoo.store import Zoo
from wsflow.zoo.write import split_buffers, write_manifest

SHARD_BYTES = 2**27
"""Weights in one file, at most, unless one network is larger."""

NETWORKS = "networks.csv"
"""Where every network came from: run, step and file, one line per network, in the zoo's order."""


def import_zoo(
    path: str | Path,
    output: str | Path,
    space: WeightSpace,
    task: BaseTask | None = None,
    pattern: str | None = None,
    table: str | Path | None = None,
    key: str | None = None,
    order: str | Sequence[str] | None = None,
    prefix: str | None = None,
    ignore: str | None = None,
    drop_invalid: bool = False,
) -> Zoo:
    """Make a zoo of foreign networks.

    Args:
        path: A folder of files of one network each (safetensors, torch, Lightning, Hugging Face), one such file, or
            a file of many networks: stacks of named tensors, or an array of flat vectors.
        output: Directory of the new zoo.
        space: The networks' weight space; it needs a description.
        task: The base task to name in the zoo.
        pattern: Regular expression for file names; see :mod:`wsflow.zoo.exchange.labels`.
        table: CSV file of labels.
        key: Which entry of the file, or of every file, holds the weights.
        order: What a row of an array holds: names of tensors, ``flat`` or ``parameters``.
        prefix: Of tensor names in the files; found where not given.
        ignore: Regular expression for names of tensors to pass over.
        drop_invalid: Whether networks with NaN or infinity are left out instead of refused.

    Returns:
        The zoo, open.

    Raises:
        ZooError: where something cannot be read, does not fit, is not finite, or is there already.
    """
    path, output = Path(path), Path(output)
    refuse_existing(output)
    if task is not None and task.space != space:
        raise ZooError(f"the base network of task {task.name} is not the network that is imported")
    fitter = Fitter(space, prefix, ignore)
    source = open_source(path, fitter, key, order)
    known = _labels(source, pattern, table)
    settings: dict[str, Any] = {"path": str(path), "pattern": pattern, "key": key, "prefix": prefix, "ignore": ignore}
    settings |= {"table": str(table) if table else None, "order": order, "codes": known.codes}
    writer = Writer(source, known, space, drop_invalid)
    with new_folder(output) as folder:
        shards = writer.write(folder)
        settings |= {"dtypes": sorted(fitter.dtypes), "left_out": writer.dropped}
        extra = {"import": settings, "runs": writer.runs, "dropped": writer.dropped_runs}
        write_manifest(folder, space, shards, "zoo", task, extra=extra)
    _warn(fitter, writer)
    return Zoo.open(output)


class Writer:
    """Writes the shards of an imported zoo.

    Args:
        source: The networks.
        labels: Their runs, steps and metrics.
        space: Their weight space.
        drop_invalid: Whether networks with numbers that cannot be are left out.

    Attributes:
        dropped: Names of the networks that were left out.
        double: Names of two networks of different runs that are the same; None where there are none.
    """

    def __init__(self, source: Source, labels: Labels, space: WeightSpace, drop_invalid: bool = False) -> None:
        self.source, self.labels, self.space, self.drop_invalid = source, labels, space, drop_invalid
        self.order = labels.order(source.names)
        self.dropped: list[str] = []
        self.double: tuple[str, str] | None = None
        self._seen: dict[bytes, int] = {}
        self._kept: list[int] = []

    @property
    def runs(self) -> int:
        """The number of runs that were written."""
        return len(set(self.labels.run[self._kept].tolist()))

    @property
    def dropped_runs(self) -> list[int]:
        """Runs of which nothing was written."""
        return sorted(set(self.labels.run.tolist()) - set(self.labels.run[self._kept].tolist()))

    def write(self, folder: Path) -> list[dict[str, Any]]:
        """Write all shards and the list of networks; give the shards' sidecars.

        Raises:
            ZooError: where a network cannot be read, does not fit or is not valid, or none is left.
        """
        sidecars: list[dict[str, Any]] = []
        for rows, theta in self._chunks():
            weights, buffers = split_buffers(self.space, theta)
            metrics = {name: value[rows] for name, value in self.labels.metrics.items()}
            run, step = self.labels.run[rows], self.labels.step[rows]
            tensors = shard_tensors(weights, run, step, metrics, buffers=buffers)
            sidecars.append(write_shard(folder, len(sidecars), tensors))
        if not sidecars:
            raise ZooError(f"there are no networks to import; {len(self.dropped)} were left out")
        write_whole(folder / NETWORKS, self._list().encode())
        return sidecars

    def _chunks(self) -> Iterator[tuple[list[int], Tensor]]:
        """Rows and their valid networks, a shard at a time."""
        size = max(1, SHARD_BYTES // (4 * self.space.full_dim))
        for first in range(0, len(self.order), size):
            rows = self.order[first : first + size]
            theta = self.source.read(rows)
            valid = self._valid(rows, theta)
            if not all(valid):
                rows = [row for row, good in zip(rows, valid, strict=True) if good]
                theta = theta[torch.tensor(valid)]
            self._look_for_doubles(rows, theta)
            self._kept += rows
            if rows:
                yield rows, theta

    def _valid(self, rows: Sequence[int], theta: Tensor) -> list[bool]:
        wrong = ~theta.isfinite()
        for vector in self.space.buffers:
            if vector.kind == "running_var":
                wrong[:, vector.slice] |= theta[:, vector.slice] < 0
        bad = wrong.any(1)
        for place in bad.nonzero()[:, 0].tolist():
            name = self.source.names[rows[place]]
            if not self.drop_invalid:
                raise ZooError(
                    f"{name}: tensor {self._tensor(int(wrong[place].long().argmax()))!r} holds NaN, infinity or a "
                    "negative variance; --drop_invalid leaves such networks out"
                )
            self.dropped.append(name)
        return (~bad).tolist()

    def _tensor(self, coordinate: int) -> str:
        tensors = self.space.tensors + self.space.buffer_tensors
        return next(t.name for t in tensors if t.slice.start <= coordinate < t.slice.stop)

    def _look_for_doubles(self, rows: Sequence[int], theta: Tensor) -> None:
        run = self.labels.run
        for row, vector in zip(rows, theta, strict=True):
            first = self._seen.setdefault(hashlib.sha256(vector.numpy().tobytes()).digest(), row)
            if self.double is None and run[first] != run[row]:
                self.double = self.source.names[first], self.source.names[row]

    def _list(self) -> str:
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["run", "step", "file"])
        run, step = self.labels.run.tolist(), self.labels.step.tolist()
        lines.writerows((run[row], step[row], self.source.names[row]) for row in self._kept)
        return text.getvalue()


def _labels(source: Source, pattern: str | None, table: str | Path | None) -> Labels:
    files = source.files if isinstance(source, Files) else None
    if pattern is not None and files is None:
        raise ZooError("a pattern reads the names of files, and these networks are in one; give a table of labels")
    named: Mapping[str, list[str]] = from_names(files, pattern) if files and pattern is not None else {}
    listed = from_table(Path(table), files, len(source.names)) if table is not None else {}
    return labels(merged(named, listed), len(source.names))


def _warn(fitter: Fitter, writer: Writer) -> None:
    if fitter.rounded is not None:
        warnings.warn(f"float64 weights were rounded to float32, first in {fitter.rounded}", stacklevel=3)
    if writer.double is not None:
        warnings.warn(
            f"{writer.double[1]} is the same network as {writer.double[0]} of another run; "
            "splits by run would share it between train and test",
            stacklevel=3,
        )
