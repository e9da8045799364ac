"""Importance weights of generated networks, from what their folder says of the flow that made them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from wsflow.api import load
from wsflow.bayes import ImportanceWeights, importance_weights, log_likelihood
from wsflow.flow import Trace
from wsflow.geometry import Euclidean
from wsflow.tasks import BaseTask
from wsflow.zoo import Zoo


def posterior_weights(
    folder: str, theta: Tensor, task: BaseTask, power: float, seed: int = 0, trace: Trace | None = None
) -> ImportanceWeights:
    """Weights that turn samples of a flow into samples of the posterior, tempered by a power of the likelihood.

    The prior is the flow's own law at t = 0, the density that of the flow solved by 20 steps of RK4, however the
    networks were sampled: few steps of another solver draw from a slightly different law.

    Args:
        folder: Of the generated networks.
        theta: (n, D), the first of these networks.
        task: Whose train data the likelihood is of.
        power: Of the likelihood.
        seed: Of the probes that estimate divergences.
        trace: How divergences are found; by 25 probes by default, whose standard error the weights tell.

    Raises:
        ValueError: for networks that no checkpoint is named for, or whose density in flat weight space is not known:
            they were guided, noisy or asked for by a condition, or the flow is on another geometry, or its field
            predicts endpoints.
    """
    manifest = Zoo.open(folder).manifest
    path, sampling = manifest.get("checkpoint"), manifest.get("sampling") or {}
    if not path or not Path(path).is_file():
        raise ValueError(f"importance weights need the flow of {folder}, and its checkpoint {path} is not there")
    changed = [name for name in ("noise", "perturbation", "guidance", "condition") if sampling.get(name)]
    if changed:
        raise ValueError(f"the networks in {folder} were sampled with {', '.join(changed)} and have no known density")
    flow = load(path)
    geometry = flow.module.geometry
    if not isinstance(geometry, Euclidean):
        raise ValueError(
            f"{path} is a flow on {type(geometry).__name__}, whose densities are of canonical forms; the posterior "
            "has its density in flat weight space: use a flow on Euclidean"
        )
    if flow.module.parametrization.singular_end:
        raise ValueError(
            f"the field of {path} predicts endpoints and is followed up to t = 0.99 only; the density there is that of "
            "other networks, and importance weights would be noise: use a flow with the Velocity parametrization"
        )
    prior = flow.module.path.start(flow.module.prior).log_prob(geometry.encode(theta), geometry)
    density = flow.log_prob(theta, trace, seed=seed)
    return importance_weights(log_likelihood(task, theta), prior, density.value, power, density.standard_error)
