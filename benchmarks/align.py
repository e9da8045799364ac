"""Time and memory of weight matching, on one thread.

- 7,000 snapshots of 30-16-16-2 (breast cancer, the thesis's recipe: Adam, 50 epochs, a snapshot every four steps after
  the first ten epochs), against one network after another in NumPy with SciPy's assignment (``align_case.py`` says how;
  1,000 of the networks are timed and the time is scaled).
- 1,000 small CNNs and ten ResNet-18s of torchvision as they initialise themselves, so that nothing matches well, and as
  many permuted copies of one network, which must all be recovered.

Each row is measured in a process of its own.  Peak memory is the resident set of the whole process, read after the
alignment of unrelated networks; "networks" is what it was before, with the imports and the networks themselves.
Processor time leaves out what other programs took.

This process imports no torch: a child's peak memory counts what its parent held when it was started.

Usage: ``python benchmarks/align.py [--output benchmarks/results/align.json] [--cases snapshots cnn resnet18]``
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
COUNTS = {"snapshots": 7000, "cnn": 1000, "resnet18": 10}
LOOPS = ("plain loop", "plain loop, same search")


def run(case: str) -> dict[str, Any]:
    """The case's numbers."""
    command = [sys.executable, "-W", "ignore", str(HERE / "align_case.py"), case, "--count", str(COUNTS[case])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def add(table: Table, case: str, what: str, row: dict[str, Any], count: int) -> None:
    """One line of the table."""
    times = [f"{row[key]:.3f}" for key in ("seconds", "processor_seconds")]
    each = f"{1e3 * row['processor_seconds'] / count:.3f}"
    near = f"{row['similarity']:.3f}" if "similarity" in row else "-"
    sizes = [f"{row[key]:.2f}" if key in row else "-" for key in ("before_gigabytes", "peak_gigabytes")]
    table.add_row(case, what, str(count), *times, each, near, *sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "align.json")
    parser.add_argument("--cases", nargs="+", choices=list(COUNTS), default=list(COUNTS))
    args = parser.parse_args()
    columns = ("", "", "networks", "seconds", "processor", "ms each", "similarity", "networks GB", "peak GB")
    table, results = Table(*columns, title="Weight matching, one thread"), {}
    for case in args.cases:
        count, result = COUNTS[case], run(case)
        results[case] = {"networks": count, **result}
        for loop in LOOPS:
            if loop in result:
                ratio = result[loop]["processor_seconds"] / result["processor_seconds"]
                add(table, case, f"{loop}: {ratio:.1f} times", result[loop], count)
        add(table, case, "together", result, count)
        if "permuted copies" in result:
            copies = result["permuted copies"]
            add(table, case, f"copies, {copies['recovered']} recovered", copies, count)
    Console(width=130).print(table)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
