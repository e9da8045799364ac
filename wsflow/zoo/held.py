"""A zoo's networks where the training is: on the device once, so that batches are drawn there.

A batch is one ``index_select`` for each of its tensors.  Networks that do not fit stay on the host, and every batch is
copied from pinned memory without waiting.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wsflow.memory import free_bytes
from wsflow.weightspace import ZooBatch
from wsflow.weightspace.transfer import send

SHARE = 0.25
"""Of a device's free memory, what the networks of a split may take unasked."""

ROWS = 256
"""Networks that are read and copied at once."""


def hold(fetch: Callable[[Tensor], ZooBatch], rows: Tensor, device: torch.device) -> ZooBatch:
    """All networks of some rows on a device, as one batch.

    Args:
        fetch: From row numbers (B,) to a batch on the host.
        rows: (N,), at least one.
        device: Where to.
    """
    whole: list[Tensor | None] = []
    for number, part in enumerate(torch.split(rows, ROWS)):
        values = tuple(fetch(part))
        if not whole:
            shapes = (None if value is None else (len(rows), *value.shape[1:]) for value in values)
            whole = [
                None if value is None or shape is None else torch.empty(shape, dtype=value.dtype, device=device)
                for value, shape in zip(values, shapes, strict=True)
            ]
        for held, value in zip(whole, values, strict=True):
            if held is not None and value is not None:
                held[number * ROWS : number * ROWS + len(part)] = send(value, device)
    return ZooBatch(*whole)  # type: ignore[arg-type]


def fits(networks: int, numbers: int, device: torch.device) -> bool:
    """Whether networks of so many float32 numbers each belong on a device; on the CPU files are read as well."""
    return device.type != "cpu" and 4 * networks * numbers <= SHARE * free_bytes(device)


def pinned(batch: ZooBatch, device: torch.device) -> ZooBatch:
    """A batch that a CUDA device can fetch without waiting; for any other device as it is."""
    if device.type != "cuda" or batch.x1.device.type != "cpu":
        return batch
    return ZooBatch._make(None if value is None else value.pin_memory() for value in batch)
