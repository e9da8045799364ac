"""``wsflow import`` and ``wsflow export``."""

from __future__ import annotations

import json

import pytest
import torch

from wsflow.cli import main
from wsflow.weightspace import WeightSpace, mlp
from wsflow.zoo import Zoo

NETWORK = ["--network.class_path", "wsflow.weightspace.mlp", "--network.init_args", '{"widths": [30, 4, 2]}']
PATTERN = r"run(?P<run>\d+)_step(?P<step>\d+)_acc(?P<accuracy>[\d.]+)"


@pytest.fixture
def foreign(tmp_path):
    path = tmp_path / "foreign"
    path.mkdir()
    for run in range(3):
        for step in (10, 200):
            state = mlp([30, 4, 2]).state_dict()
            torch.save({"state_dict": state, "epoch": step}, path / f"run{run}_step{step}_acc0.{run}{step}.pt")
    return path


def error(capsys):
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_import_then_export_then_import(foreign, tmp_path, capsys):
    zoo = str(tmp_path / "zoo")
    assert main(["import", str(foreign), "--output", zoo, *NETWORK, "--pattern", PATTERN]) == 0
    assert "6 networks of 3 runs, D = 134" in capsys.readouterr().out
    files = str(tmp_path / "files")
    assert main(["export", "--samples", zoo, "--index", "0", "2", "5", "--output", files, "--format", "pt"]) == 0
    assert "3 networks in" in capsys.readouterr().out
    args = ["import", files, "--output", str(tmp_path / "back"), *NETWORK, "--csv", f"{files}/networks.csv"]
    assert main(args) == 0
    first, back = Zoo.open(zoo), Zoo.open(tmp_path / "back")
    assert torch.equal(back.theta, first.theta[[0, 2, 5]])
    assert back.step.tolist() == [10, 10, 200]
    assert torch.equal(back.metrics["accuracy"], first.metrics["accuracy"][[0, 2, 5]])


def test_a_network_from_a_file_and_a_task(foreign, tmp_path):
    (tmp_path / "net.yaml").write_text("class_path: wsflow.weightspace.mlp\ninit_args:\n  widths: [30, 16, 16, 2]\n")
    theta = torch.randn(
        12,
        WeightSpace.from_description(
            {"class_path": "wsflow.weightspace.mlp", "init_args": {"widths": [30, 16, 16, 2]}}
        ).dim,
    )
    torch.save(theta, tmp_path / "all.pt")
    args = ["import", str(tmp_path / "all.pt"), "--order", "flat"]
    net = ["--network", str(tmp_path / "net.yaml")]
    assert main([*args, "--output", str(tmp_path / "a"), *net]) == 0
    assert main([*args, "--output", str(tmp_path / "b"), *net, "--task", "BreastCancer"]) == 0
    assert main([*args, "--output", str(tmp_path / "c"), "--task", "BreastCancer"]) == 0
    zoos = [Zoo.open(tmp_path / name) for name in "abc"]
    assert [zoo.task is None for zoo in zoos] == [True, False, False]
    assert all(torch.equal(zoo.theta, theta) for zoo in zoos)


def test_all_networks_are_exported_by_default(foreign, tmp_path):
    zoo = str(tmp_path / "zoo")
    assert main(["import", str(foreign), "--output", zoo, *NETWORK]) == 0
    for name, more in [("a", []), ("b", ["--index", "all"])]:
        assert main(["export", "--samples", zoo, "--output", str(tmp_path / name), *more]) == 0
        assert len(list((tmp_path / name).glob("*.safetensors"))) == 6


def test_dropping_by_a_switch(foreign, tmp_path, capsys):
    state = mlp([30, 4, 2]).state_dict()
    torch.save({name: value / 0 for name, value in state.items()}, foreign / "bad.pt")
    args = ["import", str(foreign), *NETWORK, "--output"]
    assert main([*args, str(tmp_path / "zoo")]) == 1
    assert "bad.pt: tensor '1.weight' holds NaN, infinity" in error(capsys)
    for name, switch in [("a", "--drop-invalid"), ("b", "--drop_invalid")]:
        assert main([*args, str(tmp_path / name), switch]) == 0
        assert "6 networks of 6 runs, D = 134; 1 with invalid numbers left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "by --network.class_path or by --task"),
        (["--network.class_path", "nowhere.net"], "'nowhere.net' cannot be imported"),
        (["--network.class_path", "wsflow.weightspace.mlp", "--network.init_args", '{"wide": 3}'], "cannot be called"),
        (["--network", "absent.yaml"], "absent.yaml"),
        ([*NETWORK, "--task", "nowhere.Task"], "nowhere"),
        ([*NETWORK, "--task", "BreastCancer"], "the base network of task breast_cancer is not the network"),
        ([*NETWORK, "--pattern", "(?P<run>"], "is no regular expression"),
        ([*NETWORK, "--csv", "absent.csv"], "there is no table at absent.csv"),
        ([*NETWORK, "--order", "flat"], "is a folder; an order is for one array"),
        ([*NETWORK, "--prefix", "module."], "no tensor's name begins with 'module.'"),
        (["--network.class_path", "wsflow.weightspace.mlp", "--network.init_args.widths", "[30, 5, 2]"], "(4, 30)"),
    ],
)
def test_mistakes_end_in_one_line(foreign, tmp_path, capsys, args, words):
    assert main(["import", str(foreign), "--output", str(tmp_path / "zoo"), *args]) == 1
    assert words in error(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign"]


def test_mistakes_of_export(foreign, tmp_path, capsys):
    assert main(["export", "--samples", str(tmp_path / "absent"), "--output", str(tmp_path / "a")]) == 1
    assert "there is no zoo at" in error(capsys)
    zoo = str(tmp_path / "zoo")
    assert main(["import", str(foreign), "--output", zoo, *NETWORK]) == 0
    capsys.readouterr()
    for more, words in [(["--index", "first"], "found 'first'"), (["--format", "h5"], "unknown format 'h5'")]:
        assert main(["export", "--samples", zoo, "--output", str(tmp_path / "a"), *more]) == 1
        assert words in error(capsys)
    assert json.loads((tmp_path / "zoo/zoo.json").read_text())["import"]["dtypes"] == ["float32"]
    assert not (tmp_path / "a").exists()
