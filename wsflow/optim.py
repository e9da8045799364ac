r"""Muon for the matrices of a field, AdamW for everything else.

Muon (Jordan et al. 2024) replaces the momentum :math:`M` of a weight matrix by a matrix with the same singular vectors
and singular values near 1, found by five steps of a Newton-Schulz iteration,

.. math::
    X \leftarrow a X + (b A + c A^2) X, \quad A = X X^T, \quad X_0 = M / \lVert M \rVert_F .

All factors of X are polynomials of the first A and commute, so that for wide matrices their product is formed first and
X is multiplied once.  The update is scaled by :math:`\sqrt{\max(1, rows / columns)}`.  Matrices of one shape are
treated in one batched product.  For weight-space fields it needs about half the steps of Adam.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients (a, b, c), chosen by Jordan et al. (2024) for the steepest slope at zero."""

WIDE = 3
"""Times as many columns as rows from which on the factors of a matrix are multiplied first."""


class Muon(torch.optim.Optimizer):
    """Muon on matrices whose smaller side is at least ``min_side``, AdamW on all other parameters.

    Args:
        params: Parameters; parameter groups are not taken, since the optimiser makes its own two.
        lr: Learning rate of AdamW.
        muon_lr: Learning rate of Muon, in units of a spectral norm.
        momentum: Nesterov momentum of Muon.
        betas: Of AdamW.
        weight_decay: Decoupled, on all parameters.
        min_side: Smaller matrices go to AdamW.

    Raises:
        ValueError: for parameter groups, or learning rates that are not positive.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 2e-3,
        muon_lr: float = 2e-2,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.0,
        min_side: int = 8,
    ) -> None:
        if min(lr, muon_lr) <= 0:
            raise ValueError(f"learning rates must be positive, got lr {lr} and muon_lr {muon_lr}")
        given = list(params)
        if any(isinstance(p, dict) for p in given):
            raise ValueError("Muon takes parameters, not parameter groups")
        matrices = [p for p in given if p.ndim == 2 and min(p.shape) >= min_side]
        chosen = {id(p) for p in matrices}
        groups = [
            {"params": matrices, "lr": muon_lr, "muon": True},
            {"params": [p for p in given if id(p) not in chosen], "lr": lr, "muon": False},
        ]
        defaults = {"momentum": momentum, "betas": betas, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params and group["weight_decay"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            if group["muon"]:
                self._muon(params, group)
            else:
                self._adam(params, group)
        return loss

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for p in params:
            by_shape[p.shape].append(p)
        for shape, same in by_shape.items():
            buffers = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in same]
            grads = [p.grad for p in same if p.grad is not None]
            torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
            looked_ahead = torch._foreach_lerp(grads, buffers, group["momentum"])
            update = orthogonalise(torch.stack(list(looked_ahead)))
            rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_add_(same, list(update.unbind()), alpha=-rate)

    def _adam(self, params: list[Tensor], group: dict[str, Any]) -> None:
        by_step: dict[int, list[Tensor]] = defaultdict(list)
        for p in params:
            state = self.state[p]
            if not state:
                state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
            state["step"] += 1
            by_step[state["step"]].append(p)
        beta1, beta2 = group["betas"]
        for step, same in by_step.items():
            grads = [p.grad for p in same if p.grad is not None]
            means, squares = ([self.state[p][name] for p in same] for name in ("mean", "square"))
            torch._foreach_lerp_(means, grads, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
            denominator = torch._foreach_sqrt(squares)
            torch._foreach_div_(denominator, (1 - beta2**step) ** 0.5)
            torch._foreach_add_(denominator, 1e-8)
            torch._foreach_addcdiv_(same, means, denominator, value=-group["lr"] / (1 - beta1**step))


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices with the same singular vectors and singular values between about 0.7 and 1.2.

    Args:
        matrices: (n, rows, columns).
        steps: Of the Newton-Schulz iteration.

    Returns:
        (n, rows, columns).
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    if x.shape[-1] >= WIDE * x.shape[-2]:
        x = _product(x @ x.mT, steps) @ x
    else:
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _product(gram: Tensor, steps: int) -> Tensor:
    """The product of what all steps multiply X by, (n, rows, rows), from the first A; A becomes P A P after each."""
    a, b, c = NEWTON_SCHULZ
    unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    product = unit.expand_as(gram)
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + a * unit
        product = factor @ product
        if step + 1 < steps:
            gram = factor @ gram @ factor
    return product
