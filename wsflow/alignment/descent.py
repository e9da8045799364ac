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


class Plan:
    """The moves of a weight space.

    Args:
        space: The weight space.

    Raises:
        ValueError: where its groups contradict each other; see :func:`wsflow.alignment.moves.find_moves`.
    """

    def __init__(self, space: WeightSpace) -> None:
        found = find_moves(space)
        self.space, self.forward, self.moves = space, forward_order(space, found), list(chain.from_iterable(found))
        self.again = torch.tensor([[_touches(a, b) for b in self.moves] for a in self.moves], dtype=torch.bool)


class Descent:
    """A descent of B networks; they end where no move gains anything.

    Args:
        plan: The moves.
        theta: (B, D), permuted in place.
        reference: (D,) or (B, D).
        margin: (B,), float64, a rise of the inner product that rounding alone could make.
    """

    def __init__(self, plan: Plan, theta: Tensor, reference: Tensor, margin: Tensor) -> None:
        self.plan, self.theta, self.reference, self.margin = plan, theta, reference, margin
        hidden = plan.space.hidden
        self.perms = [torch.arange(group.size, device=theta.device).repeat(len(theta), 1) for group in hidden]
        self._places = {group.name: i for i, group in enumerate(hidden)}
        self._names = {group.name for group in plan.space.groups}
        self._due = torch.ones(len(theta), len(plan.moves), dtype=torch.bool, device=theta.device)

    def start(self, perms: Sequence[Tensor]) -> None:
        """Permute all networks, each by (B, size) or (1, size) per hidden group."""
        perms = [p.to(self.theta.device).expand(len(self.theta), -1) for p in perms]
        self.theta, self.perms = self.plan.space.permute(self.theta, perms), compose(self.perms, perms)

    def forward(self) -> None:
        """Match groups in forward order, each by what joins it to groups matched before."""
        known = self._names - set(self._places)
        for move in self.plan.forward:
            step, _ = best_step(move, Networks(self.theta, self.reference, self.margin), known)
            self._apply(move, None, step)
            known |= move.names
            self._due[:, self.plan.moves.index(move)] = bool(move.inside) or not move.ends <= known

    def sweep(self, iterations: int, generator: torch.Generator) -> None:
        """Make moves in random order until none gains anything, at most ``iterations`` times each."""
        moves, again = self.plan.moves, self.plan.again.to(self.theta.device)
        for _ in range(iterations):
            for m in torch.randperm(len(moves), generator=generator).tolist():
                rows = self._due[:, m].nonzero()[:, 0]
                self._due[:, m] = False
                if len(rows) > 0:
                    self._due[self._make(moves[m], rows)] |= again[m]
            if not bool(self._due.any()):
                break

    def _make(self, move: Move, rows: Tensor) -> Tensor:
        """Make a move in those of the networks ``rows`` where it gains, and return these."""
        chosen = None if len(rows) == len(self.theta) else rows
        step, better = best_step(move, Networks(self.theta, self.reference, self.margin, chosen), self._names)
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
