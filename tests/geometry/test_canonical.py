from dataclasses import replace

import pytest
import torch

from wsflow.geometry import Euclidean, Geometric, Normalized
from wsflow.weightspace import GroupVector, NeuronGroup, WeightBlock, WeightSpace, mlp
from wsflow.weightspace.symmetry import random_permutations, random_scales

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
    return torch.randn(9, space.groups[0].size, generator=torch.Generator().manual_seed(9)).to(dtype)


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


def test_commutes_with_permutations_dead_neurons_too(space, geometry):
    theta = kill(space, draw(space), negative=True)
    perms = random_permutations(space, len(theta), torch.Generator().manual_seed(1))
    x, d = geometry.encode(theta), space.dim
    moved = geometry.encode(space.permute(theta, perms))
    torch.testing.assert_close(moved[:, :d], space.permute(x[:, :d], perms))
    torch.testing.assert_close(moved[:, d:], x[:, d:])


def test_encode_does_not_change_its_argument(geometry):
    theta = kill(geometry.space, draw(geometry.space), negative=True)
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


def kill(space, theta, negative=False):
    """The same networks with zero incoming weights, and a negative bias if asked for, at one neuron per group."""
    theta = theta.clone()
    for group in space.hidden:
        theta[:, space.incoming(group.name)[1]] = 0
        if negative:
            theta[:, space.attached(group.name)[1]] = -theta[:, space.attached(group.name)[1]].abs()
    return theta


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["deep", "leaky", "regression"])
def test_dead_neurons_keep_the_function(name, dtype):
    space = SPACES[name]
    geometry = Geometric(space)
    theta = kill(space, draw(space, dtype=dtype)).requires_grad_()
    assert (theta[:, space.attached("hidden1")[1]] > 0).any()
    x = geometry.encode(theta)
    dead = torch.cat([space.incoming(group.name)[1] for group in space.hidden])
    for group in space.hidden:
        row = space.incoming(group.name)[1]
        torch.testing.assert_close(x[:, row], torch.full_like(x[:, row], len(row) ** -0.5))
        assert (x[:, space.attached(group.name)[1]] == 0).all()
        onward = space.outgoing(group.name)[1]
        onward = onward[~torch.isin(onward, dead)]  # what one dead neuron says to another does not matter
        assert (x[:, onward] == 0).all()
    decoded = geometry.decode(x)
    torch.testing.assert_close(space.forward(decoded, inputs(space, dtype)), space.forward(theta, inputs(space, dtype)))
    (gradient,) = torch.autograd.grad(decoded.square().sum(), theta)
    assert gradient.isfinite().all()
    torch.testing.assert_close(geometry.encode(decoded), x)


def test_a_whole_dead_group_keeps_the_probabilities():
    space = SPACES["deep"]
    theta = draw(space)
    theta[:, space.incoming("hidden1").flatten()] = 0
    geometry = Geometric(space)
    decoded = geometry.decode(geometry.encode(theta))
    after, before = space.forward(decoded, inputs(space)), space.forward(theta, inputs(space))
    torch.testing.assert_close(after.softmax(-1), before.softmax(-1))


def test_dead_neurons_without_biases_keep_the_function():
    space = SPACES["no-bias"]
    theta = kill(space, draw(space))
    decoded = Geometric(space).decode(Geometric(space).encode(theta))
    torch.testing.assert_close(space.forward(decoded, inputs(space)), space.forward(theta, inputs(space)))


def test_a_dead_constant_without_a_bias_to_take_it_is_refused():
    module = mlp([5, 4, 2])
    module[3].bias = None
    space = WeightSpace.from_module(module)
    theta = kill(space, draw(space))
    theta[:, space.attached("hidden1")[1]] = 1.0
    with pytest.raises(ValueError, match=r"'hidden1'.*no bias to move it to"):
        Geometric(space).encode(theta)
    theta[:, space.attached("hidden1")[1]] = -1.0
    assert Geometric(space).encode(theta).isfinite().all()


def test_a_dead_leaky_neuron_needs_one_slope():
    module = mlp([5, 4, 3, 2], activation="leaky_relu")
    module[2].negative_slope = 0.3
    space = WeightSpace.from_module(module)
    theta = kill(space, draw(space), negative=True)
    with pytest.raises(ValueError, match=r"'hidden1'.*slope"):
        Geometric(space).encode(theta)
    module[4].negative_slope = 0.3
    space = WeightSpace.from_module(module)
    decoded = Geometric(space).decode(Geometric(space).encode(theta))
    torch.testing.assert_close(space.forward(decoded, inputs(space)), space.forward(theta, inputs(space)))


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


