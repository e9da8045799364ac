"""The head of a frozen network: features once, and the whole network at the end."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wsflow.description import build
from wsflow.fields import GradientInformed, MLPField, NeuronTransformer, RelationalTransformer
from wsflow.tasks import FashionMNISTHead
from wsflow.tasks.head import with_state
from wsflow.weightspace import WeightSpace


def trunk(channels: int = 4) -> nn.Module:
    """A small network whose head lies in a submodule."""
    features = nn.Sequential(
        nn.Conv2d(2, channels, 3, stride=2), nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    head = nn.Sequential(OrderedDict(last=nn.Linear(channels, 3)))
    return nn.Sequential(OrderedDict(features=features, head=head))


def make(**kwargs: object) -> FashionMNISTHead:
    settings = {"trunk": f"{__name__}.trunk", "trunk_args": {}, "head": "head.last", "size": 12, "channels": 2}
    return FashionMNISTHead(**{**settings, **kwargs})


@pytest.fixture
def images() -> Tensor:
    return torch.randn(150, 2, 12, 12, generator=torch.Generator().manual_seed(0))


def test_the_head_on_features_is_the_whole_network_on_images(images: Tensor) -> None:
    task = make()
    assert (task.space.dim, task.space) == (15, task.whole)
    theta = torch.randn(3, 15)
    outputs = task.space.forward(theta, task.features(images))
    torch.testing.assert_close(outputs, task.whole.forward(theta, images))
    torch.testing.assert_close(outputs[1], task.whole.to_module(theta[1])(images))
    assert task.space == WeightSpace.from_description(task.network)


def test_the_trunk_runs_once_for_all_networks(images: Tensor) -> None:
    """Images shared by all networks; with a loop over networks, or mapped over them, there would be three calls."""
    space, calls = make().whole, list[tuple[int, ...]]()

    def count(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mapped = torch._C._functorch.is_batchedtensor(inputs[0])
        calls.append((int(mapped), *inputs[0].shape))

    space.template.get_submodule("features.0").register_forward_pre_hook(count)
    space.forward(torch.randn(3, 15), images)
    assert calls == [(0, 150, 2, 12, 12)]


def test_stored_weights_are_the_trunks(tmp_path: Path, images: Tensor) -> None:
    network, file = trunk().eval(), tmp_path / "trunk.safetensors"
    save_file(network.state_dict(), file)
    task = make(state=str(file))
    torch.testing.assert_close(task.features(images), network.features(images))
    again = build(task.description)
    assert again.space == task.space
    with pytest.raises(ValueError, match=r"does not hold a state of .*trunk"):
        with_state(f"{__name__}.trunk", {"channels": 5}, str(file))
    with pytest.raises(ValueError, match="does not hold a state"):
        with_state(f"{__name__}.trunk", {}, str(tmp_path / "missing.safetensors"))


def test_a_layer_in_the_middle_is_no_head(images: Tensor) -> None:
    with pytest.raises(ValueError, match="choose its last layer"):
        make(head="features.0").features(images)


@pytest.mark.parametrize("field", [NeuronTransformer, RelationalTransformer, MLPField])
def test_fields_take_a_head(field: type) -> None:
    space = make().space
    flow = field(space, 0, width=8, depth=1)
    x = torch.randn(2, space.dim)
    flow.calibrate(x, 2 * x)
    output = flow(x, torch.rand(2))
    assert output.shape == x.shape
    assert output.isfinite().all()


@pytest.mark.parametrize("shown", ["features", "images"])
def test_an_informed_field_sees_the_gradient_of_the_head(images: Tensor, shown: str) -> None:
    """As the whole network has it, whether the data are images or what the head reads of them."""
    task, labels = make(), torch.arange(30) % 3
    inputs = task.features(images[:30]) if shown == "features" else images[:30]
    task.load = lambda: dict.fromkeys(("train", "val", "test"), (inputs, labels))
    field = GradientInformed(task.whole, field=partial(MLPField, width=8, depth=1), points=30)
    field.attach(task)
    theta = torch.randn(2, 15)
    for row, found in zip(theta, field._raw_gradient(theta, torch.zeros(2)), strict=True):
        network = task.whole.to_module(row)
        nn.functional.cross_entropy(network(images[:30]), labels).backward()
        expected = task.whole.flatten({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_resnet18_is_the_default() -> None:
    network = FashionMNISTHead().network
    assert network["class_path"] == "torchvision.models.resnet18"
    assert network["select"] == r"fc\..*"
