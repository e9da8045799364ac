r"""Activations of hidden groups, as the layers that read them see them.

The neurons of a group are read by linear layers and convolutions; what these are given is taken down on the way, and
counted as (size, M): M values for each neuron, over data points and positions.  A group with several readers, such as a
residual stream, has the values of all of them side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod

from torch import Tensor, nn
from torch.func import functional_call

from wsflow.weightspace import WeightBlock, WeightSpace

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Features = dict[str, list[Tensor]]
"""Values (size, M) by name of the group, one tensor per reader."""


class Readers:
    """The layers of a space's template that read its hidden groups.

    Args:
        space: The weight space.

    Raises:
        ValueError: for a group that no linear layer or convolution reads.
    """

    def __init__(self, space: WeightSpace) -> None:
        self.space = space
        self.modules = dict(space.template.named_modules())
        self.blocks = [block for block in space.blocks if self._readable(block)]
        for group in space.hidden:
            if all(block.source != group.name for block in self.blocks):
                raise ValueError(
                    f"the activations of group {group.name!r} cannot be observed: no Linear or convolution reads them"
                )

    def _readable(self, block: WeightBlock) -> bool:
        hidden = self.space.group(block.source).role == "hidden"
        return hidden and isinstance(self.modules.get(_path(block)), (nn.Linear, *CONVOLUTIONS))

    def features(self, weights: Mapping[str, Tensor], inputs: Tensor) -> Features:
        """Activations of one network with all its tensors given; may be mapped over networks by ``torch.vmap``.

        Raises:
            ValueError: for a group whose readers are never called.
        """
        with self._recording() as found:
            functional_call(self.space.template, dict(weights), (inputs,))
        for group in self.space.hidden:
            if group.name not in found:
                raise ValueError(
                    f"the activations of group {group.name!r} cannot be observed: no layer that reads them is called "
                    "as a module"
                )
        return found

    @contextmanager
    def _recording(self) -> Iterator[Features]:
        found: Features = {}
        hooks = [self.modules[_path(b)].register_forward_pre_hook(self._recorder(b, found)) for b in self.blocks]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    def _recorder(self, block: WeightBlock, found: Features) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found.setdefault(block.source, []).append(_values(block, module, args[0]))

        return record


def _values(block: WeightBlock, module: nn.Module, x: Tensor) -> Tensor:
    """What a layer reads of a block's source, (size, M)."""
    axis = 1 if isinstance(module, CONVOLUTIONS) else x.ndim - 1
    positions = prod(block.shape[2:])
    width = block.in_ * (block.depth // positions)
    channels = x.narrow(axis, block.column // positions, width).movedim(axis, 0)
    return channels.reshape(block.in_, -1)


def _path(block: WeightBlock) -> str:
    return block.name.rpartition(".")[0]
