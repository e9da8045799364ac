r"""Exponential moving average of a model's weights.

After every optimizer step :math:`a \leftarrow d\, a + (1 - d)\, w`, with :math:`d` the smaller of ``decay`` and
:math:`(1 + n) / (10 + n)` at the n-th update, so that short trainings are not held back by their first weights.

Validation runs with the average.  A checkpoint holds the average as its ``state_dict``, so that whoever loads it
samples with the average and need not know of it, and the weights that training goes on with under ``ema_weights``: a
resumed training continues exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

WEIGHTS = "ema_weights"


class EMA(Callback):
    """Trains with the weights, validates and saves their moving average.

    Args:
        decay: Share of the average that an update keeps, in [0, 1).

    Raises:
        ValueError: for a decay out of range.
    """

    def __init__(self, decay: float = 0.995) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._updates = 0
        self._step = 0
        self._swapped = self._ended = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew after a fit that has ended; a checkpoint is read after this."""
        if self._ended and stage == TrainerFn.FITTING:
            self._updates, self._ended = 0, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the present weights, unless a checkpoint gave an average."""
        if not self._average:
            self._average = {name: value.detach().clone() for name, value in _trainable(pl_module).items()}
            self._step = trainer.global_step
        for name, value in _trainable(pl_module).items():
            self._average[name] = self._average[name].to(value.device)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after an optimizer step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        for name, value in _trainable(pl_module).items():
            self._average[name].lerp_(value.detach(), 1 - decay)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in place of the weights."""
        if trainer.state.fn == TrainerFn.FITTING and self._average:
            self._swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back; checkpoint callbacks run after this one."""
        if self._swapped:
            self._swap(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module with the average."""
        if self._average:
            self._swap(pl_module)
            self._average, self._swapped = {}, False
        self._ended = True

    def state_dict(self) -> dict[str, Any]:
        """The number of updates and the step of the last one."""
        return {"updates": self._updates, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._updates, self._step = state_dict["updates"], state_dict["step"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the average as the model's weights, and the weights beside it."""
        if not self._average:
            return
        other = {name: value.detach().clone() for name, value in self._average.items()}
        state = checkpoint["state_dict"]
        current = {name: state[name] for name in other}
        average, weights = (current, other) if self._swapped else (other, current)
        checkpoint["state_dict"] = {**state, **average}
        checkpoint[WEIGHTS] = weights

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue training from the weights, with the average beside them; other stages keep the average."""
        if trainer.state.fn != TrainerFn.FITTING or WEIGHTS not in checkpoint:
            return
        for name, value in _trainable(pl_module).items():
            self._average[name] = checkpoint["state_dict"][name].to(value, copy=True)
            value.copy_(checkpoint[WEIGHTS][name])

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        for name, value in _trainable(pl_module).items():
            held = value.detach().clone()
            value.copy_(self._average[name])
            self._average[name].copy_(held)
        self._swapped = not self._swapped


def _trainable(module: LightningModule) -> dict[str, torch.nn.Parameter]:
    return {name: value for name, value in module.named_parameters() if value.requires_grad}
