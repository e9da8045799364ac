"""The image's recipe keeps its promises, and every command line for clusters is one that wsflow understands."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import wsflow
from wsflow.cli import main

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
PAGE = ROOT / "docs" / "cluster.md"
FILES = sorted(path for path in DOCKER.rglob("*") if path.is_file() and path.suffix in (".sh", ".yaml", ".py"))
SCRIPTS = [path for path in FILES if path.suffix == ".sh"]


def load(name: str) -> ModuleType:
    """A program of docker/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docker_{name}", DOCKER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prove, requirements = load("prove"), load("requirements")
STEPS = prove.instructions((ROOT / "Dockerfile").read_text())
STARTS = [number for number, (name, _) in enumerate(STEPS) if name == "FROM"]
IMAGE = STEPS[STARTS[-1] :]
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def only(name: str) -> str:
    """The arguments of an instruction that the image's stage has once."""
    (text,) = [text for instruction, text in IMAGE if instruction == name]
    return text


# The image.


def test_the_base_is_slim_and_pinned_and_has_the_python_of_the_constraints() -> None:
    assert re.fullmatch(r"BASE=python:3\.11\.\d+-slim-bookworm", STEPS[0][1])
    assert STEPS[0][0] == "ARG"
    assert "Python 3.11" in (ROOT / "constraints.txt").read_text().splitlines()[0]
    assert STEPS[STARTS[0]][1] == "${BASE} AS python"
    assert all(STEPS[start][1].startswith("python AS ") for start in STARTS[1:])


def test_the_image_runs_wsflow_as_a_user_who_is_not_root() -> None:
    assert json.loads(only("ENTRYPOINT")) == ["wsflow"]
    assert only("USER") == "${UID}:${GID}"  # numbers, which Kubernetes can tell from root
    assert {"UID=1000", "GID=1000"} <= {text for name, text in IMAGE if name == "ARG"}
    order = [name for name, _ in IMAGE]
    assert order.index("USER") > max(number for number, name in enumerate(order) if name in ("RUN", "COPY"))


def test_volumes_are_where_configs_and_data_are_looked_for() -> None:
    assert json.loads(only("VOLUME")) == ["/wsflow/data", "/wsflow/zoos", "/wsflow/runs"]
    assert only("WORKDIR") == "/wsflow"
    assert prove.assignments(only("ENV"))["WSFLOW_DATA"] == "/wsflow/data"


def test_labels_say_what_pyproject_says() -> None:
    labels = prove.assignments(only("LABEL"))
    assert labels["org.opencontainers.image.version"] == wsflow.__version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_dependencies_are_installed_before_anything_that_changes_with_the_source() -> None:
    before = IMAGE[: next(number for number, (_, text) in enumerate(IMAGE) if "--requirement" in text)]
    copied = [text for name, text in before if name == "COPY"]
    assert copied == ["constraints.txt /opt/wsflow/", "--from=requirements /build/run.txt /opt/wsflow/"]
    assert not [name for name, _ in before if name in ("ARG", "ENV")]


def test_every_installation_is_pinned_and_leaves_no_cache() -> None:
    installs = [text for name, text in STEPS if name == "RUN" and "pip install" in text]
    assert len(installs) == 3
    assert all("--constraint" in text or "--no-deps" in text for text in installs)
    assert "PIP_NO_CACHE_DIR=1" in STEPS[STARTS[0] + 1][1]


@pytest.mark.parametrize("copied", [text for name, text in STEPS if name == "COPY" and not text.startswith("--from")])
def test_what_is_copied_exists_and_reaches_the_builder(copied: str) -> None:
    for source in copied.split()[:-1]:
        files = [path for path in [ROOT / source, *(ROOT / source).rglob("*")] if path.is_file()]
        assert any(prove.sent(file, ROOT, IGNORED) for file in files), source


@pytest.mark.parametrize("kept", [".git/config", "runs/demo/x", "zoos/z", "wsflow/__pycache__/cli.pyc", "tests/a.py"])
def test_nothing_else_reaches_the_builder(kept: str) -> None:
    assert not prove.sent(ROOT / kept, ROOT, IGNORED)


