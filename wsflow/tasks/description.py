"""Objects as plain data, for manifests and cache keys.

An object is described by ``{"class_path": ..., "init_args": ...}``.  The init arguments are read from attributes of
the same name, so a class that is to be described keeps each init argument under its name.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterable, Mapping
from typing import Any


def describe(thing: object, leave_out: Iterable[str] = ()) -> dict[str, Any]:
    """Class path and init arguments of an object, as plain data that JSON can hold.

    Args:
        thing: The object; each of its init arguments must be an attribute of the same name.
        leave_out: Names of init arguments that are not part of what the object is, such as where files lie.

    Raises:
        ValueError: where an init argument is not kept as an attribute.
    """
    cls = type(thing)
    args: dict[str, Any] = {}
    for name in _arguments(cls):
        if name in leave_out:
            continue
        if not hasattr(thing, name):
            raise ValueError(f"{cls.__qualname__} must keep its init argument {name!r} as an attribute of that name")
        args[name] = _plain(getattr(thing, name))
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": args}


def build(description: Mapping[str, Any]) -> Any:
    """The object that a description names; nested descriptions are built too.

    Raises:
        ValueError: where the class cannot be imported or refuses its arguments.
    """
    path = str(description.get("class_path", ""))
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path!r} cannot be imported: {error}") from error
    args = {key: _rebuild(value) for key, value in (description.get("init_args") or {}).items()}
    try:
        return cls(**args)
    except TypeError as error:
        raise ValueError(f"{path} does not take the arguments {args}: {error}") from error


def _arguments(cls: type) -> list[str]:
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return describe(value)


def _rebuild(value: Any) -> Any:
    return build(value) if isinstance(value, Mapping) and set(value) == {"class_path", "init_args"} else value
