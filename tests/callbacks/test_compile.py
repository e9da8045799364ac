"""A field that cannot be compiled is trained as it is."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from conftest import describe
from lightning.pytorch import Trainer
from torch._inductor import config
from torch.utils.data import DataLoader

from wsflow.callbacks import CompileField
from wsflow.fields import MLPField, RelationalTransformer, SelfConditioned
from wsflow.module import FlowMatchingModule
from wsflow.weightspace import ZooBatch

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*",  # lightning 2.6 calls torch's pytree by names that torch 2.15 deprecates
    "ignore:.*does not have many workers",
    "ignore::DeprecationWarning:torch",
    "ignore::FutureWarning:torch",
)


NARROW = partial(MLPField, width=8, depth=1)


LABELS = [{"name": "loss"}]


def module(field: Any = NARROW, labels: Any = None) -> FlowMatchingModule:
    torch.manual_seed(0)
    flow = FlowMatchingModule(describe([5, 4, 2]), field=field, labels=labels)
    if flow.conditioning is not None:
        flow.conditioning.fit(torch.arange(4.0)[:, None])
    return flow


def fit(flow: FlowMatchingModule, precision: str = "32-true", **kwargs: object) -> None:
    theta = torch.randn(4, flow.space.dim, generator=torch.Generator().manual_seed(1))
    label = None if flow.conditioning is None else torch.arange(4.0)[:, None]
    networks = ZooBatch(theta, None, torch.arange(4), label)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        precision=precision,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **kwargs,
    )
    loader = DataLoader([0, 0], collate_fn=lambda _: networks)
    trainer.fit(flow, loader, loader)


@pytest.mark.slow  # the compiler starts
@pytest.mark.parametrize("field", [NARROW, partial(SelfConditioned, field=NARROW)], ids=["plain", "self-conditioned"])
@pytest.mark.parametrize("labels", [None, LABELS], ids=["no labels", "labels"])
def test_without_a_compiler_training_goes_on(labels: Any, field: Any) -> None:
    flow, plain = module(field, labels), module(field, labels)
    torch.compiler.reset()
    patched = config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False})
    with patched, pytest.warns(UserWarning, match="the field is not compiled: .*[Cc]ompiler") as found:
        fit(flow, callbacks=[CompileField()])
    assert len([w for w in found if "not compiled" in str(w.message)]) == 1
    fit(plain)
    assert plain.state_dict().keys() == flow.state_dict().keys()
    for one, other in zip(plain.state_dict().values(), flow.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("precision", "half"), [("32-true", False), ("bf16-mixed", True)])
def test_the_trial_is_as_the_training(precision: str, half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another precision it would compile what the training does not use."""
    seen: list[bool] = []
    flow = module()
    monkeypatch.setattr(flow.field, "compile", lambda **_: None)
    flow.field.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    fit(flow, precision, callbacks=[CompileField()])
    assert seen[0] is half  # before the fit looks at validation data


@pytest.mark.slow  # the compiler starts
def test_what_a_self_conditioned_field_is_trained_by_is_compiled() -> None:
    derivatives: list[bool] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        def run(*args: object) -> Any:
            derivatives.append(torch.is_grad_enabled())
            return graph(*args)

        return run

    flow = module(partial(SelfConditioned, field=NARROW, probability=1.0))
    flow.field.compile(backend=backend)
    networks = ZooBatch(torch.randn(4, flow.space.dim), None, torch.arange(4))
    flow.training_loss(networks, torch.Generator().manual_seed(0))[0].backward()
    assert derivatives.count(True) == derivatives.count(False) == 1


def test_training_and_sampling_in_bf16() -> None:
    field = partial(RelationalTransformer, width=8, edge_width=4, depth=1, heads=2)
    flow, plain = module(field), module(field)
    fit(flow, "bf16-mixed")
    fit(plain)
    assert all(value.dtype != torch.bfloat16 for value in flow.state_dict().values())
    with torch.autocast("cpu", torch.bfloat16):
        samples = flow.sample(range(3))
    assert samples.dtype == torch.float32
    assert (samples - plain.sample(range(3))).norm() < 0.05 * samples.norm()
