"""A run folder: ``checkpoints/``, logs, configs, samples, reports, and ``timing.json``.

Every command adds its seconds to ``timing.json``, and ``evaluate`` puts them in its report.  ``fit_before`` there are
those of the trainings, one after another, that gave the weights a training began with.
"""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn

from wsflow.files import held, write_whole

TIMING = "timing.json"


def run_folder(ckpt_path: str | Path) -> Path:
    """The run that a checkpoint belongs to."""
    folder = Path(ckpt_path).resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder


def run_loggers(root: str | Path) -> list[Logger]:
    """TensorBoard and CSV logs of one start, ``logs/<kind>/version_<k>`` in the run folder."""
    folder = Path(root, "logs")
    taken = [int(path.name[8:]) for path in folder.glob("*/version_*") if path.name[8:].isdecimal()]
    version = max(taken, default=-1) + 1
    return [TensorBoardLogger(folder, "tensorboard", version), CSVLogger(folder, "csv", version)]


def shown(path: str | Path) -> str:
    """A path as a user would type it: relative where it lies below the working directory."""
    path = Path(path).resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def read_timing(folder: str | Path) -> dict[str, float]:
    """Seconds by command; empty where nothing was recorded."""
    file = Path(folder) / TIMING
    try:
        found = json.loads(file.read_text()) if file.exists() else {}
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        rank_zero_warn(f"{file} is damaged: how long earlier commands took is not known", category=UserWarning)
        return {}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def record_timing(folder: str | Path, **seconds: float) -> None:
    """Write down how long commands took, beside what is already there; only warn where that cannot be written."""
    file = Path(folder) / TIMING
    try:
        with held(file):
            write_whole(file, json.dumps(read_timing(folder) | seconds, indent=2) + "\n")
    except OSError as error:
        rank_zero_warn(f"{file} cannot be written, times are not kept: {error}", category=UserWarning)
