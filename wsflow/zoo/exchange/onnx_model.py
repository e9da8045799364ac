"""A network as an ONNX model, with a free batch axis and its tensors under their own names.

Tracing a network takes seconds, and all networks of a space differ in numbers alone: the last space's model is kept,
and its tensors are replaced.
"""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch
from torch import Tensor

from wsflow.weightspace import WeightSpace
from wsflow.zoo.shards import ZooError

_models: weakref.WeakKeyDictionary[torch.nn.Module, Any] = weakref.WeakKeyDictionary()
"""By a space's template: its model, whose numbers are those of the network written last."""


def onnx_bytes(space: WeightSpace, theta: Tensor) -> bytes:
    """A network (D + D_b,) as an ONNX file: ``input`` (N, ...) to ``output`` (N, C), float32.

    Raises:
        ZooError: where the packages are not installed, the shape of the inputs is not known, or the network has no
            form in ONNX.
    """
    module = space.to_module(theta.detach().cpu().float())
    if space.template not in _models:
        _models[space.template] = _trace(module, space.input_shape)
    model = _models[space.template]
    state = module.state_dict()
    for tensor in model.graph.initializer:
        if tensor.name in state:
            tensor.ClearField("float_data")
            tensor.raw_data = state[tensor.name].numpy().tobytes()
    content: bytes = model.SerializeToString()
    return content


def _trace(module: torch.nn.Module, shape: tuple[int, ...] | None) -> Any:
    """The model of a network; every parameter stands in it under its own name."""
    try:
        import onnx  # noqa: F401  (torch's exporter needs both)
        import onnxscript  # noqa: F401
    except ImportError:
        raise ZooError("writing ONNX needs the packages onnx and onnxscript: pip install 'wsflow[onnx]'") from None
    if shape is None:
        raise ZooError("the shape of the network's inputs is not known; describe the network with an input_shape")
    model = _exported(module, shape)
    for node in model.graph.node:
        del node.metadata_props[:]  # where on this machine the network's code lies
    kept = {tensor.name for tensor in model.graph.initializer}
    folded = [name for name, _ in module.named_parameters() if name not in kept]
    if folded:
        raise ZooError(f"torch's ONNX exporter does not keep tensor {folded[0]!r} under its name")
    return model


def _exported(module: torch.nn.Module, shape: tuple[int, ...]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, of its internals
            program = torch.onnx.export(
                module,
                (torch.zeros(2, *shape),),
                dynamo=True,
                verbose=False,
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                optimize=False,
            )
            return program.model_proto  # type: ignore[union-attr]
    except Exception as error:  # the exporter raises errors of many kinds
        raise ZooError(f"torch cannot write this network as ONNX: {type(error).__name__}: {error}") from None
