"""What all tests share: one thread, a fixed random state, and small weight spaces."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
import torch

from wsflow.weightspace import WeightSpace

torch.set_num_threads(1)  # test workers share the cores
hypothesis.settings.register_profile("wsflow", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("wsflow")


def describe(widths: list[int], output_activation: str = "softmax", **kwargs: object) -> dict[str, object]:
    """The description of a multilayer perceptron."""
    init_args = {"widths": widths, **kwargs}
    return {"class_path": "wsflow.weightspace.mlp", "init_args": init_args, "output_activation": output_activation}


@pytest.fixture(autouse=True)
def _random_state() -> Iterator[None]:
    """The global random state is the same at the start of every test and untouched after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def space() -> WeightSpace:
    """A classifier, 5-4-3-2, ReLU, with biases."""
    return WeightSpace.from_description(describe([5, 4, 3, 2]))


@pytest.fixture
def regression_space() -> WeightSpace:
    """A regression network, 5-4-1, tanh, with biases."""
    return WeightSpace.from_description(describe([5, 4, 1], "identity", activation="tanh"))


@pytest.fixture
def theta(space: WeightSpace, generator: torch.Generator) -> torch.Tensor:
    """Seven networks of ``space``, float64, entries of both signs and of different sizes."""
    return torch.randn(7, space.dim, generator=generator, dtype=torch.float64)
