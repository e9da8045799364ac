"""Writing a zoo: its manifest, and networks that are at hand."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsflow.files import remove_leftovers
from wsflow.tasks.base import BaseTask
from wsflow.weightspace import WeightSpace
from wsflow.zoo.shards import ZooError, shard_tensors, write_json, write_shard

FORMAT = "wsflow-zoo"
VERSION = 1
MANIFEST = "zoo.json"
EVERY = {
    *("format", "version", "kind", "task", "space", "dim", "collector"),
    *("libraries", "rows", "runs", "dropped", "shards"),
}
"""What every manifest says."""


def libraries() -> dict[str, str]:
    """Versions of what made a zoo."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        versions["wsflow"] = version("wsflow")
    except PackageNotFoundError:
        versions["wsflow"] = "unknown"
    return versions


def write_manifest(
    path: Path,
    space: WeightSpace,
    shards: Iterable[Mapping[str, Any]],
    kind: str = "zoo",
    task: BaseTask | None = None,
    collector: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the manifest that completes a zoo, and remove what writers killed long ago left behind.

    Args:
        path: The zoo's directory, which holds the shards.
        space: The weight space; it needs a description.
        shards: Sidecars of all shards, in order.
        kind: ``zoo`` or ``samples``.
        task: The base task.
        collector: The collector's settings.
        extra: Further plain data, such as the settings behind generated networks.

    Raises:
        ZooError: where the space has no description or there is no network.
    """
    if space.description is None:
        raise ZooError("a zoo needs a weight space with a description: build it with WeightSpace.from_description")
    listed = [dict(shard) for shard in shards]
    if not sum(shard["rows"] for shard in listed):
        raise ZooError(f"there are no networks to keep in {path}")
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "task": task.description if task is not None else None,
        "space": dict(space.description),
        "dim": space.dim,
        "collector": dict(collector) if collector is not None else None,
        "libraries": libraries(),
        "rows": sum(shard["rows"] for shard in listed),
        "runs": sum(shard["runs"] for shard in listed),
        "dropped": sorted(run for shard in listed for run in shard.get("dropped", [])),
        **(extra or {}),
        "shards": listed,
    }
    write_json(path / MANIFEST, manifest)
    remove_leftovers(path)


def write_networks(
    path: str | Path,
    theta: Tensor,
    space: WeightSpace,
    run: Tensor | None = None,
    step: Tensor | None = None,
    start: Tensor | None = None,
    metrics: Mapping[str, Tensor] | None = None,
    task: BaseTask | None = None,
    kind: str = "samples",
    extra: Mapping[str, Any] | None = None,
    shard_rows: int = 65536,
    order: Tensor | None = None,
) -> None:
    """Write networks that are at hand, such as generated ones, as a zoo.

    Args:
        path: Directory to make; it must not hold a zoo.
        theta: (N, D) weights, or (N, D + D_b) with running statistics, which are kept then.
        space: Their weight space; it needs a description.
        run: (N,) run or sample index, sorted; ``0 .. N - 1`` by default.
        step: (N,), ascending within a run; 0 by default.
        start: (R, D) initial weights of the R distinct runs, in ascending order of runs.
        metrics: (N,) each.
        task: The base task.
        kind: ``samples`` or ``zoo``.
        extra: Further plain data for the manifest.
        shard_rows: Networks per file.
        order: (R,), beside ``start``: which order of the data each run saw, where runs share orders.

    Raises:
        ZooError: where the path holds a zoo, a weight is not finite, or the shapes do not fit.
    """
    path, count = Path(path), len(theta)
    if (path / MANIFEST).exists():
        raise ZooError(f"{path} already holds a zoo; give another path or remove it")
    space.check(theta)
    run = torch.arange(count) if run is None else run.cpu()
    step = torch.zeros(count, dtype=torch.long) if step is None else step
    ids, sizes = torch.unique_consecutive(run, return_counts=True)
    if not (len(run) == len(step) == count) or not torch.equal(ids, torch.unique(run)):
        raise ZooError("run and step must have one entry per network, and runs must ascend")
    if not bool((step.diff()[run.diff() == 0] > 0).all()):
        raise ZooError("steps must ascend within a run")
    if start is not None and start.shape != (len(ids), space.dim):
        raise ZooError(f"starts of {len(ids)} runs have the shape {(len(ids), space.dim)}, got {tuple(start.shape)}")
    wrong = {name: tuple(value.shape) for name, value in (metrics or {}).items() if value.shape != (count,)}
    if wrong:
        raise ZooError(f"metrics of {count} networks have the shape ({count},), got {wrong}")
    if order is not None and (start is None or len(order) != len(ids)):
        raise ZooError(f"{len(order)} orders of the data need as many starts, and there are {len(ids)} runs")
    sidecars, ends = [], sizes.cumsum(0)
    for index, first, last in _by_runs(ends, shard_rows):
        rows = slice(int(ends[first - 1]) if first else 0, int(ends[last - 1]))
        values = {name: value[rows] for name, value in (metrics or {}).items()}
        begin = start[first:last] if start is not None else None
        weights, buffers = split_buffers(space, theta[rows])
        seen = order[first:last] if order is not None else None
        tensors = shard_tensors(weights, run[rows], step[rows], values, begin, ids[first:last], buffers, seen)
        sidecars.append(write_shard(path, index, tensors))
    write_manifest(path, space, sidecars, kind, task, extra=extra)


def split_buffers(space: WeightSpace, theta: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weights (B, D), and running statistics (B, D_b) where ``theta`` is extended by them."""
    return theta[:, : space.dim], theta[:, space.dim :] if theta.shape[1] > space.dim else None


def _by_runs(ends: Tensor, shard_rows: int) -> list[tuple[int, int, int]]:
    """Shard numbers and the ranges of whole runs they hold, about ``shard_rows`` rows each."""
    shard = (ends - 1) // shard_rows
    _, counts = torch.unique_consecutive(shard, return_counts=True)
    lasts = counts.cumsum(0).tolist()
    return [(i, first, last) for i, (first, last) in enumerate(zip([0, *lasts], lasts, strict=False))]
