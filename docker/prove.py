"""Run the steps of the Dockerfile, and then the image, where there is no container engine.

Needed are Linux, root, and a root file system with Python of the image's version to stand for the base image::

    debootstrap --include=python3,python3-venv,ca-certificates bookworm base
    python docker/prove.py --store store build --base base
    python docker/prove.py --store store run --volume runs:/wsflow/runs -- fit -c configs/gaussians.yaml

A step is a layer, as in an engine: the files that it changed, kept under the hash of what it depends on, which is the
step before, the instruction with its variables, and the contents of what it copies.  A step whose layer is there is
not run again.  Layers are stacked by overlayfs, and every step runs in mount and process namespaces of its own, by
chroot, so that nothing stays mounted.  What the Dockerfile of this project uses is understood, and no more.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

MOUNT = """
options=lowerdir=$1; [ -z "$2" ] || options=$options,upperdir=$2,workdir=work
mount -t overlay overlay -o "$options" root
mount -t proc proc root/proc; mount --rbind /dev root/dev
mount --bind /etc/resolv.conf root/etc/resolv.conf; shift 2
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir -p "root$2"; else [ -e "root$2" ] || : > "root$2"; fi
    mount --bind "$1" "root$2"; [ "$3" != ro ] || mount -o remount,ro,bind "root$2"; shift 3
