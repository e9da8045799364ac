r"""The last layer of a large network, on a frozen trunk.

A network :math:`f(x) = h_\theta(\phi(x))` whose trunk :math:`\phi` is frozen is a function of :math:`\theta` through
the features :math:`\phi(x)` alone.  They are computed once, when the data is loaded; from then on training, statistics
and evaluation cost what the head costs.  The weight space is the part of the whole network that ``select=`` keeps, so
that ``flow.weight_space.to_module(theta)`` is the whole network with a generated head, which takes images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from wsflow.description import named
from wsflow.tasks.base import SPLITS
from wsflow.tasks.classification import ClassificationTask
from wsflow.tasks.mnist import FashionMNIST
from wsflow.weightspace import WeightSpace

IMAGES = 100
"""Images that the trunk takes at once."""


def with_state(class_path: str, init_args: Mapping[str, Any], state: str) -> nn.Module:
    """A network with stored weights, such as a pretrained trunk.

    Args:
        class_path: Names the function or class that returns the network.
        init_args: Its arguments.
        state: A safetensors file with the network's state_dict.

    Raises:
        ValueError: where the file cannot be read or does not fit the network.
    """
    network: nn.Module = named(class_path)(**init_args)
    try:
        network.load_state_dict(load_file(state))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{state} does not hold a state of {class_path}: {' '.join(str(error).split()[:40])}"
        ) from error
    return network


class FashionMNISTHead(ClassificationTask):
    """The last layer of a frozen network, trained on Fashion-MNIST.

    Images are standardised as for :class:`~wsflow.tasks.FashionMNIST`, resized, and repeated over the channels.

    Args:
        trunk: Names the function or class that returns the whole network; torchvision's ResNet-18 by default, with the
            random weights that the description fixes.
        trunk_args: Its arguments; ``num_classes: 10`` by default.
        state: A safetensors file with the network's state_dict; random weights by default.
        head: Name of the network's last layer.
        size: Height and width of the images that the trunk takes.
        channels: Their channels.
        points: Images in train, validation and test, the first ones of each; 2,000, 500 and 1,000 by default.
        data_dir: Folder that holds ``FashionMNIST/raw``; the environment variable ``WSFLOW_DATA``, or ``data``, by
            default.
        split_seed: Seed of the validation split, and of which images are taken.
        download: Whether torchvision may download files that are not there.
    """

    local: ClassVar[tuple[str, ...]] = ("data_dir", "download")
    terms = "Zalando SE (Xiao et al. 2017); MIT licence"

    def __init__(
        self,
        trunk: str = "torchvision.models.resnet18",
        trunk_args: dict[str, Any] | None = None,
        state: str | None = None,
        head: str = "fc",
        size: int = 32,
        channels: int = 3,
        points: Sequence[int] = (2000, 500, 1000),
        data_dir: str | None = None,
        split_seed: int = 0,
        download: bool = False,
    ) -> None:
        self.trunk, self.state, self.head = trunk, state, head
        self.trunk_args = {"num_classes": 10} if trunk_args is None else dict(trunk_args)
        self.size, self.channels, self.points = size, channels, list(points)
        self.data_dir, self.split_seed, self.download = data_dir, split_seed, download

    @property
    def network(self) -> dict[str, Any]:
        """The whole network, of which the head is selected."""
        path, args = self.trunk, self.trunk_args
        if self.state is not None:
            args = {"class_path": path, "init_args": args, "state": self.state}
            path = f"{with_state.__module__}.{with_state.__name__}"
        return {
            "class_path": path,
            "init_args": args,
            "output_activation": "softmax",
            "select": self.head.replace(".", r"\.") + r"\..*",
            "input_shape": [self.channels, self.size, self.size],
        }

    @cached_property
    def space(self) -> WeightSpace:
        """The weight space of the head, whose networks take features."""
        return self.whole.layer(self.head)

    @cached_property
    def whole(self) -> WeightSpace:
        """The same space, whose networks take images."""
        return WeightSpace.from_description(self.network)

    def load(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Features and labels of the first images of each split.

        Raises:
            ValueError: where the files are missing or damaged, or ``head`` does not give the network's output.
        """
        data = FashionMNIST(data_dir=self.data_dir, split_seed=self.split_seed, download=self.download).load()
        generator, result = torch.Generator().manual_seed(self.split_seed), {}
        for split, count in zip(SPLITS, self.points, strict=True):
            images, labels = data[split]
            index = torch.randperm(len(labels), generator=generator)[:count]
            result[split] = self.features(self.prepare(images[index])), labels[index]
        return result

    def prepare(self, images: Tensor) -> Tensor:
        """Standardised images (N, 1, 28, 28) as the trunk takes them, (N, channels, size, size)."""
        resized = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        return resized.expand(-1, self.channels, -1, -1)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What the head reads of images (N, channels, size, size)."""
        network, seen = self.whole.template, list[Tensor]()
        layer = network.get_submodule(self.head)
        handle = layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        try:
            outputs = torch.cat([network(part) for part in torch.split(images, IMAGES)])
        finally:
            handle.remove()
        features = torch.cat(seen)
        again = layer(features)
        if again.shape != outputs.shape or not torch.allclose(again, outputs, rtol=1e-4, atol=1e-4):
            raise ValueError(f"{self.trunk} does not put out what its layer {self.head!r} does: choose its last layer")
        return features
