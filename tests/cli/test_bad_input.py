"""Every mistake ends in one clear line and an exit status other than 0."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from wsflow.cli import WsflowCLI, main
from wsflow.files import claimed
from wsflow.tasks import Digits
from wsflow.zoo import write_networks


@pytest.fixture
def zoo(zoos, trained, tmp_path):
    """A copy of the small breast-cancer zoo, to be damaged."""
    return shutil.copytree(zoos / "breast_cancer", tmp_path / "copy")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--model.geometry=nowhere.Geometry", "nowhere"),
        ("--model.coupling=Marriage", "Marriage"),
        ("--data.task=nowhere.Task", "nowhere"),
        ("--data.batch_size=many", "batch_size"),
        ("--data.batch_size=1000", "batch_size 1000"),
        ("--data.bottles=3", "bottles"),
        ("--model.field.width=7", "width 7"),
        ("--data.collector.runs=0", "runs must be at least 1"),
        ("--trainer.max_epochs=x", "max_epochs"),
        ("--trainer.max_epochs=-1", "give trainer.max_steps or trainer.max_epochs"),
        ("--ckpt_path=absent.ckpt", "absent.ckpt"),
        ("--ckpt_path=last_of_all.ckpt", "no checkpoint at last_of_all.ckpt"),
        ("--trainer.precision=bf16-true", "give bf16-mixed"),
        ("--config=absent.yaml", "absent.yaml"),
    ],
    ids=lambda value: value.partition("=")[0] if value.startswith("--") else "",
)
def test_a_wrong_option_of_fit(option, words, command, error_of, trained):
    assert words in error_of(command("fit", option))


def test_an_unknown_command(error_of):
    assert "unknown command 'fitt'" in error_of(["fitt"])


def test_a_missing_zoo(command, error_of, tmp_path):
    arguments = command("fit", "--data.path", str(tmp_path / "nothing"), "--data.collector=null")
    assert f"there is no zoo at {tmp_path / 'nothing'}" in error_of(arguments)


def test_a_truncated_shard(command, error_of, zoo):
    shard = next(zoo.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])
    message = error_of(command("fit", "--data.path", str(zoo)))
    assert "truncated" in message
    assert shard.name in message
    assert "truncated" in error_of(["zoo", "verify", str(zoo)])


def test_a_foreign_manifest(command, error_of, zoo):
    (zoo / "zoo.json").write_text(json.dumps({"format": "cookbook"}))
    assert "not the manifest" in error_of(command("fit", "--data.path", str(zoo)))


def test_weights_of_another_architecture(command, error_of, tmp_path):
    task = Digits()
    write_networks(tmp_path / "zoo", torch.randn(20, task.space.dim), task.space, task=task, kind="zoo")
    message = error_of(command("fit", "--data.path", str(tmp_path / "zoo"), "--data.collector=null"))
    assert "another architecture" in message


def test_nan_weights(command, error_of, zoo):
    shard = next(zoo.glob("*.safetensors"))
    tensors = safetensors.torch.load_file(shard)
    tensors["theta"][3, 5] = torch.nan
    safetensors.torch.save_file(tensors, shard)
    assert "NaN" in error_of(command("fit", "--data.path", str(zoo)))


def test_a_checkpoint_of_another_weight_space(command, error_of, trained):
    message = error_of(command("fit", "--ckpt_path", str(trained), config="digits"))
    assert "another weight space" in message


@pytest.mark.filterwarnings("ignore:the training goes on with other settings")
def test_a_checkpoint_of_another_field(command, error_of, trained):
    assert "do not fit" in error_of(command("fit", "--ckpt_path", str(trained), "--model.field.width=12"))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "truncated"], ids=["empty", "text", "truncated"])
@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_a_damaged_checkpoint(content, name, error_of, trained, tmp_path):
    path = tmp_path / "bad.ckpt"
    path.write_bytes(trained.read_bytes()[:5000] if content == "truncated" else content)
    assert "bad.ckpt" in error_of([name, "--ckpt_path", str(path)])


def test_a_damaged_last_checkpoint(command, error_of, trained, tmp_path):
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.write_bytes(trained.read_bytes()[:5000])
    assert f"{last} is damaged" in error_of(command("fit", "--ckpt_path", "last"))
    assert len(last.read_bytes()) == 5000


def test_a_foreign_checkpoint(error_of, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert "no checkpoint of wsflow" in error_of(["predict", "--ckpt_path", str(tmp_path / "other.ckpt")])


@pytest.mark.parametrize("option", ["--n=0", "--steps=0", "--noise=-1", "--batch_size=0", "--seed=-1"])
def test_a_wrong_option_of_predict(option, error_of, trained, tmp_path):
    out = tmp_path / "samples"
    message = error_of(["predict", "--ckpt_path", str(trained), "--out", str(out), "--accelerator=cpu", option])
    assert option.lstrip("-").partition("=")[0] in message
    assert not out.exists()


def test_samples_are_not_overwritten(error_of, trained, zoos, tmp_path):
    out = str(tmp_path / "samples")
    predict = ["predict", "--ckpt_path", str(trained), "--n", "2", "--steps", "1", "--out", out]
    assert main(predict) == 0
    assert "exists already" in error_of(predict)
    assert main([*predict, "--overwrite"]) == 0
    trained_networks = [*predict, "--overwrite=true", "--out", str(zoos / "breast_cancer")]
    assert "trained networks" in error_of(trained_networks)


def test_a_second_training_in_the_same_folder(command, error_of, trained):
    message = error_of(command("fit", "--trainer.default_root_dir", str(trained.parent.parent)))
    assert "holds checkpoints of another training" in message


def test_two_trainings_at_once_in_one_folder(command, error_of, tmp_path, monkeypatch):
    root = tmp_path / "run"
    fit = command("fit", "--trainer.default_root_dir", str(root))
    with claimed(root / "checkpoints"):
        assert f"another process is training in {root}" in error_of(fit)
    assert not [path for path in root.rglob("*") if path.suffix in (".ckpt", ".json")]

    def collect(*_):
        """As if another training had begun and ended meanwhile."""
        (root / "checkpoints" / "last.ckpt").touch()

    monkeypatch.setattr(WsflowCLI, "_collect", collect)
    assert "holds checkpoints of another training" in error_of(fit)


def test_evaluate_wants_networks_and_their_zoo(error_of, trained, zoos):
    assert "either --samples" in error_of(["evaluate"])
    assert "--zoo" in error_of(["evaluate", "--samples", str(zoos / "breast_cancer")])
    assert "at least 2" in error_of(["evaluate", "--ckpt_path", str(trained), "--n", "1"])


def test_evaluate_refuses_networks_of_another_space(error_of, zoos, trained, tmp_path):
    task = Digits()
    write_networks(tmp_path / "digits", torch.randn(5, task.space.dim), task.space)
    arguments = ["evaluate", "--samples", str(tmp_path / "digits"), "--zoo", str(zoos / "breast_cancer")]
    assert "another weight space" in error_of(arguments)


def test_shares_and_zoos_that_do_not_exist(error_of, tmp_path):
    assert "0 <= i < n" in error_of(["collect", "--data.task=BreastCancer", "--data.path=x", "--shard=3/2"])
    assert "there is no zoo" in error_of(["zoo", "info", str(tmp_path / "none")])


def test_the_exit_status_of_the_process():
    result = subprocess.run([sys.executable, "-m", "wsflow", "nonsense"], capture_output=True, text=True)
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.stderr


def test_a_trace_is_shown_on_request(monkeypatch):
    monkeypatch.setenv("WSFLOW_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown command"):
        main(["nonsense"])


def test_a_task_of_the_same_name_with_other_networks(command, error_of, trained):
    message = error_of(command("fit", "--data.task.widths=[30, 8, 2]", "--data.collector=null"))
    assert "another architecture" in message
