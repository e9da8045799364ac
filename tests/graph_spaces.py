"""Weight spaces with kernels, residual streams, concatenations and embeddings, for fields on the neural graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsflow.weightspace import GroupVector, NeuronGroup, WeightBlock, WeightSpace, cnn


def residual(stream: int = 5, middle: int = 4, kernel: int = 3) -> WeightSpace:
    """Two blocks enter and two leave the group "stream", some edges carry kernels, "middle" has no bias."""
    square = (kernel, kernel)
    blocks, vectors, start = [], [], 0
    for name, source, target, out, in_, shape, bias in (
        ("stem", "input", "stream", stream, 2, square, True),
        ("down", "stream", "middle", middle, stream, (1, 1), False),
        ("up", "middle", "stream", stream, middle, square, True),
        ("head", "stream", "output", 3, stream, (2, 2), True),
    ):
        block = WeightBlock(f"{name}.weight", source, target, out, in_, shape, (out, in_, *shape), start)
        blocks.append(block)
        start += block.numel
        if bias:
            vectors.append(GroupVector(f"{name}.bias", target, "bias", out, start))
            start += out
    groups = (
        NeuronGroup("input", 2, "input"),
        NeuronGroup("stream", stream, "hidden", "relu"),
        NeuronGroup("middle", middle, "hidden", "relu"),
        NeuronGroup("output", 3, "output", "softmax"),
    )
    return WeightSpace(groups, tuple(blocks), tuple(vectors))


class _Joined(nn.Module):
    """Two branches, one with a depthwise convolution, are concatenated; a block then joins their group to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 3, 2), nn.Conv2d(2, 4, 2)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.merge, self.norm = nn.Conv2d(7, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.again, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([F.relu(self.left(x)), F.relu(self.depthwise(F.relu(self.right(x))))], dim=1)
        stream = self.norm(self.merge(both))
        return self.head((stream + self.again(F.relu(stream))).flatten(1))


def positions(hidden: int = 4) -> WeightSpace:
    """A position embedding, which lists the neurons of one position after those of another."""
    groups = (NeuronGroup("in", 3, "input"), NeuronGroup("h", hidden, "hidden"), NeuronGroup("out", 2, "output"))
    first = WeightBlock("first", "in", "h", hidden, 3, (), (hidden, 3), 0)
    second = WeightBlock("second", "h", "out", 2, hidden, (), (2, hidden), 8 * hidden)
    embedding = GroupVector("place", "h", "embedding", hidden, 3 * hidden, (1, 5, hidden), depth=5, leading=True)
    return WeightSpace(groups, (first, second), (embedding,))


def convolutional(**kwargs: object) -> WeightSpace:
    """Two convolutions, of 2 x 2 and 3 x 3 positions."""
    args = {"channels": [4, 3], "kernels": [2, 3], "strides": [2, 1], "paddings": [0, 1], "input_shape": [2, 4, 4]}
    return WeightSpace.from_module(cnn(**{**args, "classes": 3, **kwargs}), torch.randn(2, 2, 4, 4))


def joined() -> WeightSpace:
    """The space of a network with a concatenation, a depthwise convolution and a block that joins a group to itself."""
    return WeightSpace.from_module(_Joined(), torch.randn(2, 2, 3, 3))
