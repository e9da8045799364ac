"""Generated networks from predict to disk, on any number of processes.

Every process writes the networks of each of its batches to a hidden folder beside the target.  When all have arrived,
the first process puts them in order of their sample index, writes them in the zoo's format and renames the result: the
target is complete or absent, and the same for one process and for eight.  Where the networks are one part of those that
a job array generates, the first process adds them to the target (:mod:`wsflow.zoo.parts`).  The manifest also holds
``seconds_per_network``, summed over processes, and ``device``, what these are seconds of.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import safetensors.torch
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from wsflow.files import ABANDONED, held, write_whole
from wsflow.module import FlowMatchingModule
from wsflow.zoo import SamplesPart, Zoo, ZooError, write_networks

Interval = Literal["batch", "epoch", "batch_and_epoch"]


class SampleWriter(BasePredictionWriter):
    """Writes the networks that ``predict_step`` returns; a batch holds their sample indices.

    Args:
        path: Folder to make.
        extra: Further plain data for the manifest, such as how the networks were sampled.
        overwrite: Whether an existing folder of generated networks may be replaced.
        part: What part of the networks in the folder these are; all of them by default.

    Attributes:
        evaluations: Of the field, by the batch that needed most; known to the first process at the end.

    Raises:
        ValueError: where the folder exists and may not be replaced, or holds anything but generated networks.
    """

    def __init__(
        self,
        path: str | Path,
        extra: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        part: SamplesPart | None = None,
    ) -> None:
        interval: Interval = "batch"
        super().__init__(interval)
        self.path, self.extra, self.overwrite, self.part = Path(path), dict(extra or {}), overwrite, part
        self.evaluations, self._begin, self._token = 0, 0.0, ""
        if part is None:
            self._refuse_taken()

    @property
    def parts(self) -> Path:
        """The hidden folder that batches are written to, of this prediction alone."""
        return self.path.with_name(f"{self._prefix}{self._token}")

    @property
    def _prefix(self) -> str:
        number = "" if self.part is None else f"-{self.part.share[0]}"
        return f".{self.path.name}.parts{number}-"

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make a folder for the batches, and remove those that killed predictions left behind."""
        self._token = trainer.strategy.broadcast(uuid4().hex)
        if trainer.is_global_zero:
            for left in self.path.parent.glob(f"{self._prefix}*"):
                if time.time() - left.stat().st_mtime > ABANDONED:
                    shutil.rmtree(left, ignore_errors=True)
            self.parts.mkdir(parents=True)
        trainer.strategy.barrier("wsflow_samples_begin")
        self._begin = time.perf_counter()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one batch: sample indices ``batch`` (n,) and networks ``prediction`` (n, D)."""
        evaluations = pl_module.sampler.evaluations if isinstance(pl_module, FlowMatchingModule) else 0
        file = self.parts / f"{trainer.global_rank:05d}-{batch_idx:08d}.safetensors"
        tensors = {"index": batch.cpu().contiguous(), "theta": prediction.float().cpu().contiguous()}
        tensors["evaluations"] = torch.tensor(evaluations)
        write_whole(file, safetensors.torch.save(tensors))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put all batches together once every process has written its own."""
        trainer.strategy.barrier("wsflow_samples_written")
        if trainer.is_global_zero:
            asked = sorted(getattr(trainer.predict_dataloaders, "dataset", ()))
            self._assemble(pl_module, asked, trainer.world_size * (time.perf_counter() - self._begin))
        trainer.strategy.barrier("wsflow_samples_assembled")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing behind."""
        if trainer.is_global_zero and self._token:
            shutil.rmtree(self.parts, ignore_errors=True)

    def _assemble(self, pl_module: LightningModule, asked: list[int], seconds: float) -> None:
        if not isinstance(pl_module, FlowMatchingModule):
            raise TypeError(f"SampleWriter writes what FlowMatchingModule generates, not {type(pl_module).__name__}")
        parts = [safetensors.torch.load_file(file) for file in sorted(self.parts.glob("*.safetensors"))]
        self.evaluations = max(int(part["evaluations"]) for part in parts)
        index = torch.cat([part["index"] for part in parts])
        order = index.argsort()
        if index[order].tolist() != asked:
            raise ZooError(f"{self.parts} holds {len(index)} networks, and not the {len(asked)} that were asked for")
        theta = torch.cat([part["theta"] for part in parts])[order]
        if self.part is not None:
            self.part.write(pl_module.space, theta, seconds, device_name(pl_module.device))
            shutil.rmtree(self.parts)
            return
        folder = self.parts / "complete"
        cost = {"seconds_per_network": seconds / len(index), "device": device_name(pl_module.device)}
        extra = {**self.extra, **cost}
        write_networks(folder, theta, pl_module.space, run=index[order], extra=extra)
        with held(self.path):
            self._refuse_taken()
            if self.path.exists():
                os.replace(self.path, self.parts / "replaced")
            os.replace(folder, self.path)
        shutil.rmtree(self.parts)

    def _refuse_taken(self) -> None:
        """Raise ZooError where the folder exists and may not be replaced."""
        if self.path.exists() and not self.overwrite:
            raise ZooError(f"{self.path} exists already; give another folder, or --overwrite to replace it")
        if self.path.exists() and Zoo.open(self.path).kind != "samples":
            raise ZooError(f"{self.path} holds trained networks; it is not replaced by generated ones")


def device_name(device: str | torch.device) -> str:
    """What a time was taken on, such as ``cpu, 2 threads``."""
    device = torch.device(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu, {threads} thread{'s' if threads > 1 else ''}"
    return f"{device.type}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type
