"""The tasks of a job array generate, each its part, what one process does."""

from __future__ import annotations

import json

import pytest
import torch

from wsflow.cli import main
from wsflow.zoo import SamplesPart, Zoo, ZooError, array_share


@pytest.fixture
def predict(trained, tmp_path):
    """Arguments of a command that generates eleven networks in a folder of that name."""

    def arguments(name: str, *extra: str) -> list[str]:
        common = ["predict", "--ckpt_path", str(trained), "--n", "11", "--accelerator", "cpu", "--steps", "2"]
        return [*common, "--out", str(tmp_path / name), *extra]

    return arguments


def test_parts_are_what_one_process_generates(predict, tmp_path, monkeypatch, capsys, error_of):
    assert main(predict("whole", "--noise", "0.1")) == 0
    assert main(predict("parts", "--noise", "0.1", "--shard", "2/3")) == 0
    assert "other parts are missing" in capsys.readouterr().out
    with pytest.raises(ZooError, match="1 shards are finished"):
        Zoo.open(tmp_path / "parts")
    # A task of a SLURM array finds its part by itself; numbers need not begin at 0.
    for name, value in {"ID": 5, "COUNT": 3, "MIN": 5, "MAX": 7}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert main(predict("parts", "--noise", "0.1")) == 0
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "6")
    assert main(predict("parts", "--noise", "0.1")) == 0
    whole, parts = (Zoo.open(tmp_path / name) for name in ("whole", "parts"))
    parts.verify()
    assert [shard["rows"] for shard in parts.manifest["shards"]] == [3, 4, 4]
    assert torch.equal(whole.run, parts.run)
    torch.testing.assert_close(whole.theta, parts.theta, rtol=1e-5, atol=1e-6)
    assert parts.manifest.keys() == whole.manifest.keys()
    assert parts.manifest["sampling"] == whole.manifest["sampling"]
    assert parts.manifest["seconds_per_network"] > 0
    assert not list(tmp_path.glob(".*"))
    # What is there stays, unless it is to be made again; other settings are refused.
    before = (tmp_path / "parts" / "shard-00001.safetensors").stat().st_mtime_ns
    assert main(predict("parts", "--noise", "0.1")) == 0
    assert "part 1/3" in capsys.readouterr().out
    assert (tmp_path / "parts" / "shard-00001.safetensors").stat().st_mtime_ns == before
    assert "settings: sampling.seed is 0 there and 4 here" in error_of(
        predict("parts", "--noise", "0.1", "--seed", "4")
    )
    assert "not written part by part" in error_of(predict("whole", "--noise", "0.1"))
    assert main(predict("all", "--shard", "0/1")) == 0
    assert len(Zoo.open(tmp_path / "all")) == 11


def part(path, share: tuple[int, int], count: int = 5, **settings: object) -> SamplesPart:
    return SamplesPart(path, share, count, {"sampling": {"seed": 0}, **settings})


def test_a_part_that_failed_is_run_again(space, tmp_path):
    theta = torch.randn(5, space.dim)
    one, two = (part(tmp_path / "samples", (i, 2)) for i in range(2))
    assert [list(one.indices), list(two.indices)] == [[0, 1], [2, 3, 4]]
    with pytest.raises(ZooError, match="hold NaN or infinity"):
        one.write(space, theta[:2] * torch.nan, 1.0, "cpu")
    two.write(space, theta[2:], 1.5, "cpu")
    assert (one.finished, two.finished) == (False, True)
    assert not one.complete(space)
    one.write(space, theta[:2], 1.0, "gpu")
    found = Zoo.open(tmp_path / "samples")
    assert torch.equal(found.theta, theta)
    assert found.manifest["seconds_per_network"] == pytest.approx(0.5)
    assert found.manifest["device"] == "cpu, gpu"
    assert found.kind == "samples"


def test_parts_that_do_not_fit_are_refused(space, tmp_path):
    first = part(tmp_path / "samples", (0, 2))
    with pytest.raises(ZooError, match="parts is 2 there and 3 here"):
        part(tmp_path / "samples", (0, 3))
    with pytest.raises(ZooError, match="5 networks cannot be split into 6 parts"):
        part(tmp_path / "other", (0, 6))
    with pytest.raises(ZooError, match="part 0 of 2 has 2 networks, got 3"):
        first.write(space, torch.zeros(3, space.dim), 1.0, "cpu")
    assert json.loads((tmp_path / "samples" / "settings.json").read_text())["networks"] == 5


def test_an_array_of_one_task_has_one_share():
    assert array_share({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "1"}) == (0, 1)
    with pytest.raises(ValueError, match="does not exist"):
        array_share({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3"})
