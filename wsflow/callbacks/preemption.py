"""Trainings that are asked to stop save themselves first.

SIGTERM, and on SLURM the signal before the end of the time (``#SBATCH --signal=USR1@120``), only leave a note.  After
every batch the processes exchange their notes, so that all stop after the same batch whichever of them was asked; the
answer is taken up one batch later, when it has long come, so that no batch waits for it.  Then ``last.ckpt`` is saved
in the folder of the first ModelCheckpoint, and the training that goes on from it is the one that was not stopped.  The
note waits where something is left half done: while gradients of several batches accumulate, after a batch that a
validation follows and in the validation, and after the last batch of an epoch until the epoch has ended.

After SLURM's signal the first process calls ``scontrol requeue``; the job that starts again goes on by itself.  SIGTERM
requeues nothing: it is what ``scancel`` sends, and SLURM requeues preempted jobs by itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

NOTHING, STOP, REQUEUE = range(3)


class Preemption(Checkpoint):
    """Saves a training that SIGTERM or SLURM stops; the command line uses it always.

    It must be the last callback, so that it saves what the others have done; for the same reason it is one of those
    that Lightning calls last.  In other stages SIGTERM ends the process
    at once, as if there were no Trainer.
    """

    def __init__(self) -> None:
        self._note = NOTHING
        self._group: Any = None
        self._pending: tuple[Any, torch.Tensor] | None = None

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals; Lightning has put its own handlers in place only now."""
        self._listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals, and prepare what notes are exchanged by."""
        self._listen(trainer)
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Outside of training, let SIGTERM end the process."""
        if trainer.state.fn != TrainerFn.FITTING:
            _handle(signal.SIGTERM, signal.SIG_DFL)

    on_test_start = on_predict_start = on_validation_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if all know of a note; not before what else belongs to the batch is done."""
        note = self._agreed()
        if note and not _unfinished(trainer):
            self._stop(trainer, note)
        self._note = max(self._note, note)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop here if all know of a note."""
        if note := self._agreed(now=True):
            self._stop(trainer, note)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave no message under way."""
        if self._pending is not None:
            self._pending[0].wait()
        self._group = self._pending = None

    def _listen(self, trainer: Trainer) -> None:
        _handle(signal.SIGTERM, self._take_note)
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            _handle(environment.requeue_signal or signal.SIGUSR1, self._take_note)

    def _take_note(self, signum: int, frame: FrameType | None) -> None:
        self._note = max(self._note, STOP if signum == signal.SIGTERM else REQUEUE)

    def _agreed(self, now: bool = False) -> int:
        """The weightiest note that any process had at the last exchange; or has ``now``."""
        if self._group is None:
            return self._note
        found = NOTHING
        if self._pending is not None:
            work, notes = self._pending
            work.wait()
            found = int(notes)
        notes = torch.tensor(max(self._note, found))
        self._pending = (dist.all_reduce(notes, dist.ReduceOp.MAX, self._group, async_op=True), notes)
        if now:
            self._pending[0].wait()
            found = int(notes)
        return found

    def _stop(self, trainer: Trainer, note: int) -> None:
        """Save, requeue, and end the training on every process."""
        group = self._group
        self.on_train_end(trainer, trainer.lightning_module)
        path = _last(trainer)
        if path is not None:
            trainer.save_checkpoint(path)
        saved = f"; the training is saved in {path}" if path is not None else "; the training saves no checkpoints"
        next_ = "continue it with --ckpt_path last" if path is not None else "it is lost"
        if note == REQUEUE:
            next_ = _requeue() if trainer.is_global_zero else ""
            if group is not None:
                dist.barrier(group)  # a process that ends may end the step, and what asks for the job with it
        raise SIGTERMException(f"stopped after step {trainer.global_step}{saved}: {next_}")


def _unfinished(trainer: Trainer) -> bool:
    """Whether a batch is followed by the end of its epoch or by a validation, or its gradients wait for the next's."""
    loop = trainer.fit_loop
    fetcher = loop._data_fetcher
    validated = fetcher is not None and loop.epoch_loop._should_check_val_fx(fetcher)
    return trainer.is_last_batch or validated or loop.epoch_loop._should_accumulate()


def _handle(signum: signal.Signals, handler: Any) -> None:
    """Handle a signal; only a main thread can."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signum, handler)


def _last(trainer: Trainer) -> Path | None:
    """Where ``--ckpt_path last`` looks."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            return Path(callback.dirpath, f"{callback.CHECKPOINT_NAME_LAST}{callback.FILE_EXTENSION}")
    return None


def _requeue() -> str:
    """Ask SLURM to start the job again, and say how it went."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        status = subprocess.run(["scontrol", "requeue", job], check=False).returncode
    except OSError as error:
        return f"job {job} could not be queued again ({error}); continue it with --ckpt_path last"
    return f"job {job} is queued again" if status == 0 else f"scontrol requeue {job} failed with status {status}"
