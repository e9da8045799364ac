"""``wsflow transfer``: a flow for networks of other widths than it was trained on."""

from __future__ import annotations

from pathlib import Path

import torch

from wsflow.api import load, read_checkpoint
from wsflow.commands.run import shown
from wsflow.description import plain
from wsflow.zoo import Zoo, ZooDataModule, ZooError

TRAINING = ("optimizer_states", "lr_schedulers", "callbacks", "loops", "train_loader", "ema_weights")
"""What only a training needs that goes on."""


def transfer(ckpt_path: str, zoo: str, out: str) -> None:
    """Write a checkpoint of the same field for the networks of another zoo.

    The field's parameters and scales stay as they are, tensor by tensor in flat order.

    Args:
        ckpt_path: Checkpoint of a trained flow.
        zoo: A zoo of networks of another width, which evaluation will hold generated networks against.
        out: The checkpoint file to write.

    Raises:
        ValueError: where the zoo names no task, or its networks differ in more than widths.
    """
    task = Zoo.open(zoo).task
    if task is None:
        raise ZooError(f"{zoo} names no task, so nothing could be evaluated on it")
    checkpoint = read_checkpoint(ckpt_path)
    data = ZooDataModule(task, zoo)
    load(ckpt_path).module.field.bind(task.space)  # says in one line where the networks do not correspond
    kept = {name: value for name, value in checkpoint.items() if name not in TRAINING}
    kept["hyper_parameters"] = {**kept["hyper_parameters"], "space": data.space_description}
    file = Path(out)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**kept, "data": plain(data)}, file)
    print(f"a flow for {zoo} in {file}; next: wsflow predict --ckpt_path {shown(file)}")
