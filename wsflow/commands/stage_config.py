"""The config of a stage, kept in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn


class StageConfig(SaveConfigCallback):
    """Saves the parsed configuration as ``<stage>.yaml`` in the run folder, so that one stage keeps another's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save, but of a fit: its checkpoint may yet be refused, and then the config of the one that is there stays."""
        if trainer.state.fn != TrainerFn.FITTING:
            super().setup(trainer, pl_module, stage)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the config of a fit that has begun."""
        super().setup(trainer, pl_module, TrainerFn.FITTING)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file; Lightning calls this on the first process."""
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        stage = trainer.state.fn.value if trainer.state.fn is not None else stage
        self.parser.save(self.config, folder / f"{stage}.yaml", skip_none=False, overwrite=True, multifile=False)
