"""Two processes do what one does, whoever starts them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from processes import TORCHRUN, WSFLOW, finish, free_port, logged, slurm, start, weights, wsflow

from wsflow.cli import main
from wsflow.commands import launched, restarted, resumed, run_apart, several
from wsflow.zoo import Zoo

pytestmark = pytest.mark.timeout(900)  # several processes, one after another, on a busy machine

OVERLAY = """
trainer:
  limit_val_batches: 2
  callbacks:
    - class_path: EMA
      init_args: {decay: 0.9}
    - class_path: GenerationCallback
      init_args: {n: 5, sampler: {class_path: Sampler, init_args: {steps: 2}}}
    - class_path: LearningRateMonitor
    - class_path: ModelCheckpoint
      init_args: {filename: last, enable_version_counter: false}
model:
  path: {class_path: GeodesicPath, init_args: {sigma: 0.01}}
  functional: {class_path: RolloutTerm, init_args: {batch_size: 32, steps: 3, every: 2}}
  weighting: {class_path: Fisher, init_args: {networks: 4, points: 4}}
data:
  permute: true
"""

SRUN = {"SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_NTASKS_PER_NODE": "2", "SLURM_STEP_ID": "0"}


def test_two_processes_generate_what_one_does(trained, tmp_path):
    common = ["predict", "--ckpt_path", str(trained), "--n", "11", "--batch_size", "3", "--accelerator", "cpu"]
    common += ["--seed", "5", "--steps", "4", "--noise", "0.1"]
    assert main([*common, "--out", str(tmp_path / "one")]) == 0
    told = wsflow([*common, "--out", str(tmp_path / "two"), "--devices", "2"])
    assert "(4 evaluations of the field)" in told
    one, two = (Zoo.open(tmp_path / name) for name in ("one", "two"))
    two.verify()
    assert torch.equal(one.run, two.run)
    torch.testing.assert_close(one.theta, two.theta, rtol=1e-5, atol=1e-5)
    assert not list(tmp_path.glob(".*"))


def test_fewer_networks_than_processes_are_one_line(trained, tmp_path):
    common = ["predict", "--ckpt_path", str(trained), "--accelerator", "cpu", "--out", str(tmp_path / "samples")]
    for extra in (["--n", "1"], ["--n", "3", "--shard", "0/2"]):
        status, output = finish(start([*common, *extra, "--devices", "2"]))
        assert status == 1
        assert "wsflow: error: 1 networks cannot be shared by 2 processes" in output
        assert "Traceback" not in output


@pytest.fixture
def fit(command, tmp_path):
    """Arguments of a fit with a result in a folder of that name."""
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(OVERLAY)

    def arguments(name: str, *extra: str) -> list[str]:
        return [*command("fit", "-c", str(overlay)), "--trainer.default_root_dir", str(tmp_path / name), *extra]

    return arguments


def assert_equal(one: Path, two: Path) -> None:
    """The same weights to rounding, and the same losses, learning rates and scores of samples."""
    torch.testing.assert_close(weights(one), weights(two), rtol=1e-4, atol=1e-4)
    expected, found = logged(one), logged(two)
    assert {name for _, name in expected} >= {"val/flow_loss", "samples/accuracy", "samples/z_u"}
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_two_processes_train_as_one(fit, tmp_path):
    assert main(fit("one")) == 0
    wsflow(fit("two", "--data.batch_size=4"), TORCHRUN)
    assert_equal(tmp_path / "one", tmp_path / "two")


def test_processes_collect_an_absent_zoo_together(fit, tmp_path):
    one, two = tmp_path / "zoo of one", tmp_path / "zoo of two"
    shards = "--data.collector.init_args.shard_runs=10"
    assert main(fit("one", "--data.path", str(one), shards)) == 0
    wsflow(fit("two", "--data.batch_size=4", "--data.path", str(two), shards), TORCHRUN)
    assert [path.name for path in sorted(two.iterdir())] == [path.name for path in sorted(one.iterdir())]
    assert all((two / path.name).read_bytes() == path.read_bytes() for path in one.glob("*.safetensors"))
    assert_equal(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["lightning", "two nodes of torchrun", "srun"])
def test_other_launchers_do_the_same(launcher, fit, tmp_path):
    assert main(fit("one")) == 0
    arguments, port = fit("two", "--data.batch_size=4"), free_port()
    if launcher == "lightning":
        processes = [start([*arguments, "--trainer.devices=2", "--trainer.strategy=ddp"])]
    elif launcher == "srun":
        processes = [start(arguments, **slurm(rank, port, nodes=2)) for rank in range(2)]
    else:
        node = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "test"]
        run = ["-m", "torch.distributed.run", *node, "--rdzv_endpoint", f"localhost:{port}", *WSFLOW]
        processes = [start(arguments, run) for _ in range(2)]
    results = [finish(process) for process in processes]
    assert [status for status, _ in results] == [0] * len(results), results
    assert_equal(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {}),
        ({"RANK": "0", "WORLD_SIZE": "2"}, {}),
        ({"TORCHELASTIC_RUN_ID": "a", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}, {"devices": 4, "num_nodes": 2}),
        (SRUN, {"devices": 2, "num_nodes": 3}),
        ({"SLURM_NTASKS": "1"}, {"devices": 1, "num_nodes": 1}),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "interactive"}, {}),
    ],
    ids=str,
)
def test_launchers_say_how_many_processes_there_are(environment, expected):
    assert launched(environment) == expected


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("SLURM_STEP_ID", "srun did not start this process: .*'srun wsflow"),
        ("SLURM_NTASKS_PER_NODE", "give --ntasks-per-"),
    ],
)
def test_jobs_whose_processes_would_wait_are_refused(missing, message):
    with pytest.raises(ValueError, match=f"has 6 tasks, .*{message}"):
        launched({name: value for name, value in SRUN.items() if name != missing})


def test_the_shell_of_a_job_is_none_of_its_processes():
    with pytest.raises(ValueError, match="srun did not start this process"):
        launched(SRUN | {"SLURM_STEP_ID": "4294967290"})


@pytest.mark.parametrize("option", [["--trainer.devices", "2"], ["--trainer.devices", "[0, 1]"]], ids=str)
def test_other_processes_than_slurm_started_are_refused(option, command, trained, monkeypatch, error_of):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    message = "asks for 2 processes, and torchrun or SLURM started 1"
    assert f"--trainer.devices {message}" in error_of([*command("fit"), *option])
    assert f"--devices {message}" in error_of(["predict", "--ckpt_path", str(trained), "--devices", "2"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"devices": 2}, True),
        ({"devices": "1"}, False),
        ({"devices": [0, 1]}, True),
        ({"devices": [3]}, False),
        ({"devices": "auto", "accelerator": "auto"}, True),
        ({"devices": -1, "accelerator": "gpu"}, True),
        ({"devices": "auto", "accelerator": "cpu"}, False),
    ],
    ids=str,
)
def test_an_experiment_knows_trainings_that_start_processes(given, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert several(given) is expected
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not several(given)


def test_what_runs_apart_ends_with_its_status(capfd):
    run_apart(["--version"])
    with pytest.raises(SystemExit) as stop:
        run_apart(["predict", "--ckpt_path", "nowhere.ckpt"])
    assert stop.value.code == 1
    assert "nowhere.ckpt" in capfd.readouterr().err


def test_a_job_that_starts_again_goes_on_from_what_it_saved(tmp_path):
    assert resumed(tmp_path, None) == "last"
    assert resumed(tmp_path, "a.ckpt") == "a.ckpt"
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "best.ckpt").touch()
    assert resumed(tmp_path, "last") == str(folder / "best.ckpt")
    last, begun = folder / "last.ckpt", tmp_path / "fit.yaml"
    for file, time in ((last, 10), (begun, 20)):
        file.touch()
        os.utime(file, (time, time))
    assert resumed(tmp_path, None) == "last"
    assert resumed(tmp_path, "a.ckpt") == "a.ckpt"  # the last one is an older training's
    os.utime(last, (30, 30))
    assert resumed(tmp_path, "a.ckpt") == "last"


def test_launchers_say_whether_they_started_again():
    assert not restarted({})
    assert not restarted({"SLURM_RESTART_COUNT": "0", "TORCHELASTIC_RESTART_COUNT": "0"})
    assert restarted({"SLURM_RESTART_COUNT": "2"})
    assert restarted({"TORCHELASTIC_RESTART_COUNT": "1"})
    assert not restarted(os.environ)
