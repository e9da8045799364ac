"""Time and memory of a training step of the Relational Transformer, and time of sampling, on one thread.

A step is: draw prior, times and states, forward, backward and Adam, at 5 layers, d = 32, d_e = 32 and 4 heads, with
the settings of ``configs/gaussians.yaml`` otherwise.  Beside it stands the same field with the same parameters in the
obvious layout (``dense.py``): edge states for all pairs of neurons and a mask.  The dense field is checked to compute
the same function.  784-10-10 is measured dense for one network only, since 8 would need some 20 GB.

Each case runs in a process of its own.  Peak memory is the resident set of the whole process; what the imports alone
take is printed too.  Times are medians; processor time leaves out what other programs took.  The column "published"
holds what the code of the thesis that this package follows was measured to need for the same (784-10-10: for one
network; it cannot run 8).

This process imports no torch: a child's peak memory counts what its parent held when it was started.

Usage: ``python benchmarks/train_step.py [--output benchmarks/results/train_step.json] [--cases 0 1 2]``
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
    Case("sampling, 100 Euler steps", SMALL, 16, ("--sample", "--repeats", "3"), "26 s"),
)


def run(case: Case) -> dict[str, Any]:
    """The case's numbers, or why there are none."""
    widths = [str(width) for width in case.widths]
    command = [sys.executable, "-W", "ignore", str(HERE / "one_case.py"), "--widths", *widths]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [*command, "--batch", str(case.batch), *case.options], capture_output=True, text=True, env=environment
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines()
        return {"failed": lines[-1] if lines else f"ended by signal {-process.returncode}"}
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "train_step.json")
    parser.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)), help="which rows to measure")
    args = parser.parse_args()
    columns = ("", "network", "batch", "seconds", "processor", "peak GB", "imports GB", "published")
    table = Table(*columns, title="Relational Transformer, one thread")
    results = []
    for case in (CASES[i] for i in args.cases):
        numbers, network = run(case), "-".join(map(str, case.widths))
        results.append(
            {"case": case.name, "network": network, "batch": case.batch, **numbers, "published": case.published}
        )
        keys = ("seconds", "processor_seconds", "peak_gigabytes", "imports_gigabytes")
        shown = [f"{numbers[key]:.3f}" if key in numbers else "-" for key in keys]
        table.add_row(case.name, network, str(case.batch), *shown, case.published)
        if "failed" in numbers:
            print(f"{case.name} {network}, batch {case.batch}, failed: {numbers['failed']}")
    Console(width=110).print(table)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
