"""Real networks to hold the metrics against."""

from __future__ import annotations

import pytest
from trained_runs import Runs, make_split

from wsflow.metrics import Evaluation
from wsflow.tasks import BreastCancer


@pytest.fixture(scope="session")
def task() -> BreastCancer:
    return BreastCancer()


@pytest.fixture(scope="session")
def runs(task: BreastCancer) -> dict[str, Runs]:
    return make_split(task, seed=1)


@pytest.fixture(scope="session")
def evaluation(task: BreastCancer, runs: dict[str, Runs]) -> Evaluation:
    return Evaluation(task, runs["train"].final, runs["heldout"].final, starts=runs["train"].start)
