"""What fields on the neural graph of a base network share.

Time, a condition and the coordinates that are no weights become one *context*; weights are read off the blocks and
vectors of the space and written back in flat order; and a field runs on other hidden widths.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsflow.fields.base import VectorField, check_same_ends
from wsflow.fields.ends import zero
from wsflow.fields.pieces import Piece, coordinate_pieces, flat_order, graph, refuse_parts
from wsflow.fields.time_embedding import TimeEmbedding
from wsflow.weightspace import GroupVector, NeuronGroup, WeightSpace


class GraphField(VectorField):
    """A field that reads neurons and weights; subclasses write :meth:`_field`.

    Args:
        space: The weight space.
        extra: Trailing coordinates that are not weights, such as a log-scale.
        width: d, width of the context.
        condition: Number of values that each network is conditioned on, 0 for none.
        neuron_embedding: Whether hidden neurons have embeddings of their own; such a field cannot be bound.

    Raises:
        ValueError: for grouped convolutions, attention heads and groups of norms, by the name of the tensor.
    """

    _order: Tensor | None

    def __init__(self, space: WeightSpace, extra: int, width: int, condition: int, neuron_embedding: bool) -> None:
        refuse_parts(space)
        super().__init__(space, extra)
        self.neuron_embedding = neuron_embedding
        self._follow(space)
        self.time = TimeEmbedding(width)
        self.condition = nn.Linear(condition, width) if condition else None
        self.extra_in = nn.Linear(extra, width) if extra else None
        self.extra_out = nn.Linear(width, extra) if extra else None
        zero(self.extra_out)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The field's output, (B, D + extra), at points x (B, D + extra) and times t (B,).

        Args:
            x: Points.
            t: Times in [0, 1].
            condition: (B, K) where the field is conditional.

        Raises:
            ValueError: where a condition is missing, or given to a field that takes none.
        """
        if (condition is None) != (self.condition is None):
            raise ValueError("a field with condition > 0 needs a condition for every state, any other field takes none")
        scaled = self._scaled_in(x)
        context = self.time(t)
        if self.condition is not None:
            context = context + self.condition(condition)
        if self.extra_in is not None:
            context = context + self.extra_in(scaled[:, self.space.dim :])
        return self._scaled_out(self._field(scaled, context))

    @abstractmethod
    def _field(self, x: Tensor, context: Tensor) -> Tensor:
        """Output (B, D + extra) from scaled states (B, D + extra) and the context (B, d)."""

    def _vectors(self, group: str) -> list[GroupVector]:
        return [vector for vector in self.space.vectors if vector.group == group]

    def _first_states(
        self, x: Tensor, groups: Sequence[NeuronGroup], encoders: nn.ModuleList, readers: nn.ModuleList
    ) -> dict[str, Tensor]:
        """States (B, n, d) of groups by name: embeddings, vectors, and weights along fixed axes."""
        states: dict[str, Tensor] = {}
        for group, encode in zip(groups, encoders, strict=True):
            values = [vector.view(x) for vector in self._vectors(group.name)]
            states[group.name] = encode(values, x.shape[0], group.size)
        for block, read in zip(self.space.blocks, readers, strict=True):
            for name, state in zip((block.target, block.source), read(block.view(x)), strict=True):
                if state is not None:
                    states[name] = states[name] + state
        return states

    def _flat(self, blocks: Sequence[Tensor], states: dict[str, Tensor], heads: nn.ModuleList, whole: Tensor) -> Tensor:
        """Everything that is written, (B, D + extra), in flat order.

        Args:
            blocks: What is written to each block of the space, (B, out, in, depth).
            states: (B, n, d), last states of groups by name.
            heads: From states to vectors, for each of these groups.
            whole: (B, n, d), whose mean over n gives the extra coordinates.
        """
        parts: dict[Piece, Tensor] = dict(zip(self.space.blocks, blocks, strict=True))
        for (name, state), head in zip(states.items(), heads, strict=True):
            if vectors := self._vectors(name):
                values = torch.split(head(state), [vector.depth for vector in vectors], dim=-1)
                parts.update(zip(vectors, values, strict=True))
        flat = [parts[piece].flatten(1) for piece in self._pieces]
        if self._order is not None:
            flat = [torch.cat(flat, dim=1)[:, self._order]]
        if self.extra_out is not None:
            flat.append(self.extra_out(whole.mean(dim=1)))
        return torch.cat(flat, dim=1)

    def _follow(self, space: WeightSpace) -> None:
        """Set what follows from the space alone."""
        order = flat_order(space)
        self._pieces = coordinate_pieces(space)
        self.register_buffer("_order", None if order is None else order.to(self._entry.device), persistent=False)

    def _bind(self, space: WeightSpace) -> None:
        if self.neuron_embedding:
            raise ValueError("a field with neuron_embedding=True is tied to its widths and cannot be bound to others")
        check_same_ends(self.space, space)
        refuse_parts(space)
        if graph(self.space) != graph(space):
            raise ValueError(
                f"the field was made for blocks and vectors {graph(self.space)} (places of the groups they join, "
                f"weights per edge) and cannot be bound to {graph(space)}"
            )
        self._follow(space)
