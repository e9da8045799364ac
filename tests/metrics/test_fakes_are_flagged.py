"""The metrics held to their task: networks that a flow must not get away with are each flagged, real ones are not.

Fakes are made from real training runs: copies, the same with hidden neurons permuted, or permuted and rescaled;
starts that were never trained; and starts, fresh or of a training run, plus the displacement of another run.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from trained_runs import Runs, make_split

from wsflow.metrics import Evaluation
from wsflow.tasks import BaseTask, BreastCancer
from wsflow.weightspace import GaussianInitializer, Initializer, NetworkInitializer
from wsflow.weightspace.symmetry import random_permutations, random_scales

COPIES = {"function", "weight", "z_u"}
"""What flags copies, whatever their neurons' order and scale."""


def flags(values: Mapping[str, float]) -> set[str]:
    """The bars that a set of generated networks does not pass."""
    bars = {
        "function": values["samples.nn_ratio.function"] >= 0.8,
        "weight": values["samples.nn_ratio.weight"] >= 0.8,
        "z_u": values["samples.z_u"] >= -2,
        "dispersion": 0.8 <= values["samples.dispersion"] <= 1.25,
        "accuracy": values["samples.accuracy"] >= values["heldout.accuracy"] - 0.025,
        "foreign": values["samples.nn_ratio.function"] <= 2,
    }
    return {name for name, passed in bars.items() if not passed}


def fakes(task: BaseTask, train: Runs, initializer: Initializer, n: int = 50) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    pick = torch.randperm(len(train.final), generator=generator)[:n]
    copies, displacement = train.final[pick], (train.final - train.start)[pick]
    permuted = task.space.permute(copies, random_permutations(task.space, n, generator))
    fresh = initializer.sample(task.space, n, generator)
    return {
        "copies": copies,
        "permuted": permuted,
        "rescaled": task.space.rescale(permuted, random_scales(task.space, n, generator)),
        "untrained": fresh,
        "fresh start plus displacement": fresh + displacement,
        "training start plus another's displacement": train.start[pick.roll(1)] + displacement,
    }


@pytest.fixture(scope="module", params=[0, 1, 2], ids=lambda seed: f"seed{seed}")
def real(request: pytest.FixtureRequest, task: BreastCancer) -> dict[str, Runs]:
    return make_split(task, seed=10 + request.param)


def judge(task: BaseTask, real: Mapping[str, Runs], samples: Tensor) -> set[str]:
    evaluation = Evaluation(task, real["train"].final, real["heldout"].final, baselines=[])
    return flags(evaluation(samples).values)


def test_real_unseen_networks_pass(task: BreastCancer, real: Mapping[str, Runs]) -> None:
    assert judge(task, real, real["unseen"].final) == set()


def test_each_fake_is_flagged_and_by_what(task: BreastCancer, real: Mapping[str, Runs]) -> None:
    found = {name: judge(task, real, x) for name, x in fakes(task, real["train"], GaussianInitializer()).items()}
    assert found == {
        "copies": COPIES,
        "permuted": COPIES,
        "rescaled": COPIES,
        "untrained": {"accuracy", "foreign"},
        "fresh start plus displacement": {"accuracy", "foreign"},
        "training start plus another's displacement": {"accuracy", "foreign"},
    }


def test_a_collapse_is_flagged(task: BreastCancer, real: Mapping[str, Runs]) -> None:
    one = real["unseen"].final[:1]
    assert "dispersion" in judge(task, real, one + 0.02 * torch.randn(50, task.space.dim))


def test_plain_weight_distance_would_be_blind(task: BreastCancer, real: Mapping[str, Runs]) -> None:
    train, heldout = real["train"].final, real["heldout"].final
    made = fakes(task, real["train"], GaussianInitializer())
    plain = {name: torch.cdist(x, train).amin(1).mean() for name, x in made.items()}
    scale = torch.cdist(heldout, train).amin(1).mean()
    for name in ("permuted", "rescaled", "untrained"):
        assert plain[name] / scale > 0.8, name


def test_small_starts_hide_displacements_from_accuracy_but_not_from_distance(task: BreastCancer) -> None:
    """With the layers' own initialiser, a start plus another run's displacement is accurate: only distance tells."""
    real = make_split(task, seed=1, initializer=NetworkInitializer())
    assert judge(task, real, real["unseen"].final) == set()
    found = {name: judge(task, real, x) for name, x in fakes(task, real["train"], NetworkInitializer()).items()}
    assert found["fresh start plus displacement"] == {"foreign"}
    assert found["training start plus another's displacement"] == {"foreign"}
    assert all(found[name] >= COPIES for name in ("copies", "permuted", "rescaled"))
    assert "accuracy" in found["untrained"]
