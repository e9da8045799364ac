"""Objects as plain data, for manifests, cache keys and checkpoints, and back.

An object is described by ``{"class_path": ..., "init_args": ...}``.  Its arguments are read from attributes of the same
name, so a class that is to be described keeps each of them under its name.  A class becomes ``{"class_path": ...}``, a
function its dotted path; a class with arguments is given as ``functools.partial(Class, argument=value)``, and arguments
that the class takes as ``**kwargs`` are then listed under ``"dict_kwargs"``, where the command line expects them.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import FunctionType
from typing import Any

import torch


class DescriptionError(ValueError):
    """Something that plain data cannot name, or plain data that names nothing."""


def describe(thing: object, leave_out: Iterable[str] = ()) -> dict[str, Any]:
    """Class path and init arguments of an object.

    Args:
        thing: The object; each of its init arguments must be an attribute of the same name.
        leave_out: Names of init arguments that are not part of what the object is, such as where files lie.

    Raises:
        DescriptionError: where an init argument is not kept as an attribute, or cannot be described.
    """
    if isinstance(thing, torch.Tensor):
        raise DescriptionError("tensors have no description")
    kind, args, skip = type(thing), dict[str, Any](), set(leave_out)
    for parameter in inspect.signature(kind).parameters.values():
        name = parameter.name
        if name in skip or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if not hasattr(thing, name):
            raise DescriptionError(
                f"{kind.__qualname__} must keep its init argument {name!r} as an attribute of that name"
            )
        args[name] = plain(getattr(thing, name))
    return {"class_path": path(kind), "init_args": args}


def plain(value: Any) -> Any:
    """Plain data, which JSON can hold, that rebuilds a value.

    Args:
        value: Plain data, an object for :func:`describe`, a class, a module-level function, or a partial of a class
            with keyword arguments.

    Raises:
        DescriptionError: for anything else, such as a lambda.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, type):
        return {"class_path": path(value)}
    if isinstance(value, partial):
        return _partial(value)
    if isinstance(value, FunctionType):
        return path(value)
    return describe(value)


def path(thing: type | Callable[..., Any]) -> str:
    """The dotted path of a class or function.

    Raises:
        DescriptionError: for a lambda, and a function or class defined inside a function.
    """
    if "<" in thing.__qualname__:
        raise DescriptionError(f"{thing.__qualname__} in {thing.__module__} cannot be imported by name")
    return f"{thing.__module__}.{thing.__qualname__}"


def named(class_path: str) -> Any:
    """What a dotted path names.

    Raises:
        DescriptionError: where it cannot be imported.
    """
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DescriptionError(f"{class_path!r} cannot be imported: {error}") from error


def build(description: Mapping[str, Any], *args: Any) -> Any:
    """The object that a description names; nested descriptions are built too.

    Args:
        description: As :func:`describe` gives it.
        *args: Further arguments, before the description's own.

    Raises:
        DescriptionError: where the class cannot be imported or does not take the arguments.
    """
    class_path = str(description.get("class_path", ""))
    kind = named(class_path)
    arguments = {**(description.get("init_args") or {}), **(description.get("dict_kwargs") or {})}
    given = {key: _rebuild(value) for key, value in arguments.items()}
    try:
        return kind(*args, **given)
    except TypeError as error:
        raise DescriptionError(f"{class_path} does not take the arguments {given}: {error}") from error


def _partial(value: partial[Any]) -> dict[str, Any]:
    if not isinstance(value.func, type) or value.args:
        raise DescriptionError(f"{value} is no partial of a class with keyword arguments alone")
    taken = inspect.signature(value.func).parameters
    args, others = ({k: v for k, v in value.keywords.items() if (k in taken) is own} for own in (True, False))
    described = {"class_path": path(value.func), "init_args": plain(args)}
    return described | ({"dict_kwargs": plain(others)} if others else {})


def _rebuild(value: Any) -> Any:
    if isinstance(value, list):
        return [_rebuild(item) for item in value]
    keys = set(value) - {"dict_kwargs"} if isinstance(value, Mapping) else set()
    return build(value) if keys == {"class_path", "init_args"} else value
