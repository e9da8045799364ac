"""What an evaluation reports; whether the metrics catch fakes is held by test_fakes_are_flagged.py."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from wsflow.geometry import Normalized
from wsflow.metrics import Evaluation, EvaluationMetric, GaussianBaseline, NoiseBaseline, evaluate
from wsflow.tasks import BreastCancer, Diabetes, Gaussians

SCORES = ["accuracy", "accuracy.std", "loss", "loss.std", "ensemble_nll", "ensemble_accuracy"]
NOVELTY = ["nn_ratio.function", "nn_ratio.weight", "z_u", "dispersion"]


@pytest.fixture(scope="module")
def values(task: BreastCancer, runs: Mapping) -> dict[str, float]:
    return evaluate(
        runs["unseen"].final[:30],
        runs["train"].final,
        runs["heldout"].final,
        task,
        "test",
        starts=runs["train"].start,
        fresh=runs["unseen"].start,
    )


def test_every_promised_key_is_there(values: Mapping[str, float], task: BreastCancer) -> None:
    names = ["gaussian", "noise", "average", "displacement", "retrieval"]
    wanted = {f"samples.{key}" for key in SCORES + NOVELTY} | {f"heldout.{key}" for key in SCORES}
    wanted |= {f"samples.dispersion.{tensor.name}" for tensor in task.space.tensors}
    wanted |= {f"baselines.{name}.{key}" for name in names for key in [*SCORES, *NOVELTY, "noise"]}
    assert wanted | {"timing.evaluation"} <= set(values)
    assert all(type(value) is float for value in values.values())
    assert torch.tensor(list(values.values())).isfinite().all()


def test_compared_baselines_are_as_new_as_the_samples(values: Mapping[str, float]) -> None:
    target = values["samples.nn_ratio.function"]
    for name in ("gaussian", "noise", "average", "displacement"):
        assert values[f"baselines.{name}.nn_ratio.function"] > 0.98 * target - 1e-9, name
    assert values["baselines.noise.nn_ratio.function"] == pytest.approx(target, rel=0.02)
    assert values["baselines.noise.noise"] > 0
    assert values["baselines.retrieval.nn_ratio.function"] == pytest.approx(0, abs=1e-5)


def test_scores_are_of_the_split_and_distances_of_validation_inputs(
    values: Mapping[str, float], task: BreastCancer, runs: Mapping
) -> None:
    held = runs["heldout"].final
    assert values["heldout.accuracy"] == pytest.approx(float(task.evaluate(held, "test")["accuracy"].mean()))
    on_val = Evaluation(task, runs["train"].final, held, "val", baselines=[])(runs["unseen"].final[:30]).values
    assert on_val["heldout.accuracy"] == pytest.approx(float(task.evaluate(held, "val")["accuracy"].mean()))
    assert on_val["heldout.accuracy"] != values["heldout.accuracy"]
    assert on_val["samples.nn_ratio.function"] == values["samples.nn_ratio.function"]


def test_weight_ratio_against_a_loop_over_networks(evaluation: Evaluation, runs: Mapping) -> None:
    theta, form = runs["unseen"].final[:4], evaluation.form
    probabilities = evaluation.task.predictions(evaluation.task.logits(torch.cat([theta, evaluation.train]), "val"))
    found = evaluation.measure(theta).weight_distance
    for i in range(4):
        gaps = (probabilities[4:] - probabilities[i]).square().mean((1, 2))
        x, near = form(theta[i : i + 1]), form(evaluation.train[gaps.argsort()[:10]])
        expected = (form.match(near, x[0]) - x).norm(dim=1).min()
        # The evaluation matches from networks aligned to one reference, so that local optima may differ a little.
        assert float(found[i]) == pytest.approx(float(expected), rel=0.05)


@pytest.mark.parametrize("what", ["train", "heldout", "samples"])
def test_every_network_is_brought_to_the_geometry_s_form(task: BreastCancer, runs: Mapping, what: str) -> None:
    geometry = Normalized(task.space, keep_scale=False)
    raw = {"train": runs["train"].final, "heldout": runs["heldout"].final, "samples": runs["unseen"].final}
    form = geometry.decode(geometry.encode(raw[what]))
    assert not torch.allclose(task.evaluate(form, "val")["loss"], task.evaluate(raw[what], "val")["loss"])
    evaluation = Evaluation(task, raw["train"], raw["heldout"], geometry=geometry, baselines=[])
    report = evaluation(raw["samples"])
    used = evaluation.train if what == "train" else report.families[what].theta
    torch.testing.assert_close(used, form)
    for family, key in (("heldout", "heldout.loss"), ("samples", "samples.loss")):
        loss = task.evaluate(report.families[family].theta, "val")["loss"].mean()
        assert report.values[key] == pytest.approx(float(loss))


def test_matching_weights_too_makes_baselines_new_in_both(task: BreastCancer, runs: Mapping) -> None:
    evaluation = Evaluation(
        task, runs["train"].final, runs["heldout"].final, match_weights=True, baselines=[NoiseBaseline()]
    )
    values = evaluation(runs["unseen"].final[:20]).values
    for key in ("nn_ratio.function", "nn_ratio.weight"):
        assert values[f"baselines.noise.{key}"] > 0.979 * values[f"samples.{key}"]


def test_no_noise_is_added_to_be_as_new_as_copies(task: BreastCancer, runs: Mapping) -> None:
    train = runs["train"].final
    values = Evaluation(task, train, runs["heldout"].final, baselines=[NoiseBaseline()])(train[:10]).values
    assert values["baselines.noise.noise"] == 0


def test_batches_add_up_to_the_whole(task: BreastCancer, runs: Mapping) -> None:
    evaluation = Evaluation(task, runs["train"].final, runs["heldout"].final, baselines=[GaussianBaseline()])
    metric = EvaluationMetric(evaluation)
    samples = runs["unseen"].final[:12]
    for batch in samples.split([5, 4, 3]):
        metric.update(batch)
    found, whole = metric.compute(), evaluation(samples).values
    for values in (found, whole):
        values.pop("timing.evaluation")
    assert found == pytest.approx(whole)
    metric.reset()
    metric.update(samples[:5])
    assert metric.compute()["samples.loss"] == pytest.approx(evaluation(samples[:5]).values["samples.loss"])


def test_regression_reports_errors_and_likelihoods() -> None:
    task = Diabetes()
    networks = torch.randn(3, 12, task.space.dim)
    values = evaluate(*networks, task, "test")
    for key in ("mse", "nll", "ensemble_mse", "ensemble_nll", "nn_ratio.function", "nn_ratio.weight", "dispersion"):
        assert f"samples.{key}" in values
    assert "samples.accuracy" not in values
    assert "baselines.gaussian.mse" in values


def test_a_task_without_data_reports_moments() -> None:
    task = Gaussians([4, 3, 2])
    theta = task.draw(400, torch.Generator().manual_seed(0))
    values = evaluate(theta[:200] + 0.1, theta[200:300], theta[300:], task)
    assert values["samples.grand_mean"] == pytest.approx(1.1, abs=0.03)
    assert values["samples.mean_error"] == pytest.approx(0.12, abs=0.03)
    assert values["heldout.std"] == pytest.approx(1, abs=0.05)
    assert set(values) == {
        "timing.evaluation",
        *(f"{of}.{key}" for of in ("samples", "heldout") for key in ("grand_mean", "mean_error", "std")),
    }


def spoiled(theta: Tensor) -> Tensor:
    theta = theta.clone()
    theta[1, 3] = torch.nan
    return theta


def test_bad_samples_are_named(evaluation: Evaluation, runs: Mapping) -> None:
    with pytest.raises(ValueError, match="1 of 60 generated networks hold NaN"):
        evaluation(spoiled(runs["unseen"].final))
    with pytest.raises(ValueError, match="D = 802"):
        evaluation(torch.zeros(5, 801))
    with pytest.raises(ValueError, match="at least 2 generated"):
        evaluation(runs["unseen"].final[:1])


def test_bad_heldout_networks_are_named(task: BreastCancer, runs: Mapping) -> None:
    with pytest.raises(ValueError, match="held-out networks hold NaN"):
        Evaluation(task, runs["train"].final, spoiled(runs["heldout"].final))
