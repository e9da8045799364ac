"""Evaluation of generated networks in the course of training.

Now and then, after validation, every process generates its share of the networks, and all together are compared with
validation runs on validation data (:mod:`wsflow.metrics.evaluation`).  What comes out is logged beside the losses, so
that checkpoints and early stopping can watch it.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from wsflow.flow import Prior, Sampler, StartsPrior
from wsflow.metrics import Evaluation, EvaluationMetric
from wsflow.module import FlowMatchingModule
from wsflow.sampling import check_batch

UNTOLD = (
    "timing.",
    "samples.dispersion.",
    "samples.ensemble_size",
    *(f"heldout.{name}" for name in ("nn_ratio.", "z_u", "dispersion", "ensemble_size")),
)
"""Beginnings of keys that are not logged: held-out runs are their own measure, so that these never change."""


class OtherProcessError(RuntimeError):
    """Another process has failed, so this one cannot go on."""


class GenerationCallback(Callback):
    """Generates networks after validation and logs how good, new and diverse they are, as ``samples/...``.

    Args:
        n: Number of networks.
        every_n_epochs: Only after every so many epochs of training.
        seed: Of the samples; the same every time, so that curves are comparable.
        sampler: How the flow is solved; 16 Euler steps by default.
        batch_size: Networks solved at once; as many as the memory limit allows by default.
        memory: The limit, such as ``2GiB``; half of the device's free memory by default.

    Raises:
        ValueError: for fewer than two networks, no epochs between evaluations, or a batch size that is not positive or
            stands beside a memory limit.
    """

    def __init__(
        self,
        n: int = 100,
        every_n_epochs: int = 1,
        seed: int = 0,
        sampler: Sampler | None = None,
        batch_size: int | None = None,
        memory: str | None = None,
    ) -> None:
        if n < 2 or every_n_epochs < 1:
            raise ValueError(f"n must be at least 2 and every_n_epochs at least 1; got {n} and {every_n_epochs}")
        check_batch(batch_size, memory)
        self.n, self.every_n_epochs, self.seed = n, every_n_epochs, seed
        self.sampler, self.batch_size, self.memory = sampler or Sampler(), batch_size, memory
        self._metric: EvaluationMetric | None = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Generate, evaluate and log; the same decision on every process."""
        if not isinstance(pl_module, FlowMatchingModule) or not self._due(trainer):
            return
        metric = self._prepared(trainer, pl_module)
        metric.update(self._share(trainer, pl_module))
        values = metric.compute()
        metric.reset()
        shown = {key: value for key, value in values.items() if not key.startswith(UNTOLD)}
        pl_module.log_dict({key.replace(".", "/", 1): value for key, value in shown.items()}, sync_dist=True)

    def _share(self, trainer: Trainer, module: FlowMatchingModule) -> Tensor:
        """This process's networks (n, D): consecutive ones, so that all together come in the order of their indices.

        Where a process fails, all do, before they wait for each other's networks.
        """
        rank, world = trainer.global_rank, trainer.world_size
        share, failure, theta = range(rank * self.n // world, (rank + 1) * self.n // world), None, None
        try:
            prior = self._prior(trainer, module)
            theta = module.sample(share, self.seed, self.sampler, self.batch_size, prior, self.memory)
        except Exception as error:  # whatever it is, the others must hear of it
            failure = error
        if world > 1:
            failed = trainer.strategy.reduce(
                torch.tensor(float(failure is not None), device=module.device), None, "sum"
            )
            if failure is None and failed > 0:
                raise OtherProcessError("another process failed to generate its networks")
        if failure is not None:
            raise failure
        assert theta is not None
        return theta

    @staticmethod
    def _prior(trainer: Trainer, module: FlowMatchingModule) -> Prior:
        """The module's prior; for a prior of starts, those of validation runs: training runs' would give them back."""
        if not isinstance(module.prior, StartsPrior):
            return module.prior
        data: Any = getattr(trainer, "datamodule", None)
        return StartsPrior(data.networks("val").start)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the runs of an earlier fit."""
        self._metric = None

    def _due(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking:
            return False
        return trainer.state.fn != TrainerFn.FITTING or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _prepared(self, trainer: Trainer, module: FlowMatchingModule) -> EvaluationMetric:
        """The evaluation against training and validation networks, made at first use."""
        if self._metric is None:
            data: Any = getattr(trainer, "datamodule", None)
            if data is None:
                raise ValueError(
                    "GenerationCallback needs a data module with a task and networks, such as ZooDataModule"
                )
            train, heldout = (data.networks(split).x1.to(module.device) for split in ("train", "val"))
            evaluation = Evaluation(data.task, train, heldout, "val", geometry=module.geometry, baselines=[])
            self._metric = EvaluationMetric(evaluation).to(module.device)
            if self.sampler.guidance is not None:
                self.sampler.guidance.attach(data.task)
        return self._metric
