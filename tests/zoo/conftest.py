from __future__ import annotations

import sys
import textwrap

import pytest

from wsflow.zoo import Collector, EverySnapshot

PLUGIN = '''
"""A task in a user's own package: three Gaussian clusters in four dimensions."""

import torch

from wsflow.tasks import ClassificationTask


class Clusters(ClassificationTask):
    def __init__(self, hidden: int = 5, spread: float = 1.0) -> None:
        self.hidden, self.spread = hidden, spread

    @property
    def network(self):
        args = {"widths": [4, self.hidden, 3]}
        return {"class_path": "wsflow.weightspace.mlp", "init_args": args, "output_activation": "softmax"}

    def load(self):
        labels = torch.arange(60) % 3
        noise = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        inputs = self.spread * noise + 2 * torch.nn.functional.one_hot(labels, 4)
        return {
            "train": (inputs[:38], labels[:38]),
            "val": (inputs[38:49], labels[38:49]),
            "test": (inputs[49:], labels[49:]),
        }
'''


@pytest.fixture(scope="session")
def plugin(tmp_path_factory):
    """A folder outside wsflow, on the import path, that holds the package ``clusters_plugin``."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "clusters_plugin.py").write_text(textwrap.dedent(PLUGIN))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def task(plugin):
    """38 train points: three batches of 16, the last one smaller."""
    from clusters_plugin import Clusters

    return Clusters()


@pytest.fixture
def collector():
    """Ten runs in three shards, two epochs of three steps, snapshots of steps 2, 4 and 6."""
    return Collector(runs=10, epochs=2, batch_size=16, snapshots=EverySnapshot(2), shard_runs=4)


@pytest.fixture
def zoo_path(task, collector, tmp_path):
    """A small complete zoo."""
    path = tmp_path / "zoo"
    assert collector.collect(task, path, progress=False)
    return path
