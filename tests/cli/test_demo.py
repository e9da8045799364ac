"""``make demo``: the commands of the Makefile, on a small zoo."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

from wsflow.cli import main

ROOT = Path(__file__).parents[2]
KEYS = {
    *(f"samples.{name}" for name in ("accuracy", "loss", "ensemble_nll", "nn_ratio.function", "nn_ratio.weight")),
    *("samples.z_u", "samples.dispersion", "heldout.accuracy", "heldout.loss", "heldout.ensemble_nll"),
    *(f"timing.{name}" for name in ("collect", "fit", "predict", "evaluate", "seconds_per_network")),
}
BASELINES = ("gaussian", "noise", "average", "displacement", "equal_cost", "retrieval")


def test_the_demo_runs_twice(small, tmp_path, monkeypatch, capsys):
    dry = ["make", "-C", str(ROOT), "--no-print-directory", "-n", "demo", f"DEMO_FIT=-c {small}"]
    lines = subprocess.run(dry, capture_output=True, text=True, check=True).stdout.splitlines()
    words = [shlex.split(line) for line in lines]
    commands = [line[1:] for line in words if line and line[0].endswith("/wsflow")]
    assert [command[0] for command in commands] == ["fit", "predict", "evaluate"]

    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "demo"
    assert [main(command) for command in commands] == [0, 0, 0]
    shown = capsys.readouterr()
    assert "next: wsflow predict --ckpt_path runs/demo/checkpoints/last.ckpt" in shown.out
    assert "last checkpoint" not in shown.err
    report = json.loads((run / "report.json").read_text())
    assert set(report) >= KEYS | {f"baselines.{name}.{score}" for name in BASELINES for score in ("accuracy", "loss")}
    assert (run / "figures" / "principal_components.png").exists()

    trained = (run / "checkpoints" / "last.ckpt").read_bytes()
    assert [main(command) for command in commands] == [0, 0, 0]
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == trained
    again = json.loads((run / "report.json").read_text())
    assert again["samples.accuracy"] == report["samples.accuracy"]
    assert again["timing.collect"] == report["timing.collect"]
