"""Alignment of a whole zoo to one of its runs, cached beside it.

The final snapshot of every run is aligned to the final snapshot of the reference run; a run's permutations then hold
for all its snapshots and for its start.  The cache file is named by a key of everything that the permutations depend
on: the aligner's settings, the reference run and the checksums of the zoo.  That aligned networks compute the same
functions is checked on every load.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from wsflow.alignment import Aligner, check_same_functions
from wsflow.zoo.shards import ZooError, read_tensors, write_bytes
from wsflow.zoo.store import Zoo

BATCH = 1024
"""Networks aligned at once."""


def align_zoo(zoo: Zoo, aligner: Aligner, reference_run: int, inputs: Tensor | None = None) -> list[Tensor]:
    """Permutations of every run, from the cache or computed and cached.

    Args:
        zoo: The zoo.
        aligner: How to align.
        reference_run: The run whose final snapshot the others are brought near.
        inputs: (N, ...), to compare functions on; Gaussian ones by default.

    Returns:
        One tensor (R, size) per hidden group, in the order of ``zoo.run_ids``.

    Raises:
        ValueError: where an aligned network computes another function.
    """
    path = zoo.path / f"alignment-{_key(zoo, aligner, reference_run)}.safetensors"
    theta = zoo.rows(zoo.final())
    perms = _read(path, zoo)
    if perms is None:
        reference = theta[zoo.position(torch.tensor([reference_run]))[0]]
        parts = [aligner.align(zoo.space, part, reference) for part in torch.split(theta, BATCH)]
        perms = [torch.cat(group) for group in zip(*parts, strict=True)]
        _write(path, perms)
    check_same_functions(zoo.space, theta, zoo.space.permute(theta, perms), inputs)
    return perms


def _key(zoo: Zoo, aligner: Aligner, reference_run: int) -> str:
    parts = {
        "aligner": aligner.description(),
        "reference": reference_run,
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
    shapes = [(len(zoo.run_ids), group.size) for group in zoo.space.hidden]
    ranges = [torch.arange(group.size) for group in zoo.space.hidden]
    whole = [tuple(p.shape) for p in perms] == shapes and all(
        bool((p.sort(dim=1).values == r).all()) for p, r in zip(perms, ranges, strict=True)
    )
    return perms if whole else None


def _write(path: Path, perms: list[Tensor]) -> None:
    tensors = {f"perm.{i}": p.long().cpu().contiguous() for i, p in enumerate(perms)}
    try:
        write_bytes(path, safetensors.torch.save(tensors))
    except OSError as error:
        warnings.warn(f"the alignment cannot be cached beside the zoo: {error}", stacklevel=2)
