"""Two processes do what one does."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import torch

from wsflow.cli import main
from wsflow.zoo import Zoo


def wsflow(*arguments: str) -> None:
    """Run a command in a process of its own, which starts the second one."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    run = [sys.executable, "-m", "wsflow", *arguments]
    result = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr


def test_two_processes_generate_what_one_does(trained, tmp_path):
    common = ["predict", "--ckpt_path", str(trained), "--n", "11", "--batch_size", "3", "--accelerator", "cpu"]
    assert main([*common, "--seed", "5", "--steps", "4", "--noise", "0.1", "--out", str(tmp_path / "one")]) == 0
    wsflow(*common, "--seed", "5", "--steps", "4", "--noise", "0.1", "--out", str(tmp_path / "two"), "--devices", "2")
    one, two = (Zoo.open(tmp_path / name) for name in ("one", "two"))
    two.verify()
    assert torch.equal(one.run, two.run)
    torch.testing.assert_close(one.theta, two.theta, rtol=1e-5, atol=1e-5)
    assert not list(tmp_path.glob(".*"))


def test_two_processes_train_and_evaluate_samples(command, tmp_path):
    overlay = tmp_path / "two.yaml"
    overlay.write_text("trainer: {devices: 2, strategy: ddp}\n")
    generation = ["--trainer.callbacks+=GenerationCallback", "--trainer.callbacks.n=5", "--trainer.max_epochs=1"]
    wsflow(*command("fit", "-c", str(overlay), *generation, "--data.batch_size=4"))
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4  # 32 networks, 4 for each of two processes
    (log,) = (tmp_path / "run" / "logs" / "csv").glob("*/metrics.csv")
    rows = list(csv.DictReader(log.read_text().splitlines()))
    values = {name: float(row[name]) for row in rows for name in row if row[name]}
    assert 0 <= values["samples/accuracy"] <= 1
    assert values["val/flow_loss"] > 0
