"""Arithmetic and memory traffic of a call: what a device's floors are counted from.

Floating point operations are those of the matrix products (``torch.utils.flop_counter``), two for a multiplication and
an addition.  Bytes are those of all tensors that kernels read and write, as if nothing were held in a cache or fused:
an upper bound of what must move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class Traffic(TorchDispatchMode):
    """Adds up the bytes of the operands and results of every kernel; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            leaves = tree_leaves((args, kwargs, result))
            self.bytes += sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))
        return result


def count(function: Callable[[], Any]) -> dict[str, float]:
    """Operations and bytes of one call."""
    with FlopCounterMode(display=False) as flops:
        function()
    with Traffic() as traffic:
        function()
    return {"flops": float(flops.get_total_flops()), "bytes": float(traffic.bytes)}


def floors(work: dict[str, float], seconds: float, peak_tflops: float | None) -> dict[str, float]:
    """Rates that the work means, and the part of a device's peak that is used."""
    rates = {"tflops": work["flops"] / seconds / 1e12, "gigabytes_per_second": work["bytes"] / seconds / 1e9}
    return rates | ({"utilisation": rates["tflops"] / peak_tflops} if peak_tflops else {})


def synchronise(device: str) -> None:
    """Wait for what a device was told to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
