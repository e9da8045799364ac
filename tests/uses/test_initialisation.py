"""Starts of training: curves, steps to a level, controls, and the command."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from wsflow.cli import main
from wsflow.commands.initialise import _starts
from wsflow.description import plain
from wsflow.tasks import BreastCancer
from wsflow.uses import Curves, learning_curves, markdown, rows, shuffled, steps_to, summary
from wsflow.weightspace import GaussianInitializer, WeightSpace
from wsflow.zoo import Adam, Collector, EverySnapshot, Zoo, ZooDataModule


@pytest.fixture(scope="module")
def task():
    return BreastCancer()


@pytest.fixture
def starts(task, generator):
    return GaussianInitializer().sample(task.space, 3, generator)


def test_curves_begin_with_the_networks_as_they_come_and_loss_falls(task, starts):
    before = starts.clone()
    curves = learning_curves(task, starts, Adam(1e-2), steps=25, every=10, batch_size=64, split="test")
    assert torch.equal(starts, before)
    assert curves.steps == [0, 10, 20, 25]
    assert torch.allclose(curves.scores["loss"][:, 0], task.evaluate(starts, "test")["loss"])
    assert (curves.scores["loss"][:, -1] < 0.7 * curves.scores["loss"][:, 0]).all()
    assert curves.scores["accuracy"].shape == (3, 4)


def test_a_network_learns_as_it_would_alone_and_seeds_change_the_order_of_data(task, starts):
    def final(theta, seed=0):
        return learning_curves(task, theta, Adam(), 6, 6, 64, seed=seed).scores["loss"][0, -1]

    assert torch.allclose(final(starts), final(starts[:1]), atol=1e-6)
    assert not torch.allclose(final(starts), final(starts, seed=1), atol=1e-6)


def test_steps_to_a_level():
    accuracy = torch.tensor([[0.5, 0.8, 0.7, 0.9], [0.9, 0.1, 0.1, 0.1], [0.5, 0.6, 0.7, 0.79]])
    curves = Curves([0, 10, 20, 30], {"accuracy": accuracy})
    assert steps_to(curves, 0.8).tolist() == [10, 0, math.inf]
    with pytest.raises(ValueError, match="no score 'mse', only accuracy"):
        steps_to(curves, 0.8, "mse")
    falling = Curves([0, 10, 20], {"loss": torch.tensor([[3.0, 0.4, 0.6], [2.0, 1.0, 0.5]])})
    assert steps_to(falling, 0.5, "loss").tolist() == [10, 20]


def test_a_summary_is_over_seeds_and_says_where_too_few_arrive():
    fast = Curves([0, 10, 20], {"accuracy": torch.tensor([[0.1, 0.9, 0.9], [0.1, 0.7, 0.9], [0.1, 0.2, 0.3]])})
    faster = Curves([0, 10, 20], {"accuracy": torch.tensor([[0.1, 0.9, 0.9]] * 3)})
    never = Curves([0, 10, 20], {"accuracy": torch.full((3, 3), 0.2)})
    known = summary([fast, faster], 0.8)
    assert known["steps_to_level"]["by_seed"] == [20, 10]
    assert known["steps_to_level"]["mean"] == 15
    assert known["steps_to_level"]["std"] == pytest.approx(math.sqrt(50))
    assert known["steps_to_level"]["reached"] == pytest.approx(5 / 6)
    assert known["curves"]["accuracy"]["mean"][1] == pytest.approx((0.6 + 0.9) / 2)
    late = summary([fast, never], 0.8)["steps_to_level"]
    assert late["by_seed"] == [20, None]
    assert "mean" not in late
    result = {"origin": {"level": 0.8, "steps": 20}, "kinds": {"a": known, "b": summary([never], 0.8)}}
    assert rows(result)[1][2] == "15 ± 7"
    assert rows(result)[2][2] == "more than 20"
    assert markdown(result).splitlines()[1] == "| --- | --- | --- | --- |"


def test_shuffled_networks_keep_the_numbers_of_each_tensor(space: WeightSpace, theta, generator):
    mixed = shuffled(space, theta, generator)
    assert not torch.allclose(mixed, theta)
    for before, after in zip(space.unflatten(theta).values(), space.unflatten(mixed).values(), strict=True):
        assert torch.equal(before.flatten(1).sort().values, after.flatten(1).sort().values)
    assert not torch.equal(mixed[0].argsort(), mixed[1].argsort())


@pytest.fixture(scope="module")
def networks(task, tmp_path_factory):
    path = tmp_path_factory.mktemp("networks") / "samples"
    Collector(runs=6, epochs=10, batch_size=64).collect(task, path, progress=False)
    return path


def test_the_command_compares_kinds_of_starts(networks, tmp_path, capsys):
    options = ["--n=3", "--seeds=2", "--steps=20", "--every=5", "--batch_size=64", "--level=0.9"]
    given = ["initialise", "--samples", str(networks), "--task=BreastCancer", *options, "--out", str(tmp_path)]
    assert main([*given, "--optimizer=Adam", "--optimizer.lr=0.003"]) == 0
    result = json.loads((tmp_path / "initialisation.json").read_text())
    kinds = result["kinds"]
    assert list(kinds) == ["generated", "random", "generated, shuffled"]
    assert result["origin"]["optimizer"]["init_args"]["lr"] == 0.003
    assert kinds["generated"]["curves"]["loss"]["mean"][0] < kinds["random"]["curves"]["loss"]["mean"][0]
    assert kinds["generated"]["steps_to_level"]["by_seed"] == [0, 0]
    assert kinds["random"]["curves"]["accuracy"]["std"][0] > 0
    assert "| generated |" in capsys.readouterr().out
    assert (tmp_path / "initialisation.png").stat().st_size > 10_000
    assert (tmp_path / "initialisation.svg").stat().st_size > 5_000


def test_networks_are_counted_by_run_where_a_zoo_keeps_snapshots(task, networks, tmp_path, capsys):
    """Ten runs of two snapshots each, one run for validation: one seed of one network, and not a second one."""
    zoo, copy = tmp_path / "zoo", shutil.copytree(networks, tmp_path / "run" / "samples")
    law = GaussianInitializer(0.25)
    collector = Collector(runs=10, epochs=1, batch_size=64, snapshots=EverySnapshot(4), initializer=law)
    collector.collect(task, zoo, progress=False)
    manifest = json.loads((copy / "zoo.json").read_text())
    data = plain(ZooDataModule(task, str(zoo), final_only=False))
    (copy / "zoo.json").write_text(json.dumps(manifest | {"data": data}))
    options = ["--task=BreastCancer", "--steps=2", "--out", str(tmp_path / "out")]
    for seeds, kinds in ((1, 4), (2, 3)):
        capsys.readouterr()
        assert main(["initialise", "--samples", str(copy), "--n=1", f"--seeds={seeds}", *options]) == 0
        found = json.loads((tmp_path / "out" / "initialisation.json").read_text())
        assert [len(one["steps_to_level"]["by_seed"]) for one in found["kinds"].values()] == [seeds] * kinds
        assert found["origin"]["initializer"]["init_args"] == {"std": 0.25}
        assert found["origin"]["initializer_source"] == f"as the runs of {zoo}"
    printed = capsys.readouterr().out
    assert f"random starts: GaussianInitializer, as the runs of {zoo}" in printed
    assert "trained networks: none, the val split has 1 runs and 2 seeds need 2" in printed
    shutil.move(zoo, tmp_path / "moved")
    assert main(["initialise", "--samples", str(copy), "--n=1", "--seeds=1", *options]) == 0
    printed = capsys.readouterr().out
    assert "random starts: NetworkInitializer, since the zoo that the flow was trained on is not at hand" in printed
    assert "trained networks: none, the zoo that the flow was trained on is not at hand" in printed
    shutil.move(tmp_path / "moved", zoo)
    assert main(["initialise", "--samples", str(zoo), "--n=6", "--seeds=2", *options]) == 1
    assert f"need 12 samples, {zoo} has 10" in capsys.readouterr().err


def test_seeds_share_no_network(task, networks):
    """Generated and trained starts of each seed are others, and all are used in turn."""
    zoo, data = Zoo.open(networks), ZooDataModule(task, str(networks), fractions=(0.2, 0.6, 0.2), seed=1)
    trained = data.rows("val", final_only=True)
    each = [dict(_starts(zoo, GaussianInitializer(0.1), data, trained, 2, seed)) for seed in (0, 1)]
    for kind, whole in (("generated", zoo.theta[:4]), ("trained on BreastCancer", zoo.rows(trained[:4]))):
        torch.testing.assert_close(torch.cat([starts[kind] for starts in each]), whole, rtol=0, atol=0)
    assert not torch.equal(each[0]["random"], each[1]["random"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task=BreastCancer", "--n=4", "--seeds=2"], "need 8 samples"),
        (["--task=BreastCancer", "--n=2", "--seeds=1", "--task.widths=[30,8,2]"], "give the task its widths"),
        (["--task=Diabetes", "--n=2", "--seeds=1"], "need a classification task"),
        (["--task=BreastCancer", "--n=2", "--seeds=1", "--steps=0"], "at least 1, got 0"),
        (["--task=BreastCancer", "--n=2", "--seeds=1", "--batch_size=0"], "at least 1, got 300, 5 and 0"),
    ],
)
def test_bad_input(options, words, networks, tmp_path, capsys):
    assert main(["initialise", "--samples", str(networks), *options, "--out", str(tmp_path / "out")]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
