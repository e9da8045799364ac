"""Coordinate descent on the inner product with a reference, one move after another, batched over networks.

A move is made again only after one that it is joined to has changed something, and only in the networks where it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from wsflow.alignment.gains import Networks, best_step
from wsflow.alignment.moves import Move, apply, find_moves, forward_order
from wsflow.weightspace import WeightSpace
from wsflow.weightspace.symmetry import compose


class Descent:
    """A descent of B networks; they end where no move gains anything.

    Args:
        space: The weight space.
        theta: (B, D), permuted in place.
        reference: (D,) or (B, D).
    """

    def __init__(self, space: WeightSpace, theta: Tensor, reference: Tensor) -> None:
        self.space, self.reference = space, reference
        self.theta = theta
        self.perms = [torch.arange(g.size, device=theta.device).repeat(len(theta), 1) for g in space.hidden]
        self._places = {group.name: i for i, group in enumerate(space.hidden)}

    def start(self, perms: Sequence[Tensor]) -> None:
        """Permute all networks, each by (B, size) or (1, size) per hidden group."""
        perms = [p.to(self.theta.device).expand(len(self.theta), -1) for p in perms]
        self.theta, self.perms = self.space.permute(self.theta, perms), compose(self.perms, perms)

    def forward(self) -> None:
        """Match groups in forward order, each by what joins it to groups matched before."""
        known = {group.name for group in self.space.groups if group.role != "hidden"}
        for move in forward_order(self.space, find_moves(self.space)):
            step, _ = best_step(move, Networks(self.theta, self.reference), known)
            self._apply(move, None, step)
            known |= move.names

    def sweep(self, iterations: int, generator: torch.Generator) -> None:
        """Make moves in random order until none gains anything, at most ``iterations`` times each."""
        moves = list(chain.from_iterable(find_moves(self.space)))
        again = torch.tensor([[_touches(a, b) for b in moves] for a in moves], device=self.theta.device)
        due = torch.ones(len(self.theta), len(moves), dtype=torch.bool, device=self.theta.device)
        for _ in range(iterations):
            for m in torch.randperm(len(moves), generator=generator).tolist():
                rows = due[:, m].nonzero()[:, 0]
                due[:, m] = False
                if len(rows) > 0:
                    due[self._make(moves[m], rows)] |= again[m]
            if not bool(due.any()):
                break

    def _make(self, move: Move, rows: Tensor) -> Tensor:
        """Make a move where it gains; those of the networks ``rows``."""
        everywhere = {group.name for group in self.space.groups}
        chosen = None if len(rows) == len(self.theta) else rows
        step, better = best_step(move, Networks(self.theta, self.reference, chosen), everywhere)
        rows = rows[better]
        if len(rows) > 0:
            whole = len(rows) == len(self.theta)
            self._apply(move, None if whole else rows, {name: p[better] for name, p in step.items()})
        return rows

    def _apply(self, move: Move, rows: Tensor | None, step: dict[str, Tensor]) -> None:
        apply(move, self.theta, rows, step)
        for name, p in step.items():
            before = self.perms[self._places[name]]
            if rows is None:
                before.copy_(before.gather(1, p))
            else:
                before[rows] = before[rows].gather(1, p)


def _touches(made: Move, other: Move) -> bool:
    """Whether ``other`` may gain something after ``made``, which left nothing to gain for itself unless inexact."""
    return bool(made.names & other.ends) if made is not other else bool(made.inside)
