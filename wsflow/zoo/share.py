"""Which shards of a zoo this process collects.

Process i of n collects the shards whose number is i modulo n.  The share is given as ``i/n`` or read from what
torchrun (``RANK``, ``WORLD_SIZE``) or SLURM (``SLURM_PROCID``, ``SLURM_NTASKS`` and the variables of job arrays) set;
the tasks of a job array multiply its processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping


def parse_share(text: str) -> tuple[int, int]:
    """``"2/8"`` as (2, 8).

    Raises:
        ValueError: unless it is ``i/n`` with 0 <= i < n.
    """
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise ValueError(f"a share is 'i/n' with 0 <= i < n, such as 0/4; got {text!r}")
    return int(first), int(second)


def share_from_environment(environment: Mapping[str, str] | None = None) -> tuple[int, int]:
    """This process's share by the variables of torchrun or SLURM; (0, 1) without them.

    Raises:
        ValueError: where the variables contradict each other.
    """
    env = os.environ if environment is None else environment
    rank, world = _pair(env, "RANK", "WORLD_SIZE") or _pair(env, "SLURM_PROCID", "SLURM_NTASKS") or (0, 1)
    task, tasks = _pair(env, "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT") or (0, 1)
    if tasks > 1:
        task -= int(env.get("SLURM_ARRAY_TASK_MIN", 0))
        task //= int(env.get("SLURM_ARRAY_TASK_STEP", 1))
    index, count = task * world + rank, tasks * world
    if not 0 <= rank < world or not 0 <= index < count:
        raise ValueError(f"process {index} of {count}, as the environment says, does not exist; give --shard i/n")
    return index, count


def _pair(env: Mapping[str, str], index: str, count: str) -> tuple[int, int] | None:
    return (int(env[index]), int(env[count])) if index in env and count in env else None
