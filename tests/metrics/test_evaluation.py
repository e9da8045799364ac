"""What an evaluation reports; whether the metrics catch fakes is held by test_fakes_are_flagged.py."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from wsflow.geometry import Euclidean, Geometric, Geometry, Normalized
from wsflow.metrics import (
    AverageBaseline,
    CanonicalWeights,
    DisplacementBaseline,
    EqualCostBaseline,
    Evaluation,
    EvaluationMetric,
    GaussianBaseline,
    Material,
    NoiseBaseline,
    RetrievalBaseline,
    evaluate,
    pairwise,
    predict,
)
from wsflow.tasks import BreastCancer, Diabetes, Gaussians, WithoutData
from wsflow.weightspace.symmetry import random_permutations

SCORES = ["accuracy", "accuracy.std", "loss", "loss.std", "ensemble_nll", "ensemble_accuracy", "ensemble_size"]
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
    wanted = {f"{of}.{key}" for of in ("samples", "heldout") for key in SCORES + NOVELTY}
    wanted |= {f"samples.dispersion.{tensor.name}" for tensor in task.space.tensors}
    wanted |= {f"baselines.{name}.{key}" for name in names for key in [*SCORES, *NOVELTY, "noise"]}
    wanted |= {f"baselines.noise.function_matched.{key}" for key in [*SCORES, *NOVELTY, "noise"]}
    assert wanted | {"timing.evaluation"} <= set(values)
    assert all(type(value) is float for value in values.values())
    assert torch.tensor(list(values.values())).isfinite().all()


def test_held_out_runs_are_the_measure(values: Mapping[str, float]) -> None:
    assert [values[f"heldout.{key}"] for key in NOVELTY] == [1, 1, 0, 1]


def test_compared_baselines_are_as_new_as_the_samples(values: Mapping[str, float]) -> None:
    for name in ("gaussian", "noise", "average", "displacement"):
        for key in ("nn_ratio.function", "nn_ratio.weight"):
            assert values[f"baselines.{name}.{key}"] > 0.979 * values[f"samples.{key}"], (name, key)
    least = min(values[f"baselines.noise.{key}"] / values[f"samples.{key}"] for key in NOVELTY[:2])
    assert least == pytest.approx(1, abs=0.02)
    assert values["baselines.retrieval.nn_ratio.function"] == pytest.approx(0, abs=1e-5)


def test_less_noise_makes_functions_as_new_but_not_weights(values: Mapping[str, float]) -> None:
    weaker, full = (
        {k: values[f"baselines.noise{of}.{k}"] for k in [*SCORES, *NOVELTY, "noise"]}
        for of in (".function_matched", "")
    )
    assert weaker["nn_ratio.function"] == pytest.approx(values["samples.nn_ratio.function"], rel=0.02)
    assert weaker["nn_ratio.weight"] < 0.9 * values["samples.nn_ratio.weight"]
    assert 0 < weaker["noise"] < full["noise"]
    assert weaker["loss"] < full["loss"]


def test_function_matched_is_reported_where_it_differs(values: Mapping[str, float]) -> None:
    for name in ("gaussian", "noise", "average", "displacement", "retrieval"):
        short = values.get(f"baselines.{name}.function_matched.nn_ratio.weight", torch.inf)
        differs = short < 0.98 * values["samples.nn_ratio.weight"]
        assert differs == (f"baselines.{name}.function_matched.loss" in values), name


def test_ensembles_are_of_one_size(task: BreastCancer, runs: Mapping) -> None:
    train, held, many = runs["train"].final, runs["heldout"].final[:20], runs["unseen"].final
    for samples, size in ((many, 20), (many[:7], 7)):
        values = evaluate(samples, train, held, task, baselines=[NoiseBaseline()])
        assert {value for key, value in values.items() if key.endswith("ensemble_size")} == {size}
        for name, theta in (("samples", samples), ("heldout", held)):
            assert values[f"{name}.ensemble_nll"] == pytest.approx(task.ensemble(theta[:size], "val")["nll"])


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


BASELINES = [GaussianBaseline(), NoiseBaseline(), AverageBaseline(), DisplacementBaseline(), RetrievalBaseline()]
GEOMETRIES = [
    pytest.param(kind, keep, id=f"{kind.__name__}-{'kept' if keep else 'fixed'}-scale")
    for kind in (Normalized, Geometric)
    for keep in (True, False)
]


@pytest.mark.parametrize(("kind", "keep_scale"), GEOMETRIES)
def test_displacement_of_a_training_start_gives_its_network(
    kind: type[Geometry], keep_scale: bool, task: BreastCancer, runs: Mapping
) -> None:
    train, geometry = runs["train"], kind(task.space, keep_scale)
    copies = train.final[:6]  # no baseline needs noise to be as new
    evaluation = Evaluation(
        task,
        train.final,
        runs["heldout"].final,
        geometry=geometry,
        starts=train.start,
        fresh=train.start[20:26],
        baselines=[DisplacementBaseline()],
    )
    report = evaluation(copies)
    assert report.values["baselines.displacement.noise"] == 0
    found = predict(task, report.families["displacement"].theta)
    wanted = predict(task, geometry.decode(geometry.encode(train.final[20:26])))
    order = pairwise(found, wanted).argmin(1)
    assert sorted(order.tolist()) == list(range(6))
    torch.testing.assert_close(found, wanted[order], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("kind", "keep_scale"), GEOMETRIES)
def test_displacement_is_what_training_did_in_any_geometry(
    kind: type[Geometry], keep_scale: bool, task: BreastCancer, runs: Mapping
) -> None:
    train, geometry, fresh = runs["train"], kind(task.space, keep_scale), runs["unseen"].start[:6]
    form = CanonicalWeights(task.space)
    raw = Material(form, train.final, form(train.final), train.start, fresh)
    trained = DisplacementBaseline().generate(raw, 6, torch.Generator().manual_seed(0))
    evaluation = Evaluation(
        task,
        train.final,
        runs["heldout"].final,
        geometry=geometry,
        starts=train.start,
        fresh=fresh,
        baselines=[DisplacementBaseline()],
    )
    found = evaluation(train.final[:6]).families["displacement"].theta
    torch.testing.assert_close(found, geometry.decode(geometry.encode(trained)), rtol=1e-4, atol=1e-4)


class Rounded(Euclidean):
    """Networks with rounded weights, as no noise leaves them."""

    def decode(self, x: Tensor) -> Tensor:
        return x.round(decimals=2)


FORMS = [(Normalized, {"keep_scale": False}), (Geometric, {"keep_scale": False}), (Rounded, {})]


@pytest.mark.parametrize(("kind", "args"), FORMS, ids=["normalized", "geometric", "rounded"])
def test_baselines_too_are_brought_to_the_geometry_s_form(
    kind: type[Geometry], args: Mapping, task: BreastCancer, runs: Mapping
) -> None:
    geometry, train = kind(task.space, **args), runs["train"]
    equal_cost = EqualCostBaseline(lambda starts, _: starts + 0.1, 1.0)
    evaluation = Evaluation(
        task,
        train.final,
        runs["heldout"].final,
        geometry=geometry,
        starts=train.start,
        fresh=runs["unseen"].start,
        baselines=[*BASELINES, equal_cost],
    )
    families = evaluation(runs["unseen"].final[:8]).families
    assert "noise.function_matched" in families
    assert len(families) >= 9
    for name, family in families.items():
        formed = geometry.decode(geometry.encode(family.theta))
        torch.testing.assert_close(family.theta, formed, msg=lambda text, name=name: f"{name}: {text}")


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


def test_nothing_generated_is_said_so(evaluation: Evaluation) -> None:
    metric = EvaluationMetric(evaluation)
    metric.update(torch.zeros(0, evaluation.task.space.dim))
    with pytest.raises(ValueError, match="at least 2 generated networks"):
        metric.compute()
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(ValueError, match="no networks were"):
        metric.compute()


def test_starts_must_be_the_training_runs(task: BreastCancer, runs: Mapping) -> None:
    train = runs["train"]
    with pytest.raises(ValueError, match="99 starts do not fit 100 training networks"):
        Evaluation(task, train.final, runs["heldout"].final, starts=train.start[1:])


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
    assert values["heldout.mean_error"] == pytest.approx(0.1, abs=0.03)
    assert set(values) == {
        "timing.evaluation",
        *(f"{of}.{key}" for of in ("samples", "heldout") for key in ("grand_mean", "mean_error", "std")),
    }


def test_without_data_and_law_networks_are_judged_by_their_weights(task: BreastCancer, runs: Mapping) -> None:
    network = WithoutData.of(dict(task.space.description or {}))
    evaluation = Evaluation(network, runs["train"].final, runs["heldout"].final, "test")
    unseen, train = runs["unseen"].final[:30], runs["train"].final
    copies = task.space.permute(train[:30], random_permutations(task.space, 30, torch.Generator().manual_seed(0)))
    found = {"new": evaluation(unseen).values, "copied": evaluation(copies).values}
    known = Evaluation(task, train, runs["heldout"].final, "test", baselines=[])
    assert found["new"]["samples.nn_ratio.weight"] == pytest.approx(1, abs=0.05)
    assert abs(found["new"]["samples.z_u"]) < 3
    assert found["new"]["samples.dispersion"] == pytest.approx(known(unseen).values["samples.dispersion"])
    assert found["copied"]["samples.nn_ratio.weight"] < 0.02
    assert found["copied"]["samples.z_u"] < -5
    assert found["new"]["heldout.nn_ratio.weight"] == found["new"]["heldout.dispersion"] == 1
    assert "samples.grand_mean" in found["new"]
    assert "samples.nn_ratio.function" not in found["new"]


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


def test_what_stands_beside_a_report(task: BreastCancer, runs: Mapping) -> None:
    train, heldout = runs["train"].final, runs["heldout"].final
    geometry = Normalized(task.space, keep_scale=False)
    evaluation = Evaluation(task, train, heldout, "test", geometry=geometry, baselines=[])
    report = evaluation(heldout[:60])
    values = evaluation.beside(report)
    normal = geometry.decode(geometry.encode(train))
    best = normal[task.evaluate(normal, "val")["loss"].argmin()][None]
    assert values["best_single.loss"] == pytest.approx(float(task.evaluate(best, "test")["loss"]), rel=1e-5)
    raw = task.evaluate(heldout, "test")["loss"].mean()
    assert values["heldout.raw.loss"] == pytest.approx(float(raw), rel=1e-5)
    assert report.values["heldout.loss"] != pytest.approx(float(raw), rel=1e-2)
    fifty = task.ensemble(geometry.decode(geometry.encode(heldout[:50])), "test")
    assert values["samples.ensemble50_nll"] == pytest.approx(fifty["nll"], rel=1e-5)
    assert values["heldout.ensemble50_accuracy"] == pytest.approx(fifty["accuracy"])
    assert "samples.ensemble50_nll" not in evaluation.beside(evaluation(heldout[:40]))
