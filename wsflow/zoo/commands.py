"""What ``wsflow zoo info | verify | merge | subset`` do."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsflow.zoo.shards import ZooError, shard_tensors, write_shard
from wsflow.zoo.store import Zoo
from wsflow.zoo.write import EVERY, MANIFEST, write_manifest, write_networks


def info(path: str) -> None:
    """Print what a zoo holds.

    Args:
        path: The zoo's directory.
    """
    zoo = Zoo.open(path)
    manifest = zoo.manifest
    task = manifest["task"]["class_path"].rpartition(".")[2] if manifest["task"] else "none"
    size = sum(shard["bytes"] for shard in manifest["shards"])
    lines = {
        "kind": zoo.kind,
        "task": task,
        "network": f"{manifest['space']['class_path']} {manifest['space']['init_args']}, D = {zoo.space.dim}",
        "runs": f"{len(zoo.run_ids)}, {'with' if zoo.has_start else 'without'} starts",
        **({"data orders": str(len(set(zoo.order.tolist())))} if zoo.order is not None else {}),
        "dropped runs": str(manifest.get("dropped") or "none"),
        "snapshots": f"{len(zoo)}, steps {int(zoo.step.min())} to {int(zoo.step.max())}",
        "files": f"{len(manifest['shards'])} shards, {size / 1e6:.1f} MB",
        "made with": ", ".join(f"{name} {version}" for name, version in manifest["libraries"].items()),
    }
    final = zoo.final()
    for name, value in zoo.metrics.items():
        last = value[final]
        lines[f"final {name}"] = f"{float(last.mean()):.4f} (std {float(last.std(correction=0)):.4f})"
    width = max(len(name) for name in lines)
    print("\n".join(f"{name:<{width}}  {text}" for name, text in lines.items()))


def verify(path: str) -> None:
    """Read a whole zoo and check its checksums, shapes and numbers.

    Args:
        path: The zoo's directory.

    Raises:
        ZooError: with the file and what is wrong with it.
    """
    zoo = Zoo.open(path)
    zoo.verify()
    print(f"{path}: {len(zoo)} networks of {len(zoo.run_ids)} runs, all as the manifest says")


def merge(paths: Sequence[str], output: str) -> None:
    """Merge zoos of one task and weight space into a new one; runs are numbered anew, one zoo after another.

    Args:
        paths: Directories of at least two zoos.
        output: Directory of the new zoo.

    Raises:
        ZooError: where the zoos do not fit together or share a run.
    """
    zoos = [Zoo.open(path) for path in paths]
    if len(zoos) < 2:
        raise ZooError("merge takes at least two zoos")
    _refuse_existing(output)
    for path, zoo in zip(paths[1:], zoos[1:], strict=True):
        _refuse_misfit(zoos[0], zoo, f"{path} and {paths[0]}")
    _refuse_shared(zoos)
    codes = _codes(zoos)
    sidecars: list[dict[str, Any]] = []
    offset, orders = 0, _orders(zoos)
    for zoo, seen in zip(zoos, orders, strict=True):
        order = zoo.run.argsort(stable=True)
        tensors = shard_tensors(
            zoo.rows(order),
            zoo.run[order] + offset,
            zoo.step[order],
            {name: value[order] for name, value in zoo.metrics.items()},
            zoo.start,
            zoo.run_ids + offset,
            zoo.buffers[order] if zoo.buffers is not None else None,
            seen,
        )
        zoo.check_finite()
        sidecars.append(write_shard(Path(output), len(sidecars), tensors))
        offset += int(zoo.run_ids.max()) + 1
    origin = [one for zoo in zoos for one in zoo.manifest.get("merged") or [zoo.collected_by]]
    first, *others = (_further(zoo) for zoo in zoos)
    common = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    extra = {**common, **codes, "merged": origin}
    write_manifest(Path(output), zoos[0].space, sidecars, zoos[0].kind, zoos[0].task, extra=extra)


def subset(path: str, output: str, runs: int | None = None, skip: int = 0, final_only: bool = False) -> None:
    """Copy some runs of a zoo into a new one; they keep their numbers.

    Args:
        path: The zoo's directory.
        output: Directory of the new zoo.
        runs: How many runs to keep, in ascending order; all by default.
        skip: How many runs to pass over first.
        final_only: Whether only each run's last snapshot is kept.

    Raises:
        ZooError: where no run is left, or ``output`` holds a zoo.
    """
    zoo = Zoo.open(path)
    _refuse_existing(output)
    chosen = zoo.run_ids.sort().values[max(skip, 0) : None if runs is None else max(skip, 0) + max(runs, 0)]
    if skip < 0 or not len(chosen):
        raise ZooError(f"no runs of the {len(zoo.run_ids)} in {path} are left: runs = {runs}, skip = {skip}")
    rows = zoo.final() if final_only else torch.arange(len(zoo))
    rows = rows[torch.isin(zoo.run[rows], chosen)]
    rows = rows[zoo.step[rows].argsort(stable=True)]
    rows = rows[zoo.run[rows].argsort(stable=True)]
    write_networks(
        output,
        zoo.extended(rows),
        zoo.space,
        zoo.run[rows],
        zoo.step[rows],
        zoo.starts_of(chosen) if zoo.has_start else None,
        {name: value[rows] for name, value in zoo.metrics.items()},
        zoo.task,
        zoo.kind,
        {**_further(zoo), "subset_of": zoo.collected_by},
        order=zoo.order[zoo.position(chosen)] if zoo.order is not None else None,
    )


def _refuse_existing(output: str) -> None:
    if (Path(output) / MANIFEST).exists():
        raise ZooError(f"{output} already holds a zoo; give another path or remove it")


def _refuse_misfit(first: Zoo, other: Zoo, names: str) -> None:
    differs = {
        "weight space": first.space != other.space,
        "task": first.manifest["task"] != other.manifest["task"],
        "kind": first.kind != other.kind,
        "metrics": set(first.metrics) != set(other.metrics),
        "starts": first.has_start != other.has_start,
        "running statistics": first.has_buffers != other.has_buffers,
        "geometry": first.manifest.get("geometry") != other.manifest.get("geometry"),
    }
    found = [name for name, different in differs.items() if different]
    if found:
        raise ZooError(f"{names} cannot be merged: they differ in {', '.join(found)}")


def _further(zoo: Zoo) -> dict[str, Any]:
    """What a manifest says beside what every one says, such as how networks were generated."""
    return {key: value for key, value in zoo.manifest.items() if key not in EVERY and key != "subset_of"}


def _orders(zoos: Sequence[Zoo]) -> list[Tensor] | list[None]:
    """Orders of the data (R,) of the runs of each zoo, numbered anew; None for each where no two runs share one.

    Collectors of one seed show runs of one order the data alike, whatever else their settings are.
    """
    seeds = [((zoo.collected_by or {}).get("init_args") or {}).get("seed") for zoo in zoos]
    known = [seed for seed in seeds if seed is not None]
    if all(zoo.order is None for zoo in zoos) and len(set(known)) == len(known):
        return [None] * len(zoos)
    numbers: dict[tuple[Any, ...], int] = {}
    found = []
    for index, (zoo, seed) in enumerate(zip(zoos, seeds, strict=True)):
        own = (zoo.order if zoo.order is not None else zoo.run_ids).tolist()
        keys = [("seed", seed, one) if seed is not None else ("zoo", index, one) for one in own]
        found.append(torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys]))
    return found


def _codes(zoos: Sequence[Zoo]) -> dict[str, Any]:
    """What the codes of imported zoos stand for, as a manifest keeps it; of zoos to be merged it must be the same."""
    tables = [(zoo.manifest.get("import") or {}).get("codes") or {} for zoo in zoos]
    for zoo, table in zip(zoos, tables, strict=True):
        if table != tables[0]:
            raise ZooError(
                f"{zoo.path} and {zoos[0].path} cannot be merged: their codes stand for {table} and {tables[0]}; "
                "import all networks at once, or give numbers"
            )
    return {"import": {"codes": tables[0]}} if tables[0] else {}


def _refuse_shared(zoos: Sequence[Zoo]) -> None:
    """Runs with equal starts, or equal final weights, are one run: merging them would leak across splits."""
    seen: set[bytes] = set()
    for zoo in zoos:
        for run, row in zip(zoo.run_ids.tolist(), _identity(zoo), strict=True):
            key = hashlib.sha256(row.numpy().tobytes()).digest()
            if key in seen:
                raise ZooError(f"run {run} of {zoo.path} is also in another zoo; were they collected with one seed?")
            seen.add(key)


def _identity(zoo: Zoo) -> Tensor:
    return zoo.start if zoo.start is not None else zoo.rows(zoo.final())
