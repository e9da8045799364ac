"""The predictive and its members, against plain loops and by hand."""

from __future__ import annotations

from math import log

import pytest
import torch

from wsflow.bayes import ClassPredictive, ValuePredictive, members, mixing, predictive, scores, subsets
from wsflow.tasks import BreastCancer, Diabetes, Digits, Gaussians


@pytest.fixture(scope="module")
def task():
    return BreastCancer(widths=[30, 5, 2])


@pytest.fixture
def theta(task):
    return torch.randn(7, task.space.dim)


def by_loop(task, theta, inputs):
    """Probabilities (n, N, C), one network and one data point at a time, in float64."""
    modules = [task.space.to_module(row.double()) for row in theta]
    with torch.no_grad():
        return torch.stack([torch.stack([m(x[None].double())[0].softmax(-1) for x in inputs]) for m in modules])


@pytest.mark.parametrize("memory", [2000, 2**28], ids=["piece by piece", "at once"])
def test_the_predictive_is_the_weighted_average_of_members(task, theta, memory, monkeypatch):
    monkeypatch.setattr(task, "memory", memory, raising=False)
    inputs, targets = task.data("val")
    weights = torch.rand(3, 7, dtype=torch.float64).softmax(1)
    found = predictive(task, theta, "val", weights=weights)
    p = by_loop(task, theta, inputs)
    mean = (weights[:, :, None, None] * p).sum(1)
    torch.testing.assert_close(found.probabilities, mean, rtol=1e-5, atol=1e-6)
    wanted = mean[:, torch.arange(len(targets)), targets].log()
    torch.testing.assert_close(found.log_target, wanted, rtol=1e-4, atol=1e-5)
    entropy = (weights[:, :, None] * -(p * p.log()).sum(-1)).sum(1)
    torch.testing.assert_close(found.member_entropy, entropy, rtol=1e-4, atol=1e-5)


def test_scores_agree_with_the_tasks_own(task, theta):
    own, found = task.ensemble(theta, "val"), scores(predictive(task, theta, "val"))
    assert float(found["nll"]) == pytest.approx(own["nll"], rel=1e-9)
    assert float(found["accuracy"]) == pytest.approx(own["accuracy"])


def test_weights_and_a_function_of_inputs_are_judged_alike(task, theta):
    def predict(inputs):
        return task.space.forward(theta, inputs).softmax(-1)

    one, other = predictive(task, theta, "test"), predictive(task, predict, "test")
    torch.testing.assert_close(one.probabilities, other.probabilities, rtol=1e-5, atol=1e-6)
    assert members(task, predict).count == 7


def test_running_statistics_come_from_train_data():
    from wsflow.tasks import ConvMNIST

    class Small(ConvMNIST):
        def load(self):
            x, y = torch.randn(30, 1, 28, 28), torch.randint(10, (30,))
            return {name: (scale * x, y) for name, scale in {"train": 1, "val": 5, "test": 5}.items()}

    task = Small(batch_norm=True)
    theta = torch.randn(2, task.space.dim) / 5
    found = predictive(task, theta, "val").probabilities[0]
    torch.testing.assert_close(
        found, task.predictions(task.logits(theta, "val")).mean(0).double(), rtol=1e-4, atol=1e-5
    )


def test_two_members_by_hand():
    task = BreastCancer(widths=[30, 2])
    rows = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    found = predictive(task, lambda x: rows[:, None].expand(2, len(x), 2), inputs=torch.zeros(3, 30))
    torch.testing.assert_close(found.probabilities, torch.tensor([0.7, 0.3], dtype=torch.float64).expand(1, 3, 2))
    total = -0.7 * log(0.7) - 0.3 * log(0.3)
    own = (-0.9 * log(0.9) - 0.1 * log(0.1) + log(2)) / 2
    assert found.entropy[0, 0] == pytest.approx(total, abs=1e-7)
    assert found.mutual_information[0, 0] == pytest.approx(total - own, abs=1e-7)
    assert found.confidence[0, 0] == pytest.approx(0.7)
    assert found.log_target is None


def test_members_that_agree_have_no_mutual_information(task, theta):
    found = predictive(task, theta[:1].expand(4, -1), "val")
    assert found.mutual_information.abs().max() < 1e-12
    single = predictive(task, theta, "val", weights=torch.eye(7))
    assert single.mutual_information.abs().max() < 1e-12


def test_members_hundreds_of_nats_apart_do_not_underflow(task, theta):
    huge = torch.cat([theta, 300 * theta])
    for place in range(14):
        alone = predictive(task, huge, "val", weights=torch.eye(14)[place : place + 1]).log_target
        wanted = -task.losses(task.logits(huge[place : place + 1], "val").double(), task.data("val")[1])
        torch.testing.assert_close(alone, wanted, rtol=1e-5, atol=1e-5)
    everyone = predictive(task, huge, "val", weights=torch.eye(14)).log_target
    assert everyone.isfinite().all()
    assert everyone.min() < -1000
    torch.testing.assert_close(everyone[13:], alone)


