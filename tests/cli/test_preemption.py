"""A training that is asked to stop saves itself, and goes on as if it had not been stopped."""

from __future__ import annotations

import os

import pytest
import torch
from processes import TROUBLE, finish, free_port, logged, slurm, start, weights, wsflow

from wsflow.cli import TERMINATED, main
from wsflow.commands.run import read_timing

pytestmark = pytest.mark.timeout(900)  # several processes, one after another, on a busy machine

OVERLAY = """
trainer:
  max_epochs: 3
  callbacks:
    - class_path: trouble_plugin.Trouble
      init_args: {how: HOW, step: STEP, rank: RANK}
    - class_path: EMA
      init_args: {decay: 0.9}
    - class_path: GenerationCallback
      init_args: {n: 4, sampler: {class_path: Sampler, init_args: {steps: 2}}}
    - class_path: EarlyStopping
      init_args: {monitor: val/flow_loss, patience: 10}
    - class_path: ModelCheckpoint
      init_args: {monitor: val/flow_loss, filename: best, enable_version_counter: false}
    - class_path: ModelCheckpoint
      init_args: {filename: last, enable_version_counter: false}
data:
  permute: true
"""


@pytest.fixture
def fit(command, package, tmp_path):
    """Arguments of a fit in which one process gets into trouble, with a result in a folder of that name."""
    (package / "trouble_plugin.py").write_text(TROUBLE)

    def arguments(
        name: str, how: str = "SIGTERM", step: int = -1, rank: int = 0, more: tuple[str, ...] = ()
    ) -> list[str]:
        overlay = tmp_path / f"{name}.yaml"
        overlay.write_text(OVERLAY.replace("HOW", how).replace("STEP", str(step)).replace("RANK", str(rank)))
        return [*command("fit", "-c", str(overlay)), "--trainer.default_root_dir", str(tmp_path / name), *more]

    return arguments


def parts(checkpoint: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Everything in a checkpoint, by place, but for paths, the trouble, and a score that Lightning does not restore."""
    items = checkpoint.items() if isinstance(checkpoint, dict) else enumerate(checkpoint)
    found: dict[str, object] = {}
    for name, value in items:
        place = f"{prefix}/{name}"
        if isinstance(value, dict | list | tuple):
            found |= parts(value, place)
        elif not any(word in place for word in ("path", "best_k_models", "current_score", "Trouble")):
            found[place] = value
    return found


def assert_same(one, two) -> None:
    """Two runs that ended in the same state, bit by bit."""
    first, second = (parts(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)) for run in (one, two))
    assert first.keys() == second.keys()
    both = {name: (value, second[name]) for name, value in first.items()}
    equal = {
        k: torch.equal(*v) if all(isinstance(x, torch.Tensor) for x in v) else v[0] is v[1] or bool(v[0] == v[1])
        for k, v in both.items()
    }
    assert [name for name, same in equal.items() if not same and "/loops/" not in name] == []


@pytest.mark.parametrize("step", [7, 8], ids=["in the middle of an epoch", "after its last batch"])
def test_a_terminated_fit_resumes_exactly(step, fit, tmp_path, capsys):
    assert main(fit("whole")) == 0
    assert main(fit("run", step=step)) == TERMINATED
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("wsflow:")]
    saved = tmp_path / "run" / "checkpoints" / "last.ckpt"
    told = f"wsflow: stopped after step {step}; the training is saved in {saved}: continue it with --ckpt_path last"
    assert message == [told]
    assert torch.load(saved, weights_only=True)["global_step"] == step
    before = read_timing(tmp_path / "run")["fit"]
    killed = saved.with_name(".last.ckpt.0.tmp")
    killed.touch()
    os.utime(killed, (0, 0))
    assert main([*fit("run"), "--ckpt_path", "last"]) == 0
    assert read_timing(tmp_path / "run")["fit"] > before > 0
    assert not killed.exists()
    assert_same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    ("more", "step"),
    [("--trainer.accumulate_grad_batches=2", 0), ("--trainer.val_check_interval=2", 6)],
    ids=["gradients wait", "a validation follows"],
)
def test_a_stop_leaves_nothing_half_done(more, step, fit, tmp_path):
    assert main(fit("whole", more=(more,))) == 0
    assert main(fit("run", step=step, more=(more,))) == TERMINATED
    assert main([*fit("run", more=(more,)), "--ckpt_path", "last"]) == 0
    assert_same(tmp_path / "whole", tmp_path / "run")
    assert logged(tmp_path / "whole") == logged(tmp_path / "run")


SCONTROL = """#!/bin/sh
sleep 5
echo "$@" >> "$(dirname "$0")/requeued"
"""


def test_slurm_requeues_a_fit_of_two_processes(fit, package, tmp_path):
    scontrol, two = package / "scontrol", ("--data.batch_size=4",)
    scontrol.write_text(SCONTROL)
    scontrol.chmod(0o755)
    assert main(fit("whole")) == 0

    def srun(**more: str) -> list[tuple[int, str]]:
        port, path = free_port(), f"{package}:/usr/bin:/bin"
        # SLURM's signal reaches one process only: the second.
        arguments = fit("run", "SIGUSR1", step=6, rank=1, more=two)
        ranks = [start(arguments, path=package, PATH=path, **slurm(rank, port, **more)) for rank in range(2)]
        second = finish(ranks[1])
        queued.append((package / "requeued").exists())
        return [finish(ranks[0]), second]

    queued: list[bool] = []
    first = srun()
    assert queued == [True], "a process ended before the job was queued again"
    assert [status for status, _ in first] == [TERMINATED] * 2, first
    assert (package / "requeued").read_text() == "requeue 4711\n"
    assert "job 4711 is queued again" in first[0][1]
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] in (6, 7)  # the processes agree one batch later
    again = srun(SLURM_RESTART_COUNT="1")
    assert [status for status, _ in again] == [0, 0], again
    torch.testing.assert_close(weights(tmp_path / "whole"), weights(tmp_path / "run"), rtol=1e-4, atol=2e-5)


@pytest.mark.slow
def test_two_processes_stop_together_and_resume_exactly(fit, package, tmp_path):
    two = ("--trainer.devices=2", "--data.batch_size=4")
    wsflow(fit("whole", more=two), path=package)
    status, output = finish(start(fit("run", step=5, rank=1, more=two), path=package))
    assert status == TERMINATED, output
    assert output.count("wsflow: stopped after step 6") == 1
    wsflow([*fit("run", more=two), "--ckpt_path", "last"], path=package)
    assert_same(tmp_path / "whole", tmp_path / "run")
