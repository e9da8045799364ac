"""Neurons without incoming weights: what they put out goes on, or the network is refused; never NaN."""

import pytest
import torch
from scalable_networks import Branches, Dense, build, change, draw, outputs, pooled
from torch import nn
from torch.nn import functional as F

from wsflow.geometry import Geometric
from wsflow.weightspace import WeightSpace, batch_statistics, mlp
from wsflow.weightspace.networks import cnn
from wsflow.weightspace.symmetry import random_permutations, random_scales


def space_of(network, *shape):
    return WeightSpace.from_module(network, torch.randn(2, *shape))


def named(space, theta):
    """Tensors of networks, through which they can be written; running statistics too."""
    return space.unflatten(theta)


def kill(space, theta, negative=False):
    """The same networks with zero incoming weights, and a negative bias if asked for, at one neuron per group."""
    theta = theta.clone()
    for group in space.hidden:
        theta[:, space.incoming(group.name)[1]] = 0
        bias = space.attached(group.name)[1]
        theta[:, bias] = -theta[:, bias].abs() if negative else theta[:, bias].abs()
    return theta


def same(space, theta, tolerance=1e-9):
    """The canonical form of networks that keep their function."""
    geometry = Geometric(space)
    x = geometry.encode(theta)
    assert x.isfinite().all()
    decoded = geometry.decode(x)
    assert change(space, theta, decoded) < tolerance
    torch.testing.assert_close(geometry.encode(decoded), x)
    torch.testing.assert_close(geometry.project(x), x)
    return x


class TestPerceptrons:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
    @pytest.mark.parametrize("negative", [True, False], ids=["negative", "positive"])
    def test_dead_neurons_keep_the_function(self, activation, dtype, negative):
        space = space_of(mlp([5, 4, 3, 2], activation), 5)
        theta = kill(space, draw(space).to(dtype), negative).requires_grad_()
        x = same(space, theta, 1e-9 if dtype == torch.float64 else 1e-5)
        dead = torch.cat([space.incoming(group.name)[1] for group in space.hidden])
        for group in space.hidden:
            row = space.incoming(group.name)[1]
            torch.testing.assert_close(x[:, row], torch.full_like(x[:, row], len(row) ** -0.5))
            assert (x[:, space.attached(group.name)[1]] == 0).all()
            onward = space.outgoing(group.name)[1]
            onward = onward[~torch.isin(onward, dead)]  # what one dead neuron says to another does not matter
            assert (x[:, onward] == 0).all()
        (gradient,) = torch.autograd.grad(Geometric(space).decode(x).square().sum(), theta)
        assert gradient.isfinite().all()

    def test_the_form_commutes_with_permutations_and_rescalings(self):
        space = space_of(mlp([5, 4, 3, 2]), 5)
        geometry, d = Geometric(space), space.dim
        theta = kill(space, draw(space))
        perms = random_permutations(space, len(theta), torch.Generator().manual_seed(1))
        scales = [s.double() for s in random_scales(space, len(theta), torch.Generator().manual_seed(2))]
        x = geometry.encode(theta)
        moved = geometry.encode(space.permute(space.rescale(theta, scales), perms))
        torch.testing.assert_close(moved[:, :d], space.permute(x[:, :d], perms))
        torch.testing.assert_close(moved[:, d:], x[:, d:])

    def test_only_networks_with_dead_neurons_change(self):
        space = space_of(mlp([5, 4, 3, 2]), 5)
        theta = draw(space)
        alone = Geometric(space).encode(theta[:1])
        theta[1:] = kill(space, theta[1:])
        copy = theta.clone()
        torch.testing.assert_close(Geometric(space).encode(theta)[:1], alone)
        assert torch.equal(theta, copy)

    def test_a_whole_dead_group_keeps_the_probabilities(self):
        space = space_of(mlp([5, 4, 3, 2]), 5)
        theta = draw(space)
        theta[:, space.incoming("hidden1").flatten()] = 0
        x = Geometric(space).encode(theta)
        before, after = (outputs(space, t).view(3, 5, 2) for t in (theta, Geometric(space).decode(x)))
        torch.testing.assert_close(after.softmax(-1), before.softmax(-1))

    def test_weights_too_small_to_normalise_are_dead(self):
        space = space_of(mlp([5, 4, 3, 2]), 5)
        theta = draw(space).float()
        theta[:, space.incoming("hidden1")[1]] *= 1e-25
        theta[:, space.incoming("hidden2")[0]] *= 1e-15
        same(space, theta, 1e-5)

    def test_without_biases(self):
        space = space_of(mlp([5, 4, 3, 2], bias=False), 5)
        same(space, kill(space, draw(space)))

    def test_a_constant_without_a_bias_to_take_it_is_refused(self):
        module = mlp([5, 4, 2])
        module[3].bias = None
        space = space_of(module, 5)
        theta = kill(space, draw(space))
        with pytest.raises(ValueError, match=r"group 'hidden1', neuron 1 of network 0.*'3.weight' has no bias.*Euclid"):
            Geometric(space).encode(theta)
        same(space, kill(space, draw(space), negative=True))

    def test_a_leaky_neuron_needs_one_slope(self):
        module = mlp([5, 4, 3, 2], activation="leaky_relu")
        module[2].negative_slope = 0.3
        space = space_of(module, 5)
        theta = kill(space, draw(space), negative=True)
        with pytest.raises(ValueError, match=r"'hidden1'.*slope of leaky_relu"):
            Geometric(space).encode(theta)
        same(space, kill(space, draw(space)))
        module[4].negative_slope = 0.3
        same(space_of(module, 5), theta)

    def test_two_activations_in_a_row_are_noticed(self):
        layers = [nn.Linear(5, 4), nn.LeakyReLU(0.3), nn.ReLU(), nn.Linear(4, 2)]
        space = space_of(nn.Sequential(*layers), 5)
        same(space, kill(space, draw(space)))
        with pytest.raises(ValueError, match=r"3 networks have neurons without incoming weights.*second activation"):
            Geometric(space).encode(kill(space, draw(space), negative=True))


