"""Ensembles of several sizes, outliers and modules."""

from __future__ import annotations

import pytest
import torch
from trained_runs import train

from wsflow.bayes import (
    EnsembleModule,
    MemberLogits,
    Noise,
    OtherTask,
    ShuffledFeatures,
    as_modules,
    by_size,
    predictive,
    scores,
)
from wsflow.tasks import BreastCancer, ClassificationTask, Diabetes, Digits
from wsflow.weightspace import GaussianInitializer


@pytest.fixture(scope="module")
def task():
    return BreastCancer(widths=[30, 8, 2])


@pytest.fixture(scope="module")
def theta(task):
    start = GaussianInitializer().sample(task.space, 24, torch.Generator().manual_seed(0))
    return train(task, start, epochs=15)


def test_sizes_are_scored_on_disjoint_subsets(task, theta):
    found = by_size(task, theta, "val", (1, 5, 24, 50), seed=2)
    assert [(s.size, s.count, s.disjoint) for s in found.values()] == [(1, 20, True), (5, 4, True), (24, 1, True)]
    singles = task.evaluate(theta, "val")["loss"].double()
    assert found[1].each["nll"].min() >= singles.min() - 1e-6
    assert found[24].std == {}
    assert found[24].mean["nll"] == pytest.approx(float(scores(predictive(task, theta, "val"))["nll"]))
    assert found[1].mean["nll"] > found[5].mean["nll"], "the same 20 members, by Jensen"
    assert found[5].std["nll"] == pytest.approx(float(found[5].each["nll"].std()))
    assert found[1].mean["mutual_information"] == pytest.approx(0, abs=1e-12)


def test_shared_members_are_said(task, theta):
    found = by_size(task, theta, "val", (20,))[20]
    assert (found.count, found.disjoint) == (20, False)


def test_the_seed_chooses_ensembles_and_outliers(task, theta):
    one, again, other = (by_size(task, theta, "val", (3,), Noise(), seed=seed)[3].mean for seed in (0, 0, 1))
    assert one == again
    assert one["ood_auroc"] != other["ood_auroc"]
    assert one["nll"] != other["nll"]


def test_no_possible_size_is_refused(task, theta):
    with pytest.raises(ValueError, match="24 networks make no ensemble of 50, 0"):
        by_size(task, theta, "val", (50, 0))


def test_networks_without_weight_do_not_count(task, theta):
    log_weights = torch.full((24,), -torch.inf)
    log_weights[:6] = 0
    found = by_size(task, theta, "val", (24,), log_weights=log_weights)[24]
    assert found.mean["nll"] == pytest.approx(float(scores(predictive(task, theta[:6], "val"))["nll"]))


def test_regressions_have_ensembles_too():
    task = Diabetes()
    theta = torch.randn(6, task.space.dim) / 3
    found = by_size(task, theta, "val", (1, 3), Noise())
    assert set(found[3].mean) == {"nll", "rmse", "epistemic_std", "ood_auroc", "ood_auroc.epistemic"}
    assert found[1].mean["ood_auroc"] == pytest.approx(0.5)


def test_noise_has_the_moments_of_train_data(task):
    found = Noise().inputs(task, "val", torch.Generator().manual_seed(0))
    train_inputs, val = task.data("train")[0], task.data("val")[0]
    assert found.shape == val.shape
    assert found.dtype == val.dtype
    many = torch.cat([Noise().inputs(task, "val", torch.Generator().manual_seed(s)) for s in range(100)])
    torch.testing.assert_close(many.mean(0), train_inputs.mean(0), atol=0.06, rtol=0)
    torch.testing.assert_close(many.std(0), train_inputs.std(0), atol=0.06, rtol=0)


def test_shuffled_features_keep_each_feature(task):
    found, own = ShuffledFeatures().inputs(task, "val", torch.Generator().manual_seed(0)), task.data("val")[0]
    torch.testing.assert_close(found.sort(0).values, own.sort(0).values)
    before, after = torch.corrcoef(own.T)[0, 2].abs(), torch.corrcoef(found.T)[0, 2].abs()
    assert before > 0.9 > 0.5 > after


class Scaled(ClassificationTask):
    """Pixels 0 to 255, standardised in some way."""

    @property
    def network(self):
        return {"class_path": "wsflow.weightspace.mlp", "init_args": {"widths": [4, 2]}}

    def __init__(self, shift, scale, seed):
        self.shift, self.scale, self.seed = shift, scale, seed

    def raw(self, split):
        generator = torch.Generator().manual_seed(self.seed + len(split))
        pixels = torch.randint(256, (200, 4), generator=generator).float()
        pixels[0], pixels[1] = 0, 255
        return pixels

    def load(self):
        labels = torch.zeros(200).long()
        return {s: ((self.raw(s) - self.shift) / self.scale, labels) for s in ("train", "val", "test")}


