"""``wsflow predict --guidance``: every shipped file, classes by name, and what is written down."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import wsflow
from wsflow.cli import main
from wsflow.flow import Sampler, StateGuidance
from wsflow.tasks import TaskLoss
from wsflow.zoo import Zoo

GUIDANCE = Path(__file__).parents[2] / "configs" / "guidance"
FILES = sorted(GUIDANCE.glob("*.yaml"))


@pytest.fixture
def predict(trained, tmp_path):
    """Generate eight networks with further options; their weights and what is recorded of the guidance."""

    def run(*extra: str) -> tuple[torch.Tensor, dict]:
        out = tmp_path / "samples"
        common = ["predict", "--ckpt_path", str(trained), "--n", "8", "--accelerator", "cpu", "--steps", "3"]
        assert main([*common, "--out", str(out), "--overwrite", *extra]) == 0
        zoo = Zoo.open(out)
        return zoo.theta.clone(), zoo.manifest["sampling"].get("guidance")

    return run


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_shipped_file_guides_and_is_recorded(file, predict, trained):
    other = ["--guidance.init_args.objective.init_args.task", "BreastCancer", "--guidance.init_args.strength", "1"]
    own = other if "fashion" in file.stem else []
    guided, record = predict("--guidance", str(file), *own)
    assert record["init_args"]["seed"] == 0
    assert not torch.allclose(wsflow.load(trained).sample(8, sampler=Sampler(steps=3)), guided, atol=1e-3)


def test_guidance_lowers_the_loss_and_is_what_flow_sample_does(predict, trained):
    flow, options = wsflow.load(trained), ["--guidance", "StateGuidance", "--guidance.objective", "TaskLoss"]
    plain, nothing = predict()
    assert nothing is None
    guided, record = predict(*options, "--guidance.strength", "1.5", "--batch_size", "3")
    assert record["init_args"]["strength"] == 1.5
    loss = [flow.task.evaluate(theta, "test")["loss"].mean() for theta in (plain, guided)]
    assert loss[1] < 0.7 * loss[0]
    sampler = Sampler(steps=3, guidance=StateGuidance(TaskLoss(), 1.5))
    torch.testing.assert_close(flow.sample(8, sampler=sampler), guided, rtol=1e-4, atol=1e-5)


def test_an_objective_of_ones_own_is_named_by_its_path(predict, package, trained):
    (package / "mine.py").write_text("def first(theta):\n    return theta[:, 0]\n")
    options = ["--guidance", "StateGuidance", "--guidance.objective", "FunctionObjective", "--guidance.strength", "2"]
    guided, record = predict(*options, "--guidance.objective.function", "mine.first")
    plain = wsflow.load(trained).sample(8, sampler=Sampler(steps=3))
    assert record["init_args"]["objective"]["init_args"]["function"] == "mine.first"
    assert (guided[:, 0] < plain[:, 0] - 1).all()


def test_mistakes_are_one_line(trained, tmp_path, error_of):
    common = ["predict", "--ckpt_path", str(trained), "--n", "2", "--out", str(tmp_path / "x")]
    file = tmp_path / "wrong.yaml"
    file.write_text("class_path: StateGuidance\ninit_args:\n  objective: TaskLoss\n  strength: -1\n")
    assert "must not be negative" in error_of([*common, "--guidance", str(file)])
    task = ["--guidance", "StateGuidance", "--guidance.objective", "TaskLoss", "--guidance.objective.task", "Diabetes"]
    assert "task diabetes judges networks of 465 weights" in error_of([*common, *task])