done; shift
"""
"""Stack layers $1 (topmost first), with changes going to $2 if given; then mount triples (source, target, rw or ro)."""

ENTER = """
user=$1; directory=$2; shift 2
home=$(awk -F: -v id="${user%:*}" '$3 == id {print $6}' root/etc/passwd)
exec chroot --userspec="$user" root /usr/bin/env -i -C "$directory" HOME="${home:-/}" "$@"
"""


@dataclass
class Image:
    """A stack of layers and what containers of it start with."""

    layers: list[str]
    key: str
    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    directory: str = "/"
    volumes: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def variables(self) -> dict[str, str]:
        """What stands for ``${NAME}``; variables of the environment win, as in an engine."""
        return self.arguments | self.env


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, its arguments) of a Dockerfile, with continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name.upper(), rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def substituted(text: str, variables: dict[str, str]) -> str:
    """Text with ``${NAME}`` replaced; names that are not known become empty."""
    return re.sub(r"\$\{(\w+)\}", lambda match: variables.get(match[1], ""), text)


def assignments(text: str) -> dict[str, str]:
    """``A=b C="d e"`` as a dictionary."""
    return dict(word.split("=", 1) for word in shlex.split(text))


def flags(text: str) -> tuple[list[tuple[str, str]], str]:
    """Leading ``--name=value`` of an instruction, and what follows them."""
    found = []
    while match := re.match(r"--([\w-]+)=(\S+)\s+", text):
        found.append((match[1], match[2]))
        text = text[match.end() :]
    return found, text


def sent(path: Path, context: Path, patterns: list[str]) -> bool:
    """Whether .dockerignore lets a file through: the last pattern that names it, or a folder of it, decides."""
    relative = path.relative_to(context)
    names = [str(part) for part in (relative, *relative.parents) if part.name]
    verdict = True
    for pattern in patterns:
        plain = pattern.removeprefix("!")
        if any(fnmatch.fnmatchcase(name, form) for name in names for form in (plain, plain.removeprefix("**/"))):
            verdict = pattern.startswith("!")
    return verdict


def digest(folder: Path) -> str:
    """A hash of the names, modes and contents of the files in a folder."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{path.relative_to(folder)} {path.stat().st_mode & 0o111} {content}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Builder:
    """Runs a Dockerfile's steps.

    Args:
        store: Folder of the layers and the image.
        context: Folder that files are copied from.
        base: Root file system that stands for the base image.
        given: Build arguments.
        secrets: Files by the id under which steps mount them.
    """

    def __init__(self, store: Path, context: Path, base: Path, given: dict[str, str], secrets: dict[str, str]) -> None:
        self.store, self.context, self.base = store, context, base.resolve()
        self.given, self.secrets = given, secrets
        ignore = (context / ".dockerignore").read_text().splitlines()
        self.patterns = [line for line in ignore if line and not line.startswith("#")]
        self.stages: dict[str, Image] = {}
        for name in ("layers", "root"):
            (store / name).mkdir(parents=True, exist_ok=True)

    def build(self) -> Image:
        """All stages; the last one is the image."""
        shared: dict[str, str] = {}
        image: Image | None = None
        for number, (name, text) in enumerate(instructions((self.context / "Dockerfile").read_text()), 1):
            begin = time.perf_counter()
            print(f"[{number}] {name} {text}", flush=True)
            if name == "FROM":
                source, _, label = substituted(text, shared).partition(" AS ")
                parent = self.stages.get(source, Image([str(self.base)], "base"))
                image = self.stages[label] = replace(parent, env=dict(parent.env), arguments={})
            elif image is None:
                key, _, value = text.partition("=")
                shared[key] = self.given.get(key, value)
            elif name in ("RUN", "COPY"):
                state = self._run(image, text) if name == "RUN" else self._copy(image, text)
                print(f"[{number}] {state}, {time.perf_counter() - begin:.1f} s", flush=True)
            else:
                self._configure(image, name, text)
        assert image is not None
        (self.store / "image.json").write_text(json.dumps(asdict(image), indent=1))
        return image

    def _configure(self, image: Image, name: str, text: str) -> None:
        plain = substituted(text, image.variables())
        if name == "ARG":
            key, _, value = plain.partition("=")
            image.arguments[key] = self.given.get(key, value.strip('"'))
        elif name == "ENV":
            image.env |= assignments(plain)
        elif name == "WORKDIR":
            image.directory = plain
            self._layer(image, f"WORKDIR {plain}", ["mkdir", "-p", f"root{plain}"])
        elif name == "USER":
            image.user = plain
        elif name == "VOLUME":
            image.volumes += json.loads(plain)
        elif name == "ENTRYPOINT":
            image.entrypoint = json.loads(plain)
        elif name == "CMD":
            image.command = json.loads(plain)
        elif name != "LABEL":
            raise SystemExit(f"prove.py: {name} is not understood")

    def _run(self, image: Image, text: str) -> str:
        mounts, command = flags(text)
        binds = []
        for _, value in mounts:
            options = dict(pair.split("=", 1) for pair in value.split(","))
            if options.get("type") != "secret":
                raise SystemExit(f"prove.py: a mount of type {options.get('type')} is not understood")
            if options["id"] in self.secrets:
                binds += [str(Path(self.secrets[options["id"]]).resolve()), options["target"], "ro"]
        variables = image.variables()
        return self._layer(
            image,
            f"RUN {sorted(variables.items())} {image.user} {image.directory} {command}",
            ["sh", "-ec", ENTER, "sh", image.user, image.directory, *environment(variables), "/bin/sh", "-c", command],
            binds,
        )

    def _copy(self, image: Image, text: str) -> str:
        options, rest = flags(text)
        *sources, target = shlex.split(substituted(rest, image.variables()))
        target = str(Path(image.directory, target)) + "/" * (target.endswith("/"))
        staging = self.store / "staging"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        if options:
            ((_, stage),) = options
            self._fetch(self.stages[stage], sources)
        else:
            self._stage(sources)
        whole = len(sources) == 1 and (staging / Path(sources[0]).name).is_dir()
        origin = f"staging/{Path(sources[0]).name}/." if whole else "staging/."
        copy = f'mkdir -p "root{target}" && cp -r --preserve=mode,timestamps {origin} "root{target}"'
        return self._layer(image, f"COPY {digest(staging)} {target}", ["sh", "-ec", copy])

    def _fetch(self, stage: Image, sources: list[str]) -> None:
        copy = ["cp", "-a", *(f"root{source}" for source in sources), "staging"]
        namespace(self.store, stage.layers, None, [], copy)

    def _stage(self, sources: list[str]) -> None:
        for source in sources:
            path = self.context / source
            files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            files = [file for file in files if sent(file, self.context, self.patterns)]
            if not files:
                raise SystemExit(f"prove.py: COPY {source}: nothing there that .dockerignore lets through")
            for file in files:
                copy = self.store / "staging" / Path(source).name / file.relative_to(path)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, copy)

    def _layer(self, image: Image, what: str, command: list[str], binds: list[str] | None = None) -> str:
        image.key = hashlib.sha256(f"{image.key} {what}".encode()).hexdigest()
        name = f"layers/{image.key[:16]}"
        cached = (self.store / name).exists()
        if not cached:
            fresh_upper(self.store)
            namespace(self.store, image.layers, "upper", binds or [], command)
            (self.store / "upper").rename(self.store / name)
        image.layers = [name, *image.layers]
        return "CACHED" if cached else "done"