@pytest.mark.parametrize("file", [ROOT / "Dockerfile", PAGE, *FILES], ids=lambda path: path.name)
def test_no_file_names_a_machine(file: Path) -> None:
    found = re.findall(r"https?://\S+|index-url|/(?:root|home|tmp|mnt)/[\w.-]+", file.read_text())
    caches = {"/tmp/matplotlib", "/tmp/torchinductor", "/tmp/triton"}
    assert not [text for text in found if text not in caches]


# Requirements of the layers.


def test_requirements_are_those_of_pyproject_and_no_other_line_matters() -> None:
    project = {
        "build-system": {"requires": ["setuptools>=77"]},
        "project": {"version": "1", "dependencies": ["a", "b>=2"], "optional-dependencies": {"x": ["c"], "y": ["d"]}},
    }
    assert requirements.requirements(project, "run", []) == ["a", "b>=2"]
    assert requirements.requirements(project, "run", ["y", "x"]) == ["a", "b>=2", "d", "c"]
    assert requirements.requirements(project, "build", []) == ["setuptools>=77"]
    with pytest.raises(SystemExit, match="no extra z; extras are x, y"):
        requirements.requirements(project, "run", ["x", "z"])
    with pytest.raises(SystemExit, match="give 'run'"):
        requirements.requirements(project, "rum", [])


# The program that runs a Dockerfile's steps.


def test_instructions_are_read_as_an_engine_reads_them() -> None:
    text = "ARG A=1\n# no step\nRUN one \\\n    # nor this\n    && two\n\ncopy --from=b /x /y\n"
    assert prove.instructions(text) == [("ARG", "A=1"), ("RUN", "one  && two"), ("COPY", "--from=b /x /y")]
    assert prove.flags("--mount=type=secret,id=p --x=1 rest --y=2") == (
        [("mount", "type=secret,id=p"), ("x", "1")],
        "rest --y=2",
    )
    assert prove.substituted("${A}:${B}/$C", {"A": "1"}) == "1:/$C"
    assert prove.assignments('A=1 B="two words"') == {"A": "1", "B": "two words"}