def test_regression_by_a_mixture_of_normals():
    task = Diabetes()
    theta = torch.randn(5, task.space.dim) / 3
    found = predictive(task, theta, "val", weights=torch.tensor([[0.2] * 5, [1.0, 0, 0, 0, 0], [0.5, 0, 0, 0, 0.5]]))
    own = task.ensemble(theta, "val")
    assert isinstance(found, ValuePredictive)
    assert -float(found.log_density[0].mean()) == pytest.approx(own["nll"], rel=1e-5)
    found_scores = scores(found)
    assert float(found_scores["rmse"][0]) ** 2 == pytest.approx(own["mse"], rel=1e-5)
    assert found_scores["epistemic_std"][1] == pytest.approx(0, abs=1e-6)
    values = task.logits(theta, "val").double()
    torch.testing.assert_close(found.epistemic[2], (values[0] - values[4]).square() / 4, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.noise[1].float(), task.evaluate(theta[:1], "train")["mse"][0], rtol=1e-5, atol=0)
    by_function = predictive(task, lambda x: task.space.forward(theta, x), "val")
    torch.testing.assert_close(by_function.log_density, found.log_density[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.zeros(3, 7), "D = "),
        (torch.zeros(0, 167), "at least 1"),
        (lambda x: torch.ones(2, len(x), 2), "softmax"),
        (lambda x: torch.full((2, len(x), 2), torch.nan), "not finite: look for what made the method diverge"),
        (lambda x: torch.ones(len(x), 2), r"must give \(n, 1, C\)"),
        (lambda x: torch.ones(4, len(x), 3) / 3, r"must give \(n, 1, C\) with C = 2 for 1 inputs, not \(4, 1, 3\)"),
    ],
    ids=["weights of another space", "no networks", "no probabilities", "NaN", "no axis of members", "other classes"],
)
def test_what_does_not_fit_is_refused(task, source, message):
    with pytest.raises(ValueError, match=message):
        predictive(task, source, "val")


def test_values_of_a_regression_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        predictive(Diabetes(), lambda x: torch.full((2, len(x), 1), torch.inf), "val")


def test_settings_that_do_not_fit_are_refused(task, theta):
    with pytest.raises(ValueError, match="either the split"):
        predictive(task, theta)
    with pytest.raises(ValueError, match="either the split"):
        predictive(task, theta, "val", torch.zeros(2, 30))
    with pytest.raises(ValueError, match="no inputs"):
        predictive(task, theta, inputs=torch.zeros(0, 30))
    with pytest.raises(ValueError, match=r"shape \(S, 7\)"):
        predictive(task, theta, "val", weights=torch.ones(1, 6) / 6)
    with pytest.raises(ValueError, match="add up to 1"):
        predictive(task, theta, "val", weights=torch.ones(1, 7))
    with pytest.raises(ValueError, match="has no data"):
        predictive(Gaussians(), torch.zeros(2, Gaussians().space.dim), inputs=torch.zeros(1, 1))


def test_subsets_are_disjoint_where_there_are_enough():
    found = subsets(23, 5, seed=3)
    assert found.disjoint
    assert found.index.shape == (4, 5)
    assert len(found.index.unique()) == 20
    assert torch.equal(found.index, subsets(23, 5, seed=3).index)
    assert not torch.equal(found.index, subsets(23, 5, seed=4).index)
    assert subsets(200, 1, most=20).index.shape == (20, 1)


def test_subsets_that_share_members_say_so():
    found = subsets(9, 5, most=6)
    assert not found.disjoint
    assert found.index.shape == (6, 5)
    assert all(len(row.unique()) == 5 for row in found.index)
    assert subsets(9, 9).index.sort().values.tolist() == [list(range(9))]
    with pytest.raises(ValueError, match="ensembles of 10 cannot be made of 9 networks"):
        subsets(9, 10)


def test_mixing_weights_of_subsets():
    log_weights = torch.tensor([0.0, log(2), log(3), -torch.inf]) + 1e4
    found = mixing(4, torch.tensor([[0, 1], [3, 2]]), log_weights.double())
    wanted = [[1 / 3, 2 / 3, 0, 0], [0, 0, 1, 0]]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-3, atol=1e-9)
    assert mixing(4).tolist() == [[0.25] * 4]
    with pytest.raises(ValueError, match="NaN or infinity"):
        mixing(4, torch.tensor([[3]]), log_weights)
    with pytest.raises(ValueError, match="need 4 log weights"):
        mixing(4, log_weights=torch.zeros(3))


def test_many_classes_and_images():
    task = Digits(widths=[64, 6, 10])
    found = predictive(task, torch.randn(3, task.space.dim), "test")
    assert isinstance(found, ClassPredictive)
    assert found.probabilities.shape == (1, len(task.data("test")[0]), 10)
    torch.testing.assert_close(found.probabilities.sum(-1), torch.ones(1, len(found.targets), dtype=torch.float64))


def test_networks_that_are_not_finite_are_refused(task, theta):
    broken = theta.clone()
    broken[1, 5] = torch.nan
    with pytest.raises(ValueError, match=f"1 of {len(theta)} networks .* the first is number 1"):
        predictive(task, broken, "val")
