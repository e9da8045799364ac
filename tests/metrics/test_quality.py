from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from wsflow.metrics import ensemble, quality
from wsflow.tasks import BaseTask, BreastCancer


def test_summary_against_a_plain_loop(task: BreastCancer, runs: Mapping) -> None:
    theta = runs["train"].final[:6]
    inputs, targets = task.data("test")
    modules = [task.space.to_module(t) for t in theta]
    with torch.no_grad():
        probabilities = torch.stack([m(inputs).softmax(-1) for m in modules]).double()
    accuracy = (probabilities.argmax(-1) == targets).double().mean(1)
    log_p = probabilities.log()[:, torch.arange(len(targets)), targets]
    mean = probabilities.mean(0)
    found = quality(task, theta, "test").summary() | ensemble(task, theta, "test", size=10)
    assert found["ensemble_size"] == 6
    assert found["accuracy"] == pytest.approx(float(accuracy.mean()))
    assert found["accuracy.std"] == pytest.approx(float(accuracy.std()), rel=1e-5)
    assert found["loss"] == pytest.approx(-float(log_p.mean()), rel=1e-5)
    nll = -mean[torch.arange(len(targets)), targets].log().mean()
    assert found["ensemble_nll"] == pytest.approx(float(nll), rel=1e-5)
    assert found["ensemble_accuracy"] == pytest.approx(float((mean.argmax(-1) == targets).double().mean()))
    assert found["ensemble_nll"] <= found["loss"], "Jensen"


def test_an_ensemble_is_of_the_first_networks(task: BreastCancer, runs: Mapping) -> None:
    theta = runs["train"].final[:6]
    found = ensemble(task, theta, "test", size=4)
    assert found["ensemble_size"] == 4
    assert found["ensemble_nll"] == task.ensemble(theta[:4], "test")["nll"] != task.ensemble(theta, "test")["nll"]


def test_one_network_has_no_spread(task: BaseTask) -> None:
    assert quality(task, torch.randn(1, task.space.dim), "val").summary()["loss.std"] == 0