def test_a_layer_depends_on_contents_and_not_on_times(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = prove.digest(tmp_path)
    os.utime(tmp_path / "a", (0, 0))
    assert prove.digest(tmp_path) == first
    (tmp_path / "a").write_text("2")
    assert prove.digest(tmp_path) != first


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("debootstrap") is None or "WSFLOW_PROVE" not in os.environ,
    reason="needs root, debootstrap, 10 GB and a package index; WSFLOW_PROVE names a folder to work in",
)
def test_the_image_is_built_runs_and_is_rebuilt_without_installing_again(tmp_path: Path) -> None:
    folder = Path(os.environ["WSFLOW_PROVE"])
    base, store, context = folder / "base", folder / "store", tmp_path / "context"
    if not base.exists():
        packages = "--include=python3,python3-venv,ca-certificates"
        subprocess.run(["debootstrap", "--variant=minbase", packages, "bookworm", str(base)], check=True)
        (base / "usr/bin/python").symlink_to("python3")
    secret = ["--secret", f"pip={os.environ['PIP_CONFIG_FILE']}"] if "PIP_CONFIG_FILE" in os.environ else []

    def run(*arguments: str) -> str:
        command = [sys.executable, str(DOCKER / "prove.py"), "--store", str(store), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    run("build", "--base", str(base), *secret)
    assert run("run", "--read-only", "--no-network", "--", "--version").strip() == wsflow.__version__

    ignore = shutil.ignore_patterns(".git", ".venv", "runs", "zoos", "data", "__pycache__")
    shutil.copytree(ROOT, context, ignore=ignore)
    with (context / "wsflow" / "__init__.py").open("a") as file:
        file.write("# changed\n")
    again = run("build", "--base", str(base), "--context", str(context), *secret)
    states = dict(re.findall(r"^\[(\d+)\] (CACHED|done)", again, re.MULTILINE))
    installs = [str(n) for n, (name, text) in enumerate(STEPS, 1) if name == "RUN" and "--requirement" in text]
    assert [states[number] for number in installs] == ["CACHED", "CACHED"]
    assert "done" in states.values()


# Command lines.


def parse(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Let wsflow read a command line; what does not say what to do by a config stops where its file is missing."""
    assert not any("$" in argument for argument in arguments), arguments
    if any(argument.partition("=")[0] in ("-c", "--config") for argument in arguments):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--print_config"])
        assert stop.value.code == 0, capsys.readouterr().err
        return
    assert main(arguments) == 1
    assert "there is no " in capsys.readouterr().err


def expanded(text: str) -> str:
    """Text of a compose file with the defaults of its variables."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    """A folder of programs that write down how they were called; srun and torchrun pass on to what they start."""
    folder = tmp_path / "bin"
    folder.mkdir()
    record = f'#!/bin/sh\nprintf "%s\\n" "$@" > {shlex.quote(str(tmp_path))}/arguments\n'
    start = '#!/bin/sh\nwhile case $1 in -*) true;; *) false;; esac; do shift; done\nexec "$@"\n'
    for name, text in {"wsflow": record, "torchrun": record, "srun": start}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_gives_wsflow_a_command_that_it_understands(script, recorder, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    path = f"{recorder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [script], env=os.environ | {"PATH": path, "SLURM_CPUS_PER_TASK": "2"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    given = (tmp_path / "arguments").read_text().splitlines()
    if "wsflow" in given:  # torchrun -m wsflow ...
        given = given[given.index("wsflow") + 1 :]
    parse(given, capsys)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_and_stop_at_the_first_error(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert "\nset -euo pipefail\n" in script.read_text()


def test_the_compose_file_builds_the_image_and_gives_commands_that_wsflow_understands(monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    compose = yaml.safe_load(expanded((DOCKER / "compose.yaml").read_text()))
    volumes = set(json.loads(only("VOLUME")))
    for service in compose["services"].values():
        assert (DOCKER / service["build"]["context"] / "Dockerfile").resolve() == ROOT / "Dockerfile"
        sources, targets = zip(*(volume.split(":")[:2] for volume in service["volumes"]), strict=True)
        assert set(targets) == volumes
        assert {source for source in sources if not source.startswith(".")} <= set(compose["volumes"])
    assert {profile for service in compose["services"].values() for profile in service["profiles"]} >= {"cpu", "gpu"}
    commands = {tuple(service["command"]) for service in compose["services"].values() if "command" in service}
    for command in commands:
        parse(list(command), capsys)


def name_of(item: dict[str, dict[str, str]]) -> str:
    """What a Kubernetes object is called."""
    return item["metadata"]["name"]


def manifests() -> list[dict[str, Any]]:
    """All objects that the Kubernetes files describe."""
    return [
        item for file in sorted((DOCKER / "kubernetes").glob("*.yaml")) for item in yaml.safe_load_all(file.read_text())
    ]


@pytest.mark.parametrize("job", [item for item in manifests() if item["kind"] == "Job"], ids=name_of)
def test_a_job_runs_unprivileged_on_claims_that_exist_with_a_command_that_wsflow_understands(
    job, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(ROOT)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["image"] == f"wsflow:{wsflow.__version__}"
    claims = {name_of(item) for item in manifests() if item["kind"] == "PersistentVolumeClaim"}
    assert {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v} <= claims
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted - set(json.loads(only("VOLUME"))) <= {"/tmp", "/dev/shm"}
    given = [argument.replace("$(JOB_COMPLETION_INDEX)", "3") for argument in container["args"]]
    shares = [argument.partition("/")[2] for argument in given if argument.startswith("--shard=")]
    assert shares == ([str(job["spec"]["completions"])] if job["spec"].get("completionMode") == "Indexed" else [])
    parse(given, capsys)


# The page.


def test_the_page_explains_every_file_and_names_only_files_that_exist() -> None:
    page = PAGE.read_text()
    assert not [str(path.relative_to(ROOT)) for path in FILES if str(path.relative_to(ROOT)) not in page]
    named = set(re.findall(r"\b(?:docker|configs)/[\w./-]+\.(?:sh|yaml|py)\b", page))
    assert not [name for name in named if not (ROOT / name).exists()]


def page_commands() -> list[str]:
    """The wsflow commands in the page's shell blocks."""
    page = PAGE.read_text()
    blocks = "\n".join(re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    return sorted(set(re.findall(r"\bwsflow(?:\.sif)? ((?:fit|collect|predict|evaluate|zoo) [^#\n]*)", blocks)))


@pytest.mark.parametrize("command", page_commands())
def test_a_command_of_the_page_is_one_that_wsflow_understands(command: str, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    parse(shlex.split(command), capsys)
