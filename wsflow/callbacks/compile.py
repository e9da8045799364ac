"""Compiling the field for the machine that trains it.

The parameters, and with them checkpoints, keep their names.  Where nothing can be compiled, for want of a compiler say,
the training goes on as it would have.
"""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from wsflow.fields import SelfConditioned
from wsflow.module import FlowMatchingModule


class CompileField(Callback):
    """Lets ``torch.compile`` compile the field when a fit starts; takes minutes (``docs/training_options.md``).

    Args:
        dynamic: Whether one compilation serves batches of every size; slower than one for each.
    """

    def __init__(self, dynamic: bool | None = None) -> None:
        self.dynamic = dynamic

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile, and try it on a state of zeros; warn in one line and leave the field as it was where that fails."""
        if not isinstance(pl_module, FlowMatchingModule) or pl_module.field._compiled_call_impl is not None:
            return
        field = pl_module.field
        field.compile(dynamic=self.dynamic)
        try:
            with trainer.precision_plugin.train_step_context():
                _try(pl_module, getattr(trainer.datamodule, "batch_size", 2))  # type: ignore[attr-defined]
        except Exception as error:
            field._compiled_call_impl = None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            rank_zero_warn(f"the field is not compiled: {reason}", category=UserWarning)


def _try(flow: FlowMatchingModule, batch: int) -> None:
    """One forward and backward pass, as in a training: another precision or batch would be compiled by itself."""
    field, told = flow.field, flow.conditioning
    label = None if told is None else torch.zeros(batch, told.size, device=flow.device)
    x, t = torch.zeros(batch, field.dim, device=flow.device), torch.zeros(batch, device=flow.device)
    estimate = (x,) if isinstance(field, SelfConditioned) else ()
    with torch.no_grad():
        if estimate:
            field(x, t, label)
    with torch.enable_grad():
        output = field(x, t, label, *estimate)
        torch.autograd.grad(output.sum(), list(field.parameters()), allow_unused=True)
