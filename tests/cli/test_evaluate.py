"""What evaluate may touch, and where its baselines come from."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from wsflow.cli import main
from wsflow.commands.equal_cost import equal_cost, fresh_starts, recorded_collector
from wsflow.metrics import EqualCostBaseline
from wsflow.tasks import BreastCancer
from wsflow.weightspace import GaussianInitializer, NetworkInitializer
from wsflow.zoo import SGD, Collector, Zoo, ZooDataModule
from wsflow.zoo.train import DataOrder, train_runs


@pytest.fixture(scope="module")
def samples(trained, tmp_path_factory):
    """Generated networks."""
    path = tmp_path_factory.mktemp("generated") / "samples"
    options = ["--n=6", "--steps=2", "--accelerator=cpu", "--out", str(path)]
    assert main(["predict", "--ckpt_path", str(trained), *options]) == 0
    return path


@pytest.fixture
def evaluate(samples, tmp_path):
    """Run evaluate on the generated networks; its exit status and its report."""

    def run(*extra):
        report = tmp_path / "report.json"
        status = main(["evaluate", "--samples", str(samples), "--out", str(report), *extra])
        return status, json.loads(report.read_text()) if status == 0 else {}

    return run


@pytest.mark.parametrize("split", ["val", "test"])
def test_only_the_asked_split_is_touched(split, evaluate, monkeypatch):
    touched = {"runs": set(), "data": set()}
    rows, data = ZooDataModule.rows, BreastCancer.data
    monkeypatch.setattr(
        ZooDataModule, "rows", lambda self, name, **kw: touched["runs"].add(name) or rows(self, name, **kw)
    )
    monkeypatch.setattr(BreastCancer, "data", lambda self, name: touched["data"].add(name) or data(self, name))
    assert evaluate("--split", split)[0] == 0
    assert touched["runs"] == {"train", split}
    assert touched["data"] == {"train", "val", split}


def test_validation_does_not_need_test_data(evaluate, monkeypatch, capsys):
    data = BreastCancer.data

    def sealed(self, split):
        if split == "test":
            raise ValueError("the test data are sealed")
        return data(self, split)

    monkeypatch.setattr(BreastCancer, "data", sealed)
    assert evaluate("--split=val")[0] == 0
    assert evaluate("--split=test")[0] == 1
    assert "sealed" in capsys.readouterr().err


def test_the_report_says_what_a_network_cost_and_where(evaluate, samples, capsys):
    _, report = evaluate()
    assert report["timing.seconds_per_network"] == Zoo.open(samples).manifest["seconds_per_network"] > 0
    assert report["timing.device.sampling"] == report["timing.device.training"] == "cpu, 1 thread"
    assert "to generate (cpu, 1 thread); equal_cost trains as long (cpu, 1 thread)" in capsys.readouterr().out


def test_another_device_is_named(evaluate, samples, capsys):
    file = samples / "zoo.json"
    manifest = file.read_text()
    file.write_text(manifest.replace("cpu, 1 thread", "cuda, some GPU"))
    try:
        _, report = evaluate()
    finally:
        file.write_text(manifest)
    assert report["timing.device.sampling"] == "cuda, some GPU"
    assert "(cuda, some GPU); equal_cost trains as long (cpu, 1 thread, another device)" in capsys.readouterr().out


def test_labels_are_not_looked_at_and_another_zoo_may_be_smaller(samples, evaluate, other):
    """What the flow was told of networks may have moved; how many runs it was trained on is said of its own zoo."""
    file = samples / "zoo.json"
    text = file.read_text()
    manifest = json.loads(text)
    told = {"class_path": "wsflow.zoo.RunLabel", "init_args": {"file": "gone.json", "name": "rate"}}
    manifest["data"]["init_args"] |= {"labels": [told], "train_runs": 33}
    file.write_text(json.dumps(manifest))
    try:
        assert evaluate("--baselines=false", "--zoo", str(other))[0] == 0
    finally:
        file.write_text(text)


def test_equal_cost_trains_in_groups_of_one_order_as_the_zoo_did():
    task, collector = BreastCancer(), Collector(runs=4, epochs=1, batch_size=100, optimizer=SGD(0.1), runs_per_order=2)
    starts = fresh_starts(collector, task, 3, 0)
    found = equal_cost(task, collector, 1e6).train(starts, 1e6)  # time for all of the training
    plan = (SGD(0.1), 1, 100, [collector.steps(task)])
    count = len(task.data("train")[0])
    for rows, order in (([0, 1], 0), ([2], 1)):
        expected = train_runs(task, starts[rows], DataOrder(count, 1, [order]), *plan).theta[:, 0]
        torch.testing.assert_close(found[rows], expected)


@pytest.fixture
def other(tmp_path):
    """A zoo that was not trained by the default settings."""
    path = tmp_path / "zoo"
    collector = Collector(
        runs=40, epochs=1, batch_size=100, optimizer=SGD(lr=0.02), initializer=NetworkInitializer(), seed=9
    )
    collector.collect(BreastCancer(), path, progress=False)
    return path


def test_a_given_zoo_decides_how_baselines_are_trained(evaluate, other, monkeypatch):
    used = []
    generate = EqualCostBaseline.generate

    def spy(self, material, n, generator):
        networks = generate(self, material, n, generator)
        used.append((self, material.fresh))
        return networks

    monkeypatch.setattr(EqualCostBaseline, "generate", spy)
    trained = []
    monkeypatch.setattr(SGD, "build", lambda self, theta: trained.append(self.lr) or torch.optim.SGD([theta], self.lr))
    status, report = evaluate("--zoo", str(other), "--split=val")
    assert status == 0
    assert set(trained) == {0.02}
    assert "baselines.displacement.accuracy" in report
    ((_, fresh),) = used
    starts = Zoo.open(other).start
    assert not (torch.cdist(fresh, starts) < 1e-3).any()  # none of the zoo's own
    assert fresh.std() == pytest.approx(float(starts.std()), rel=0.05)


def test_options_of_sampling_do_not_go_with_networks_that_are_there(error_of):
    for option in ("--steps=4", "--noise=0.1", "--solver=Heun", "--starts=zoo"):
        assert "give it to predict, or --ckpt_path instead" in error_of(["evaluate", "--samples", "some", option])


def test_without_a_record_the_baselines_that_need_it_are_left_out(evaluate, other, capsys):
    file = other / "zoo.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | {"collector": None}))
    status, report = evaluate("--zoo", str(other), "--split=val")
    assert status == 0
    assert "does not record how its runs were trained" in capsys.readouterr().out
    names = {key.split(".")[1] for key in report if key.startswith("baselines.")}
    assert names == {"gaussian", "noise", "average", "retrieval"}


def test_the_collector_of_merged_and_cut_zoos(other, tmp_path):
    parts = [str(tmp_path / name) for name in ("a", "b")]
    for skip, part in zip((0, 20), parts, strict=True):
        assert main(["zoo", "subset", str(other), "--output", part, "--runs=20", f"--skip={skip}"]) == 0
    found = recorded_collector(Zoo.open(parts[0]).manifest)
    assert (found.batch_size, found.optimizer.lr, type(found.initializer)) == (100, 0.02, NetworkInitializer)
    one, second = (Collector(runs=9, seed=seed).description for seed in (0, 1))
    slow = Collector(runs=9, optimizer=SGD()).description
    assert recorded_collector({"merged": [one, second]}).optimizer.lr == 1e-3
    assert recorded_collector({"merged": [one, slow]}) is None
    assert recorded_collector({"merged": [one, None]}) is None
    assert recorded_collector({}) is None
    with pytest.raises(ValueError, match="which is none"):
        recorded_collector({"collector": {"class_path": "collections.OrderedDict"}})


def test_fresh_starts_are_of_no_run_whatever_the_seed():
    task, collector = BreastCancer(), Collector(initializer=GaussianInitializer(0.5), seed=3)
    first, again, other = (fresh_starts(collector, task, 4, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.std()) == pytest.approx(0.5, rel=0.05)


def test_a_damaged_copy_of_the_zoo_is_refused(evaluate, other, tmp_path, capsys):
    copy = shutil.copytree(other, tmp_path / "copy")
    next(copy.glob("*.safetensors")).unlink()
    assert evaluate("--zoo", str(copy))[0] == 1
    assert "is missing" in capsys.readouterr().err
