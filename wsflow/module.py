r"""Flow matching in weight space, as a LightningModule: glue between the rooms, with no mathematics of its own.

Training draws, for a batch of trained networks,

.. math:: x_0 \sim p_0, \quad (x_0, x_1) \sim q, \quad t \sim p(t), \quad (x_t, u_t) \sim p_t(\cdot \mid x_0, x_1)

from prior, coupling, time law and path, and minimises :math:`\lVert r \rVert^2 / \dim` with r the residual of the
field's output (:mod:`wsflow.fields.parametrization`).  Sampling draws x0 from the prior, follows the field's velocity
to t = 1 and decodes.

*Randomness.*  What is drawn for a network in training depends on (seed, epoch, its place in the epoch) alone, in
validation on (seed, its place), a sample on (seed, index): nothing but a field's dropout reads the global generator, so
a resumed training without dropout continues exactly.

*Many processes* (DDP).  A batch of b networks on each of n processes trains as one of n b networks on one process, to
rounding: losses are means, and a network's draws do not depend on the process it is on.  Optimal-transport couplings
are the exception: they pair within each process's part.  Fields are small beside the networks that they generate (at
most some hundred megabytes), so that every process holds a whole one; sharding its weights (FSDP) is not needed.

*Checkpoints* hold plain data: the configuration as the command line parsed it or, for a module built in Python, as
:mod:`wsflow.description` gives it.  ``FlowMatchingModule.load_from_checkpoint(path)`` needs no data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from wsflow import checkpoint as saved
from wsflow.description import DescriptionError, plain
from wsflow.fields import (
    Conditioning,
    Endpoint,
    Parametrization,
    RelationalTransformer,
    Request,
    SelfConditioned,
    VectorField,
    Velocity,
    conditional,
    predict,
    tell,
)
from wsflow.flow import (
    BetaTime,
    Coupling,
    GaussianPrior,
    GeodesicPath,
    IndependentCoupling,
    PathSample,
    Prior,
    ProbabilityPath,
    Sampler,
    SnapshotPath,
    StartsPrior,
    TimeLaw,
)
from wsflow.geometry import UNALIGNED, Euclidean, Geometry, PrincipalComponents
from wsflow.losses import FunctionalTerm, RolloutTerm, Weighting
from wsflow.sampling import Generation, compare_with_prior, evaluating
from wsflow.schedule import WarmupCosine, planned_steps
from wsflow.weightspace import WeightSpace, ZooBatch
from wsflow.weightspace.randomness import RowGenerator, common
from wsflow.weightspace.transfer import send

TRAINING, VALIDATION, CALIBRATION = range(3)
CALIBRATION_NETWORKS, CALIBRATION_NUMBERS, CALIBRATION_BATCH = (64, 512), 2**26, 16


class FlowMatchingModule(LightningModule):
    """A flow from a prior to the law of trained networks.

    Args:
        space: Description of the base network (:attr:`wsflow.weightspace.WeightSpace.description`).
        geometry: Makes the geometry from the weight space; Euclidean by default.
        field: Makes the vector field from the weight space and the number of extra coordinates of the geometry;
            RelationalTransformer by default.
        prior: Law at t = 0; GaussianPrior by default.
        coupling: How prior draws and trained networks are paired; IndependentCoupling by default.
        time: Law of training times; BetaTime (1, 2) by default.
        path: Law of the states between the ends; GeodesicPath without noise by default.
        parametrization: What the field's output means; Velocity by default.
        functional: Adds the base task's train loss of the predicted networks to what training minimises; none by
            default.
        weighting: Weights the coordinates of the flow loss that training minimises; equal by default.
        optimizer: Makes the optimizer from the parameters; Adam at 2e-3 by default.
        scheduler: Makes the learning rate schedule from the optimizer and the number of training steps.
        validation_draws: Times that each validation network is drawn for the validation loss.
        seed: Of all draws in training and validation.
        labels: What the flow is told of each network (:class:`wsflow.fields.Conditioning`); nothing by default.
        label_dropout: Probability that training leaves the labels of a network out.

    Raises:
        ValueError: for a space that cannot be built, fewer than one validation draw, or parts that do not go together.
    """

    calibrated: Tensor
    loss_weight: Tensor | None

    def __init__(
        self,
        space: dict[str, Any],
        geometry: Callable[[WeightSpace], Geometry] | None = None,
        field: Callable[[WeightSpace, int], VectorField] | None = None,
        prior: Prior | None = None,
        coupling: Coupling | None = None,
        time: TimeLaw | None = None,
        path: ProbabilityPath | None = None,
        parametrization: Parametrization | None = None,
        functional: FunctionalTerm | None = None,
        weighting: Weighting | None = None,
        optimizer: OptimizerCallable = lambda parameters: Adam(parameters, lr=2e-3),
        scheduler: Callable[[Optimizer, int], LRScheduler] = WarmupCosine,
        validation_draws: int = 4,
        seed: int = 0,
        labels: list[dict[str, Any]] | None = None,
        label_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        saved.describe_hyperparameters(self, FlowMatchingModule.__init__)
        if validation_draws < 1:
            raise ValueError(f"validation_draws must be at least 1, got {validation_draws}")
        self.space = WeightSpace.from_description(space)
        # Defaults are None, not classes: a class given in a config would inherit arguments of the default class.
        self.geometry = (geometry or Euclidean)(self.space)
        self.conditioning = Conditioning(labels, label_dropout) if labels else None
        extra = self.geometry.dim - self.space.dim
        self.field = conditional(field or RelationalTransformer, self.space, extra, self.conditioning)
        self.field.place(self.geometry)
        self.prior = prior or GaussianPrior()
        self.coupling = coupling or IndependentCoupling()
        self.time = time or BetaTime()
        self.path = path or GeodesicPath()
        self.parametrization = parametrization or Velocity()
        self.functional, self.weighting = functional, weighting
        if isinstance(functional, RolloutTerm) and isinstance(self.field, SelfConditioned):
            raise ValueError("RolloutTerm follows a flow of states alone: leave it out, or SelfConditioned")
        if isinstance(self.path, SnapshotPath) and isinstance(self.parametrization, Endpoint):
            raise ValueError("SnapshotPath does not lead straight to the endpoint; choose the Velocity parametrization")
        self.optimizer, self.scheduler = optimizer, scheduler
        self.validation_draws, self.seed = validation_draws, seed
        self.sampler, self.sample_seed = Sampler(), 0  # of predict_step; how to sample is no part of a checkpoint
        self.request: Request | None = None
        self._loader_state: Any = None
        self.register_buffer("calibrated", torch.tensor(False))
        self.register_buffer("loss_weight", None, persistent=False)  # of a training, not of the trained weights

    def draw(self, batch: ZooBatch, generator: torch.Generator) -> PathSample:
        """States between the prior and the networks of a batch, with times and velocities."""
        x0 = send(self.prior.sample(len(batch.x1), self.geometry, generator), batch.x1)
        label = batch.label if self.conditioning is None else self.conditioning.normalise(batch.label)
        x0, x1 = self.coupling(batch._replace(label=label), x0, self.geometry, generator)
        t = send(self.time.sample(len(x1), generator), x1)
        return self.path.along(batch, x0, x1, t, self.geometry, generator)

    def loss(self, batch: ZooBatch, generator: torch.Generator) -> Tensor:
        """Flow matching loss of each network of a batch, (B,), per coordinate."""
        sample = self.draw(batch, generator)
        return self._flow_loss(sample, self._predict(sample, tell(self.conditioning, batch.label)))

    def training_loss(self, batch: ZooBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean that training minimises, and its parts without gradient, by name; ``flow_loss`` is one of them."""
        sample = self.draw(batch, generator)
        estimate = isinstance(self.field, SelfConditioned) and self.field.draws_estimate(common(generator))
        label = tell(self.conditioning, batch.label, generator)
        output = self._predict(sample, label, estimate)
        loss = self._flow_loss(sample, output).mean()
        parts = {"flow_loss": loss.detach()}
        if self.weighting is not None:
            if self.loss_weight is None:
                raise ValueError("the loss has no weights yet: call calibrate, or fit with a ZooDataModule, which does")
            loss = self._flow_loss(sample, output, self.loss_weight).mean()
            parts["weighted_loss"] = loss.detach()
        if self.functional is not None:
            x, t = sample.x_t, sample.t
            if isinstance(self.functional, RolloutTerm):
                x0 = send(self.path.start(self.prior).sample(len(x), self.geometry, generator), x)
                with evaluating(self.field):
                    x, t, label = self.functional.states(self.velocity, self.geometry, x0, label)
                output = self.field(x, t, label)
            end = self.parametrization.endpoint(output, self.geometry, x, t)
            functional = self.functional(self.geometry.decode(self.geometry.finish(end)), t, generator).mean()
            loss = loss + self.functional.weight * functional
            parts["functional_loss"] = functional.detach()
        return loss, parts

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Velocity (B, dim) of the flow at states ``x`` (B, dim) and times ``t`` (B,), by a field without memory."""
        return self.parametrization.velocity(self.field(x, t, condition), self.geometry, x, t)

    @torch.no_grad()
    def sample(
        self,
        indices: Iterable[int],
        seed: int = 0,
        sampler: Sampler | None = None,
        batch_size: int | None = None,
        prior: Prior | None = None,
        memory: str | None = None,
        request: Request | None = None,
    ) -> Tensor:
        """Generated networks; each depends on (seed, its index) alone.

        Args:
            indices: Which samples to draw, such as ``range(100)``.
            seed: Not negative.
            sampler: How the flow is solved; 16 Euler steps by default.
            batch_size: Networks solved at once; as many as the memory limit allows by default.
            prior: Where samples start; the module's own by default.
            memory: The limit, such as ``2GiB``; half of the device's free memory by default.
            request: What a flow with labels is asked for; nothing by default.

        Returns:
            (n, D), decoded weights on the module's device; :class:`wsflow.sampling.Generation` says what is refused.
        """
        return self.generation(seed, sampler, prior, request)(indices, batch_size, memory)

    def generation(
        self,
        seed: int = 0,
        sampler: Sampler | None = None,
        prior: Prior | None = None,
        request: Request | None = None,
    ) -> Generation:
        """How :meth:`sample` generates networks, and how many fit into memory at once."""
        settings = (sampler or Sampler()).for_flow(self.prior, self.coupling, self.path, self.geometry)
        parts = (self.field, self.parametrization, self.geometry, self.path.start(prior or self.prior), settings)
        return Generation(*parts, seed, self.device, self.conditioning, request)

    @torch.no_grad()
    def calibrate(self, batch: ZooBatch, task: Any = None, trained: bool = False) -> None:
        """Set the field's preconditioning and the loss's weights; :meth:`on_fit_start` does so by itself.

        Warns where the pairs of the coupling start elsewhere than the prior, since samples will start at the prior.

        Args:
            batch: Trained networks.
            task: The base task, for weightings that need it.
            trained: Whether the field keeps its preconditioning, as one that has been trained must.
        """
        generator = self._generator(CALIBRATION)
        if self.conditioning is not None and not self.conditioning.fitted and batch.label is not None:
            self.conditioning.fit(batch.label)
        # In small parts: a coupling may cost the square of its batch.
        cuts = [slice(i, i + CALIBRATION_BATCH) for i in range(0, len(batch.x1), CALIBRATION_BATCH)]
        parts = [self.draw(batch.rows(cut), generator) for cut in cuts]
        states = torch.cat([part.x_t for part in parts])
        targets = torch.cat([self.parametrization.target(self.geometry, part) for part in parts])
        if not trained:
            self.field.calibrate(states, targets)
            self.calibrated.fill_(True)
        x0, x1 = (torch.cat(ends) for ends in zip(*((part.x0, part.x1) for part in parts), strict=True))
        compare_with_prior(self.prior, self.coupling, self.geometry, x0, generator)
        if self.weighting is not None:
            self.loss_weight = self.weighting(self.geometry, x0, x1, task, generator)

    def setup(self, stage: str) -> None:
        """Let prior, latent space, field and functional term know what they need of training runs and base task."""
        data = getattr(self._trainer, "datamodule", None)
        if stage == TrainerFn.FITTING:
            self.field.attach(getattr(data, "task", None))
            if self.conditioning is not None and (told := getattr(data, "told", None)) is not None:
                self.conditioning.fit(told("train"), getattr(data, "label_description", None))
            if self.functional is not None:
                self.functional.attach(getattr(data, "task", None))
        if isinstance(self.prior, StartsPrior) and self.prior.starts is None and data is not None:
            self.prior.attach(data.networks("train").start)
        if isinstance(self.geometry, PrincipalComponents) and not self.geometry.fitted and data is not None:
            self.geometry.fit(data.networks("train").x1)
            rank_zero_info(self.geometry.summary())
            if not getattr(data, "aligned", False):
                rank_zero_warn(UNALIGNED, category=UserWarning)

    def on_fit_start(self) -> None:
        """Calibrate on networks of the data module: the field once, the loss in every fit; alike on every rank."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "calibration") and not (self.calibrated and self.weighting is None):
            least, most = CALIBRATION_NETWORKS  # few of large ones, which have many numbers to tell their scales by
            batch = data.calibration(min(most, max(least, CALIBRATION_NUMBERS // self.space.dim))).to(self.device)
            self.calibrate(batch, getattr(data, "task", None), trained=bool(self.calibrated))

    def on_train_start(self) -> None:
        """Let a resumed training go on with the batch that comes next.

        Lightning 2.6 restores the state of a loader only where nothing has asked for the loader before, as the learning
        rate schedule does, and not after a whole epoch.
        """
        loader: Any = self.trainer.train_dataloader
        if self._loader_state is not None and hasattr(loader, "load_state_dict"):
            loader.load_state_dict(self._loader_state)
        self._loader_state = None

    def training_step(self, batch: ZooBatch, batch_idx: int) -> Tensor:
        """What training minimises, for one batch; its parts are logged as ``train/...``."""
        generator = self._row_generator(self.trainer.train_dataloader, batch, batch_idx, TRAINING, self.current_epoch)
        loss, parts = self.training_loss(batch, generator)
        self.log("train/flow_loss", parts.pop("flow_loss"), prog_bar=True, batch_size=len(batch.x1))
        self.log_dict({f"train/{name}": value for name, value in parts.items()}, batch_size=len(batch.x1))
        return loss

    def validation_step(self, batch: ZooBatch, batch_idx: int) -> None:
        """Log ``val/flow_loss``, on the same draws every time."""
        self._evaluation_step("val/flow_loss", batch, batch_idx)

    def test_step(self, batch: ZooBatch, batch_idx: int) -> None:
        """Log ``test/flow_loss``."""
        self._evaluation_step("test/flow_loss", batch, batch_idx)

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Networks (n, D) of sample indices ``batch`` (n,); ``self.sampler`` and ``self.sample_seed`` say how."""
        return self.sample(batch.tolist(), self.sample_seed, self.sampler, max(1, len(batch)), request=self.request)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer, and its schedule over the steps of the whole training."""
        optimizer = self.optimizer(self.field.parameters())
        scheduler = self.scheduler(optimizer, planned_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the data module's arguments, the loader's place, and by fingerprint the starts a prior was given."""
        with contextlib.suppress(DescriptionError):  # a data module that cannot be described is named at evaluation
            checkpoint["data"] = plain(getattr(self._trainer, "datamodule", None))
        loader: Any = self.trainer.train_dataloader
        if hasattr(loader, "state_dict"):
            checkpoint["train_loader"] = loader.state_dict()
        if isinstance(self.prior, StartsPrior) and self.prior.starts is not None:
            checkpoint["seen_starts"] = saved.fingerprints(self.prior.starts)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another weight space; keep the description that the checkpoint came with.

        A resumed training follows the settings it is given, and warns where they are not the checkpoint's.

        Raises:
            ValueError: where the checkpoint was trained on another base network or, to go on, on another split of runs.
        """
        stored = checkpoint.get("hyper_parameters", {})
        if self._trainer is None:
            saved.refuse_undescribed(stored)
        saved.refuse_other_space(stored, self.space)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self._loader_state = checkpoint.get("train_loader")
            saved.compare_resumed(checkpoint, self.hparams, getattr(self._trainer, "datamodule", None))
        if "_instantiator" in stored and "_instantiator" not in self.hparams:
            self.hparams.clear()
            self.hparams.update(stored)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As every module does, or a ValueError of one line; a resumed training's field sees data of its own task."""
        with saved.fitting():
            kept = {name: value for name, value in state_dict.items() if name != "loss_weight"}  # of old checkpoints
            result = super().load_state_dict(kept, strict, assign)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self.field.attach(getattr(getattr(self._trainer, "datamodule", None), "task", None))
        return result

    def _predict(self, sample: PathSample, label: Tensor | None, estimate: bool = True) -> Tensor:
        return predict(self.field, self.parametrization, self.geometry, sample.x_t, sample.t, label, estimate)

    def _flow_loss(self, sample: PathSample, output: Tensor, weight: Tensor | None = None) -> Tensor:
        residual = self.parametrization.residual(output, self.geometry, sample)
        weighted = residual if weight is None else weight * residual
        return self.geometry.inner(sample.x_t, residual, weighted) / self.geometry.dim

    def _evaluation_step(self, name: str, batch: ZooBatch, batch_idx: int) -> None:
        loader = self.trainer.test_dataloaders if self.trainer.testing else self.trainer.val_dataloaders
        generator = self._row_generator(loader, batch, batch_idx, VALIDATION)
        loss = torch.stack([self.loss(batch, generator) for _ in range(self.validation_draws)]).mean()
        self.log(name, loss, prog_bar=True, on_epoch=True, sync_dist=True, batch_size=len(batch.x1))

    def _row_generator(self, loader: Any, batch: ZooBatch, batch_idx: int, *purpose: int) -> RowGenerator:
        """A stream for each network of a batch; loaders that do not say where it stands are taken to give equal parts.

        Args:
            loader: Where the batch comes from.
            batch: This process's part.
            batch_idx: Its number in the epoch.
            purpose: What is drawn, and in which epoch.
        """
        count, part = len(batch.x1), batch_idx * self.trainer.world_size + self.global_rank
        given = hasattr(loader, "places")
        places = loader.places(batch_idx)[:count] if given else range(part * count, (part + 1) * count)
        return RowGenerator.make(self.seed, places, purpose, [batch_idx])

    def _generator(self, *keys: int) -> torch.Generator:
        return torch.Generator().manual_seed(int(np.random.SeedSequence([self.seed, *keys]).generate_state(1)[0]))
