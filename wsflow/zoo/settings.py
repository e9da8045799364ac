"""Which settings made a zoo, and which of them must agree.

Every setting stands in ``settings.json`` and in the manifest, but not all of them say what the zoo is:

- ``shard_runs`` and ``memory`` cut the runs into files and into chunks that train together.  Starts and data orders do
  not depend on the cut, and weights only to rounding: a zoo of another cut is as good (``MAY_DIFFER``).
- To *go on* with a collection, ``shard_runs`` must be what it was, since finished files hold runs by it.  ``memory``
  may change, so that a collection that ran out of memory can go on with less (``MAY_CHANGE``).

The device is not recorded.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from wsflow.zoo.shards import ZooError

MAY_CHANGE = frozenset({"collector.init_args.memory"})
"""Settings that may change while a zoo is collected."""

MAY_DIFFER = MAY_CHANGE | {"collector.init_args.shard_runs"}
"""Settings that do not change what a finished zoo is."""


def refuse_other_settings(
    path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], ignore: Collection[str] = ()
) -> None:
    """Refuse a zoo that was collected with other settings.

    Args:
        path: The zoo's directory.
        found: Its settings, as read from JSON.
        wanted: The settings it should have.
        ignore: Dotted names of settings that may differ.

    Raises:
        ZooError: where others differ; the message names the first.
    """
    differences = _differences(found, json.loads(json.dumps(wanted)))
    for name, (there, here) in differences.items():
        if name not in ignore:
            raise ZooError(f"{path} holds a zoo of other settings: {name} is {there} there and {here} here")


def _differences(found: Any, wanted: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    """What differs, by dotted name: what was found and what was wanted."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        parts = [
            _differences(found.get(key), wanted.get(key), f"{name}.{key}".strip("."))
            for key in sorted(found.keys() | wanted.keys())
        ]
        return {key: pair for part in parts for key, pair in part.items()}
    return {} if found == wanted else {name: (found, wanted)}