def test_foreign_images_go_through_the_tasks_own_preprocessing():
    task, other = Scaled(30.0, 80.0, 0), Scaled(73.0, 90.0, 1)
    found = OtherTask(other).inputs(task, "test", torch.Generator())
    torch.testing.assert_close(found, (other.raw("test") - 30) / 80)
    plain = OtherTask(other, same_range=False).inputs(task, "test", torch.Generator())
    torch.testing.assert_close(plain, (other.raw("test") - 73) / 90)
    assert OtherTask(other).name == "Scaled"


def test_a_task_of_other_inputs_is_refused(task):
    with pytest.raises(ValueError, match=r"inputs of digits have shape \(1, 8, 8\), those of breast_cancer \(30,\)"):
        OtherTask(Digits()).inputs(task, "val", torch.Generator())


def test_trained_networks_know_noise_from_digits():
    task = Digits(widths=[64, 16, 10])
    start = GaussianInitializer().sample(task.space, 10, torch.Generator().manual_seed(0))
    theta = train(task, start, epochs=8, lr=5e-3)
    inputs = by_size(task, theta, "test", (1, 10), Noise())
    assert inputs[10].mean["ood_auroc"] > 0.8
    assert inputs[10].mean["ood_auroc.epistemic"] > inputs[1].mean["ood_auroc.epistemic"] + 0.2


def test_modules_compute_what_the_batched_networks_do(task, theta):
    inputs = task.data("val")[0]
    modules = as_modules(theta[:3], task.space)
    with torch.no_grad():
        logits = torch.stack([module(inputs) for module in modules])
    torch.testing.assert_close(logits, task.logits(theta[:3], "val"))
    ensemble = EnsembleModule(theta[:3], task.space)
    torch.testing.assert_close(ensemble(inputs), logits.softmax(-1).mean(0))
    torch.testing.assert_close(MemberLogits(ensemble)(inputs), logits.flatten(0, 1))
    weighted = EnsembleModule(theta[:2], task.space, torch.tensor([0.75, 0.25]).log())
    torch.testing.assert_close(weighted(inputs), 0.75 * logits[0].softmax(-1) + 0.25 * logits[1].softmax(-1))
    modules[0][-1].weight.data.zero_()
    torch.testing.assert_close(ensemble(inputs), logits.softmax(-1).mean(0))


def test_an_ensemble_is_exported_and_saved(task, theta, tmp_path):
    ensemble, inputs = EnsembleModule(theta[:3], task.space), task.data("val")[0]
    batch = torch.export.Dim("batch")
    program = torch.export.export(ensemble, (inputs[:2],), dynamic_shapes={"inputs": {0: batch}})
    torch.testing.assert_close(program.module()(inputs), ensemble(inputs))
    torch.save(ensemble.state_dict(), tmp_path / "ensemble.pt")
    other = EnsembleModule(theta[3:6], task.space)
    other.load_state_dict(torch.load(tmp_path / "ensemble.pt", weights_only=True))
    torch.testing.assert_close(other(inputs), ensemble(inputs))


def test_values_of_regressions_are_averaged():
    task = Diabetes()
    theta = torch.randn(4, task.space.dim) / 3
    ensemble = EnsembleModule(theta, task.space, probabilities=False)
    torch.testing.assert_close(ensemble(task.data("val")[0]), task.logits(theta, "val").mean(0))


@pytest.mark.parametrize("base", [0.0, -1e7])
def test_log_weights_may_be_large(task, theta, base):
    logs = base + torch.tensor([0.0, 0.4, 0.8], dtype=torch.float64)
    found = EnsembleModule(theta[:3], task.space, logs).weights
    torch.testing.assert_close(found, torch.tensor([0.2120, 0.3162, 0.4718]), rtol=0, atol=1e-4)


def test_ensembles_of_nobody_are_refused(task, theta):
    with pytest.raises(ValueError, match="at least one network"):
        EnsembleModule(theta[:0], task.space)
    with pytest.raises(ValueError, match="3 networks need 3 log weights"):
        EnsembleModule(theta[:3], task.space, torch.zeros(2))
    with pytest.raises(ValueError, match="have the shape"):
        as_modules(theta[0], task.space)
