"""Networks with random numbers, as `state_dict`s; shared by the tests of import and export."""

from __future__ import annotations

import torch

from wsflow.weightspace import WeightSpace


def random_state(space: WeightSpace, seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """A ``state_dict`` of the space's network with random numbers, also in buffers; variances are positive."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in space.template.state_dict().items():
        if not value.is_floating_point():
            state[name] = value + 17
        else:
            state[name] = scale * torch.randn(value.shape, generator=generator)
            state[name] = state[name].abs() + 0.5 if name.endswith("running_var") else state[name]
    return state
