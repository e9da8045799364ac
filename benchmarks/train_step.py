"""Time and memory of a training step of the transformers, and time of sampling, on one thread.

A step is: draw prior, times and states, forward, backward and Adam, at 5 layers, d = 32, d_e = 32 and 4 heads, with
the settings of ``configs/gaussians.yaml`` otherwise.  Beside the Relational Transformer stands the same field with the
same parameters in the obvious layout (``dense.py``): edge states for all pairs of neurons and a mask.  The dense field
is checked to compute the same function.  784-10-10 is measured dense for one network only, since 8 would need some
20 GB.  The neuron transformer has the same width, depth and heads, and no states of edges.  "geometric" and "euclidean"
are the whole step with geodesics, velocities and a loss of either geometry.  "compiled" is the step of a fit with
``CompileField``; compiling takes minutes, which are not counted.

Each case runs in a process of its own. Peak memory is the resident set of the whole process; what the imports alone
take is printed too. Huge pages are asked for, as in the image. Seconds are medians; processor time is the least of the
repetitions and leaves out what other programs took. The column "published" holds what the code of the thesis that this
package follows was measured to need for the same (784-10-10: for one network; it cannot run 8).

Below the table stand the ratios: dense against the bipartite layout per network in processor time and in memory beyond
the imports, geometric against Euclidean.

This process imports no torch: a child's peak memory counts what its parent held when it was started.

Usage: ``python benchmarks/train_step.py [--output benchmarks/results/train_step.json] [--cases 0 1 2]
[--device cuda --work --peak-tflops 67]``; rows that are not measured again stay in the file
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
SMALL, MNIST = [30, 16, 16, 2], [784, 10, 10]


class Case(NamedTuple):
    """What is measured, and the published figure."""

    name: str
    widths: list[int]
    batch: int
    options: tuple[str, ...] = ()
    published: str = ""


CASES = (
    Case("training step", SMALL, 16, (), "0.82 s, 1.8 GB"),
    Case("training step, dense", SMALL, 16, ("--dense",)),
    Case("training step", MNIST, 8, (), "cannot run"),
    Case("training step", MNIST, 1, (), "16.7 s, 8.6 GB"),
    Case("training step, dense", MNIST, 1, ("--dense",)),
    Case("sampling, 100 Euler steps", SMALL, 16, ("--sample", "--repeats", "2"), "26 s"),
    Case("training step, neurons", SMALL, 16, ("--neuron",)),
    Case("training step, neurons", MNIST, 8, ("--neuron",)),
    Case("training step, euclidean", MNIST, 8, ("--euclidean",)),
    Case("training step, geometric", MNIST, 8, ("--geometric",)),
    Case("training step, compiled", SMALL, 16, ("--compile",)),
)


def run(case: Case, options: list[str]) -> dict[str, Any]:
    """The case's numbers, or why there are none."""
    widths = [str(width) for width in case.widths]
    command = [sys.executable, "-W", "ignore", str(HERE / "one_case.py"), "--widths", *widths]
    environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [*command, "--batch", str(case.batch), *case.options, *options], capture_output=True, text=True, env=environment
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines()
        return {"failed": lines[-1] if lines else f"ended by signal {-process.returncode}"}
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def device_options(parser: argparse.ArgumentParser) -> None:
    """What is passed on to ``one_case.py``."""
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", action="store_true", help="count operations and bytes")
    parser.add_argument("--peak-tflops", type=float, help="of the device, to print utilisation; with --work")


def passed_on(args: argparse.Namespace) -> list[str]:
    """Arguments of :func:`device_options`, for ``one_case.py``."""
    peak = [] if args.peak_tflops is None else ["--peak-tflops", str(args.peak_tflops)]
    return ["--device", args.device, *["--work"] * args.work, *peak]


def row_of(case: Case, numbers: dict[str, Any]) -> dict[str, Any]:
    """A case with its numbers, as it is stored."""
    network = "-".join(map(str, case.widths))
    return {"case": case.name, "network": network, "batch": case.batch, **numbers, "published": case.published}


def print_table(rows: list[dict[str, Any]], title: str) -> None:
    """Numbers of each row, and work where it was counted."""
    keys = ["seconds", "processor_seconds", "peak_gigabytes", "imports_gigabytes"]
    keys += [key for key in ("tflops", "utilisation", "gigabytes_per_second") if any(key in row for row in rows)]
    table = Table("", "network", "batch", *(key.replace("_", " ") for key in keys), "published", title=title)
    for row in rows:
        shown = [f"{row[key]:.3f}" if key in row else "-" for key in keys]
        table.add_row(row["case"], row["network"], str(row["batch"]), *shown, row["published"])
        if "failed" in row:
            print(f"{row['case']} {row['network']}, batch {row['batch']}, failed: {row['failed']}")
    Console(width=140).print(table)


def ratios(rows: list[dict[str, Any]]) -> list[str]:
    """Dense against bipartite per network, and geometric against Euclidean, of the rows that there are."""
    found = {(row["case"], row["network"], row["batch"]): row for row in rows if "failed" not in row}
    lines = []
    for (name, network, batch), row in found.items():
        for (other, same, count), dense in found.items():
            if name == "training step" and other == "training step, dense" and same == network:
                time = dense["processor_seconds"] / count / (row["processor_seconds"] / batch)
                memory = _own(dense) / count / (_own(row) / batch)
                text = f"dense batch {count} / bipartite batch {batch}, per network"
                lines.append(f"{network}: {text}: time {time:.1f}, memory {memory:.1f}")
            if (name, other) == ("training step, euclidean", "training step, geometric"):
                ratio = dense["processor_seconds"] / row["processor_seconds"]
                lines.append(f"{network}: geometric / euclidean: time {ratio:.2f}")
    return lines


def _own(row: dict[str, Any]) -> float:
    own: float = row["peak_gigabytes"] - row["imports_gigabytes"]
    return own


def store(path: Path, rows: list[dict[str, Any]], key: tuple[str, ...] = ("case", "network", "batch")) -> list[Any]:
    """Write rows over those of the same key in the file, failed ones only where there is none, and return all."""
    merged = {tuple(row[k] for k in key): row for row in (json.loads(path.read_text()) if path.exists() else [])}
    for row in rows:
        name = tuple(row[k] for k in key)
        merged[name] = merged.get(name, row) if "failed" in row else row
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(merged.values()), indent=2) + "\n")
    return list(merged.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "train_step.json")
    parser.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)), help="which rows to measure")
    device_options(parser)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for case in (CASES[i] for i in args.cases):
        rows = store(args.output, [row_of(case, run(case, passed_on(args)))])
    print_table(rows, f"transformers, {args.device}, one thread")
    print("\n".join(ratios(rows)))


if __name__ == "__main__":
    main()
