"""Networks of a zoo, trained or generated, as files that other programs read.

A ``.safetensors`` or ``.pt`` file holds the whole ``state_dict``: weights, running statistics, frozen parameters.
Float32 is written as it is, so that importing the files again gives the same zoo, bit for bit; ``networks.csv`` beside
them has their runs, steps and metrics, as the table that an import takes.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from wsflow.files import write_whole
from wsflow.weightspace import WeightSpace
from wsflow.zoo.exchange.folder import new_folder, refuse_existing
from wsflow.zoo.exchange.importing import NETWORKS
from wsflow.zoo.exchange.onnx_model import onnx_bytes
from wsflow.zoo.shards import ZooError
from wsflow.zoo.store import Zoo

BATCH = 64
"""Networks read, and given running statistics, at once."""


def export_network(space: WeightSpace, theta: Tensor, path: str | Path) -> None:
    """Write one network to a file; its suffix says how: ``.safetensors``, ``.pt`` or ``.onnx``.

    Args:
        space: The weight space.
        theta: (D,), or (D + D_b,) with running statistics.
        path: The file; it must not exist.

    Raises:
        ZooError: for another suffix, an existing file, weights that are not finite, or a network without the running
            statistics that it needs.
        ValueError: where ``theta`` is not one network of the space.
    """
    path = Path(path)
    write = _writer(path.suffix.removeprefix("."))
    if path.exists():
        raise ZooError(f"{path} exists already; give another path or remove it")
    write_whole(path, write(space, _checked(space, theta)))


def export_zoo(
    zoo: Zoo, output: str | Path, index: Sequence[int] | None = None, format: str = "safetensors"
) -> list[Path]:
    """Write networks of a zoo, or of a folder of generated ones, to one file each.

    Args:
        zoo: The zoo.
        output: Folder to make.
        index: Which networks, by their place in the zoo; all by default.
        format: ``safetensors``, ``pt`` or ``onnx``.

    Returns:
        The files, ``network-000012.safetensors`` for network 12.

    Raises:
        ZooError: where the folder exists, there is no such network, or a network cannot be written.
    """
    output, write = Path(output), _writer(format)
    refuse_existing(output)
    rows = torch.arange(len(zoo)) if index is None else torch.tensor(list(index), dtype=torch.long)
    outside = [row for row in rows.tolist() if not 0 <= row < len(zoo)]
    if outside or not len(rows):
        what = f"network {outside[0]}" if outside else "nothing"
        raise ZooError(f"{zoo.path} has networks 0 to {len(zoo) - 1}; {what} cannot be exported")
    if len(set(rows.tolist())) != len(rows):
        raise ZooError("a network is to be exported twice")
    if zoo.order is not None:
        warnings.warn(
            f"{zoo.path} has runs that saw the data in one order; exported files do not say which, so that a zoo "
            "imported from them may split such runs",
            stacklevel=2,
        )
    names = [f"network-{row:06d}.{format}" for row in rows.tolist()]
    with new_folder(output) as folder:
        for part in torch.split(torch.arange(len(rows)), BATCH):
            for place, theta in zip(part.tolist(), _complete(zoo, rows[part]), strict=True):
                write_whole(folder / names[place], write(zoo.space, theta))
        write_whole(folder / NETWORKS, _table(zoo, rows, names).encode())
    return [output / name for name in names]


def _complete(zoo: Zoo, rows: Tensor) -> Tensor:
    """Networks (B, D + D_b); running statistics that the zoo does not keep are those by which its task judges them."""
    theta = zoo.extended(rows)
    task = zoo.task if theta.shape[1] < zoo.space.full_dim else None
    if task is not None and task.has_data:
        theta = task.with_statistics(theta)
    return torch.stack([_checked(zoo.space, one) for one in theta])


def _checked(space: WeightSpace, theta: Tensor) -> Tensor:
    if theta.ndim != 1:
        raise ValueError(f"one network is a vector ({space.full_dim},), got shape {tuple(theta.shape)}")
    space.check(theta)
    if theta.shape[-1] < space.full_dim:
        raise ZooError(
            "the network's running statistics are not known; compute them on train data by "
            "wsflow.weightspace.statistics.batch_statistics"
        )
    if not theta.isfinite().all():
        raise ZooError("the network holds NaN or infinity")
    return theta


def _table(zoo: Zoo, rows: Tensor, names: Sequence[str]) -> str:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["file", "run", "step", *zoo.metrics])
    metrics = [[repr(one) for one in value[rows].tolist()] for value in zoo.metrics.values()]
    lines.writerows(zip(names, zoo.run[rows].tolist(), zoo.step[rows].tolist(), *metrics, strict=True))
    return text.getvalue()


def state_dict(space: WeightSpace, theta: Tensor) -> dict[str, Tensor]:
    """The whole ``state_dict`` of a network (D + D_b,), each tensor with memory of its own."""
    state = space.to_module(theta.detach().cpu().float()).state_dict()
    return {name: value.detach().clone().contiguous() for name, value in state.items()}


def _safetensors(space: WeightSpace, theta: Tensor) -> bytes:
    return safetensors.torch.save(state_dict(space, theta), metadata={"format": "pt"})


def _torch(space: WeightSpace, theta: Tensor) -> bytes:
    file = io.BytesIO()
    torch.save(state_dict(space, theta), file)
    return file.getvalue()


WRITERS: dict[str, Callable[[WeightSpace, Tensor], bytes]] = {
    "safetensors": _safetensors,
    "pt": _torch,
    "onnx": onnx_bytes,
}
"""What a network's file holds, by its suffix."""


def _writer(format: str) -> Callable[[WeightSpace, Tensor], bytes]:
    if format not in WRITERS:
        raise ZooError(f"unknown format {format!r}; formats are {', '.join(WRITERS)}")
    return WRITERS[format]
