from __future__ import annotations

import pytest
import torch

from wsflow.zoo import Collector, EverySnapshot, FinalSnapshot, ValidationSnapshot, parse_share, share_from_environment


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (FinalSnapshot(), [40]),
        (EverySnapshot(15), [15, 30, 40]),
        (EverySnapshot(5, discard_epochs=2), [25, 30, 35, 40]),
        (EverySnapshot(5, discard_epochs=9), [40]),
        (ValidationSnapshot(20), [20, 40]),
    ],
)
def test_steps(schedule, expected):
    assert schedule.steps(steps_per_epoch=10, epochs=4) == expected


def test_all_are_kept_by_default():
    assert EverySnapshot().keep(torch.rand(3, 4)).all()


def test_validation_keeps_from_the_best_on():
    loss = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0], [torch.nan, 2.0, 1.0]])
    expected = [[False, True, True], [True, True, True], [False, False, True]]
    assert ValidationSnapshot().keep(loss).tolist() == expected


@pytest.mark.parametrize(
    "make", [lambda: EverySnapshot(0), lambda: ValidationSnapshot(0), lambda: EverySnapshot(1, -1)]
)
def test_impossible_schedules_are_refused(make):
    with pytest.raises(ValueError, match="must be at least 1"):
        make()


def test_shares_are_parsed():
    assert parse_share("2/8") == (2, 8)


@pytest.mark.parametrize("text", ["8/8", "1", "-1/3", "a/b", "1/0", ""])
def test_other_shares_are_refused(text):
    with pytest.raises(ValueError, match="a share is 'i/n'"):
        parse_share(text)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "4"}, (1, 4)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "3", "SLURM_STEP_ID": "0"}, (2, 3)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "3"}, (0, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "3", "SLURM_STEP_ID": "4294967290"}, (0, 1)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "5"}, (2, 4)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "4",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_PROCID": "1",
                "SLURM_NTASKS": "2",
                "SLURM_STEP_ID": "1",
            },
            (5, 6),
        ),
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "3", "SLURM_NTASKS": "9"}, (0, 2)),
    ],
    ids=["alone", "torchrun", "srun", "batch script", "shell of salloc", "array", "array of srun", "torchrun in slurm"],
)
def test_the_environment_names_the_share(environment, expected):
    assert share_from_environment(environment) == expected


def test_a_contradictory_environment_is_refused():
    with pytest.raises(ValueError, match=r"give --shard i/n"):
        share_from_environment({"RANK": "4", "WORLD_SIZE": "4"})
    gaps = {"ID": "3", "COUNT": "3", "MIN": "0", "STEP": "2"}
    with pytest.raises(ValueError, match=r"process 3 of 3, as the environment says"):
        share_from_environment({f"SLURM_ARRAY_TASK_{name}": value for name, value in gaps.items()})


def test_processes_of_a_machine_collect_on_a_gpu_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert Collector(device="cuda")._place == "cuda:0"
    assert Collector(device="cpu")._place == "cpu"
    for name, more in (("LOCAL_RANK", {}), ("SLURM_LOCALID", {"SLURM_STEP_ID": "0"})):
        with monkeypatch.context() as patch:
            for key, value in {name: "6", **more}.items():
                patch.setenv(key, value)
            assert Collector(device="cuda")._place == "cuda:2"
            assert Collector(device="cuda:3")._place == "cuda:3"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert Collector(device="cuda")._place == "cuda"
