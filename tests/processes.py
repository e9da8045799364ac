"""The command line in processes of its own: started by hand, by torchrun, or as srun would."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
LIMIT = 240
"""Seconds that a command may take on a busy machine."""

WSFLOW = ["-m", "wsflow"]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", "wsflow"]

TROUBLE = """
import os
import signal
import time

import torch
from lightning.pytorch import Callback


class Trouble(Callback):
    def __init__(self, how: str = "SIGKILL", step: int = 7, rank: int = 0) -> None:
        self.how, self.step, self.rank = how, step, rank

    def _mine(self, trainer) -> bool:
        return not trainer.sanity_checking and trainer.global_step == self.step and trainer.global_rank == self.rank

    def on_train_batch_end(self, trainer, *args, **kwargs) -> None:
        if not self._mine(trainer) or self.how == "diverge":
            return
        print(f"trouble at {time.time()}", flush=True)
        if self.how == "raise":
            raise ValueError("a callback is broken")
        os.kill(os.getpid(), getattr(signal, self.how))

    def on_validation_epoch_end(self, trainer, module) -> None:
        if self._mine(trainer) and self.how == "diverge":
            print(f"trouble at {time.time()}", flush=True)
            for parameter in module.parameters():
                torch.nn.init.constant_(parameter, float("nan"))
"""
"""A callback that gets one process into trouble: by a signal, an error, or weights that are not finite."""


def start(
    arguments: list[str], run: list[str] = WSFLOW, path: Path | None = None, **variables: str
) -> subprocess.Popen:
    """A command in a process of its own; ``path`` holds modules to find, and variables go to its environment."""
    places = [str(path)] if path is not None else []
    given = {name: value for name, value in os.environ.items() if name not in LAUNCHERS and "SLURM" not in name}
    environment = given | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*places, *sys.path])} | variables
    command = [sys.executable, *run, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Exit status and output; a process that hangs is killed, and fails the test."""
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output


def wsflow(arguments: list[str], run: list[str] = WSFLOW, **more: str) -> str:
    """Run a command that must succeed; its output."""
    status, output = finish(start(arguments, run, **more))
    assert status == 0, output
    return output


def slurm(rank: int, port: int, world: int = 2, nodes: int = 1, **more: str) -> dict[str, str]:
    """The variables that srun sets for one of its processes."""
    tasks = world // nodes
    values = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "flow",
        "SLURM_NTASKS": world,
        "SLURM_NTASKS_PER_NODE": tasks,
        "SLURM_NNODES": nodes,
        "SLURM_PROCID": rank,
        "SLURM_STEP_ID": 0,
        "SLURM_LOCALID": rank % tasks,
        "SLURM_NODEID": rank // tasks,
        "SLURM_NODELIST": "localhost",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return {name: str(value) for name, value in values.items()} | more


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def weights(run: Path) -> Tensor:
    """All weights of the last checkpoint of a run, one vector."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return torch.cat([state[name].double().flatten() for name in sorted(state)])


def logged(run: Path, but: str = "train/") -> dict[tuple[int, str], float]:
    """What a run logged, by step and name, over all its starts; ``but`` begins the names that are left out."""
    found: dict[tuple[int, str], float] = {}
    for file in sorted((run / "logs" / "csv").glob("*/metrics.csv")):
        for row in csv.DictReader(file.read_text().splitlines()):
            names = [name for name in row if row[name] and name not in ("step", "epoch") and not name.startswith(but)]
            found |= {(int(row["step"]), name): float(row[name]) for name in names}
    return found
