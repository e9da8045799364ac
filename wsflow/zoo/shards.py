"""Files of a zoo: safetensors shards, each with a JSON sidecar, written atomically.

A shard ``shard-00000.safetensors`` holds

- ``theta`` (n, D) float32, ``run`` (n,) int64, ``step`` (n,) int64: snapshots, by run and then by step;
- ``metric.<name>`` (n,) float32: their metrics;
- ``buffers`` (n, D_b) float32: their running statistics, where the network has norm layers that keep some;
- ``start`` (R, D) float32, ``start_run`` (R,) int64: the initial weights of its runs, where they are known;
- ``start_order`` (R,) int64: beside them, which order of the data each of these runs saw, where runs share orders.

Its sidecar ``shard-00000.json`` holds sizes and the SHA-256 of the file.  The sidecar is written after the shard, so a
shard with a sidecar is finished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from wsflow.files import write_whole


class ZooError(ValueError):
    """A zoo that is missing, incomplete, damaged or foreign."""


def write_json(path: Path, value: Any) -> None:
    """Write plain data as JSON, atomically."""
    write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read plain data.

    Raises:
        ZooError: where the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ZooError(f"{path} does not exist") from None
    except (ValueError, OSError) as error:
        raise ZooError(f"{path} cannot be read as JSON: {error}") from None


def shard_tensors(
    theta: Tensor,
    run: Tensor,
    step: Tensor,
    metrics: Mapping[str, Tensor] | None = None,
    start: Tensor | None = None,
    start_run: Tensor | None = None,
    buffers: Tensor | None = None,
    order: Tensor | None = None,
) -> dict[str, Tensor]:
    """The tensors of a shard by name, with the types of the file format; shapes as in the module's docstring."""
    tensors = {"theta": theta.detach().float(), "run": run.long(), "step": step.long()}
    if buffers is not None:
        tensors["buffers"] = buffers.detach().float()
    tensors |= {f"metric.{name}": value.detach().float() for name, value in (metrics or {}).items()}
    if start is not None and start_run is not None:
        tensors |= {"start": start.detach().float(), "start_run": start_run.long()}
        tensors |= {"start_order": order.long()} if order is not None else {}
    placed = {name: value.cpu().contiguous() for name, value in tensors.items()}
    seen: set[int] = set()
    for name, value in placed.items():
        place = value.untyped_storage().data_ptr()
        placed[name] = value.clone() if place in seen else value  # safetensors refuses tensors that share memory
        seen.add(place)
    return placed


def write_shard(
    directory: Path, index: int, tensors: Mapping[str, Tensor], extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write shard number ``index`` and its sidecar.

    Args:
        directory: Of the zoo; made where absent.
        index: Number of the shard.
        tensors: From :func:`shard_tensors`.
        extra: Further plain data for the sidecar.

    Returns:
        The sidecar.

    Raises:
        ZooError: where a weight, a running statistic or a start is not finite; the message names the runs.
    """
    refuse_non_finite(tensors["theta"], tensors["run"], "weights")
    if "buffers" in tensors:
        refuse_non_finite(tensors["buffers"], tensors["run"], "running statistics")
    if "start" in tensors:
        refuse_non_finite(tensors["start"], tensors["start_run"], "starts")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"shard-{index:05d}.safetensors"
    content = safetensors.torch.save(dict(tensors))
    sidecar = {
        "file": path.name,
        "rows": len(tensors["theta"]),
        "runs": len(torch.unique(tensors["run"])),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        **(extra or {}),
    }
    write_whole(path, content)
    write_json(path.with_suffix(".json"), sidecar)
    return sidecar


def read_sidecar(directory: Path, index: int) -> dict[str, Any] | None:
    """The sidecar of a finished shard, or None where the shard is not finished."""
    path = directory / f"shard-{index:05d}.json"
    if not path.exists():
        return None
    sidecar: dict[str, Any] = read_json(path)
    if not isinstance(sidecar, dict) or not isinstance(sidecar.get("file"), str) or "bytes" not in sidecar:
        raise ZooError(f"{path} is damaged: it does not say what file it is of; delete it, and the shard is made again")
    file = directory / sidecar["file"]
    return sidecar if file.exists() and file.stat().st_size == sidecar["bytes"] else None


def refuse_non_finite(theta: Tensor, run: Tensor, what: str) -> None:
    """Raise ZooError where a row of ``theta`` (n, D) is not finite; the message names its runs (n,)."""
    bad = torch.unique(run[~theta.isfinite().all(1)]).tolist()
    if bad:
        more = " ..." if len(bad) > 5 else ""
        raise ZooError(f"{what} of {len(bad)} runs hold NaN or infinity: runs {str(bad[:5])[1:-1]}{more}")


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path, names: list[str] | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file, memory-mapped: read when touched, and never written back.

    Raises:
        ZooError: where the file is no whole safetensors file or lacks a tensor.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in (names if names is not None else file.keys())}
    except (safetensors.SafetensorError, OSError) as error:
        raise ZooError(f"{path} is damaged: {error}") from None


def cat(parts: list[Tensor]) -> Tensor:
    """Concatenation along the first axis; a single part is passed through, still memory-mapped."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
