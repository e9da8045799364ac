r"""Neurons with a zero sphere put out constants, which are moved to where they act.

A zero vector has no nearest unit vector.  Let nothing enter a neuron but its bias b: it puts out the constant
:math:`y = \sigma(b)`, and three kinds of readers see it.

- *Weights* W: each layer that reads the neuron adds W y.  That moves into the layer's bias, and the weights that read
  the neuron become zero.
- *Batch norm* makes of it the constant :math:`c = \beta + \gamma (y - m) / \sqrt{v + \epsilon}`, or :math:`\beta` where
  running statistics are recomputed.  The norm's weight becomes 0 and its bias c, whatever enters (m and v become 0, 1).
- Other norms divide by zero there: refused.

After that nothing depends on the sphere, and any unit vector will do.  Where y = 0 (no bias, or ReLU and a negative
one) the first step is exact in every network, since all functions in between are homogeneous.  Another constant may
meet zero padding, a sum over positions or a second activation on its way: the result is compared with the original on
random inputs, and refused where it differs.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from wsflow.geometry.scaling import Normalisation
from wsflow.weightspace import GroupVector, WeightBlock, WeightSpace, batch_statistics

INPUTS = 16
"""Random inputs on which networks with moved constants are compared."""


class Constants:
    """Takes the constants that dead neurons put out to their readers.

    Args:
        space: The weight space.
    """

    def __init__(self, space: WeightSpace) -> None:
        self.space = space
        slopes = {m.negative_slope for m in space.template.modules() if isinstance(m, nn.LeakyReLU)}
        self._slopes = {"relu": 0.0, "identity": 1.0}
        if len(slopes) == 1:
            self._slopes["leaky_relu"] = slopes.pop()

    def move(self, theta: Tensor, step: Normalisation, dead: Tensor) -> tuple[Tensor, Tensor]:
        """Detach some neurons of one group from all their readers.

        Args:
            theta: (B, D) or extended.
            step: The rescaling.
            dead: (B, size), neurons whose sphere is zero.

        Returns:
            Networks that compute the same functions, and which of them had a constant that is not zero (B,).

        Raises:
            ValueError: where a constant cannot be moved.
        """
        given, theta = theta, theta.clone()
        self._refuse_others(given, step, dead)
        norms = [v for v in self.space.buffers if v.scale == step.rescaling.name and v.kind == "running_mean"]
        bias = torch.where(dead, sum((b.view(given).sum(-1) for b in step.biases), given.new_zeros(dead.shape)), 0.0)
        value = bias if norms else self._output(step, bias)
        for vector in step.biases:
            _set(vector.view(theta), dead[..., None], 0.0)
        for mean in norms:
            self._through_norm(given, theta, step, mean, value, dead)
        readers: list[WeightBlock | GroupVector] = [*self.space.blocks, *self.space.vectors]
        readers = [piece for piece in readers if piece.source_scale == step.rescaling.name]
        if not (readers or norms):
            _refuse(step, dead, "what reads them divides by zero")
        for reader in readers:
            self._through_weights(given, theta, step, reader, value, dead)
        return theta, (value != 0).any(1)

    def verify(self, before: Tensor, after: Tensor) -> None:
        """Raise where the networks ``after`` (B, D), or extended, compute something else than ``before``.

        Raises:
            ValueError: with the number of such networks.
        """
        if self.space.input_shape is None:
            return
        if any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in self.space.template.modules()):
            raise ValueError(_ADVICE.format(f"{len(before)} networks have neurons without incoming weights"))
        tolerance = torch.finfo(before.dtype).eps ** 0.5
        with torch.no_grad():
            first, second = (self._outputs(theta.detach().double()) for theta in (before, after))
        size = torch.stack([y.flatten(1).abs().amax(1) for y in first]).amax(0)
        error = torch.stack([(a - b).flatten(1).abs().amax(1) for a, b in zip(first, second, strict=True)]).amax(0)
        wrong = ~(error <= tolerance * size.clamp_min(torch.finfo(before.dtype).tiny))
        if bool(wrong.any()):
            raise ValueError(
                _ADVICE.format(
                    f"{int(wrong.sum())} networks have neurons without incoming weights whose constant outputs cannot "
                    "be moved into biases (zero padding, a sum or a second activation lies in between)"
                )
            )

    def _outputs(self, theta: Tensor) -> list[Tensor]:
        """All outputs (B, N, ...) on random inputs."""
        shape = (INPUTS, *(self.space.input_shape or ()))
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(theta)
        if theta.shape[-1] == self.space.dim:
            theta = batch_statistics(self.space, theta, inputs)
        return list(_leaves(self.space.forward(theta, inputs)))

    def _refuse_others(self, theta: Tensor, step: Normalisation, dead: Tensor) -> None:
        """Only biases may enter beside the spheres."""
        if step.rescaling.size != step.count:
            _refuse(step, dead, "all weights that share a factor are zero")
        name, held = step.rescaling.name, (*step.pieces, *step.biases)
        later: list[WeightBlock | GroupVector] = [b for b in self.space.blocks if b.target_scale == name]
        later += [v for v in self.space.vectors if v.scale == name and v.kind != "slope"]
        for piece in later:
            if piece not in held:
                wrong = dead & (piece.view(theta).flatten(2) != 0).any(-1)
                if bool(wrong.any()):
                    _refuse(step, wrong, f"only {piece.name!r} enters, later in the network")

    def _output(self, step: Normalisation, bias: Tensor) -> Tensor:
        """What neurons put out for a bias: every positively homogeneous activation keeps a positive one."""
        activation = self.space.group(step.rescaling.group).activation
        slope = self._slopes.get(activation)
        if slope is None and bool((bias < 0).any()):
            _refuse(step, bias < 0, f"their output needs the slope of {activation}, not known")
        return bias.clamp_min(0) + (slope or 0.0) * bias.clamp_max(0)

    def _through_norm(
        self, given: Tensor, theta: Tensor, step: Normalisation, mean: GroupVector, value: Tensor, dead: Tensor
    ) -> None:
        """The weight of a batch norm becomes 0 and its bias what it made of the constant."""
        layer, where = mean.name.removesuffix("running_mean"), dead[..., None]
        here = {v.name: v for v in (*self.space.vectors, *self.space.buffers) if v.row == mean.row}
        if not {f"{layer}weight", f"{layer}bias"} <= here.keys():
            _refuse(step, dead, f"the batch norm of {mean.name!r} has no weight and bias to hold the constant")
        weight, bias, var = (here[f"{layer}{name}"] for name in ("weight", "bias", "running_var"))
        if theta.shape[-1] > self.space.dim:
            made = (value[..., None] - mean.view(given)) * (var.view(given) + var.eps).rsqrt() * weight.view(given)
            _set(bias.view(theta), where, bias.view(given) + made)
            _set(mean.view(theta), where, 0.0)
            _set(var.view(theta), where, 1.0)
        _set(weight.view(theta), where, 0.0)

    def _through_weights(
        self,
        given: Tensor,
        theta: Tensor,
        step: Normalisation,
        reader: WeightBlock | GroupVector,
        value: Tensor,
        dead: Tensor,
    ) -> None:
        """Weights that read the constant become zero and the bias behind them takes what they made of it."""
        weight = reader.view(given)
        if isinstance(reader, GroupVector):
            moved, columns = (value[..., None] * weight).sum(-1), dead[..., None]
        else:
            shape = (len(theta), reader.parts, 1, reader.fan_in, 1)
            parts = weight.reshape(len(theta), reader.parts, -1, *weight.shape[2:])
            moved = (parts * value.view(shape)).sum((-2, -1)).flatten(1)
            columns = dead.view(shape).expand_as(parts).flatten(1, 2)
        if bool((moved != 0).any()):
            receiver = self._receiver(reader)
            if receiver is None:
                _refuse(step, dead & (value != 0), f"{reader.name!r} has no bias to move it to")
            view = receiver.view(theta)
            view[...] = view + moved[..., None]
        _set(reader.view(theta), columns, 0.0)

    def _receiver(self, reader: WeightBlock | GroupVector) -> GroupVector | None:
        """The bias that is added to what a layer makes of a constant; None where there is none, or zeros are padded."""
        if not _keeps_constants(self.space, reader):
            return None
        group, scale = (
            (reader.group, reader.scale) if isinstance(reader, GroupVector) else (reader.target, reader.target_scale)
        )
        biases = [v for v in self.space.vectors if v.kind == "bias" and v.group == group and v.scale == scale]
        own = [v for v in biases if v.name == reader.name.removesuffix("weight") + "bias"]
        return next(iter(own or biases), None)


def _keeps_constants(space: WeightSpace, reader: WeightBlock | GroupVector) -> bool:
    """Whether a layer makes a constant of a constant at every position; with zero padding, it does not."""
    try:
        layer = space.template.get_submodule(reader.name.rpartition(".")[0])
    except AttributeError:
        layer = None
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return layer.padding_mode != "zeros" or layer.padding == "valid" or not any(map(bool, layer.padding))
    return len(reader.shape) == 2 or (isinstance(reader, WeightBlock) and reader.depth == 1)


def _set(view: Tensor, where: Tensor, value: Tensor | float) -> None:
    view[...] = torch.where(where, value, view)


_ADVICE = "{}: such networks have no canonical form; use the Euclidean geometry"


def _refuse(step: Normalisation, dead: Tensor, reason: str) -> NoReturn:
    network, neuron = (int(i) for i in dead.nonzero()[0])
    part = "neuron" if step.rescaling.size == step.count else "part"
    raise ValueError(
        _ADVICE.format(
            f"group {step.rescaling.group!r}, {part} {neuron} of network {network}: its incoming weights are zero, "
            f"and {reason}"
        )
    )


def _leaves(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [leaf for value in values for leaf in _leaves(value)]
