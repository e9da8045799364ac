"""Scores by hand, against scikit-learn, and their properties."""

from __future__ import annotations

from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from wsflow.bayes import (
    ClassPredictive,
    ScoreError,
    ValuePredictive,
    accuracy,
    aurc,
    auroc,
    brier,
    ece,
    epistemic,
    nll,
    reliability,
    risk_coverage,
    rmse,
    scores,
)


def predictive_of(probabilities, targets):
    """A predictive of (S, N, C) probabilities, each ensemble with one member."""
    p = torch.as_tensor(probabilities, dtype=torch.float64)
    y = torch.as_tensor(targets)
    log_target = p.gather(-1, y.expand(p.shape[:2])[..., None]).squeeze(-1).log()
    return ClassPredictive(p, torch.special.entr(p).sum(-1), log_target, y)


def random_predictive(seed=0, ensembles=3, points=200, classes=4, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    p = (scale * torch.randn(ensembles, points, classes, generator=generator, dtype=torch.float64)).softmax(-1)
    return predictive_of(p, torch.randint(classes, (points,), generator=generator))


def test_two_points_by_hand():
    found = scores(predictive_of([[[0.8, 0.2], [0.3, 0.7]], [[1.0, 0.0], [1.0, 0.0]]], [0, 0]))
    assert found["accuracy"].tolist() == [0.5, 1.0]
    assert found["nll"].tolist() == pytest.approx([-(log(0.8) + log(0.3)) / 2, 0])
    assert found["brier"].tolist() == pytest.approx([(0.08 + 0.98) / 2, 0])
    assert found["ece"].tolist() == pytest.approx([(0.2 + 0.7) / 2, 0], abs=1e-6)
    assert found["aurc"].tolist() == pytest.approx([(0 + 0.5) / 2, 0])


def test_known_values_of_the_brier_score():
    classes, y = 5, torch.arange(5)
    uniform, right = torch.full((1, 5, classes), 0.2), torch.eye(5)[None]
    assert float(brier(predictive_of(uniform, y))) == pytest.approx(1 - 1 / classes)
    assert float(brier(predictive_of(right, y))) == 0
    assert float(brier(predictive_of(right.roll(1, -1), y))) == 2


def test_against_scikit_learn():
    found = random_predictive(classes=2)
    for s in range(3):
        p, y = found.probabilities[s].numpy(), found.targets.numpy()
        assert float(nll(found)[s]) == pytest.approx(log_loss(y, p, labels=[0, 1]))
        assert float(brier(found)[s]) == pytest.approx(2 * brier_score_loss(y, p[:, 1]))
        assert float(accuracy(found)[s]) == pytest.approx((p.argmax(1) == y).mean())


def test_the_calibration_error_sums_up_the_reliability_diagram():
    found = random_predictive(points=500)
    diagram = reliability(found, bins=10)
    gap = (diagram.accuracy - diagram.confidence).abs() * diagram.count / 500
    torch.testing.assert_close(ece(found, bins=10), gap.nansum(1), rtol=1e-4, atol=1e-5)
    assert (diagram.count.sum(1) == 500).all()
    inside = diagram.count > 0
    assert (diagram.confidence >= diagram.edges[:-1])[inside].all()
    assert (diagram.confidence <= diagram.edges[1:] + 1e-12)[inside].all()


def test_certainty_to_single_precision_has_no_bin_of_its_own():
    """The last bin holds 500 points of confidence 0.95, all right, and 500 of confidence 1, of which 25 are wrong."""
    p = torch.tensor([[0.95, 0.05], [1 - 1e-9, 1e-9]], dtype=torch.float64).repeat_interleave(500, 0)
    targets = torch.zeros(1000).long()
    targets[500:525] = 1
    assert float(ece(predictive_of(p[None], targets))) == pytest.approx(0, abs=1e-6)


def test_certain_predictions_are_probabilities_to_the_calibration_error():
    rounded = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]], dtype=torch.float64)
    found = predictive_of(rounded, [0, 0, 1, 1])
    assert float(ece(found)) == pytest.approx(0.25)
    assert reliability(found).count[0, -1] == 4


def test_calibrated_labels_have_no_calibration_error():
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(1, 40_000, 3, generator=generator, dtype=torch.float64).softmax(-1)
    y = torch.multinomial(p[0], 1, generator=generator).squeeze(1)
    assert float(ece(predictive_of(p, y))) < 0.01
    assert float(ece(predictive_of((3 * p.log()).softmax(-1), y))) > 0.15


