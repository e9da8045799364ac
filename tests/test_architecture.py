"""Nobody imports upward: the rooms of wsflow and who may know whom."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import wsflow

ROOT = Path(wsflow.__file__).parent
MATHEMATICS = ["weightspace", "geometry", "alignment", "flow", "fields", "losses"]

# Ground floor first.  A room may import what stands beside it, and itself.
ROOMS: dict[str, set[str]] = {
    "weightspace": set(),
    "geometry": {"weightspace"},
    "alignment": {"weightspace", "description"},
    "flow": {"weightspace", "geometry", "alignment"},  # alignment: the permutation-aware coupling
    "fields": {"weightspace", "geometry"},
    "losses": {"weightspace", "geometry", "fields", "flow"},  # flow: the steps of a rollout
    "description": set(),
    "memory": set(),
    "files": set(),
    "tasks": {"weightspace", "description"},
    "zoo": {"weightspace", "alignment", "tasks", "description", "memory", "files"},
    "metrics": {"weightspace", "geometry", "alignment", "tasks"},
    "uses": {"weightspace", "tasks", "zoo", "files"},
    "schedule": set(),
    "optim": set(),
    "checkpoint": {"weightspace", "description"},
    "sampling": {*MATHEMATICS, "memory"},
    "likelihood": {*MATHEMATICS, "memory", "sampling"},
    "module": {*MATHEMATICS, "description", "schedule", "checkpoint", "sampling"},
    "callbacks": {*MATHEMATICS, "tasks", "zoo", "metrics", "module", "sampling", "description", "files"},
    "api": {*MATHEMATICS, "tasks", "zoo", "metrics", "module", "callbacks", "description", "likelihood"},
    "bayes": {"weightspace", "tasks"},
    "posteriors": {"weightspace", "tasks", "bayes", "zoo", "fields", "flow", "api"},  # a flow is one of them
    "report": {
        *MATHEMATICS,
        "tasks",
        "zoo",
        "metrics",
        "bayes",
        "uses",
        "callbacks",
        "api",
        "description",
        "files",
    },
    "commands": {
        *MATHEMATICS,
        "bayes",
        "posteriors",
        "tasks",
        "zoo",
        "metrics",
        "uses",
        "report",
        "memory",
        "sampling",
        "module",
        "callbacks",
        "api",
        "description",
        "checkpoint",
        "files",
    },
    "cli": {
        *MATHEMATICS,
        "tasks",
        "zoo",
        "metrics",
        "files",
        "memory",
        "module",
        "callbacks",
        "api",
        "description",
        "schedule",
        "optim",
        "checkpoint",
        "posteriors",
        "commands",
    },
    "__main__": {"cli"},
    "__init__": {"api"},
}

FILES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    """The folder below wsflow that holds the file, or the file's own name."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(source: str) -> Iterator[str]:
    """Rooms of wsflow that a module imports, anywhere in it; type checking counts."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "wsflow":
            names = [f"wsflow.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        else:
            continue
        for name in names:
            assert not name.startswith("."), "imports are absolute"
            if name.split(".")[0] == "wsflow":
                yield (*name.split("."), "__init__")[1]


def imported_packages(source: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(source)))
    modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in modules}


def test_the_reader_of_imports_sees_all_forms() -> None:
    source = "import wsflow.flow.path\nfrom wsflow import zoo\ndef f():\n    from wsflow.tasks.base import BaseTask\n"
    assert set(imported_rooms(source + "import wsflow\nfrom torch import nn\n")) == {"flow", "zoo", "tasks", "__init__"}
    assert imported_packages("import lightning.pytorch as pl\nfrom torch import nn") == {"lightning", "torch"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    room = room_of(path)
    assert room in ROOMS, f"{path.name} is in no room; add it to the table with what it may import"
    allowed = ROOMS[room] | {room}
    forbidden = {name for name in imported_rooms(path.read_text()) if name not in allowed and name != "__version__"}
    assert not forbidden, f"{room} may import {sorted(allowed)}"


@pytest.mark.parametrize("room", MATHEMATICS)
def test_the_mathematics_names_no_lightning(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        assert not imported_packages(path.read_text()) & {"lightning", "pytorch_lightning"}, path


def test_the_mathematics_loads_no_lightning() -> None:
    rooms = ", ".join(f"wsflow.{room}" for room in MATHEMATICS)
    code = f"import sys, wsflow, {rooms}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert "torch" in loaded
    assert not loaded & {"lightning", "pytorch_lightning", "jsonargparse", "torchvision", "sklearn", "torch_geometric"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    assert path.name != "utils.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_pickled(path: Path) -> None:
    source = path.read_text()
    assert not imported_packages(source) & {"pickle", "dill", "cloudpickle", "joblib"}
    assert not re.search(r"weights_only\s*=\s*False", source)
