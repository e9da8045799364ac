r"""How new generated networks are, from distances to the nearest training network.

With :math:`s_i = \min_j d(\mathrm{sample}_i, \mathrm{train}_j)` and :math:`h_i` the same for held-out networks:

- *nearest-neighbour ratio*: :math:`\bar s / \bar h`; 1 is as new as a real unseen network, far below 1 are copies; far
  above 1 (say 2) are foreign networks, which compute what no run of the zoo does, such as untrained ones;
- :math:`Z_U = (U - nm/2) / \sqrt{nm(n + m + 1)/12}`, where U counts the pairs with :math:`s_i > h_j`, ties half (Mann
  and Whitney; Meehan, Chaudhuri and Dasgupta 2020); far below 0 is data copying.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def nn_ratio(sample: Tensor, heldout: Tensor) -> float:
    """Mean nearest distance of samples over that of held-out networks.

    Args:
        sample: (n,), distance of each sample to its nearest training network.
        heldout: (m,), the same for held-out networks.

    Raises:
        ValueError: where there are none, or all held-out networks are copies of training networks.
    """
    _check(sample, heldout)
    if not heldout.mean() > 0:
        raise ValueError("every held-out network is a copy of a training network: split the zoo by run")
    return float(sample.double().mean() / heldout.double().mean())


def z_u(sample: Tensor, heldout: Tensor, count: int = 200) -> float:
    """Standardised Mann-Whitney statistic of nearest distances.

    Args:
        sample: (n,), distance of each sample to its nearest training network.
        heldout: (m,), the same for held-out networks.
        count: At most so many of each are used, the first ones, since the statistic grows with their number.

    Raises:
        ValueError: where there are none.
    """
    _check(sample, heldout)
    s, h = sample.double()[:count].contiguous(), heldout.double()[:count].sort().values
    n, m = len(s), len(h)
    below, upto = torch.searchsorted(h, s), torch.searchsorted(h, s, right=True)
    u = float((below + upto).double().sum() / 2)
    return (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)


def _check(sample: Tensor, heldout: Tensor) -> None:
    if not (len(sample) and len(heldout)):
        raise ValueError(f"novelty needs samples and held-out networks, got {len(sample)} and {len(heldout)}")
