"""The page on import and export does what it says: its blocks run, one after another, in one folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wsflow.zoo import Zoo

PAGE = Path(__file__).parents[2] / "docs" / "import.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

RUN = """
import shlex, sys
sys.path.insert(0, "")
from wsflow.cli import main

scope = {}
for kind, text in %r:
    if kind == "python":
        exec(text, scope)
        continue
    for line in text.splitlines():
        words = shlex.split(line.removeprefix("$ wsflow "))
        if main(words):
            sys.exit(line)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all blocks of the page ran."""
    path = tmp_path_factory.mktemp("page")
    blocks = [(kind, text) for kind, text in BLOCK.findall(PAGE.read_text()) if kind != "yaml"]
    assert all(kind in ("python", "console") for kind, _ in blocks)
    assert blocks[0][1].startswith("$ wsflow import trained --output zoos/mine")
    module = next(text for _, text in blocks if text.startswith("# my_network.py"))
    (path / "my_network.py").write_text(module)
    rest = [block for block in blocks[1:] if block[1] is not module]
    # A process of its own: the page's modules and folders are no other test's.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", RUN % rest]
    done = subprocess.run(command, cwd=path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def here(folder, monkeypatch):
    """The folder, from which its network can be imported."""
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "my_network", raising=False)
    return folder


def test_every_format_gives_the_same_networks(here):
    first = Zoo.open(here / "zoos/folder")
    assert (len(first), len(first.run_ids)) == (6, 3)
    assert first.metrics["test.accuracy"].tolist() == pytest.approx([0.9, 0.91, 0.92, 0.93, 0.94, 0.95])
    for name in ("table", "lightning", "hub", "stacks", "rows", "vectors", "again", "python"):
        zoo = Zoo.open(here / "zoos" / name)
        zoo.verify()
        assert torch.equal(zoo.theta, first.theta), name
    assert torch.equal(Zoo.open(here / "zoos/again").run, first.run)


def test_the_exported_files_are_there(here):
    assert sorted(path.name for path in (here / "three").iterdir()) == [
        "network-000000.pt",
        "network-000002.pt",
        "network-000005.pt",
        "networks.csv",
    ]
    assert (here / "model/network-000001.onnx").exists()
    assert (here / "third.safetensors").exists()


def test_the_pages_commands_are_shell_words():
    for kind, text in BLOCK.findall(PAGE.read_text()):
        if kind == "console":
            assert all(shlex.split(line)[:2] == ["$", "wsflow"] for line in text.splitlines())
