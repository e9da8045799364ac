r"""A path through the snapshots of a network's own training run (multi-marginal flow matching).

Training takes a network from its start :math:`x_0` to its end :math:`x_1` through snapshots :math:`y_1, ..., y_S` of
steps :math:`k_1 < ... < k_S < K`.  With times

.. math:: \tau_s = (k_s / K)^p, \quad \tau_0 = 0, \quad \tau_{S+1} = 1,

and ends :math:`y_0 = x_0`, :math:`y_{S+1} = x_1`, the path is the geodesic between neighbours: for
:math:`\tau_s \le t < \tau_{s+1}`

.. math:: x_t = \exp_{y_s}\!\left(\frac{t - \tau_s}{\tau_{s+1} - \tau_s} \log_{y_s} y_{s+1}\right), \quad
          u_t = \dot x_t = \frac{\log_{x_t} y_{s+1}}{\tau_{s+1} - t} .

It passes every snapshot exactly, so the flow's law at time :math:`\tau_s` is that of the s-th snapshots (flows on the
trajectories of training, Saragih et al. 2025; multi-marginal paths in general, Rohbeck et al. 2025).  Most of a run's
way is made early: p < 1 gives its first steps more time.

The velocity does not lead straight to :math:`x_1`, so a field must predict it: the endpoint parametrization would learn
another flow.  For the same reason :meth:`wsflow.fields.Parametrization.endpoint` is an extrapolation here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsflow.flow.path import PathSample, ProbabilityPath
from wsflow.geometry import Geometry
from wsflow.weightspace import ZooBatch


class SnapshotPath(ProbabilityPath):
    """Geodesics from snapshot to snapshot of each network's run, without noise.

    The data module must give the snapshots (``snapshots: true``); made for TrajectoryCoupling, whose x0 is the run's
    own start.

    Args:
        power: p, exponent of the part of the run that is done; below 1 gives early snapshots more time.

    Raises:
        ValueError: unless the power is positive.
    """

    def __init__(self, power: float = 1.0) -> None:
        if not power > 0:
            raise ValueError(f"power must be positive, got {power}")
        self.power = power

    def sample(
        self, x0: Tensor, x1: Tensor, t: Tensor, geometry: Geometry, generator: torch.Generator | None = None
    ) -> PathSample:
        """The path without snapshots, one geodesic."""
        return PathSample(x0, x1, t, *_on_segment(x0, x1, torch.zeros_like(t), torch.ones_like(t), t, geometry))

    def along(
        self,
        batch: ZooBatch,
        x0: Tensor,
        x1: Tensor,
        t: Tensor,
        geometry: Geometry,
        generator: torch.Generator | None = None,
    ) -> PathSample:
        """States on the way through the batch's snapshots.

        Raises:
            ValueError: for a batch without snapshots.
        """
        if batch.path is None or batch.path_times is None:
            raise ValueError(
                "SnapshotPath needs earlier snapshots of every run: set snapshots: true in the data module, with a zoo "
                "that keeps them (EverySnapshot), or choose GeodesicPath"
            )
        times = torch.nn.functional.pad(batch.path_times.to(t) ** self.power, (1, 0))
        times = torch.nn.functional.pad(times, (0, 1), value=1.0)
        last = times.shape[1] - 2
        left = (times[:, 1:-1] <= t[:, None]).sum(1, keepdim=True)
        begin, end = times.gather(1, left)[:, 0], times.gather(1, left + 1)[:, 0]
        rows = torch.arange(len(t), device=t.device)[:, None]
        a, b = (
            torch.where(index == 0, x0, torch.where(index > last, x1, geometry.encode(batch.path[rows, place][:, 0])))
            for index, place in ((i, (i - 1).clamp(0, last - 1)) for i in (left, left + 1))
        )
        return PathSample(x0, x1, t, *_on_segment(a, b, begin, end, t, geometry))


def _on_segment(
    a: Tensor, b: Tensor, begin: Tensor, end: Tensor, t: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    """States and velocities (B, dim) between ``a``, passed at times ``begin`` (B,), and ``b``, passed at ``end``.

    The velocity is taken from the end that is farther away, where rounding matters least.
    """
    part = (t - begin) / (end - begin)
    x_t = geometry.interpolate(a, b, part)
    ahead = geometry.log(x_t, b) / (end - t)[:, None]
    behind = -geometry.log(x_t, a) / (t - begin)[:, None]
    return x_t, torch.where(part[:, None] < 0.5, ahead, behind)
