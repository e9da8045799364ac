"""What torchrun and SLURM say of the processes that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from wsflow.callbacks import AtomicCheckpoints
from wsflow.zoo.share import in_step


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
    if not in_step(env):
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


def resumed(root: Path, given: str | None) -> str | None:
    """The checkpoint that a training goes on from which SLURM or torchrun has started again.

    Args:
        root: Its run folder.
        given: What the command line says, where the training began; None for nothing.

    Returns:
        ``last`` where this training has saved itself since it began, ``given`` where it has not, and the best
        checkpoint where it was killed before it saved another.
    """
    saved, begun = sorted(root.glob("checkpoints/last*.ckpt")), root / "fit.yaml"
    best = root / "checkpoints" / "best.ckpt"
    if given in (None, "last"):
        return str(best) if best.is_file() and not saved else "last"
    newest = max((file.stat().st_mtime for file in saved), default=0.0)
    return "last" if begun.is_file() and newest > begun.stat().st_mtime else given


def several(config: Mapping[str, Any]) -> bool:
    """Whether a training starts processes itself, by the arguments of its Trainer."""
    devices, gpus = config.get("devices"), config.get("accelerator") in ("auto", "gpu", "cuda")
    if launched():
        return False
    if isinstance(devices, list):
        return len(devices) > 1
    text = str(devices)
    return int(text) > 1 if text.isdecimal() else gpus and torch.cuda.device_count() > 1


def run_apart(args: Sequence[str]) -> None:
    """Run a command in a process of its own; SIGTERM goes on to it.

    Args:
        args: What follows ``wsflow``.

    Raises:
        SystemExit: where it fails, with its status; it has said why.
    """
    process = subprocess.Popen([sys.executable, "-m", "wsflow", *args])
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        status = process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    if status:
        raise SystemExit(status if status > 0 else 128 - status)


def process_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a Trainer that follow from how its processes were started, and the writer of its checkpoints.

    Args:
        config: Arguments given by the user, which come first.

    Raises:
        ValueError: where torchrun or SLURM started another number of processes than is given.
    """
    plugins = config.get("plugins") or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    own = [] if any(isinstance(plugin, CheckpointIO) for plugin in plugins) else [AtomicCheckpoints()]
    devices, nodes = config.get("devices"), config.get("num_nodes")
    free = devices == "auto" and nodes == 1
    if not free:
        check_devices(devices, nodes)
    return {"plugins": [*plugins, *own], **(launched() if free else {})}


def check_devices(
    devices: int | str | list[int] | None, nodes: int | None = 1, name: str = "--trainer.devices"
) -> None:
    """Refuse a number of processes that is not the number of those that torchrun or SLURM started.

    Args:
        devices: Processes of a machine, or their devices; what names no number is passed over.
        nodes: Machines.
        name: The option that gives the number.

    Raises:
        ValueError: as said.
    """
    text = str(devices)
    count = len(devices) if isinstance(devices, list) else int(text) if text.isdecimal() else 0
    found = launched() if count else {}
    asked, started = count * (nodes or 1), found.get("devices", 0) * found.get("num_nodes", 1)
    if found and asked != started:
        raise ValueError(
            f"{name} asks for {asked} processes, and torchrun or SLURM started {started}: leave it out and have them "
            f"started (srun --ntasks-per-node={count}), or unset SLURM_NTASKS, so that wsflow starts its own"
        )
