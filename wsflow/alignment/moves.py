r"""Moves: which groups weight matching permutes in one step.

A *unit* is a group, or all groups that share the permutation of whole parts.  Its first move permutes all of it, in
every way that is allowed.  Where blocks join groups of one unit, that move is not solved exactly
(:mod:`wsflow.alignment.gains`), and simpler ones follow: whole parts alone, and the neurons within the parts of one
group alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from wsflow.weightspace import GroupVector, NeuronGroup, WeightBlock, WeightSpace
from wsflow.weightspace.symmetry import take, units


@dataclass(frozen=True)
class Move:
    """Groups that are permuted in one step.

    Args:
        groups: The groups; all fall into ``parts`` parts.
        parts: Number of parts of each; 1 for a plain group.
        across: Whether parts change places, in all groups alike.
        within: Names of the groups whose neurons change places inside their part.
        blocks: The blocks that enter or leave the groups.
        vectors: The vectors on the groups.
    """

    groups: tuple[NeuronGroup, ...]
    parts: int
    across: bool
    within: frozenset[str]
    blocks: tuple[WeightBlock, ...]
    vectors: tuple[GroupVector, ...]

    @property
    def pieces(self) -> tuple[WeightBlock | GroupVector, ...]:
        """Blocks and vectors."""
        return (*self.blocks, *self.vectors)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the groups."""
        return frozenset(group.name for group in self.groups)

    @cached_property
    def ends(self) -> frozenset[str]:
        """Names of the groups, and of those that blocks join them to."""
        return self.names | {end for block in self.blocks for end in (block.source, block.target)}

    @cached_property
    def inside(self) -> tuple[WeightBlock, ...]:
        """The blocks with both ends in the move."""
        return tuple(block for block in self.blocks if {block.source, block.target} <= self.names)

    @cached_property
    def tied(self) -> tuple[WeightBlock, ...]:
        """The blocks inside that join equal parts only."""
        return tuple(block for block in self.inside if block.parts == self.parts > 1)


def find_moves(space: WeightSpace) -> list[list[Move]]:
    """The moves of every unit.

    Raises:
        ValueError: where groups that share the permutation of parts differ in number of parts or in whether these move.
    """
    return [list(_moves(space, [space.hidden[i] for i in members])) for members in units(space)]


def forward_order(space: WeightSpace, found: Sequence[Sequence[Move]]) -> list[Move]:
    """The first moves of all units, each after the groups that it is entered from, as far as that can be."""
    known = {group.name for group in space.groups if group.role != "hidden"}
    rest, order = [unit[0] for unit in found], []
    while rest:
        entered = (m for m in rest if any(b.source in known and b.target in m.names for b in m.blocks))
        joined = (m for m in rest if m.ends & known)
        chosen = next(entered, None) or next(joined, None) or rest[0]
        rest.remove(chosen)
        order.append(chosen)
        known |= chosen.names
    return order


def apply(move: Move, theta: Tensor, rows: Tensor | None, perms: Mapping[str, Tensor]) -> None:
    """Permute the move's groups in place, in the networks ``rows`` of ``theta`` (B, D), or in all.

    Args:
        move: The move.
        theta: (B, D).
        rows: (b,), or None for all.
        perms: (b, size) by name of the group.
    """
    for piece in move.pieces:
        view = piece.view(theta)
        if rows is None:
            view[...] = permuted(piece, view, perms)
        else:
            view[rows] = permuted(piece, view[rows], perms)


def permuted(piece: WeightBlock | GroupVector, value: Tensor, perms: Mapping[str, Tensor]) -> Tensor:
    """A block (B, out, fan_in, depth) or a vector (B, size, depth) after permutations (B, size) of some groups."""
    if isinstance(piece, GroupVector):
        return _rows(value, perms.get(piece.group))
    columns = perms.get(piece.source)
    if columns is not None and piece.parts > 1:
        columns = torch.unflatten(columns, -1, (piece.parts, -1)) % piece.fan_in
        columns = columns.repeat_interleave(piece.out // piece.parts, dim=-2)
    return take(_rows(value, perms.get(piece.target)), columns, -2)


def _rows(value: Tensor, perm: Tensor | None) -> Tensor:
    """The first axis after that of the networks, in another order; whole rows are copied, faster than by gather."""
    return value if perm is None else value[torch.arange(len(perm), device=perm.device)[:, None], perm]


def _moves(space: WeightSpace, groups: Sequence[NeuronGroup]) -> Iterator[Move]:
    rules = {(g.partition.parts, g.partition.across) if g.partition else (1, False) for g in groups}
    if len(rules) > 1:
        names = [group.name for group in groups]
        raise ValueError(
            f"groups {names} share a permutation of parts: all need as many parts, which move in all or none"
        )
    ((parts, across),) = rules
    within = frozenset(g.name for g in groups if g.partition is None or g.partition.within)
    whole = _move(space, groups, parts, across, within)
    yield whole
    if whole.inside and across and within:
        yield replace(whole, within=frozenset())
    if whole.inside and (across or len(groups) > 1):
        yield from (_move(space, [g], parts, False, frozenset({g.name})) for g in groups if g.name in within)


def _move(space: WeightSpace, groups: Sequence[NeuronGroup], parts: int, across: bool, within: frozenset[str]) -> Move:
    names = {group.name for group in groups}
    blocks = tuple(block for block in space.blocks if names & {block.source, block.target})
    vectors = tuple(vector for vector in space.vectors if vector.group in names)
    return Move(tuple(groups), parts, across, within, blocks, vectors)
