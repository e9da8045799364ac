"""A network as a graph of operations, and the walk through it.

torch.fx writes the network down; the walk runs the graph once on an example and asks for every operation that touches
labelled activations or parameters which rule says what comes out of it.  Three things are watched for all rules at
once, so that none can be silently wrong: a value computed from labelled ones or from parameters must have a mark, its
channel axis must be as long as its label says, and an operation that writes into its argument changes the mark of every
name of that value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from wsflow.weightspace import layers, operations
from wsflow.weightspace.calls import Call, Mark, Param
from wsflow.weightspace.labels import Label, UnsupportedModuleError

if TYPE_CHECKING:
    from wsflow.weightspace.trace import Tracing


def walk(tracing: Tracing, module: nn.Module, example: Tensor) -> None:
    """Label every activation.

    Args:
        tracing: Where the rules leave what they find.
        module: The network, in eval mode.
        example: (N, ...), one batch of inputs.

    Raises:
        UnsupportedModuleError: where an operation is not known, with its node and the reason.
        ValueError: where the network cannot be run on the example.
    """
    graph = _graph(module)
    inputs = [node.name for node in graph.graph.nodes if node.op == "placeholder" and not node.args]
    if len(inputs) > 1:
        raise UnsupportedModuleError(f"{type(module).__name__} has inputs {inputs}; only one tensor is supported")
    with torch.no_grad():
        _Labeller(graph, tracing).run(example)


class _Labeller(fx.Interpreter):
    """Runs the graph on real values and keeps a mark for every node."""

    def __init__(self, graph: fx.GraphModule, tracing: Tracing) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self.tracing = tracing
        self.marks: dict[fx.Node, Mark] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value; its mark is kept on the side."""
        try:
            result = super().run_node(n)
        except Exception as error:
            raise ValueError(f"{self._where(n)}: the network does not run on the example_input: {error}") from error
        try:
            self.marks[n] = self._mark(n, result)
            self._written(n, result)
        except UnsupportedModuleError as error:
            raise UnsupportedModuleError(f"{self._where(n)}: {error}") from error
        return result

    def _where(self, n: fx.Node) -> str:
        if n.op == "call_module":
            return f"node {n.name!r} (module {n.target!r}, {type(self.fetch_attr(str(n.target))).__name__})"
        return f"node {n.name!r} ({operations.name_of(n)})"

    def _mark(self, n: fx.Node, result: Any) -> Mark:
        if n.op == "get_attr":
            value = self.fetch_attr(str(n.target))
            return self.tracing.param(value) if isinstance(value, nn.Parameter) else None
        if n.op == "placeholder":
            return None
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        marks, named = (self._marks_of(given) for given in (n.args, n.kwargs))
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        call = Call(self.tracing, module, n.name, args, kwargs, marks, named, result)
        if n.op == "output":
            operations.output(call)
            return None
        known = any(isinstance(mark, Label | Param) for mark in call.flat_marks())
        if module is None and not known:
            return None
        mark = (rule_for(module) if module is not None else operations.rule_of(n))(call)
        _sound(mark, result, known and bool(n.users))
        return mark

    def _marks_of(self, given: Any) -> Any:
        return fx.node.map_arg(given, lambda node: self.marks[node])  # type: ignore[arg-type, return-value]

    def _written(self, n: fx.Node, result: Any) -> None:
        """Give all names of a value that was changed in place its new mark; refuse where a view of it lives on."""
        first = n.args[0] if n.args else None
        if not isinstance(first, fx.Node) or not isinstance(result, Tensor) or self.env[first] is not result:
            return
        if self.marks[n] == self.marks[first]:
            return
        dead = self.user_to_last_uses.get(n, [])
        for node, value in self.env.items():
            if value is result:
                self.marks[node] = self.marks[n]
            elif isinstance(value, Tensor) and node not in dead and _share(value, result):
                raise UnsupportedModuleError(f"changes in place what node {node.name!r} is a view of, or the reverse")


def _share(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _sound(mark: Mark, result: Any, known: bool) -> None:
    """Raise UnsupportedModuleError where what a rule says cannot be all there is to say about a value."""
    if mark is None and known and any(isinstance(value, Tensor) for value in _values(result)):
        raise UnsupportedModuleError("this use of activations or parameters is not supported")
    if not isinstance(mark, Label):
        return
    if isinstance(result, Tensor) and not (mark.axis < result.ndim and result.shape[mark.axis] == mark.length):
        raise UnsupportedModuleError(
            f"gives {tuple(result.shape)}, where axis {mark.axis} should hold {mark.length} neurons"
        )
    if isinstance(result, Tensor) and not result.is_floating_point():
        raise UnsupportedModuleError(f"gives numbers of type {result.dtype}")


def _values(result: Any) -> Iterator[Any]:
    if isinstance(result, list | tuple):
        for value in result:
            yield from _values(value)
    else:
        yield result


def rule_for(module: nn.Module) -> Callable[[Call], Mark]:
    """The rule of a layer, by its exact type.

    Raises:
        UnsupportedModuleError: where there is none.
    """
    rule = layers.MODULES.get(type(module)) or operations.MODULES.get(type(module))
    if rule is None:
        raise UnsupportedModuleError("this layer is not supported; docs/symmetries.md lists those that are")
    return rule


class _Tracer(fx.Tracer):
    """Treats the layers that have rules, and all others of torch.nn, as single operations."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            type(m) in layers.MODULES
            or type(m) in operations.MODULES
            or super().is_leaf_module(m, module_qualified_name)
        )


def _graph(module: nn.Module) -> fx.GraphModule:
    if type(module) in layers.MODULES or type(module) in operations.MODULES:
        module = nn.Sequential(module)
    try:
        return fx.GraphModule(module, _Tracer().trace(module))
    except Exception as error:
        raise UnsupportedModuleError(
            f"{type(module).__name__} cannot be written as a graph of operations: {_one_line(error)}; its forward pass "
            "must not depend on the values, the length or the type of its input"
        ) from error


def _one_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
