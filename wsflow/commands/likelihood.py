"""``wsflow likelihood``: log-densities of networks under a trained flow.

The file that it writes holds one log-density and standard error per network, what they are measured in, and how they
were computed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from wsflow.api import Flow, load
from wsflow.commands.evaluate import Networks, data_module, stored_networks
from wsflow.commands.predict import asked
from wsflow.commands.run import record_timing, run_folder
from wsflow.description import plain
from wsflow.files import write_whole
from wsflow.flow import RK4, LogDensity, Sampler, Solver, TimeGrid, Trace


def likelihood(
    ckpt_path: str,
    samples: str | None = None,
    zoo: str | None = None,
    split: Literal["train", "val", "test"] | None = None,
    n: int = 100,
    out: str | None = None,
    trace: Trace | None = None,
    steps: int = 20,
    solver: Solver | None = None,
    grid: TimeGrid | None = None,
    delta: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    memory: str | None = None,
    split_seed: int | None = None,
    fractions: Sequence[float] | None = None,
    condition: Sequence[str] | None = None,
    condition_weight: float = 1.0,
) -> None:
    """Log-densities of networks under a trained flow.

    Args:
        ckpt_path: Checkpoint of the flow.
        samples: Folder of generated networks, or a zoo; instead, by default, the runs of a split of the zoo.  What
            chooses a split's networks (zoo, split, split_seed, fractions) is refused beside it.
        zoo: The zoo that the flow was trained on; by default the one that the checkpoint names.
        split: Whose runs' networks are taken; ``val`` by default.
        n: How many networks, the first ones.
        out: JSON file to write; ``likelihood.json`` in the run's folder by default.
        trace: How divergences are found: Hutchinson with 25 probes by default, or ExactTrace.
        steps: Solver steps.
        solver: RK4 by default; DormandPrince chooses its steps.
        grid: The times of the steps; equal steps by default.
        delta: What is left out before t = 1 for fields that predict endpoints, 0.01 by default.
        seed: Of the probes; those of network i depend on (seed, i) alone.
        batch_size: Networks at once; as many as the memory limit allows by default.
        memory: The limit, such as 2GiB; half of the device's free memory by default.
        split_seed: Of the split of the zoo's runs; as in training by default.
        fractions: Of runs in train, validation and test; as in training by default.
        condition: What a flow with labels is asked for, as for ``wsflow predict``: the density is that of the networks
            that it then generates.  Without it, that of networks without a request.
        condition_weight: How much the request counts; 1 for the conditional flow.

    Raises:
        NoDensityError: where the flow has no density; the message says why.
        ValueError: where the networks, the zoo or the settings do not fit, such as a delta for a field that
            predicts velocities.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    flow = load(ckpt_path)
    theta, name = _networks(flow, samples, zoo, split, n, split_seed, fractions)
    sampler, begin = Sampler(solver or RK4(), steps, grid=grid), time.perf_counter()
    request = asked(flow.module, condition, condition_weight)
    density = flow.log_prob(theta, trace, sampler, delta, seed, batch_size, memory, request)
    seconds = time.perf_counter() - begin
    file = Path(out) if out is not None else run_folder(ckpt_path) / "likelihood.json"
    settings = {"trace": plain(trace), "sampler": plain(sampler), "seed": seed}
    if delta is not None:
        settings["delta"] = delta
    if condition:
        settings |= {"condition": list(condition), "condition_weight": condition_weight}
    origin = {"ckpt_path": str(ckpt_path), "networks": name, "n": len(theta), **settings}
    write_whole(file, json.dumps({"origin": origin, **_values(density)}, indent=2) + "\n")
    record_timing(run_folder(ckpt_path), likelihood=seconds)
    print(_in_words(density, name, flow.module.geometry.dim))
    print(f"{seconds / len(theta):.3g} s for each; log-densities in {file}")


def _networks(
    flow: Flow,
    samples: str | None,
    zoo: str | None,
    split: str | None,
    n: int,
    split_seed: int | None,
    fractions: Sequence[float] | None,
) -> tuple[Tensor, str]:
    """Networks (n, D) and what they are."""
    if samples is not None:
        beside = {"zoo": zoo, "split": split, "split_seed": split_seed, "fractions": fractions}
        given = [f"--{name}" for name, value in beside.items() if value is not None]
        if given:
            raise ValueError(f"{', '.join(given)} chooses networks of a zoo, and --samples gives them; leave one out")
        stored = stored_networks(Path(samples), n)
        if stored.space != flow.weight_space:
            raise ValueError(f"the networks in {samples} are of another weight space than the flow's")
        return stored.theta, samples
    space, geometry = flow.weight_space, flow.module.geometry
    known = Networks(torch.empty(0, space.dim), space, geometry, flow.data, None, None, Path())
    data = data_module(known, zoo, split_seed, fractions)
    split = split or "val"
    return data.networks(split).x1[:n], f"{split} runs of {data.path}"


def _values(density: LogDensity) -> dict[str, object]:
    return {
        "measure": density.measure,
        "evaluations": density.evaluations,
        "mean": float(density.value.mean()),
        "std": float(density.value.std()) if len(density.value) > 1 else None,
        "log_density": density.value.tolist(),
        "standard_error": density.standard_error.tolist(),
    }


def _in_words(density: LogDensity, name: str, dim: int) -> str:
    mean, count = float(density.value.mean()), len(density.value)
    spread = f" ± {float(density.value.std()):.4g} (standard deviation over networks)" if count > 1 else ""
    error = float(density.standard_error.mean())
    estimated = f", each with a standard error of {error:.3g}" if error else ""
    return (
        f"{count} networks of {name}: log-density {mean:.6g} nats{spread}{estimated}, {mean / dim:.4g} per coordinate\n"
        f"measure: {density.measure}\n{density.evaluations} evaluations of the field"
    )
