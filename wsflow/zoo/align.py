"""Alignment of a whole zoo, cached beside it.

The final snapshots of some runs, those of the train split, decide on a reference (:meth:`Aligner.reference`): the first
of them, or their centre.  The final snapshot of every run of the zoo is aligned to it; a run's permutations then hold
for all its snapshots and for its start.  The cache file is named by a key of everything that the permutations depend
on: the aligner's settings, the runs that decide, the zoo's task and its checksums.  That aligned networks compute the
same functions is checked on every load.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from wsflow.alignment import Aligner, check_same_functions
from wsflow.files import write_whole
from wsflow.weightspace import Objective
from wsflow.weightspace.symmetry import check_permutations
from wsflow.zoo.shards import ZooError, read_tensors
from wsflow.zoo.store import Zoo


def align_zoo(
    zoo: Zoo,
    aligner: Aligner,
    runs: Sequence[int],
    inputs: Tensor | None = None,
    objective: Objective | None = None,
    task: Mapping[str, Any] | None = None,
) -> list[Tensor]:
    """Permutations of every run, from the cache or computed and cached.

    Args:
        zoo: The zoo.
        aligner: How to align.
        runs: The runs whose final snapshots decide on the reference, in order.
        inputs: (N, ...), to compare functions on; Gaussian ones by default.
        objective: What aligners that look at a loss minimise; it must follow from the task.
        task: The description of the task; by default that of the zoo's.

    Returns:
        One tensor (R, size) per hidden group, in the order of ``zoo.run_ids``.

    Raises:
        ValueError: where an aligned network computes another function.
    """
    path = zoo.path / f"alignment-{_key(zoo, aligner, runs, task)}.safetensors"
    theta = zoo.rows(zoo.final())
    perms = _read(path, zoo)
    if perms is None:
        reference = aligner.reference(zoo.space, theta[zoo.position(torch.tensor(runs))], objective)
        perms = aligner.align(zoo.space, theta, reference, objective)
        _write(path, perms)
    check_same_functions(zoo.space, theta, zoo.space.permute(theta, perms), inputs)
    return perms


def _key(zoo: Zoo, aligner: Aligner, runs: Sequence[int], task: Mapping[str, Any] | None) -> str:
    parts = {
        "aligner": aligner.description(),
        "reference": list(runs),
        "task": task or zoo.manifest.get("task"),
        "shards": [shard["sha256"] for shard in zoo.manifest["shards"]],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path, zoo: Zoo) -> list[Tensor] | None:
    """Permutations from a cache file, or None where it is missing, damaged or does not fit."""
    if not path.exists():
        return None
    try:
        perms = list(read_tensors(path, [f"perm.{i}" for i in range(len(zoo.space.hidden))]).values())
    except ZooError:
        return None
    if [tuple(p.shape) for p in perms] != [(len(zoo.run_ids), group.size) for group in zoo.space.hidden]:
        return None
    try:
        check_permutations(zoo.space, perms)
    except ValueError:
        return None
    return perms


def _write(path: Path, perms: list[Tensor]) -> None:
    tensors = {f"perm.{i}": p.long().cpu().contiguous() for i, p in enumerate(perms)}
    try:
        write_whole(path, safetensors.torch.save(tensors))
    except OSError as error:
        warnings.warn(f"the alignment cannot be cached beside the zoo: {error}", stacklevel=2)
