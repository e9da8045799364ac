from __future__ import annotations

import pytest
import torch

from wsflow.weightspace import GaussianInitializer
from wsflow.zoo import Collector, EverySnapshot, StepLabel, Zoo, ZooError, write_networks
from wsflow.zoo.commands import info, merge, subset, verify


@pytest.fixture
def other_path(task, tmp_path):
    """A zoo of the same task by another seed."""
    collector = Collector(runs=4, epochs=2, batch_size=16, snapshots=EverySnapshot(2), shard_runs=2, seed=1)
    collector.collect(task, tmp_path / "other", progress=False)
    return tmp_path / "other"


def test_info_says_what_is_there(zoo_path, capsys):
    info(str(zoo_path))
    text = capsys.readouterr().out
    for part in ("Clusters", "D = 43", "10, with starts", "30, steps 2 to 6", "3 shards", "final test.accuracy"):
        assert part in text


def test_verify_says_so(zoo_path, capsys):
    verify(str(zoo_path))
    assert "30 networks of 10 runs, all as the manifest says" in capsys.readouterr().out


def test_merge_numbers_runs_anew(task, zoo_path, other_path, tmp_path):
    merge([str(zoo_path), str(other_path)], str(tmp_path / "merged"))
    first, second, merged = (Zoo.open(path) for path in (zoo_path, other_path, tmp_path / "merged"))
    merged.verify()
    assert torch.equal(merged.theta, torch.cat([first.theta, second.theta]))
    assert merged.run_ids.tolist() == list(range(14))
    assert torch.equal(merged.run[30:], second.run + 10)
    assert torch.equal(merged.starts_of(torch.tensor([11])), second.starts_of(torch.tensor([1])))
    assert torch.equal(merged.metrics["val.loss"][30:], second.metrics["val.loss"])
    assert type(merged.task) is type(task)


