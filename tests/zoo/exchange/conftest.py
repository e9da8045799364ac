"""Networks as other programs leave them."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch
from exchange_states import random_state

from wsflow.weightspace import WeightSpace

PLUGIN = '''
"""Networks in a user's own package."""

from torch import nn


def normed(channels: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 2),
    )
'''

MLP = {"class_path": "wsflow.weightspace.mlp", "init_args": {"widths": [4, 6, 3]}, "output_activation": "softmax"}
NORMED = {"class_path": "foreign_plugin.normed", "init_args": {}, "input_shape": [1, 6, 6]}


@pytest.fixture(scope="session", autouse=True)
def foreign_plugin(tmp_path_factory):
    """The package ``foreign_plugin`` on the import path."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "foreign_plugin.py").write_text(textwrap.dedent(PLUGIN))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def mlp_space():
    return WeightSpace.from_description(MLP)


@pytest.fixture(scope="session")
def normed_space(foreign_plugin):
    return WeightSpace.from_description(NORMED)


@pytest.fixture
def states(mlp_space):
    """Five perceptrons."""
    return [random_state(mlp_space, seed) for seed in range(5)]


@pytest.fixture
def theta(mlp_space, states):
    """The same as points (5, D)."""
    return torch.stack([mlp_space.flatten(state) for state in states])


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "foreign"
    path.mkdir()
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "zoo"


@pytest.fixture
def left(tmp_path):
    """What lies in the test's folder, but for what was there to be imported."""
    return lambda: sorted(path.name for path in tmp_path.iterdir() if path.name != "foreign")
