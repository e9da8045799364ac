"""Runs of the command line on zoos that take a second to collect."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wsflow.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"

SMALL = """
trainer:
  accelerator: cpu
  max_epochs: 2
  limit_val_batches: 1
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
model:
  field:
    class_path: RelationalTransformer
    init_args: {width: 8, edge_width: 4, depth: 1, heads: 2}
data:
  batch_size: 8
  passes: 1
  collector:
    class_path: Collector
    init_args: {runs: 40, epochs: 1, shard_runs: 40}
"""


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An overlay that makes any of the shipped configs small: 32 train networks, 4 batches an epoch."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="session")
def zoos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the zoos of the shipped configs are collected, each once a session."""
    return tmp_path_factory.mktemp("zoos")


@pytest.fixture
def command(small: Path, zoos: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Arguments that run a stage of a shipped config on a small zoo, with results in ``tmp_path / "run"``."""

    def arguments(stage: str, *extra: str, config: str = "breast_cancer", overlays: tuple[str, ...] = ()) -> list[str]:
        configs = [CONFIGS / f"{config}.yaml", *(CONFIGS / f"{name}.yaml" for name in overlays), small]
        files = [part for path in configs for part in ("-c", str(path))]
        place = ["--trainer.default_root_dir", str(tmp_path / "run"), "--data.path", str(zoos / config)]
        return [stage, *files, *place, *extra]

    return arguments


@pytest.fixture(scope="session")
def trained(small: Path, zoos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a flow on breast-cancer networks, trained once a session."""
    run = tmp_path_factory.mktemp("trained")
    config = ["-c", str(CONFIGS / "breast_cancer.yaml"), "-c", str(small)]
    place = ["--trainer.default_root_dir", str(run), "--data.path", str(zoos / "breast_cancer")]
    assert main(["fit", *config, *place]) == 0
    return run / "checkpoints" / "last.ckpt"


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Run a command that must fail; its one line on standard error."""

    def run(arguments: list[str]) -> str:
        capsys.readouterr()
        assert main(arguments) != 0
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("wsflow: error")]
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Path]:
    """A folder on the import path for modules of a user's own."""
    folder = tmp_path / "package"
    folder.mkdir()
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
