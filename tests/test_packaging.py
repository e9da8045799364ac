"""The package builds, installs and imports; its version and its public names are right."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import wsflow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_version(project: dict[str, object]) -> None:
    assert wsflow.__version__ == project["version"]
    assert f"## [{wsflow.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_load_is_found_on_demand_and_nothing_else() -> None:
    assert callable(wsflow.load)
    assert "load" in wsflow.__all__
    with pytest.raises(AttributeError, match="module 'wsflow' has no attribute 'lode'"):
        _ = wsflow.lode


def test_every_dependency_is_pinned_within_its_bounds(project: dict[str, object]) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for text in (*project["dependencies"], *project["optional-dependencies"]["dev"]):
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text
    assert not re.search(r"://|@", "\n".join(lines))


def test_the_command_is_installed() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="wsflow")
    assert callable(script.load())


@pytest.mark.slow
def test_wheel_and_sdist_build_install_and_import(tmp_path: Path) -> None:
    def run(*args: object, **kwargs: object) -> str:
        done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, check=False, **kwargs)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # Both from the sdist's own files: the sdist is built first, and the wheel from it.
    run("-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")

    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "wsflow").rglob("*.py")}
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert modules | {"wsflow/py.typed"} <= packed
    assert not any(name.startswith(("tests", "benchmarks")) for name in packed)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert modules | {"wsflow/py.typed", "LICENSE", "README.md", "pyproject.toml"} <= names

    code = "import wsflow, wsflow.cli, wsflow.zoo, wsflow.metrics; print(wsflow.__file__, wsflow.__version__)"
    for package in (wheel, sdist):
        target = tmp_path / package.suffix
        options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
        run("-m", "pip", "install", *options, "--target", target, package)
        # -P and the target first on the path: the installed copy, not this checkout.
        path, version = run(
            "-P", "-c", f"import sys; sys.path.insert(0, {str(target)!r}); {code}", cwd=tmp_path
        ).split()
        assert Path(path).is_relative_to(target)
        assert version == wsflow.__version__
