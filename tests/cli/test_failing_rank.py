"""One process that fails ends them all: soon, with one message, and with a checkpoint to go on from."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from processes import TORCHRUN, TROUBLE, WSFLOW, finish, start

from wsflow.callbacks import AtomicCheckpoints, FailTogether
from wsflow.cli import main

pytestmark = pytest.mark.timeout(900)  # several processes, one after another, on a busy machine

OVERLAY = """
trainer:
  max_epochs: 3
  callbacks:
    - class_path: trouble_plugin.Trouble
      init_args: {how: HOW, step: STEP, rank: RANK}
    - class_path: GenerationCallback
      init_args: {n: 4, sampler: {class_path: Sampler, init_args: {steps: 2}}}
    - class_path: ModelCheckpoint
      init_args: {filename: last, enable_version_counter: false}
"""

TWO = ["--trainer.devices=2", "--data.batch_size=4"]

CASES = {
    "killed": (WSFLOW, TWO, "SIGKILL", 7, 1, "process 1 of 2 (counted from 0) was killed, or ended without a word"),
    "the first one killed": (WSFLOW, TWO, "SIGKILL", 7, 0, "process 0 of 2 (counted from 0) was killed"),
    "an error": (WSFLOW, TWO, "raise", 7, 1, "process 1 of 2 (counted from 0): a callback is broken"),
    "interrupted": (WSFLOW, TWO, "SIGINT", 7, 0, "process 0 of 2 (counted from 0): interrupted"),
    "samples diverge": (WSFLOW, TWO, "diverge", 8, 1, "has weights that are not finite"),
    "killed under torchrun": (TORCHRUN, TWO[1:], "SIGKILL", 7, 1, "process 1 of 2 (counted from 0) was killed"),
    "an error under torchrun": (
        TORCHRUN,
        TWO[1:],
        "raise",
        7,
        0,
        "process 0 of 2 (counted from 0): a callback is broken",
    ),
}


@pytest.mark.parametrize(
    "case", [name if name == "killed" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_one_process_that_fails_ends_all(case, command, package, tmp_path):
    run, extra, how, step, rank, message = CASES[case]
    (package / "trouble_plugin.py").write_text(TROUBLE)
    overlay = tmp_path / "trouble.yaml"
    overlay.write_text(OVERLAY.replace("HOW", how).replace("STEP", str(step)).replace("RANK", str(rank)))
    arguments = command("fit", "-c", str(overlay))
    status, output = finish(start([*arguments, *extra], run, package))
    ended = time.time()
    assert status != 0
    told = [line for line in output.splitlines() if line.startswith("wsflow:")]
    assert len(told) == 1, output
    assert message in told[0]
    assert "--ckpt_path last" in told[0]
    (began,) = re.findall(r"trouble at ([\d.]+)", output)
    assert ended - float(began) < 60
    # One process goes on with what two began; the trouble does not come back, since its rank or step does not.
    overlay.write_text(OVERLAY.replace("HOW", how).replace("STEP", "-1").replace("RANK", "0"))
    assert main([*arguments, "--ckpt_path", "last"]) == 0
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 12


def test_processes_that_are_not_connected_yet_are_ended():
    """An error while the first process prepares data: the others wait for it in Lightning's barrier."""
    waiting = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=[waiting])))
    FailTogether().on_exception(trainer, None, ValueError("no data"))
    assert waiting.wait(5) != 0
    FailTogether().on_exception(SimpleNamespace(strategy=SimpleNamespace(launcher=None)), None, ValueError("no data"))


def test_a_checkpoint_is_there_in_full_or_not_at_all(tmp_path, monkeypatch):
    path, writer = tmp_path / "folder" / "last.ckpt", AtomicCheckpoints()
    writer.save_checkpoint({"step": 1}, path)

    def half(checkpoint, file):
        file.write(b"half a checkpoint")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space left"):
        writer.save_checkpoint({"step": 2}, path)
    assert writer.load_checkpoint(path, weights_only=True) == {"step": 1}
    assert list(path.parent.iterdir()) == [path]
