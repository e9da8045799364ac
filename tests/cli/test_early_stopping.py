"""Early stopping on the held-out flow loss: it judges averaged weights, and its best checkpoint is what users get."""

from __future__ import annotations

import csv

import pytest
import torch

import wsflow
from wsflow.cli import main

STOPPING = """
trainer:
  max_epochs: 12
  callbacks:
    - class_path: EMA
      init_args: {decay: 0.5}
    - class_path: ModelCheckpoint
      init_args: {monitor: val/flow_loss, filename: best, enable_version_counter: false}
    - class_path: ModelCheckpoint
      init_args: {filename: last, enable_version_counter: false}
    - class_path: EarlyStopping
      init_args: {monitor: val/flow_loss, patience: 2}
model:
  time: UniformTime
  scheduler: Constant
  optimizer:
    class_path: torch.optim.Adam
    init_args: {lr: 0.03}
"""


def test_training_stops_and_the_best_average_is_kept(command, tmp_path, capsys):
    overlay = tmp_path / "stopping.yaml"
    overlay.write_text(STOPPING)
    run = command("fit", "-c", str(overlay))
    assert main(run) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "run"
    (metrics,) = folder.glob("logs/csv/*/metrics.csv")
    with metrics.open() as file:
        losses = [float(row["val/flow_loss"]) for row in csv.DictReader(file) if row["val/flow_loss"]]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 12  # two epochs without improvement

    checkpoints = {
        name: torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("best", "last")
    }
    assert checkpoints["best"]["epoch"] == best
    assert checkpoints["last"]["epoch"] == len(losses) - 1
    assert "--ckpt_path" in printed
    assert printed.rstrip().endswith("best.ckpt")

    # The saved weights are the averages that were judged, and not those that training went on with.
    state, weights = checkpoints["best"]["state_dict"], checkpoints["best"]["ema_weights"]
    assert any(not torch.equal(state[name], value) for name, value in weights.items())
    flow = wsflow.load(folder / "checkpoints" / "best.ckpt")
    assert all(torch.equal(value, state[name]) for name, value in flow.module.state_dict().items())
    assert main([*command("validate", "-c", str(overlay)), "--ckpt_path", str(folder / "checkpoints/best.ckpt")]) == 0
    newest = max(folder.glob("logs/csv/*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    with newest.open() as file:
        assert float(next(csv.DictReader(file))["val/flow_loss"]) == pytest.approx(losses[best], rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")  # there is no best checkpoint
@pytest.mark.parametrize("option", ["max_steps=2", "limit_val_batches=0"])
def test_a_training_without_a_validation_is_kept(option, command, tmp_path):
    """The shipped config stops early; these end before there is anything to judge by."""
    assert main(command("fit", f"--trainer.{option}")) == 0
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == (2 if option == "max_steps=2" else 8)
