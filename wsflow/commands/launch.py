"""What torchrun and SLURM say of the processes that they started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lightning.fabric.plugins import CheckpointIO

from wsflow.callbacks import AtomicCheckpoints


def launched(environment: Mapping[str, str] | None = None) -> dict[str, int]:
    """``devices`` and ``num_nodes`` of a Trainer whose processes torchrun or srun started; empty elsewhere.

    Args:
        environment: The environment variables; the process's own by default.

    Raises:
        ValueError: in a job of SLURM of several tasks where srun did not start this process, which would wait for
            others, or where the tasks of a node are not given.
    """
    env = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" in env:
        devices = int(env["LOCAL_WORLD_SIZE"])
        return {"devices": devices, "num_nodes": int(env["WORLD_SIZE"]) // devices}
    if "SLURM_NTASKS" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        nodes = int(env.get("SLURM_NNODES", 1))
        if (tasks := int(env["SLURM_NTASKS"])) > 1:
            _check_step(env, tasks)
        return {"devices": max(1, tasks // nodes), "num_nodes": nodes}
    return {}


def _check_step(env: Mapping[str, str], tasks: int) -> None:
    if "SLURM_STEP_ID" not in env:
        raise ValueError(
            f"this job of SLURM has {tasks} tasks, and srun did not start this process: start it by "
            "'srun wsflow ...', or unset SLURM_NTASKS for one process"
        )
    if "SLURM_NTASKS_PER_NODE" not in env:
        raise ValueError(
            f"this job of SLURM has {tasks} tasks, and does not say how many a node has: give --ntasks-per-node"
        )


def restarted(environment: Mapping[str, str] | None = None) -> bool:
    """Whether SLURM has requeued this job, or torchrun restarted its processes.

    Args:
        environment: The environment variables; the process's own by default.
    """
    env = os.environ if environment is None else environment
    return any(int(env.get(name, 0)) > 0 for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))


def process_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a Trainer that follow from how its processes were started, and the writer of its checkpoints.

    Args:
        config: Arguments given by the user, which come first.
    """
    plugins = config.get("plugins") or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    own = [] if any(isinstance(plugin, CheckpointIO) for plugin in plugins) else [AtomicCheckpoints()]
    free = config.get("devices") == "auto" and config.get("num_nodes") == 1
    return {"plugins": [*plugins, *own], **(launched() if free else {})}