def test_risk_of_a_perfect_ranking_by_hand():
    found = predictive_of([[[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]]], [0, 0, 0, 0])
    assert risk_coverage(found).tolist() == [pytest.approx([0, 0, 1 / 3, 2 / 4])]
    reverse = risk_coverage(found, -found.confidence)
    assert reverse[0].tolist() == pytest.approx([1, 1, 2 / 3, 2 / 4])
    assert float(aurc(found)) < float(aurc(found, -found.confidence))


def test_equal_confidence_means_any_order():
    y = torch.tensor([0, 0, 1, 1, 1, 0])
    p = torch.tensor([0.9, 0.1], dtype=torch.float64).expand(1, 6, 2)
    assert risk_coverage(predictive_of(p, y))[0].tolist() == pytest.approx([0.5] * 6)


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_scores_do_not_see_the_order_of_data_points(seed, classes):
    found = random_predictive(seed, points=30, classes=classes)
    rough = predictive_of((found.probabilities.log() / 2).round().softmax(-1), found.targets)  # with ties
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    moved = predictive_of(rough.probabilities[:, order], rough.targets[order])
    for name, value in scores(rough).items():
        torch.testing.assert_close(scores(moved)[name], value, rtol=1e-5, atol=1e-6, msg=name)


@given(st.integers(0, 10_000))
def test_proper_scores_of_averages_are_better_than_averaged_scores(seed):
    found = random_predictive(seed, ensembles=5, points=20)
    average = predictive_of(found.probabilities.mean(0, keepdim=True), found.targets)
    assert float(nll(average)) <= float(nll(found).mean()) + 1e-12
    assert float(brier(average)) <= float(brier(found).mean()) + 1e-12


def test_what_a_predictive_does_not_have_is_refused():
    values = ValuePredictive(torch.zeros(1, 3, 1), torch.zeros(1, 3, 1), torch.ones(1), None, torch.zeros(3, 1))
    for score in (accuracy, brier, ece, reliability, aurc):
        with pytest.raises(ScoreError, match="a regression predicts values"):
            score(values)
    with pytest.raises(ScoreError, match="a classifier predicts probabilities"):
        rmse(random_predictive())
    bare = ClassPredictive(torch.ones(1, 2, 1), torch.zeros(1, 2))
    for score in (accuracy, nll, brier, ece, aurc):
        with pytest.raises(ScoreError, match="needs targets"):
            score(bare)
    with pytest.raises(ScoreError, match="needs targets"):
        rmse(ValuePredictive(torch.zeros(1, 3, 1), torch.zeros(1, 3, 1), torch.ones(1)))


def test_auroc_against_scikit_learn():
    inside, outside = random_predictive(0, points=150, scale=3), random_predictive(1, points=90, scale=1)
    found = auroc(inside, outside)
    labels = [0] * 150 + [1] * 90
    for s in range(3):
        wanted = roc_auc_score(labels, torch.cat([inside.entropy[s], outside.entropy[s]]).numpy())
        assert float(found[s]) == pytest.approx(wanted, abs=1e-6)
    assert (found > 0.7).all()
    torch.testing.assert_close(auroc(outside, inside), 1 - found, rtol=0, atol=1e-6)


def test_auroc_tells_tiny_entropies_apart():
    small = torch.tensor([1e-12, 2e-12, 3e-12, 4e-12], dtype=torch.float64)
    inside, outside = (predictive_of(torch.stack([1 - p, p], -1)[None], [0, 0, 0, 0]) for p in (small, 10 * small))
    assert float(auroc(inside, outside)) == pytest.approx(
        roc_auc_score([0] * 4 + [1] * 4, torch.cat([small, 10 * small]).numpy())
    )
    assert float(auroc(inside, inside)) == pytest.approx(0.5)
    assert float(auroc(inside, outside, epistemic)) == pytest.approx(0.5)


def test_auroc_compares_the_same_ensembles():
    with pytest.raises(ValueError, match="2 ensembles inside, 3 outside"):
        auroc(random_predictive(ensembles=2), random_predictive(ensembles=3))


def test_predictions_that_are_no_numbers_have_no_calibration_error():
    broken = predictive_of([[[0.9, 0.1], [0.2, 0.8]], [[torch.nan, torch.nan], [0.2, 0.8]]], [0, 1])
    assert ece(broken)[0] == pytest.approx(0.15)
    assert ece(broken)[1].isnan()