class TestConvolutions:
    def test_a_constant_does_not_move_through_zero_padding(self):
        space = space_of(cnn((4, 5), (3, 3), (1, 1), (0, 1), (2, 6, 6), 3), 2, 6, 6)
        theta = draw(space)
        named(space, theta)["conv1.weight"][:, 1] = 0
        named(space, theta)["conv1.bias"][:, 1] = 1
        with pytest.raises(ValueError, match=r"group 'hidden1', neuron 1.*'conv2.weight' has no bias to move it to"):
            Geometric(space).encode(theta)
        named(space, theta)["conv1.bias"][:, 1] = -1
        same(space, theta)

    def test_a_constant_moves_through_a_convolution_without_padding_and_through_the_head(self):
        space = space_of(cnn((4, 5), (3, 3), (1, 1), (0, 0), (2, 6, 6), 3), 2, 6, 6)
        theta = draw(space)
        for i in (1, 2):
            named(space, theta)[f"conv{i}.weight"][:, 1] = 0
            named(space, theta)[f"conv{i}.bias"][:, 1] = 1
        same(space, theta)

    def test_a_constant_moves_to_the_bias_of_the_layer_that_reads_it(self):
        space = space_of(Branches(), 3, 3, 3)
        theta = draw(space)
        named(space, theta)["conv.weight"][:, 0] = 0
        named(space, theta)["conv.bias"][:, 0] = 2
        x = same(space, theta)
        bare = theta.clone()
        named(space, bare)["conv.bias"][:, 0] = -2
        named(space, bare)["main.bias"] += 2 * named(space, theta)["main.weight"].view(3, 5, 4, 4)[:, :, 0].sum(-1)
        torch.testing.assert_close(Geometric(space).encode(bare), x)

    def test_kernels(self):
        space = build("kernels")
        theta = draw(space)
        named(space, theta)["1.weight"][:, 2] = 0
        named(space, theta)["0.weight"][:, 3] = 0
        same(space, theta)

    def test_a_sum_over_positions_is_noticed(self):
        class Summed(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

            def forward(self, x):
                return self.head(F.relu(self.conv(x)).sum((2, 3)))

        space = space_of(Summed(), 2, 6, 6)
        theta = draw(space)
        named(space, theta)["conv.weight"][:, 0] = 0
        named(space, theta)["conv.bias"][:, 0] = 1
        with pytest.raises(ValueError, match="cannot be moved into biases"):
            Geometric(space).encode(theta)
        named(space, theta)["conv.bias"][:, 0] = 0
        same(space, theta)

    def test_a_stream_that_only_later_layers_feed_is_refused(self):
        space = build("stream")
        theta = draw(space)
        named(space, theta)["stem.weight"][:, 1] = 0
        with pytest.raises(ValueError, match=r"group 'hidden1', neuron 1 .* only 'down.weight' enters, later"):
            Geometric(space).encode(theta)


class TestNorms:
    @pytest.mark.parametrize("name", ["conv1.weight", "conv2.weight"])
    def test_a_zero_filter_before_batch_norm(self, name):
        space = build("cnn_batch_norm")
        theta = draw(space)
        named(space, theta)[name][:, 2] = 0
        same(space, theta)

    def test_a_dead_filter_has_one_form_whatever_its_statistics(self):
        space = build("cnn_batch_norm")
        theta = draw(space)
        named(space, theta)["conv1.weight"][:, 2] = 0
        scales = [s.double() for s in random_scales(space, len(theta), torch.Generator().manual_seed(2))]
        torch.testing.assert_close(
            Geometric(space).encode(space.rescale(theta, scales)), Geometric(space).encode(theta)
        )

    @pytest.mark.parametrize("name", ["conv1.weight", "conv2.weight"])
    def test_a_zero_filter_with_statistics_recomputed(self, name):
        space = build("cnn_batch_norm", 1e-12)
        geometry, images = Geometric(space), torch.randn(20, 3, 8, 8).double()
        theta = draw(space)[:, : space.dim]
        named(space, theta)[name][:, 2] = 0
        decoded = geometry.decode(geometry.encode(theta))
        before, after = batch_statistics(space, theta, images), batch_statistics(space, decoded, images)
        assert change(space, before, after) < 1e-8

    def test_huge_filters_with_small_variances_stay_finite(self):
        space = build("cnn_batch_norm")
        theta = draw(space).float()
        named(space, theta)["conv1.weight"].mul_(1e6)
        named(space, theta)["norm1.running_var"].zero_()
        geometry = Geometric(space)
        decoded = geometry.decode(geometry.encode(theta))
        assert (named(space, decoded)["norm1.running_var"] < 0).all()
        assert outputs(space, decoded).isfinite().all()
        assert change(space, theta.double(), geometry.decode(geometry.encode(theta.double()))) < 1e-3

    def test_a_zero_weight_and_bias_of_a_norm(self):
        space = build("cnn_batch_norm")
        theta = draw(space)
        for kind in ("weight", "bias"):
            named(space, theta)[f"norm1.{kind}"][:, 2] = 0
        x = same(space, theta)
        torch.testing.assert_close(
            named(space, x[:, : space.dim])["norm1.weight"][:, 2], torch.full((3,), 0.5**0.5).double()
        )
        assert (named(space, x[:, : space.dim])["conv2.weight"][:, :, 2] == 0).all()

    def test_a_filter_and_its_norm_both_dead(self):
        space = build("cnn_batch_norm")
        theta = draw(space)
        for key in ("conv1.weight", "norm1.weight", "norm1.bias"):
            named(space, theta)[key][:, 2] = 0
        named(space, theta)["norm1.running_mean"][:, 2] = 0
        same(space, theta)

    def test_a_dead_filter_that_makes_its_norm_dead(self):
        """The norm's weight becomes zero only as the filter's constant is moved, and its bias is zero already."""
        space = build("cnn_batch_norm")
        theta = draw(space)
        for key in ("conv1.weight", "norm1.bias", "norm1.running_mean"):
            named(space, theta)[key][:, 2] = 0
        x = same(space, theta)
        assert (named(space, x[:, : space.dim])["conv2.weight"][:, :, 2] == 0).all()

    def test_a_constant_that_makes_an_earlier_circle(self):
        """In a residual network the last norm of a branch is part of a sphere that was met before its filter."""
        space = build("resnet_two_blocks")
        theta = draw(space)
        tensors = named(space, theta)
        for name in [name for name in space.names if name.endswith("conv2.weight")]:
            tensors[name][:, 1] = 0
        same(space, theta)

    def test_pruned_channels_of_a_mobile_network(self):
        space = build("mobile")
        theta = draw(space)
        for name in ("0.weight", "3.weight", "6.weight"):
            named(space, theta)[name][:, 1] *= 1e-200
        same(space, theta)

    def test_channels_that_several_norms_read(self):
        space = space_of(Dense(), 3, 8, 8)
        theta = draw(space)
        named(space, theta)["stem.weight"][:, 1] = 0
        named(space, theta)["stem.bias"][:, 1] = 0
        same(space, theta)

    def test_a_bias_between_a_dead_filter_and_its_norm(self):
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
        space = space_of(pooled(*layers, width=4), 3, 8, 8)
        theta = draw(space)
        named(space, theta)["0.weight"][:, 1] = 0
        named(space, theta)["0.bias"][:, 1] = -1
        same(space, theta)
        layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)]
        with pytest.raises(ValueError, match="second activation"):
            Geometric(space_of(pooled(*layers, width=4), 3, 8, 8)).encode(theta)

    def test_a_norm_that_divides_by_zero_is_refused(self):
        space = build("layer_norm_no_eps")
        theta = draw(space)
        named(space, theta)["0.weight"].zero_()
        with pytest.raises(
            ValueError, match=r"'hidden1', part 0 of network 0.*all weights that share a factor are zero"
        ):
            Geometric(space).encode(theta)

    def test_batch_norm_without_weights_cannot_hold_a_constant(self):
        layers = [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False), nn.ReLU()]
        space = space_of(pooled(*layers, width=4), 3, 8, 8)
        theta = draw(space)
        same(space, theta)
        named(space, theta)["0.weight"][:, 1] = 0
        with pytest.raises(ValueError, match=r"'1.running_mean' has no weight and bias"):
            Geometric(space).encode(theta)
