r"""Running statistics of batch norm, recomputed for weights that never ran in training.

A generated, averaged or merged network has no running statistics of its own.  One pass of some inputs (train images;
never those it is judged on) gives them: batch norm normalises by the moments of the pass itself, and

.. math:: m = \frac{1}{n} \sum_i x_i, \qquad v = \frac{1}{n - 1} \sum_i (x_i - m)^2

over all inputs and positions of a channel are what torch would record with ``momentum=None`` (Jordan et al. 2023 show
that merged networks need this; a layer that is called several times has the mean of its calls' moments).  Exactly as
torch does, the pass itself divides by the biased variance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from wsflow.weightspace.one_by_one import each, one_by_one

if TYPE_CHECKING:
    from wsflow.weightspace.space import WeightSpace

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def without_statistics(module: nn.Module, only: Collection[str] | None = None) -> nn.Module:
    """A copy whose batch norms normalise by the moments of each batch, and record nothing.

    Args:
        module: The network.
        only: Names of running statistics; layers with others keep these.  All layers unless given.
    """
    module = copy.deepcopy(module)
    for name, layer in module.named_modules():
        if isinstance(layer, NORMS) and (only is None or _key(name, "running_mean") in only):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return module


class Standardise(nn.Module):
    """Batch norm in evaluation, written out; torch's own has no derivative by its statistics.

    Args:
        norm: The layer, whose tensors this one has under the same names.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: BatchNorm) -> None:
        super().__init__()
        self.eps, self.weight, self.bias = norm.eps, norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)

    def forward(self, x: Tensor) -> Tensor:
        """Standardised channels (N, C, ...)."""
        shape = (1, -1, *(1,) * (x.ndim - 2))
        scale = (self.running_var + self.eps).rsqrt()
        y: Tensor = (x - self.running_mean.view(shape)) * scale.view(shape)
        return y if self.weight is None else torch.addcmul(self.bias.view(shape), y, self.weight.view(shape))


def with_differentiable_statistics(module: nn.Module) -> nn.Module:
    """A copy whose batch norms have derivatives by their running statistics."""
    module = copy.deepcopy(module)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, NORMS) and layer.running_mean is not None:
            if not name:
                return Standardise(layer)
            module.set_submodule(name, Standardise(layer))
    return module


def batch_statistics(space: WeightSpace, theta: Tensor, inputs: Tensor) -> Tensor:
    """Extend networks by running statistics recomputed on some inputs.

    Args:
        space: Their weight space.
        theta: (B, D), or extended; old statistics are dropped.
        inputs: (N, ...), shared by all networks; train data.

    Returns:
        (B, D + D_b); ``theta`` itself for a space without batch norm.

    Raises:
        ValueError: where the weights do not fit the space.
    """
    space.check(theta)
    theta = theta[..., : space.dim]
    if not space.buffers:
        return theta
    template = without_statistics(space.template, {tensor.name for tensor in space.buffer_tensors})
    seen: dict[str, list[Tensor]] = {}
    for name, layer in template.named_modules():
        if isinstance(layer, NORMS):
            layer.register_forward_pre_hook(_recorder(name, seen))
    frozen = fixed_tensors(template, theta, space.names)
    images = inputs.to(theta) if inputs.is_floating_point() else inputs.to(theta.device)

    def single(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.clear()
        functional_call(template, {**frozen, **weights}, (images,))
        return {name: torch.stack(moments).mean(0) for name, moments in seen.items()}

    names = [tensor.name for tensor in space.buffer_tensors]
    with plain_attention(template):
        if one_by_one(template, len(inputs), space.names):
            rows = [single(weights) for weights in each(space.unflatten(theta))]
            return torch.cat([theta, torch.stack([torch.cat([row[name] for name in names]) for row in rows])], dim=1)
        found = torch.vmap(single)(space.unflatten(theta))
    return torch.cat([theta, *(found[name] for name in names)], dim=1)


def fixed_tensors(template: nn.Module, theta: Tensor, given: Collection[str]) -> dict[str, Tensor]:
    """Parameters and buffers of the template that are not given, each once, as ``theta`` has its numbers."""
    return {
        name: value.to(theta) if value.is_floating_point() else value.to(theta.device)
        for name, value in (*template.named_parameters(), *template.named_buffers())
        if name not in given
    }


@contextmanager
def plain_attention(module: nn.Module) -> Iterator[None]:
    """Attention, if a network has any, without the fused kernels that vmap could only run network after network."""
    if not any(isinstance(layer, nn.MultiheadAttention) for layer in module.modules()):
        yield
        return
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _key(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name


def _recorder(layer: str, seen: dict[str, list[Tensor]]) -> Callable[[nn.Module, tuple[Tensor]], None]:
    def record(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
        seen.setdefault(_key(layer, "running_mean"), []).append(inputs[0].mean(axes))
        seen.setdefault(_key(layer, "running_var"), []).append(inputs[0].var(axes))

    return record
