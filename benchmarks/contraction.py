"""How accurate networks become when they are drawn together: accuracy and loss over dispersion.

Networks are matched to the first of them and moved towards their mean,

    theta_s = m + s (theta - m),

so that s is their dispersion over what it was.  Networks near the mean of many are better one by one and say less about
how networks differ: a flow whose samples are under-dispersed looks better than the networks it was trained on.  The
table says at which s generated networks, and held-out runs themselves, are as accurate as a given figure is above
held-out runs: ``--gain 0.006`` for Euclidean flows of the thesis's Table 7.1 (0.998 against 0.992).

Usage::

    wsflow experiment configs/experiments/table_7_1.yaml --points euclidean
    python benchmarks/contraction.py runs/experiments/table_7_1_euclidean/seed_0/table_7_1_euclidean/samples
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from wsflow.alignment import WeightMatching
from wsflow.commands.evaluate import rebuild_geometry
from wsflow.description import build
from wsflow.tasks import BaseTask
from wsflow.zoo import Zoo

HERE = Path(__file__).parent
SIZES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3)


def contracted(task: BaseTask, theta: Tensor, split: str) -> dict[str, dict[str, float]]:
    """Scores of networks (n, D) over s."""
    matched = task.space.permute(theta, WeightMatching().align(task.space, theta, theta[0]))
    mean, found = matched.mean(dim=0), {}
    for size in SIZES:
        scores = task.evaluate(mean + size * (matched - mean), split)
        found[f"{size:g}"] = {name: value.double().mean().item() for name, value in scores.items()}
    return found


def reached(found: dict[str, dict[str, float]], accuracy: float) -> str | None:
    """The largest s whose networks are as accurate."""
    return next((size for size, scores in found.items() if scores["accuracy"] >= accuracy), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, nargs="+")
    parser.add_argument("--split", default="test")
    parser.add_argument("--gain", type=float, default=0.006, help="accuracy above held-out runs")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "contraction.json")
    args = parser.parse_args()
    results: dict[str, object] = {"setting": {"split": args.split, "gain": args.gain}}
    for folder in args.samples:
        zoo = Zoo.open(folder)
        data, geometry = build(zoo.manifest["data"]), rebuild_geometry(zoo.manifest["geometry"], zoo.space)
        heldout = geometry.decode(geometry.encode(data.networks(args.split).x1))
        found = {"generated": zoo.theta[:], "held-out": heldout}
        curves = {name: contracted(data.task, theta, args.split) for name, theta in found.items()}
        wanted = curves["held-out"]["1"]["accuracy"] + args.gain
        at = {name: reached(curve, wanted) for name, curve in curves.items()}
        results[folder.parent.name] = {"wanted": wanted, "reached": at, **curves}
        print(f"{folder.parent.name}: accuracy {wanted:.4f} is reached at {at}")
        for size in curves["generated"]:
            row = (f"{curves[name][size]['accuracy']:.4f} {curves[name][size]['loss']:.4f}" for name in curves)
            print(f"  {size:>5}  " + "   ".join(row))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