def branched():
    """Two branches, one with a kernel, that meet in one group: several incoming blocks, depth, two biases."""
    groups = (
        NeuronGroup("input", 3, "input"),
        NeuronGroup("a", 4, "hidden", "relu"),
        NeuronGroup("b", 5, "hidden", "relu"),
        NeuronGroup("output", 2, "output", "softmax"),
    )
    sizes = {group.name: group.size for group in groups}
    blocks, vectors, start = [], [], 0
    for name, source, target, kernel in [
        ("conv", "input", "a", (2, 2)),
        ("skip", "input", "b", ()),
        ("main", "a", "b", (3,)),
        ("head", "b", "output", ()),
    ]:
        shape = (sizes[target], sizes[source], *kernel)
        blocks.append(WeightBlock(f"{name}.weight", source, target, *shape[:2], kernel, shape, start))
        start += blocks[-1].numel
        vectors.append(GroupVector(f"{name}.bias", target, "bias", sizes[target], start))
        start += sizes[target]
    return WeightSpace(groups, tuple(blocks), tuple(vectors))


def test_kernels_and_several_incoming_blocks():
    space = branched()
    geometry = Geometric(space)
    theta = draw(space)
    x = geometry.encode(theta)
    assert geometry.form.product.shapes == ((4, 12), (5, 15), (1, 10))
    scales = random_scales(space, len(theta), torch.Generator().manual_seed(1))
    torch.testing.assert_close(geometry.encode(space.rescale(theta, scales)), x, rtol=1e-6, atol=1e-6)
    norms = [theta[:, space.incoming("a")].norm(dim=-1)]
    half = space.rescale(theta, [1 / norms[0], torch.ones(5)])
    norms.append(half[:, space.incoming("b")].norm(dim=-1))
    torch.testing.assert_close(geometry.decode(x), space.rescale(theta, [1 / norms[0], 1 / norms[1]]))


def test_a_dead_constant_does_not_move_through_a_convolution():
    space = branched()
    theta = draw(space)
    theta[:, space.incoming("a")[0]] = 0
    theta[:, space.attached("a")[0]] = 1
    with pytest.raises(ValueError, match=r"'a'.*no bias to move it to"):
        Geometric(space).encode(theta)


def test_a_dead_constant_moves_through_a_flattened_layer():
    space = branched()
    main = space.blocks[2]
    flat = replace(main, shape=(main.out, main.in_ * main.depth))
    space = replace(space, blocks=(*space.blocks[:2], flat, space.blocks[3]))
    theta = draw(space)
    theta[:, space.incoming("a")[0]] = 0
    theta[:, space.attached("a")[0]] = 2
    moved = 2 * theta[:, main.slice].view(-1, main.out, main.in_, main.depth)[:, :, 0].sum(-1)
    bare = theta.clone()
    bare[:, space.attached("a")[0]] = -2
    bare[:, space.attached("b")[:, 0]] += moved
    geometry = Geometric(space)
    torch.testing.assert_close(geometry.encode(theta), geometry.encode(bare))


def test_norm_layers_and_cycles_are_refused():
    space = branched()
    norm = GroupVector("norm.weight", "b", "norm_weight", 5, space.dim)
    with pytest.raises(ValueError, match=r"'b' has a norm layer \('norm.weight'\)"):
        Geometric(WeightSpace(space.groups, space.blocks, (*space.vectors, norm)))
    back = WeightBlock("back.weight", "b", "a", 4, 5, (), (4, 5), space.dim)
    cyclic = WeightSpace(space.groups, (*space.blocks, back), space.vectors)
    with pytest.raises(ValueError, match=r"'back.weight' leads from group 'b' back to 'a'"):
        Normalized(cyclic)
    assert Euclidean(cyclic).dim == cyclic.dim


@pytest.mark.parametrize("cls", [Euclidean, Normalized, Geometric])
def test_weights_of_another_space_are_refused(cls):
    geometry = cls(SPACES["deep"])
    with pytest.raises(ValueError, match="D = "):
        geometry.encode(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"shape \(2, 7\)"):
        geometry.decode(torch.zeros(2, 7))