def test_merge_refuses_the_same_runs(zoo_path, tmp_path):
    with pytest.raises(ZooError, match=r"run 0 of .* is also in another zoo"):
        merge([str(zoo_path), str(zoo_path)], str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


def test_merge_refuses_another_architecture(task, zoo_path, tmp_path):
    wide = type(task)(hidden=6)
    Collector(runs=2, epochs=1, seed=3).collect(wide, tmp_path / "wide", progress=False)
    with pytest.raises(ZooError, match="differ in weight space, task"):
        merge([str(zoo_path), str(tmp_path / "wide")], str(tmp_path / "merged"))


def test_orders_of_the_data_go_along(task, zoo_path, tmp_path, capsys):
    Collector(
        runs=4, epochs=2, batch_size=16, snapshots=EverySnapshot(2), shard_runs=2, seed=1, runs_per_order=2
    ).collect(task, tmp_path / "other", progress=False)
    merge([str(zoo_path), str(tmp_path / "other")], str(tmp_path / "merged"))
    assert Zoo.open(tmp_path / "merged").order.tolist() == [*range(10), 10, 10, 11, 11]
    subset(str(tmp_path / "merged"), str(tmp_path / "part"), runs=3, skip=9)
    part = Zoo.open(tmp_path / "part")
    assert part.run_ids.tolist() == [9, 10, 11]
    assert part.order.tolist() == [9, 10, 10]
    info(str(tmp_path / "part"))
    assert "data orders" in capsys.readouterr().out


def test_parts_of_a_zoo_and_zoos_of_one_seed_keep_their_common_orders(task, tmp_path):
    settings = {"runs": 6, "epochs": 1, "batch_size": 16, "seed": 1}
    Collector(**settings, runs_per_order=3).collect(task, tmp_path / "whole", progress=False)
    subset(str(tmp_path / "whole"), str(tmp_path / "a"), runs=2)
    subset(str(tmp_path / "whole"), str(tmp_path / "b"), skip=2)
    merge([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "again"))
    assert Zoo.open(tmp_path / "again").order.tolist() == [0, 0, 0, 1, 1, 1]
    other = GaussianInitializer(std=0.5)
    Collector(**settings, initializer=other).collect(task, tmp_path / "other", progress=False)
    Collector(**settings).collect(task, tmp_path / "first", progress=False)
    merge([str(tmp_path / "first"), str(tmp_path / "other")], str(tmp_path / "both"))
    assert Zoo.open(tmp_path / "both").order.tolist() == [*range(6), *range(6)]


def test_parts_say_how_they_were_made(task, zoo_path, other_path, tmp_path):
    collector = Zoo.open(zoo_path).manifest["collector"]
    subset(str(zoo_path), str(tmp_path / "a"), runs=8)
    subset(str(tmp_path / "a"), str(tmp_path / "b"), runs=4)
    assert Zoo.open(tmp_path / "b").manifest["subset_of"] == collector
    assert StepLabel(epochs=True).values(Zoo.open(tmp_path / "b"), task)[2] == 2
    merge([str(tmp_path / "b"), str(other_path)], str(tmp_path / "c"))
    seeds = [one["init_args"]["seed"] for one in Zoo.open(tmp_path / "c").manifest["merged"]]
    assert seeds == [0, 1]
    subset(str(tmp_path / "c"), str(tmp_path / "d"), runs=2)
    assert len(Zoo.open(tmp_path / "d").manifest["merged"]) == 2


def test_generated_networks_stay_in_their_geometry(task, tmp_path):
    space = task.space
    for name, geometry in (("a", "Normalized"), ("b", "Normalized"), ("c", "Euclidean")):
        extra = {
            "geometry": {"class_path": geometry},
            "sampling": {"steps": 4, "seed": name},
            "seconds_per_network": 0.1,
        }
        write_networks(tmp_path / name, torch.randn(4, space.dim), space, task=task, extra=extra)
    subset(str(tmp_path / "a"), str(tmp_path / "part"), runs=2)
    part = Zoo.open(tmp_path / "part").manifest
    assert part["geometry"] == {"class_path": "Normalized"}
    assert (part["sampling"]["steps"], part["seconds_per_network"], part["runs"]) == (4, 0.1, 2)
    merge([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "both"))
    both = Zoo.open(tmp_path / "both").manifest
    assert both["geometry"] == {"class_path": "Normalized"}
    assert "sampling" not in both
    with pytest.raises(ZooError, match="differ in geometry"):
        merge([str(tmp_path / "a"), str(tmp_path / "c")], str(tmp_path / "no"))


def test_what_codes_stand_for_goes_along(task, tmp_path):
    space = task.space
    for name, texts in (("a", ["adam"]), ("b", ["adam"]), ("c", ["sgd"])):
        extra = {"import": {"codes": {"optimizer": texts}, "path": name}}
        metrics = {"optimizer": torch.zeros(3)}
        write_networks(tmp_path / name, torch.randn(3, space.dim), space, metrics=metrics, kind="zoo", extra=extra)
    merge([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "both"))
    assert Zoo.open(tmp_path / "both").manifest["import"] == {"codes": {"optimizer": ["adam"]}}
    subset(str(tmp_path / "both"), str(tmp_path / "part"), runs=2)
    assert Zoo.open(tmp_path / "part").manifest["import"]["codes"] == {"optimizer": ["adam"]}
    with pytest.raises(ZooError, match=r"their codes stand for \{'optimizer': \['sgd'\]\}"):
        merge([str(tmp_path / "a"), str(tmp_path / "c")], str(tmp_path / "no"))


def test_merge_takes_two(zoo_path, tmp_path):
    with pytest.raises(ZooError, match="at least two"):
        merge([str(zoo_path)], str(tmp_path / "merged"))


def test_merge_does_not_overwrite(zoo_path, other_path):
    with pytest.raises(ZooError, match="already holds a zoo"):
        merge([str(zoo_path), str(other_path)], str(zoo_path))


def test_subset_keeps_runs_and_their_numbers(zoo_path, tmp_path):
    subset(str(zoo_path), str(tmp_path / "part"), runs=4, skip=3)
    whole, part = Zoo.open(zoo_path), Zoo.open(tmp_path / "part")
    part.verify()
    assert part.run_ids.tolist() == [3, 4, 5, 6]
    assert torch.equal(part.theta, whole.theta[9:21])
    assert torch.equal(part.step, whole.step[9:21])
    assert torch.equal(part.start, whole.start[3:7])
    assert torch.equal(part.metrics["test.accuracy"], whole.metrics["test.accuracy"][9:21])


def test_subset_of_finals(zoo_path, tmp_path):
    subset(str(zoo_path), str(tmp_path / "part"), final_only=True)
    assert Zoo.open(tmp_path / "part").step.tolist() == [6] * 10


def test_an_empty_subset_is_refused(zoo_path, tmp_path):
    with pytest.raises(ZooError, match="no runs of the 10"):
        subset(str(zoo_path), str(tmp_path / "part"), skip=10)
    for wrong in ({"runs": -1}, {"skip": -1}, {"runs": 2, "skip": -3}):
        with pytest.raises(ZooError, match="no runs of the 10"):
            subset(str(zoo_path), str(tmp_path / "part"), **wrong)


def test_subset_does_not_overwrite(zoo_path):
    with pytest.raises(ZooError, match="already holds a zoo"):
        subset(str(zoo_path), str(zoo_path), runs=1)
