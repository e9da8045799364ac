"""The command that averages predictions, on a tiny zoo and a flow that was really trained."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch

import wsflow
from wsflow.bayes import WeightsCollapsedWarning
from wsflow.cli import main
from wsflow.commands.bayes import _best
from wsflow.commands.posterior_weights import posterior_weights
from wsflow.flow import Hutchinson
from wsflow.tasks import BreastCancer
from wsflow.zoo import Zoo, ZooDataModule


@pytest.fixture(scope="module")
def samples(trained, tmp_path_factory):
    """Generated networks."""
    path = tmp_path_factory.mktemp("generated") / "run" / "samples"
    options = ["--n=12", "--steps=2", "--accelerator=cpu", "--out", str(path)]
    assert main(["predict", "--ckpt_path", str(trained), *options]) == 0
    return path


@pytest.fixture
def bayes(samples, tmp_path):
    """Run the command on the generated networks; what it wrote."""

    def run(*extra, more=()):
        file = tmp_path / "bayes.json"
        assert main(["bayes", "--samples", str(samples), *more, "--out", str(file), *extra]) == 0
        return json.loads(file.read_text())

    return run


def test_generated_networks_beside_real_ones(bayes, samples, capsys):
    found = bayes("--heldout", "--sizes=1,4,50", "--ood", "Noise", "--seed=3")
    networks = found["networks"]
    assert {name: one["count"] for name, one in networks.items()} == {
        "run": 12,
        "held-out runs": 4,
        "best training run": 1,
    }
    assert list(networks["run"]["sizes"]) == ["1", "4"]
    own = BreastCancer().evaluate(Zoo.open(samples).theta[:], "val")
    assert networks["run"]["sizes"]["1"]["mean"]["nll"] == pytest.approx(float(own["loss"].mean()), rel=1e-5)
    assert networks["run"]["sizes"]["1"]["mean"]["accuracy"] == pytest.approx(float(own["accuracy"].mean()))
    assert 0 <= networks["run"]["sizes"]["4"]["mean"]["ood_auroc"] <= 1
    assert sum(networks["run"]["reliability"]["count"]) == 57
    assert 0 <= networks["run"]["pairs"]["error_overlap"] <= 1
    assert found["origin"]["split"] == "val"
    assert found["origin"]["ood"] == "Noise"
    printed = capsys.readouterr().out
    assert "best training run" in printed
    assert "OOD AUROC" in printed
    assert "held-out runs: 4 networks, too few for ensembles of 50" in printed


def test_test_data_are_touched_when_asked_for_alone(bayes, monkeypatch):
    touched, data = set(), BreastCancer.data
    monkeypatch.setattr(BreastCancer, "data", lambda self, name: touched.add(name) or data(self, name))
    bayes("--heldout", "true", "--ood", "ShuffledFeatures")
    assert touched == {"val"}
    bayes("--heldout", "--split=test")
    assert touched == {"val", "test"}


def test_temperatures_are_fitted_on_validation_data(bayes, samples, error_of):
    scores = bayes("--calibrate", "--split=test", "--sizes=6")["networks"]["run"]["sizes"]["6"]["mean"]
    assert {"nll.calibrated", "ece.calibrated", "brier.calibrated"} < set(scores)
    assert "need another split" in error_of(["bayes", "--samples", str(samples), "--calibrate"])


def test_a_zoo_and_another_task_as_outliers(bayes, zoos):
    outliers = ["--ood", "BreastCancer", "--ood.split_seed=1"]
    found = bayes("--sizes=2", "--n=10", *outliers, more=[str(zoos / "breast_cancer")])
    assert set(found["networks"]) == {"run", "breast_cancer"}
    assert found["origin"]["ood"] == "BreastCancer"
    assert found["networks"]["breast_cancer"]["sizes"]["2"]["mean"]["ood_auroc"] == pytest.approx(0.5, abs=0.2)


def test_importance_weights_of_the_flows_own_density(bayes, capsys):
    with pytest.warns(WeightsCollapsedWarning, match="of 3 networks"):
        found = bayes("--importance=1", "--n=3", "--sizes=1,3", "--trace=ExactTrace")
    weighted = found["networks"]["run, weighted"]
    assert weighted["effective"] < 1.5
    assert weighted["standard_error"] == 0
    printed = capsys.readouterr().out
    assert "run, weighted: effective sample size" in printed
    assert "standard error" not in printed
    plain = found["networks"]["run"]["sizes"]["3"]["mean"]["nll"]
    assert weighted["sizes"]["3"]["mean"]["nll"] != pytest.approx(plain)


def test_importance_weights_are_likelihood_times_prior_over_density(samples, trained):
    """Each of the three by hand, for weights that no one of them decides."""
    theta, task, flow = Zoo.open(samples).theta[:5], BreastCancer(), wsflow.load(trained)
    density = flow.log_prob(theta, Hutchinson(2), seed=4)
    likelihood = -len(task.data("train")[0]) * task.evaluate(theta, "train")["loss"].double()
    prior = -theta.double().square().sum(1) / (2 * flow.module.prior.std**2)
    for power in (0.0, 0.01):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few or noisy weights
            found = posterior_weights(str(samples), theta, task, power, seed=4, trace=Hutchinson(2))
        expected = (power * likelihood + prior - density.value.double()).log_softmax(0)
        torch.testing.assert_close(found.log_weights, expected, rtol=1e-3, atol=0.05)
        assert found.standard_error == pytest.approx(float(density.standard_error.square().mean().sqrt()), rel=1e-5)


def test_the_best_training_run_has_the_least_recorded_loss(zoos, trained):
    zoo = zoos / "breast_cancer"
    data = ZooDataModule(task=BreastCancer(), path=str(zoo))
    rows = data.rows("train", final_only=True)
    losses = BreastCancer().evaluate(data.zoo.rows(rows), "val")["loss"]
    assert losses.argmin() != losses.argmax()
    torch.testing.assert_close(_best(data)[0], data.zoo.rows(rows)[losses.argmin()])


def changed(samples, tmp_path, **entries):
    """A copy of the samples whose manifest says something else."""
    copy = tmp_path / "copy"
    shutil.copytree(samples, copy)
    manifest = json.loads((copy / "zoo.json").read_text())
    (copy / "zoo.json").write_text(json.dumps(manifest | entries))
    return str(copy)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"sampling": {"noise": 0.1}}, "were sampled with noise and have no known density"),
        ({"sampling": {"condition": ["loss=0.2"]}}, "were sampled with condition and have no known density"),
        ({"checkpoint": "nowhere.ckpt"}, "nowhere.ckpt is not there"),
    ],
    ids=["noise", "condition", "no checkpoint"],
)
def test_networks_without_a_density_are_not_weighed(samples, tmp_path, error_of, entries, message):
    path = changed(samples, tmp_path, **entries)
    assert message in error_of(["bayes", "--samples", path, "--importance=1"])


def test_flows_on_other_geometries_are_not_weighed(trained, samples, tmp_path, error_of):
    checkpoint = torch.load(trained, weights_only=True)
    checkpoint["hyper_parameters"]["geometry"] = {
        "class_path": "wsflow.geometry.Geometric",
        "init_args": {"keep_scale": False},
    }
    torch.save(checkpoint, tmp_path / "geometric.ckpt")
    path = changed(samples, tmp_path, checkpoint=str(tmp_path / "geometric.ckpt"))
    assert "a flow on Geometric" in error_of(["bayes", "--samples", path, "--importance=1"])


def test_flows_that_predict_endpoints_are_not_weighed(trained, samples, tmp_path, error_of):
    checkpoint = torch.load(trained, weights_only=True)
    checkpoint["hyper_parameters"]["parametrization"] = {"class_path": "wsflow.fields.Endpoint", "init_args": {}}
    torch.save(checkpoint, tmp_path / "endpoint.ckpt")
    path = changed(samples, tmp_path, checkpoint=str(tmp_path / "endpoint.ckpt"))
    assert "predicts endpoints and is followed up to" in error_of(["bayes", "--samples", path, "--importance=1"])


def test_mistakes_end_in_one_line(samples, tmp_path, error_of):
    assert "sizes must be positive numbers" in error_of(["bayes", "--samples", str(samples), "--sizes=1,x"])
    assert "give --importance too" in error_of(["bayes", "--samples", str(samples), "--trace=ExactTrace"])
    assert "n must be at least 1, got -1" in error_of(["bayes", "--samples", str(samples), "--n=-1"])
    assert "required: samples" in error_of(["bayes"])
    assert "there is no zoo" in error_of(["bayes", "--samples", str(tmp_path / "nothing")])
    unknown = changed(samples, tmp_path, data=None)
    assert "give it by --zoo" in error_of(["bayes", "--samples", unknown])
    other = error_of(["bayes", "--samples", str(samples), "--ood", "Digits"])
    assert "inputs of digits have shape (1, 8, 8)" in other


def test_running_twice_gives_the_same_file(bayes):
    first, again = (bayes("--sizes=1,5", "--ood", "Noise") for _ in range(2))
    assert first == again
    assert torch.tensor(first["networks"]["run"]["sizes"]["5"]["each"]["nll"]).unique().numel() > 1
