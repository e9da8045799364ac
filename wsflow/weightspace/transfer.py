"""From the host to a device without waiting.

Random numbers are drawn on the CPU, so that they do not depend on the device.  A plain copy of them to a GPU waits
until the GPU has done all that was asked of it before; a copy from pinned memory is queued like everything else.
"""

from __future__ import annotations

import torch
from torch import Tensor


def send(value: Tensor, place: Tensor | torch.device) -> Tensor:
    """A tensor on a device or, given another tensor, with its type and on its device; like ``value.to(place)``."""
    device = place.device if isinstance(place, Tensor) else place
    if isinstance(place, Tensor):
        value = value.to(place.dtype)
    if device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)
