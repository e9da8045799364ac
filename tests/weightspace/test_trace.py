"""What is read off a network, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from wsflow.weightspace import UnsupportedModuleError, WeightSpace, mlp
from wsflow.weightspace.networks import ACTIVATIONS


class Scaled(nn.Identity):
    """A subclass whose forward pass is not that of its parent."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.b(self.a(x) + self.a(y))


class Own(nn.Module):
    """A network whose own class computes something around its layers, and has a layer that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.spare = nn.Linear(5, 4), nn.Linear(4, 2), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def test_groups_and_blocks_of_a_perceptron(space: WeightSpace) -> None:
    groups = [(g.name, g.size, g.role, g.activation) for g in space.groups]
    assert groups == [
        ("input", 5, "input", "identity"),
        ("hidden1", 4, "hidden", "relu"),
        ("hidden2", 3, "hidden", "relu"),
        ("output", 2, "output", "softmax"),
    ]
    rescalings = [(r.name, r.group, r.scaling, r.size) for r in space.rescalings]
    assert rescalings == [("1.weight", "hidden1", "positive", 4), ("3.weight", "hidden2", "positive", 3)]
    assert space.input_shape == (5,)
    assert [(b.source, b.target, b.out, b.in_) for b in space.blocks] == [
        ("input", "hidden1", 4, 5),
        ("hidden1", "hidden2", 3, 4),
        ("hidden2", "output", 2, 3),
    ]
    assert [(v.group, v.kind) for v in space.vectors] == [(g, "bias") for g in ("hidden1", "hidden2", "output")]
    assert [b.depth for b in space.blocks] == [1, 1, 1]


def test_nested_layers_keep_their_names(space: WeightSpace) -> None:
    network = nn.Sequential(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), nn.Dropout(), nn.Linear(2, 2, bias=False))
    space = WeightSpace.from_module(network)
    assert [tensor.name for tensor in space.tensors] == ["0.0.weight", "0.0.bias", "2.weight"]
    assert [g.activation for g in space.hidden] == ["relu"]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_known(name: str) -> None:
    assert WeightSpace.from_module(mlp([2, 3, 2], name)).hidden[0].activation == name


def test_one_activation_module_may_stand_in_several_places() -> None:
    relu = nn.ReLU()
    space = WeightSpace.from_module(nn.Sequential(nn.Linear(2, 3), relu, nn.Linear(3, 4), relu, nn.Linear(4, 2)))
    assert [g.activation for g in space.hidden] == ["relu", "relu"]


def test_the_network_is_copied() -> None:
    network = mlp([2, 3, 2])
    space = WeightSpace.from_module(network)
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    with torch.no_grad():
        network[1].weight.fill_(7.0)
    assert not (space.template.state_dict()["1.weight"] == 7.0).any()


def test_subclasses_are_read_by_what_they_compute() -> None:
    space = WeightSpace.from_module(nn.Sequential(nn.Linear(3, 4), Scaled(), nn.ReLU(), nn.Linear(4, 2)))
    assert [(r.name, r.scaling) for r in space.rescalings] == [("0.weight", "positive")]


def test_parameters_that_are_not_used_are_no_part_of_the_space() -> None:
    network = Own()
    space = WeightSpace.from_module(network)
    assert space.names == {"a.weight", "a.bias", "b.weight", "b.bias"}
    theta = space.flatten(network.state_dict())
    again = space.to_module(2 * theta).state_dict()
    assert torch.equal(again["spare.weight"], network.spare.weight)
    assert torch.equal(again["a.weight"], 2 * network.a.weight)


@pytest.mark.parametrize("shape", [(2, 5), (1, 5), (7, 5)], ids=str)
def test_the_examples_batch_size_does_not_matter(shape: tuple[int, ...]) -> None:
    assert WeightSpace.from_module(Own(), torch.zeros(shape)) == WeightSpace.from_module(Own())


class TestErrors:
    def test_several_inputs(self) -> None:
        with pytest.raises(UnsupportedModuleError, match=r"TwoInputs has inputs \['x', 'y'\]; only one tensor"):
            WeightSpace.from_module(TwoInputs())

    def test_no_example(self) -> None:
        message = "the first layer of Sequential is Conv2d and not Linear: give an example_input"
        with pytest.raises(UnsupportedModuleError, match=message):
            WeightSpace.from_module(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()))

    def test_an_example_that_does_not_fit(self) -> None:
        message = "node '_2' (module '2', Linear): the network does not run on the example_input: addmm: mat1 and mat2"
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            WeightSpace.from_module(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(5, 2)))
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        "network", [nn.Sequential(), nn.Sequential(nn.Flatten(), nn.Dropout())], ids=["empty", "none"]
    )
    def test_no_weights(self, network: nn.Module) -> None:
        with pytest.raises(UnsupportedModuleError, match="Sequential has no layer with weights"):
            WeightSpace.from_module(network)

    @pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
    def test_weights_that_are_computed(self) -> None:
        network = nn.Sequential(nn.Linear(5, 4), nn.utils.weight_norm(nn.Linear(4, 2)))
        with pytest.raises(UnsupportedModuleError, match="cannot be copied, since a tensor of it is computed"):
            WeightSpace.from_module(network)


def test_an_unknown_output_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="must be 'softmax' or 'identity', got 'sigmoid'"):
        WeightSpace.from_module(mlp([2, 2]), output_activation="sigmoid")


class TestSelect:
    def test_the_rest_is_frozen_at_the_networks_values(self, inputs: Tensor) -> None:
        network = mlp([5, 4, 3, 2]).double()
        head = WeightSpace.from_module(network, select=r"5\..*")
        assert [tensor.name for tensor in head.tensors] == ["5.weight", "5.bias"]
        assert head.dim == 8
        theta = torch.randn(3, 8, dtype=torch.float64)
        features = network[:-1](inputs)
        weight, bias = theta[:, :6].view(3, 2, 3), theta[:, 6:]
        expected = features @ weight.transpose(1, 2) + bias[:, None]
        torch.testing.assert_close(head.forward(theta, inputs), expected)
        torch.testing.assert_close(head.to_module(theta[1])(inputs), expected[1])

    def test_frozen_values_take_the_precision_of_the_weights(self, inputs: Tensor) -> None:
        head = WeightSpace.from_module(mlp([5, 4, 3, 2]), select=r"5\..*")
        theta = torch.randn(3, 8, dtype=torch.float64)
        outputs = head.forward(theta, inputs)
        torch.testing.assert_close(outputs[0], head.to_module(theta[0])(inputs))

    @pytest.mark.parametrize(
        ("select", "hidden"),
        [
            (r".*", ["hidden1", "hidden2"]),
            (r"[35]\..*", ["hidden2"]),
            (r"[13]\..*", ["hidden1"]),
            (r"5\..*", []),
            (r".*\.weight", []),
            (r".*\.bias", []),
            (r"(1|3|5)\.weight|(3|5)\.bias", ["hidden2"]),
        ],
    )
    def test_groups_with_a_frozen_tensor_do_not_permute(self, select: str, hidden: list[str]) -> None:
        space = WeightSpace.from_module(mlp([5, 4, 3, 2]), select=select)
        assert [g.name for g in space.hidden] == hidden

    @pytest.mark.parametrize("select", [r"[35]\..*", r".*\.bias", r".*\.weight"])
    def test_what_permutes_keeps_the_function(self, select: str, inputs: Tensor) -> None:
        space = WeightSpace.from_module(mlp([5, 4, 3, 2]).double(), select=select)
        theta = torch.randn(3, space.dim, dtype=torch.float64)
        perms = [torch.arange(g.size).flip(0) for g in space.hidden]
        torch.testing.assert_close(space.forward(space.permute(theta, perms), inputs), space.forward(theta, inputs))
        for group in space.groups:
            assert space.incoming(group.name).shape[0] == space.outgoing(group.name).shape[0] == group.size

    def test_the_whole_name_must_match(self) -> None:
        with pytest.raises(ValueError, match="select='5' matches no parameter"):
            WeightSpace.from_module(mlp([5, 4, 3, 2]), select="5")


class TestDescription:
    def test_round_trip(self, space: WeightSpace) -> None:
        again = WeightSpace.from_description(space.description)
        assert again == space
        assert again.description == space.description
        theta, x = torch.randn(2, space.dim), torch.randn(3, 5)
        assert torch.equal(again.forward(theta, x), space.forward(theta, x))

    def test_it_is_plain_data(self, space: WeightSpace) -> None:
        assert space.description == {
            "class_path": "wsflow.weightspace.mlp",
            "init_args": {"widths": [5, 4, 3, 2]},
            "output_activation": "softmax",
        }

    def test_select_is_kept_and_the_frozen_values_come_back(self) -> None:
        description = {
            "class_path": "wsflow.weightspace.mlp",
            "init_args": {"widths": [4, 3, 2]},
            "output_activation": "identity",
            "select": r"3\..*",
        }
        first, again = (WeightSpace.from_description(description) for _ in range(2))
        assert first.description == description
        assert first == again
        theta, x = torch.randn(2, first.dim), torch.randn(3, 4)
        assert torch.equal(first.forward(theta, x), again.forward(theta, x))

    def test_building_leaves_the_random_state_alone(self) -> None:
        state = torch.get_rng_state()
        WeightSpace.from_description({"class_path": "wsflow.weightspace.mlp", "init_args": {"widths": [4, 3, 2]}})
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_space_from_a_module_has_none(self) -> None:
        assert WeightSpace.from_module(mlp([2, 2])).description is None

    def test_it_is_copied(self) -> None:
        description = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 2}}
        space = WeightSpace.from_description(description)
        description["init_args"]["in_features"] = 99
        assert space.description["init_args"] == {"in_features": 3, "out_features": 2}
        assert space.dim == 8

    @pytest.mark.parametrize(
        ("description", "message"),
        [
            ({"class_path": "nowhere.mlp"}, "'nowhere.mlp' cannot be imported: No module named 'nowhere'"),
            ({"class_path": "wsflow.weightspace.nothing"}, "'wsflow.weightspace.nothing' cannot be imported"),
            ({"class_path": "mlp"}, "'mlp' cannot be imported"),
            ({"init_args": {}}, "'' cannot be imported"),
            ({"class_path": "wsflow.weightspace.mlp", "init_args": {"width": [2, 2]}}, "cannot be called with"),
            ({"class_path": "wsflow.weightspace.mlp", "init_args": {"widths": [2]}}, "widths must hold at least"),
            ({"class_path": "torch.nn.Identity"}, "Identity has no layer with weights"),
            ({"class_path": "torch.nn.Tanh"}, "Tanh has no layer with weights"),
            ({"class_path": "wsflow.weightspace.mlp", "args": {}}, r"unknown keys \['args'\]"),
        ],
        ids=["package", "name", "no_package", "no_path", "arguments", "value", "empty", "unsupported", "key"],
    )
    def test_a_bad_one_gives_one_clear_line(self, description: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            WeightSpace.from_description(description)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"widths": [3]}, "at least an input and an output size"),
        ({"widths": [3, 0, 2]}, "all positive"),
        ({"widths": [3, 2], "activation": "swish"}, "unknown activation 'swish'; known are"),
    ],
    ids=["one_width", "zero_width", "activation"],
)
def test_mlp_refuses(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mlp(**kwargs)
