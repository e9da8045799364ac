"""A training that was killed goes on as if it had not been."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from wsflow.cli import main

KILLER = """
import os
import signal

from lightning.pytorch import Callback


class Killer(Callback):
    def __init__(self, step: int = 7) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *args, **kwargs) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
"""

CALLBACKS = """
trainer:
  max_epochs: 3
  callbacks:
    - class_path: EMA
      init_args: {decay: 0.9}
    - class_path: GenerationCallback
      init_args: {n: 4}
    - class_path: ModelCheckpoint
      init_args: {SAVING, enable_version_counter: false}
data:
  permute: true
"""

SAVING = {
    "in the middle of an epoch": "every_n_train_steps: 3, filename: some, save_last: true",
    "after an epoch": "save_on_train_epoch_end: true, filename: some, save_last: true",
    "after validation": "filename: last",
}


def tensors(value, prefix=""):
    """All tensors of a checkpoint by place."""
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {k: v for name, item in items for k, v in tensors(item, f"{prefix}/{name}").items()}


def test_a_training_goes_on_with_batches_of_the_same_size_alone(command, error_of, tmp_path):
    first = command("fit", "--trainer.max_epochs", "1")
    assert main(first) == 0
    before = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    more = [*first, "--trainer.max_epochs", "2", "--ckpt_path", "last"]
    assert "had batches of 8 networks" in error_of([*more, "--data.batch_size", "4"])
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes() == before
    assert main(more) == 0


@pytest.mark.filterwarnings("ignore:the training goes on with other settings")
def test_a_resume_that_is_refused_leaves_the_run_as_it_was(command, error_of, tmp_path):
    """Held-out runs stay held out; the config is that of the training that is there."""
    first, kept = command("fit", "--trainer.max_epochs", "1"), tmp_path / "run" / "fit.yaml"
    assert main(first) == 0
    before = kept.read_bytes()
    more = [*first, "--trainer.max_epochs", "2", "--ckpt_path", "last"]
    for option, message in {
        "--data.split_seed=1": "had data.split_seed 0, and this one has 1: runs that were held out would be trained on",
        "--data.fractions=[0.6,0.2,0.2]": "or such that were trained on would count as new; pass --data.fractions",
        "--data.train_runs=20": "had data.train_runs None, and this one has 20",
        "--model.field.init_args.width=24": "the checkpoint's weights do not fit this model's field",
    }.items():
        assert message in error_of([*more, option])
        assert kept.read_bytes() == before
    assert main(more) == 0
    assert kept.read_bytes() != before


def test_a_resume_on_another_zoo_is_warned_of(command, tmp_path):
    first = command("fit", "--trainer.max_epochs", "1")
    assert main(first) == 0
    place = first[first.index("--data.path") + 1]
    shutil.copytree(place, tmp_path / "moved")
    more = [*first, "--trainer.max_epochs", "2", "--ckpt_path", "last", "--data.path", str(tmp_path / "moved")]
    with pytest.warns(UserWarning, match=f"began with the zoo {place} and goes on with {tmp_path / 'moved'}"):
        assert main(more) == 0


def test_the_best_checkpoint_of_a_run_can_be_named(command, tmp_path):
    first = command("fit", "--trainer.max_epochs", "1", config="demo")
    assert main(first) == 0
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()
    assert main([*first, "--trainer.max_epochs", "2", "--ckpt_path", "best"]) == 0


@pytest.mark.parametrize("saving", SAVING)
def test_a_killed_fit_resumes_exactly(saving, command, tmp_path, package):
    (package / "killing_plugin.py").write_text(KILLER)
    overlay = tmp_path / "callbacks.yaml"
    overlay.write_text(CALLBACKS.replace("SAVING", SAVING[saving]))
    whole = [*command("fit", "-c", str(overlay)), "--trainer.default_root_dir", str(tmp_path / "whole")]
    assert main(whole) == 0

    killed = command("fit", "-c", str(overlay))
    callback = "--trainer.callbacks+=killing_plugin.Killer"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(package), *sys.path]), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "wsflow", *killed, callback]
    assert subprocess.run(run, env=environment, capture_output=True).returncode == -signal.SIGKILL

    assert main([*killed, "--ckpt_path", "last"]) == 0
    first, second = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "run")
    )
    assert first["global_step"] == second["global_step"] == 12
    assert first["epoch"] == second["epoch"]
    expected, found = tensors(first), tensors(second)
    assert any("ema_weights" in name for name in expected)
    assert any("optimizer_states" in name for name in expected)
    names = {name for name in expected if not name.startswith("/callbacks")}
    assert names == {name for name in found if not name.startswith("/callbacks")}
    different = [name for name in names if not torch.equal(expected[name], found[name])]
    assert not different
    assert first["lr_schedulers"] == second["lr_schedulers"]
