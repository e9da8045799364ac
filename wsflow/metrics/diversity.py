r"""How much generated networks differ among themselves.

Dispersion is the square root of the summed unbiased variances of samples over that of held-out networks,

.. math:: \sqrt{\textstyle\sum_k \widehat{\mathrm{Var}}[x_k^{\mathrm{sample}}] /
          \sum_k \widehat{\mathrm{Var}}[x_k^{\mathrm{heldout}}]},

over the canonical coordinates x of networks that are all aligned to one reference; 1 is the spread of real networks,
far below 1 is collapse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def spread(x: Tensor) -> float:
    """Square root of the summed unbiased variances of n networks, (n, K) to a number.

    Raises:
        ValueError: for fewer than two networks.
    """
    if len(x) < 2:
        raise ValueError(f"dispersion needs at least 2 networks, got {len(x)}")
    return float(x.double().var(dim=0).sum().sqrt())


def dispersion(sample: Mapping[str, Tensor], heldout: Mapping[str, Tensor]) -> dict[str, float]:
    """Dispersion in total, under the key ``""``, and of each tensor.

    Args:
        sample: Canonical, aligned coordinates of n networks by tensor name, (n, K) each.
        heldout: The same of m held-out networks.

    Returns:
        Ratios; 1 where neither varies, infinity where only the samples do.

    Raises:
        ValueError: for fewer than two networks.
    """
    top = {name: spread(x) for name, x in sample.items()}
    bottom = {name: spread(x) for name, x in heldout.items()}
    total = _ratio(_length(top), _length(bottom))
    return {"": total} | {name: _ratio(value, bottom[name]) for name, value in top.items()}


def moments(theta: Tensor, mean: float | Tensor) -> dict[str, float]:
    """How well networks (n, D) follow a law of independent weights with a known mean, (D,) or a number.

    Returns:
        ``grand_mean`` over weights and networks, ``mean_error`` (root mean square over weights of the mean over
        networks minus ``mean``) and ``std`` (mean over weights of the standard deviation over networks).
    """
    means, std = theta.double().mean(dim=0), theta.double().std(dim=0)
    error = (means - torch.as_tensor(mean).to(means)).square().mean().sqrt()
    return {"grand_mean": float(means.mean()), "mean_error": float(error), "std": float(std.mean())}


def _length(parts: Mapping[str, float]) -> float:
    return math.hypot(*parts.values())


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else (float("inf") if a > 0 else 1.0)
