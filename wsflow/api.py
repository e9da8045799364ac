"""Trained flows in Python.

::

    flow = wsflow.load("runs/breast_cancer/checkpoints/last.ckpt")
    theta = flow.sample(100, seed=0)  # (100, D)
    network = flow.weight_space.to_module(theta[0])  # a ready nn.Module
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsflow.flow import Prior, Sampler
from wsflow.module import FlowMatchingModule
from wsflow.weightspace import WeightSpace


class Flow:
    """A trained flow, ready to sample; made by :func:`load`.

    Attributes:
        module: The LightningModule, in eval mode, with averaged weights where training kept an average.
        data: How the data module of its training was made, plain data; None where that is not known.
    """

    def __init__(self, module: FlowMatchingModule, checkpoint: dict[str, Any]) -> None:
        self.module = module.eval()
        self.data: dict[str, Any] | None = checkpoint.get("data")
        self.seen_starts: list[str] | None = checkpoint.get("seen_starts")

    @property
    def weight_space(self) -> WeightSpace:
        """The weight space of the generated networks."""
        return self.module.space

    def sample(
        self,
        n: int,
        seed: int = 0,
        sampler: Sampler | None = None,
        batch_size: int | None = None,
        first: int = 0,
        prior: Prior | None = None,
        memory: str | None = None,
    ) -> Tensor:
        """Generated networks, (n, D); the i-th depends on (seed, first + i) alone.

        Args:
            n: How many.
            seed: Not negative.
            sampler: How the flow is solved; 16 Euler steps by default.
            batch_size: Networks solved at once; as many as the memory limit allows by default.
            first: Index of the first sample.
            prior: Where samples start; the flow's own prior by default.
            memory: The limit, such as ``2GiB``; half of the device's free memory by default.

        Raises:
            ValueError: for a negative number of networks, and as :meth:`FlowMatchingModule.sample` does.
        """
        if n < 0:
            raise ValueError(f"n must not be negative, got {n}")
        return self.module.sample(range(first, first + n), seed, sampler, batch_size, prior, memory)


def load(path: str | Path, device: str | torch.device = "cpu") -> Flow:
    """A trained flow from its checkpoint; no data is needed.

    Args:
        path: The checkpoint file.
        device: Where to sample.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: for a file that is no checkpoint of wsflow.
    """
    checkpoint = read_checkpoint(path)
    with warnings.catch_warnings():
        # lightning 2.6 calls torch's pytree functions by names that torch 2.15 deprecates.
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        module = FlowMatchingModule.load_from_checkpoint(path, map_location=device, weights_only=True)
    return Flow(module, checkpoint)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint: tensors and plain data.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: for a file that is no checkpoint of wsflow.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError and more for damaged files
        raise ValueError(f"{path} is damaged or no checkpoint ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict) or "space" not in checkpoint.get("hyper_parameters", {}):
        raise ValueError(f"{path} is no checkpoint of wsflow: it describes no weight space")
    return checkpoint
