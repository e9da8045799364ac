import pytest
import torch

from wsflow.geometry import Euclidean, Geometric, Normalized
from wsflow.weightspace import WeightSpace, mlp
from wsflow.weightspace.symmetry import random_scales

SPACES = {
    "deep": WeightSpace.from_module(mlp([5, 4, 3, 2])),
    "no-bias": WeightSpace.from_module(mlp([5, 4, 3, 2], bias=False)),
    "leaky": WeightSpace.from_module(mlp([5, 4, 3, 2], activation="leaky_relu")),
    "regression": WeightSpace.from_module(mlp([6, 4, 4, 1]), output_activation="identity"),
    "one-input": WeightSpace.from_module(mlp([1, 4, 3])),
    "linear": WeightSpace.from_module(mlp([5, 3])),
}


@pytest.fixture(params=SPACES)
def space(request):
    return SPACES[request.param]


@pytest.fixture(params=[True, False], ids=["keep", "radius"])
def geometry(request, space):
    return Geometric(space, keep_scale=request.param)


def draw(space, n=6, seed=0, dtype=torch.float64):
    return torch.randn(n, space.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(space, dtype=torch.float64):
    return torch.randn(9, *space.input_shape, generator=torch.Generator().manual_seed(9)).to(dtype)


def slow_form(space, theta):
    """The canonical form and the last layer's scale of one network, neuron by neuron, from named tensors of an MLP."""
    tensors = {name: value.clone() for name, value in space.unflatten(theta).items()}
    weights = [tensors[block.name] for block in space.blocks]
    biases = [tensors.get(block.name.replace("weight", "bias")) for block in space.blocks]
    for i in range(len(weights) - 1):
        for k in range(weights[i].shape[0]):
            norm = weights[i][k].norm().clone()
            if weights[i].shape[1] > 1:
                weights[i][k] /= norm
                weights[i + 1][:, k] *= norm
                if biases[i] is not None:
                    biases[i][k] /= norm
    scale = torch.ones((), dtype=theta.dtype)
    if space.groups[-1].activation == "softmax":
        scale = weights[-1].norm().clone()
        weights[-1] /= scale
        if biases[-1] is not None:
            biases[-1] /= scale
    return space.flatten(tensors), scale


def test_equals_a_loop_over_neurons(space):
    theta = draw(space)
    forms, scales = zip(*(slow_form(space, row) for row in theta), strict=True)
    kept, radius = Geometric(space), Geometric(space, keep_scale=False)
    torch.testing.assert_close(radius.encode(theta), torch.stack(forms))
    torch.testing.assert_close(kept.encode(theta)[:, : space.dim], torch.stack(forms))
    if kept.dim > space.dim:
        torch.testing.assert_close(kept.encode(theta)[:, -1].exp(), torch.stack(scales))
    assert torch.equal(Normalized(space).encode(theta), kept.encode(theta))


def test_decode_keeps_the_function_or_the_labels(space, geometry):
    theta = draw(space)
    before, after = (
        space.forward(theta, inputs(space)),
        space.forward(geometry.decode(geometry.encode(theta)), inputs(space)),
    )
    if geometry.dim > space.dim or space.groups[-1].activation == "identity":
        torch.testing.assert_close(after, before)
    else:
        assert torch.equal(after.argmax(-1), before.argmax(-1))
        last = geometry.decode(geometry.encode(theta))[:, space.incoming("output").flatten()]
        torch.testing.assert_close(last.norm(dim=1), torch.full_like(last[:, 0], space.groups[-1].size ** 0.5))


def test_is_idempotent(geometry):
    x = geometry.encode(draw(geometry.space))
    torch.testing.assert_close(geometry.encode(geometry.decode(x)), x)


@pytest.mark.parametrize("space", sorted(SPACES.keys() - {"one-input"}), indirect=True)  # its scales are left in
def test_rescaled_networks_have_one_form(space, geometry):
    theta = draw(space)
    scales = random_scales(space, len(theta), torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        geometry.encode(space.rescale(theta, scales)), geometry.encode(theta), rtol=1e-6, atol=1e-6
    )


def test_encode_and_decode_do_not_change_their_arguments(geometry):
    theta = draw(geometry.space)
    copy = theta.clone()
    x = geometry.encode(theta)
    again = x.clone()
    geometry.decode(x)
    assert torch.equal(theta, copy)
    assert torch.equal(x, again)


def test_gradients_of_encode_and_decode(geometry):
    theta = draw(geometry.space, 2).requires_grad_()
    assert torch.autograd.gradcheck(geometry.encode, theta)
    assert torch.autograd.gradcheck(geometry.decode, geometry.encode(theta).detach().requires_grad_())


def test_a_zero_last_layer_keeps_the_probabilities(geometry):
    space = geometry.space
    theta = draw(space)
    theta[:, space.incoming("output").flatten()] = 0
    theta.requires_grad_()
    x = geometry.encode(theta)
    assert x.isfinite().all()
    if space.groups[-1].activation == "softmax" and geometry.dim > space.dim:
        after = space.forward(geometry.decode(x), inputs(space)).softmax(-1)
        torch.testing.assert_close(after, space.forward(theta, inputs(space)).softmax(-1))
    torch.testing.assert_close(geometry.encode(geometry.decode(x)), x)
    assert torch.autograd.grad(x.sum(), theta)[0].isfinite().all()


def test_a_neuron_with_one_incoming_weight_stays_euclidean():
    geometry = Geometric(SPACES["one-input"])
    theta = draw(SPACES["one-input"])
    assert geometry.factors == ("output", "1.weight", "1.bias", "3.bias", "log_scale")
    assert torch.equal(geometry.encode(theta)[:, :8], theta[:, :8])
    single = Geometric(WeightSpace.from_module(mlp([1, 1])))
    assert single.dim == 2
    assert torch.equal(single.encode(torch.zeros(1, 2)), torch.zeros(1, 2))


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_other_activations_keep_their_scales(activation):
    space = WeightSpace.from_module(mlp([5, 4, 3, 2], activation=activation))
    assert Geometric(space).form.product.shapes == ((1, 6),)


@pytest.mark.parametrize("select", [r"5\..*", r"3\.bias|5\.weight", r"[13]\..*", r"5\.bias"])
def test_a_selected_part_keeps_its_function(select):
    space = WeightSpace.from_module(mlp([5, 4, 3, 2]).double(), select=select)
    geometry = Geometric(space)
    theta = draw(space)
    decoded = geometry.decode(geometry.encode(theta))
    torch.testing.assert_close(space.forward(decoded, inputs(space)), space.forward(theta, inputs(space)))


@pytest.mark.parametrize("cls", [Geometric, Normalized])
def test_a_frozen_bias_needs_the_scale_of_the_last_layer(cls):
    space = WeightSpace.from_module(mlp([5, 4, 3, 2]).double(), select=r"3\.bias|5\.weight")
    with pytest.raises(ValueError, match=r"'5\.bias' is frozen.*keep_scale=True"):
        cls(space, keep_scale=False)
    theta = draw(space)
    decoded = cls(space).decode(cls(space).encode(theta))
    torch.testing.assert_close(space.forward(decoded, inputs(space)), space.forward(theta, inputs(space)))


@pytest.mark.parametrize("select", [r"5\..*", r"3\.bias", r"5\.bias"], ids=["both", "hidden", "bias"])
def test_a_frozen_part_elsewhere_keeps_the_labels(select):
    space = WeightSpace.from_module(mlp([5, 4, 3, 2]).double(), select=select)
    theta = draw(space)
    geometry = Geometric(space, keep_scale=False)
    before, after = (
        space.forward(theta, inputs(space)),
        space.forward(geometry.decode(geometry.encode(theta)), inputs(space)),
    )
    assert torch.equal(after.argmax(-1), before.argmax(-1))


@pytest.mark.parametrize("cls", [Euclidean, Normalized, Geometric])
def test_weights_of_another_space_are_refused(cls):
    geometry = cls(SPACES["deep"])
    with pytest.raises(ValueError, match="D = "):
        geometry.encode(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"shape \(2, 7\)"):
        geometry.decode(torch.zeros(2, 7))
