"""A module's constructor arguments as plain data, so that its checkpoint can rebuild it.

The command line hands Lightning the configuration it parsed.  A module built in Python is described here instead, in
the same form: an object or a class becomes ``{"class_path", "init_args"}``, a function its dotted path.  An object's
arguments are read from attributes of the same name; classes with arguments are given as
``functools.partial(Class, argument=value)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType
from typing import Any

import torch


class DescriptionError(ValueError):
    """An argument that plain data cannot name."""


def describe(value: Any) -> Any:
    """Plain data that rebuilds a value.

    Args:
        value: Plain data, an object that keeps its constructor's arguments as attributes of the same names, a class,
            a module-level function, or a partial of a class with keyword arguments.

    Raises:
        DescriptionError: for anything else, such as a lambda.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, type):
        return {"class_path": path(value)}
    if isinstance(value, partial):
        return _partial(value)
    if isinstance(value, FunctionType):
        return path(value)
    return _object(value)


def path(thing: type | Callable[..., Any]) -> str:
    """The dotted path of a class or function that can be imported.

    Raises:
        DescriptionError: where it is defined inside a function, or has no name.
    """
    if "<" in thing.__qualname__:
        raise DescriptionError(f"{thing.__qualname__} in {thing.__module__} cannot be imported by name")
    return f"{thing.__module__}.{thing.__qualname__}"


def _partial(value: partial[Any]) -> dict[str, Any]:
    if not isinstance(value.func, type) or value.args:
        raise DescriptionError(f"{value} is no partial of a class with keyword arguments alone")
    return {"class_path": path(value.func), "init_args": describe(value.keywords)}


def _object(value: Any) -> dict[str, Any]:
    kind, args = type(value), {}
    if isinstance(value, torch.Tensor):
        raise DescriptionError("tensors have no description")
    if kind.__init__ is not object.__init__:
        for name in list(inspect.signature(kind.__init__).parameters)[1:]:
            if not hasattr(value, name):
                raise DescriptionError(f"{path(kind)} does not keep its argument {name!r} as an attribute")
            args[name] = describe(getattr(value, name))
    return {"class_path": path(kind), "init_args": args}
