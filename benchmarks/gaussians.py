"""The Gaussian task with a trained flow: is the law of generated weights N(1, I)?  The thesis's Figure 7.1.

Networks are sampled in 100 Euler steps, without noise and with noise 0.05 before every step.  Over n networks:

- grand mean: mean over networks and weights, 1 for the target;
- rms error of means: root mean square, over weights, of (mean over networks - 1); 1 / sqrt(n) for n exact draws;
- mean std: mean over weights of the standard deviation over networks, 1 for the target;
- std of network means: standard deviation over networks of the mean of their weights, 1 / sqrt(D) for the target.

"exact" are n draws of the target law itself: what the finite number of networks alone does to these numbers.

Usage::

    wsflow fit -c configs/gaussians.yaml
    python benchmarks/gaussians.py runs/gaussians/checkpoints/last.ckpt [--n 4096] [--noise 0 0.05]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import wsflow
from wsflow.callbacks import figures
from wsflow.flow import Sampler

HERE = Path(__file__).parent
BARS = {"grand_mean": "0.98 to 1.02", "rms_error_of_means": "at most 0.03", "mean_std": "0.95 to 1.05"}


def statistics(theta: Tensor) -> dict[str, float]:
    """What is measured, of networks (n, D)."""
    theta = theta.double()
    means = theta.mean(dim=0)
    return {
        "grand_mean": means.mean().item(),
        "rms_error_of_means": (means - 1).square().mean().sqrt().item(),
        "mean_std": theta.std(dim=0).mean().item(),
        "std_of_network_means": theta.mean(dim=1).std().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.05])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of gaussians.json and .png")
    args = parser.parse_args()
    flow = wsflow.load(args.checkpoint)
    samples, results = {}, {}
    for noise in args.noise:
        began = time.perf_counter()
        theta = flow.sample(args.n, args.seed, Sampler(steps=args.steps, noise=noise))
        samples[f"noise {noise:g}"] = theta
        results[f"noise {noise:g}"] = {**statistics(theta), "seconds": time.perf_counter() - began}
        print(f"noise {noise:g}: {args.n} networks in {results[f'noise {noise:g}']['seconds']:.0f} s", flush=True)
    exact = 1 + torch.randn(args.n, flow.weight_space.dim, generator=torch.Generator().manual_seed(args.seed))
    results["exact"] = statistics(exact)
    table = Table("", *results, "wanted", title=f"{args.n} networks, {args.steps} Euler steps")
    for key in results["exact"]:
        table.add_row(key.replace("_", " "), *(f"{row[key]:.4f}" for row in results.values()), BARS.get(key, ""))
    Console(width=110).print(table)
    setting = {"n": args.n, "steps": args.steps, "seed": args.seed, "dim": flow.weight_space.dim}
    args.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"setting": {**setting, "torch": torch.__version__}, **results}, indent=2)
    (args.output / "gaussians.json").write_text(text + "\n")
    figures.save(figures.weight_means(samples), args.output / "gaussians.png")


if __name__ == "__main__":
    main()