def environment(variables: dict[str, str]) -> list[str]:
    """Arguments for env."""
    return [f"{name}={value}" for name, value in variables.items()]


def fresh_upper(store: Path) -> None:
    """Empty folders for overlayfs to put changes in."""
    for name in ("upper", "work"):
        shutil.rmtree(store / name, ignore_errors=True)
        (store / name).mkdir()


def namespace(store: Path, layers: list[str], upper: str | None, binds: list[str], command: list[str]) -> None:
    """Run a command with layers stacked at ``root``, in namespaces of its own.

    Raises:
        SystemExit: with the command's status, unless that is 0.
    """
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", MOUNT + 'exec "$@"', "sh"]
    done = subprocess.run([*unshare, ":".join(layers), upper or "", *binds, "--", *command], cwd=store, check=False)
    if done.returncode:
        raise SystemExit(done.returncode if done.returncode > 0 else 128 - done.returncode)


def start(store: Path, options: argparse.Namespace) -> None:
    """Run the image as an engine would: its user, folder, environment and entry point, and the given volumes."""
    image = Image(**json.loads((store / "image.json").read_text()))
    binds = [part for volume in options.volume for part in volume_parts(volume)]
    variables = image.env | assignments(" ".join(map(shlex.quote, options.env)))
    arguments = [*image.entrypoint, *(options.arguments or image.command)]
    fresh_upper(store)
    if options.read_only:
        (store / "work" / "tmp").mkdir()
        binds += [str(store / "work" / "tmp"), "/tmp", "rw"]
        (store / "work" / "tmp").chmod(0o1777)
    enter = ["sh", "-ec", ENTER, "sh", options.user or image.user, image.directory, *environment(variables), *arguments]
    apart = ["unshare", "--net"] if options.no_network else []
    namespace(store, image.layers, None if options.read_only else "upper", binds, [*apart, *enter])


def volume_parts(text: str) -> list[str]:
    """``source:target[:ro]`` as source, target and mode."""
    source, target, mode = f"{text}:rw".split(":")[:3]
    return [str(Path(source).resolve()), target, mode]


def main() -> None:
    """Parse the command line; ``build`` or ``run``."""
    parser = argparse.ArgumentParser(prog="prove.py", description="Run the Dockerfile's steps without an engine.")
    parser.add_argument("--store", type=Path, required=True, help="Folder of layers; on a disk with 10 GB to spare.")
    commands = parser.add_subparsers(dest="what", required=True)
    build = commands.add_parser("build")
    build.add_argument("--base", type=Path, required=True, help="Root file system that stands for the base image.")
    build.add_argument("--context", type=Path, default=ROOT)
    build.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    build.add_argument("--secret", action="append", default=[], metavar="ID=FILE")
    run = commands.add_parser("run")
    run.add_argument("--volume", action="append", default=[], metavar="SOURCE:TARGET[:ro]")
    run.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    run.add_argument("--user", metavar="UID:GID")
    run.add_argument("--read-only", action="store_true", help="No file of the image can be written.")
    run.add_argument("--no-network", action="store_true")
    run.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    store = options.store.resolve()
    if options.what == "run":
        start(store, options)
        return
    given, secrets = (dict(pair.split("=", 1) for pair in pairs) for pairs in (options.build_arg, options.secret))
    image = Builder(store, options.context.resolve(), options.base, given, secrets).build()
    print(f"image {image.key[:16]}: {len(image.layers)} layers, entry point {image.entrypoint}, user {image.user}")


if __name__ == "__main__":
    main()
