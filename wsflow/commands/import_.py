"""``wsflow import``: a zoo of networks that were trained elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsflow.commands.run import shown
from wsflow.tasks import BaseTask
from wsflow.weightspace import WeightSpace
from wsflow.zoo import import_zoo


def import_(
    path: str,
    output: str,
    network: Mapping[str, Any] | None = None,
    task: BaseTask | None = None,
    pattern: str | None = None,
    csv: str | None = None,
    key: str | None = None,
    order: list[str] | str | None = None,
    prefix: str | None = None,
    ignore: str | None = None,
    drop_invalid: bool = False,
) -> None:
    r"""Make a zoo of networks that were trained elsewhere.

    Args:
        path: A folder of files of one network each (.safetensors, .pt, .pth, .bin, .ckpt, Hugging Face folders), or
            a file of many networks (.npz, .npy, .h5, .safetensors, .pt).
        output: Folder to make.
        network: The networks' architecture; that of the task's base network by default.
        task: The base task, for what judges networks on data.
        pattern: Regular expression for the names of files, with groups such as run(?P<run>\d+)_acc(?P<accuracy>[\d.]+);
            run and step are special, every other group becomes a metric.
        csv: Table with a column run, step or any metric; its column file names the files, and without files its rows
            are those of the array.
        key: Which entry of the file, or of every file, holds the weights.
        order: What a row of an array holds: the names of tensors, side by side; flat for the weight space's own order;
            parameters for that of the network's parameters.
        prefix: What the names of tensors begin with in the files, such as module.; found where it is not given.
        ignore: Regular expression for the names of tensors to pass over.
        drop_invalid: Whether networks with NaN or infinity are left out instead of refused.

    Raises:
        ValueError: where something cannot be read, does not fit the network, or exists already.
    """
    if network is None and task is None:
        raise ValueError("say what the networks are, by --network.class_path or by --task")
    space = WeightSpace.from_description(network) if network is not None else task.space  # type: ignore[union-attr]
    zoo = import_zoo(path, output, space, task, pattern, csv, key, order, prefix, ignore, drop_invalid)
    left_out = len(zoo.manifest["import"]["left_out"])
    dropped = f"; {left_out} with invalid numbers left out" if left_out else ""
    print(f"{output}: {len(zoo)} networks of {len(zoo.run_ids)} runs, D = {space.dim}{dropped}")
    print(f"next: wsflow zoo info {shown(output)}")
