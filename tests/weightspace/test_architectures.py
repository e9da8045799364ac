"""Networks as they come: their groups, proven."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision.models
from architectures import resnet20, transformer
from torch import Tensor, nn

from wsflow.weightspace import UnsupportedModuleError, WeightSpace, batch_statistics, check_symmetries
from wsflow.weightspace.symmetry import check_permutations, random_permutations


def image(side: int = 32) -> Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def proven(network: nn.Module, side: int = 32, trials: int = 1) -> WeightSpace:
    """The space of a network for images, whose symmetries hold."""
    space = WeightSpace.from_module(network, image(side), check=False)
    check_symmetries(space, network, image(side), trials=trials)
    assert space.names == {name for name, _ in network.named_parameters()}
    return space


def ends(space: WeightSpace) -> list[tuple[str, str, str]]:
    return [(block.name, block.source, block.target) for block in space.blocks]


def on(space: WeightSpace, group: str) -> tuple[list[str], list[str]]:
    """Names of the blocks that enter a group and of those that leave it."""
    into = [block.name for block in space.blocks if block.target == group]
    return into, [block.name for block in space.blocks if block.source == group]


FAST: dict[str, tuple[Callable[..., nn.Module], int]] = {
    # Name: what makes it, hidden groups.
    "resnet18": (torchvision.models.resnet18, 12),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, 25),
}
SLOW: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "resnet50": (torchvision.models.resnet50, 37),
    "vgg11_bn": (torchvision.models.vgg11_bn, 10),
    "resnext50": (torchvision.models.resnext50_32x4d, 37),
    "densenet121": (torchvision.models.densenet121, 120),
    "convnext_tiny": (torchvision.models.convnext_tiny, 22),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, 40),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, 27),
    "regnet_y_400mf": (torchvision.models.regnet_y_400mf, 53),
    "vit_b_32": (torchvision.models.vit_b_32, 37),
}


@pytest.mark.parametrize(("build", "hidden"), FAST.values(), ids=FAST.keys())
def test_torchvision(build: Callable[..., nn.Module], hidden: int) -> None:
    space = proven(build(num_classes=10))
    assert len(space.hidden) == hidden
    assert space.groups[-1].role == "output"


@pytest.mark.slow
@pytest.mark.parametrize(("build", "hidden"), SLOW.values(), ids=SLOW.keys())
def test_torchvision_slowly(build: Callable[..., nn.Module], hidden: int) -> None:
    side = 224 if build is torchvision.models.vit_b_32 else 32
    assert len(proven(build(num_classes=10), side).hidden) == hidden


def test_the_streams_of_resnet18() -> None:
    space = WeightSpace.from_module(torchvision.models.resnet18(), image(), check=False)
    assert on(space, "hidden1") == (
        ["conv1.weight", "layer1.0.conv2.weight", "layer1.1.conv2.weight"],
        ["layer1.0.conv1.weight", "layer1.1.conv1.weight", "layer2.0.conv1.weight", "layer2.0.downsample.0.weight"],
    )
    assert on(space, "hidden11") == (
        ["layer4.0.conv2.weight", "layer4.0.downsample.0.weight", "layer4.1.conv2.weight"],
        ["layer4.1.conv1.weight", "fc.weight"],
    )
    norms = {vector.name for vector in space.vectors if vector.group == "hidden1"}
    assert norms == {f"{n}.{part}" for n in ("bn1", "layer1.0.bn2", "layer1.1.bn2") for part in ("weight", "bias")}
    assert [g.size for g in space.hidden] == [64] * 3 + [128] * 3 + [256] * 3 + [512] * 3
    assert space.dim == 11689512
    assert space.full_dim - space.dim == 9600


def test_every_group_of_resnet20() -> None:
    """Three stages; the stream of each is one group that all its blocks add to, and each block has one of its own."""
    space = proven(resnet20((4, 5, 6)), 16, trials=2)
    assert [g.size for g in space.hidden] == [4] * 4 + [5] * 4 + [6] * 4
    streams, inner = ["hidden1", "hidden6", "hidden10"], iter([2, 3, 4, 5, 7, 8, 9, 11, 12])
    expected, before = [("0.weight", "input", "hidden1")], "hidden1"
    for stage, stream in enumerate(streams):
        for block in range(3):
            name, own = str(3 + 3 * stage + block), f"hidden{next(inner)}"
            expected += [(f"{name}.conv1.weight", before, own), (f"{name}.conv2.weight", own, stream)]
            if stage and not block:
                expected.append((f"{name}.short.0.weight", before, stream))
            before = stream
    assert ends(space) == [*expected, ("14.weight", "hidden10", "output")]
    kinds = [(r.group, r.scaling) for r in space.rescalings]
    assert kinds.count(("hidden2", "positive")) == 2  # before its batch norm and after it
    assert kinds.count(("hidden1", "positive")) == 5  # before four batch norms, and once for all after them
    assert {scaling for _, scaling in kinds} == {"positive"}


def test_every_group_of_a_transformer() -> None:
    """All blocks add to one stream; heads permute whole, queries with keys and, within them, apart from values."""
    space = proven(transformer(), 8, trials=2)
    assert [(g.size, g.activation, g.partition and g.partition.parts) for g in space.hidden] == [
        (6, "identity", None),
        (6, "identity", 2),
        (6, "identity", 2),
        (7, "gelu", None),
        (6, "identity", 2),
        (6, "identity", 2),
        (7, "gelu", None),
    ]
    keys = [g.partition.key for g in space.hidden if g.partition]
    assert keys[0] == keys[1] != keys[2] == keys[3]
    layer = "encoder.layers.encoder_layer_0"
    assert ends(space)[:7] == [
        ("conv_proj.weight", "input", "hidden1"),
        (f"{layer}.self_attention.in_proj_weight", "hidden1", "hidden2"),
        (f"{layer}.self_attention.in_proj_weight", "hidden1", "hidden2"),
        (f"{layer}.self_attention.in_proj_weight", "hidden1", "hidden3"),
        (f"{layer}.self_attention.out_proj.weight", "hidden3", "hidden1"),
        (f"{layer}.mlp.0.weight", "hidden1", "hidden4"),
        (f"{layer}.mlp.3.weight", "hidden4", "hidden1"),
    ]
    assert [b.inverse for b in space.blocks[1:4]] == [False, True, False]
    embeddings = {v.name: v.depth for v in space.vectors if v.kind == "embedding"}
    assert embeddings == {"class_token": 1, "encoder.pos_embedding": 5}
    linear = [r.group for r in space.rescalings if r.scaling == "linear"]
    assert linear == ["hidden2", "hidden3", "hidden5", "hidden6"]


def test_heads_permute_whole_and_inside() -> None:
    space = WeightSpace.from_module(transformer().double(), image(8), check=False)
    theta = torch.randn(1, space.dim, dtype=torch.float64) * 0.3
    still = [torch.arange(g.size) for g in space.hidden]
    swap, inside = torch.tensor([3, 4, 5, 0, 1, 2]), torch.tensor([2, 0, 1, 4, 3, 5])
    before = space.forward(theta, image(8).double())
    for perms in ([swap, swap], [inside, still[2]], [still[1], inside], [swap[inside], swap]):
        check_permutations(space, [still[0], *perms, *still[3:]])
        after = space.forward(space.permute(theta, [still[0], *perms, *still[3:]]), image(8).double())
        torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
    for perms in ([swap, still[2]], [still[1].roll(1), still[2]]):
        with pytest.raises(ValueError, match="its permutations must"):
            check_permutations(space, [still[0], *perms, *still[3:]])


class TestSelect:
    def test_the_head_of_resnet18(self) -> None:
        network = torchvision.models.resnet18(num_classes=10).eval()
        space = WeightSpace.from_module(network, image(), select=r"fc\..*", check=False)
        assert [(g.name, g.size, g.role) for g in space.groups] == [
            ("hidden11", 512, "input"),
            ("output", 10, "output"),
        ]
        assert (space.dim, space.full_dim, space.rescalings) == (5130, 5130, ())
        theta = space.flatten(network.state_dict())
        outputs = space.forward(torch.stack([theta, 2 * theta]), image())
        torch.testing.assert_close(outputs[0], network(image()))
        torch.testing.assert_close(outputs[1], 2 * outputs[0])

    def test_the_norms_of_resnet18(self) -> None:
        network = torchvision.models.resnet18(num_classes=10).eval()
        space = WeightSpace.from_module(network, image(), select=r".*(bn\d|downsample\.1)\..*", check=False)
        assert (space.dim, space.full_dim) == (9600, 19200)
        assert (space.hidden, space.blocks, space.rescalings) == ((), (), ())
        theta = space.flatten(network.state_dict(), buffers=True)
        torch.testing.assert_close(space.forward(theta[None], image())[0], network(image()))
        found = batch_statistics(space, theta[None], torch.randn(4, 3, 32, 32))
        assert found.shape == (1, 19200)

    def test_one_stage_permutes_what_lies_within_it(self) -> None:
        network = resnet20((4, 5, 6))
        space = WeightSpace.from_module(network, image(16), select=r"[678]\..*")
        assert [g.name for g in space.hidden] == ["hidden5", "hidden7", "hidden8"]
        assert {g.name for g in space.groups} == {"hidden1", "hidden5", "hidden6", "hidden7", "hidden8"}
        assert {r.group for r in space.rescalings} == {"hidden5", "hidden6", "hidden7", "hidden8"}


def test_resnets_run_in_batches() -> None:
    space = WeightSpace.from_module(resnet20((4, 5, 6)).double(), image(16), check=False)
    images = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    theta = batch_statistics(space, 0.3 * torch.randn(3, space.dim, dtype=torch.float64), images)
    outputs = space.forward(theta, images)
    for one, expected in zip(theta, outputs, strict=True):
        torch.testing.assert_close(space.to_module(one)(images), expected)
    perms = random_permutations(space, 3)
    check_permutations(space, perms)
    torch.testing.assert_close(space.forward(space.permute(theta, perms), images), outputs)


REFUSED: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "shufflenet": (
        torchvision.models.shufflenet_v2_x0_5,
        r"node 'view' \(view\): reshapes .* splits the neurons of axis 1",
    ),
    "squeezenet": (torchvision.models.squeezenet1_1, "the network ends in relu"),
    "swin": (torchvision.models.swin_t, r"node '.*' \(.*\): this operation is not supported"),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_some_are_refused(build: Callable[..., nn.Module], message: str) -> None:
    with pytest.raises(UnsupportedModuleError, match=message):
        WeightSpace.from_module(build(num_classes=10), image(64))
