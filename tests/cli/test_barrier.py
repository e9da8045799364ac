"""``wsflow barrier`` from the command line: what it draws, measures, prints, writes and refuses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import matplotlib as mpl
import pytest
import safetensors.torch
import torch

from wsflow.alignment import ActivationMatching, MidObjective, SinkhornRebasin, WeightMatching, ZooCenter
from wsflow.alignment.barrier import barriers
from wsflow.cli import main
from wsflow.commands.barrier import draw_finals, draw_snapshots
from wsflow.commands.connectivity import Center, EachOther, Lines, OneNetwork, name
from wsflow.tasks import BreastCancer, Gaussians
from wsflow.zoo import Collector, EverySnapshot, Zoo, write_networks


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    """Six runs of 30-5-4-2, four snapshots each."""
    path = tmp_path_factory.mktemp("barrier") / "zoo"
    Collector(runs=6, epochs=4, snapshots=EverySnapshot(8)).collect(BreastCancer([30, 5, 4, 2]), path, progress=False)
    return path


@pytest.fixture
def barrier(zoo, tmp_path, capsys):
    """Run the command; what it wrote and what it printed."""

    def run(*options: str) -> tuple[dict, str]:
        assert main(["barrier", "--zoo", str(zoo), "--output", str(tmp_path), *options]) == 0
        return json.loads((tmp_path / "barrier.json").read_text()), capsys.readouterr().out

    return run


def test_the_numbers_are_those_of_the_zoos_last_snapshots(barrier, zoo, tmp_path):
    written, _ = barrier("--n=6", "--pairs=3", "--points=5")
    opened = Zoo.open(zoo)
    theta, evaluate = opened.rows(opened.final()), partial(opened.task.evaluate, split="test")
    before, after = written["results"]
    found = barriers(evaluate, theta)
    assert before["barrier"]["mean"] == pytest.approx(found.mean, rel=1e-5)
    assert before["barrier"]["standard_error"] == pytest.approx(found.standard_error, rel=1e-4)
    assert before["scores"]["accuracy"]["ends"] == pytest.approx(float(found.ends["accuracy"].mean()))
    assert before["scores"]["loss"]["middle"] == pytest.approx(found.middle("loss"), rel=1e-5)
    assert (before["barrier"]["pairs"], before["path"]["pairs"]) == (15, 3)
    aligned = opened.space.permute(theta, WeightMatching().align(opened.space, theta, theta[0]))
    assert after["barrier"]["mean"] == pytest.approx(barriers(evaluate, aligned).mean, rel=1e-4)
    assert after["barrier"]["cut"] == pytest.approx(1 - after["barrier"]["mean"] / before["barrier"]["mean"])
    matrices = safetensors.torch.load_file(tmp_path / "barriers.safetensors")
    torch.testing.assert_close(matrices["as trained"], found.matrix, rtol=1e-5, atol=1e-7)
    assert written["origin"]["run"] == [0, 1, 2, 3, 4, 5]


def test_the_table_has_a_row_for_every_aligner_and_target(barrier):
    options = ["--aligner", "WeightMatching", "--aligner=WeightMatching", "--aligner.restarts=2", "--aligner=ZooCenter"]
    written, printed = barrier(*options, "--center", "--pairwise", "--n=4", "--split=val", "--pairs=2")
    rows = [(row["aligner"], row["target"]) for row in written["results"]]
    names, targets = ["WeightMatching", "WeightMatching(restarts=2)"], ["one network", "the centre", "each other"]
    assert rows[:-1] == [("", ""), *((one, target) for one in names for target in targets)]
    assert rows[-1] == ("ZooCenter(WeightMatching)", "the centre")
    assert written["results"][-1]["barrier"]["mean"] == written["results"][2]["barrier"]["mean"]
    assert "4 networks of 4 runs; val data" in printed
    assert all(f"{row['barrier']['mean']:.4f} ±" in printed for row in written["results"])
    assert all(f"{100 * row['barrier']['cut']:.1f} %" in printed for row in written["results"][1:])


def test_pictures_are_written_in_both_formats(barrier, tmp_path):
    barrier("--n=4", "--pairs=2")
    for picture in ("matrices", "curves"):
        assert min(mpl.image.imread(tmp_path / f"{picture}.png").shape[:2]) > 300
        assert "<svg" in (tmp_path / f"{picture}.svg").read_text()[:2000]


def test_snapshots_of_one_run_are_no_pair(barrier):
    written, printed = barrier("--n=8", "--snapshots", "--pairs=2")
    runs = torch.tensor(written["origin"]["run"])
    _, sizes = runs.unique(return_counts=True)
    assert sorted(sizes.tolist()) == [1, 1, 1, 1, 2, 2]
    assert written["results"][0]["barrier"]["pairs"] == 8 * 7 // 2 - 2
    assert "8 networks of 6 runs" in printed


def test_what_is_drawn_depends_on_the_seed_alone_and_is_no_network_twice(zoo):
    opened = Zoo.open(zoo)
    for draw, count in ((draw_snapshots, 24), (draw_finals, 6)):
        assert torch.equal(draw(opened, 4, 1), draw(opened, 4, 1))
        assert not torch.equal(draw(opened, 4, 1), draw(opened, 4, 2))
        assert len(draw(opened, 1000).unique()) == count
    assert set(draw_finals(opened, 4).tolist()) <= set(opened.final().tolist())


def test_the_reference_is_a_runs_last_snapshot(barrier, zoo):
    means = [barrier("--n=6", "--pairs=2", f"--reference={run}")[0]["results"][1]["barrier"]["mean"] for run in (0, 4)]
    opened = Zoo.open(zoo)
    theta = opened.rows(opened.final())
    aligned = opened.space.permute(theta, WeightMatching().align(opened.space, theta, theta[4]))
    assert means[1] == pytest.approx(barriers(partial(opened.task.evaluate, split="test"), aligned).mean, rel=1e-4)
    assert means[0] != means[1]


def test_aligners_see_train_data_and_lines_the_asked_split(zoo):
    task, asked = Zoo.open(zoo).task, []

    class Asking(WeightMatching):
        def align(self, space, theta, reference, objective=None):
            asked.append(objective(theta) - task.evaluate(theta, "train")["loss"])
            assert (objective(theta) - task.evaluate(theta, "val")["loss"]).abs().max() > 1e-3
            return super().align(space, theta, reference, objective)

    theta = Zoo.open(zoo).theta[:6]
    lines = Lines(task, theta, torch.arange(6), "val", pairs=2)
    for target in (OneNetwork(theta[0]), Center(), EachOther()):
        assert lines.measure(Asking(), target).seconds > 0
    assert torch.cat(asked).abs().max() < 1e-5
    assert torch.equal(lines.objective.inputs, task.data("train")[0])
    torch.testing.assert_close(lines.measure().barriers.ends["loss"], task.evaluate(theta, "val")["loss"].double())


def test_an_aligner_that_changes_functions_is_caught(zoo):
    class Wrong(WeightMatching):
        def align(self, space, theta, reference, objective=None):
            return [torch.zeros_like(p) for p in super().align(space, theta, reference, objective)]

    lines = Lines(Zoo.open(zoo).task, Zoo.open(zoo).theta[:4], torch.arange(4), pairs=2)
    with pytest.raises(ValueError, match=r"changed the function|permutation"):
        lines.measure(Wrong(), EachOther())


def test_names_tell_what_is_not_a_default():
    assert name(WeightMatching()) == "WeightMatching"
    assert name(WeightMatching(restarts=3)) == "WeightMatching(restarts=3)"
    assert name(ZooCenter(WeightMatching(seed=1), rounds=2)) == "ZooCenter(WeightMatching(seed=1), rounds=2)"
    matching = ActivationMatching(torch.zeros(4, 2), points=3)
    assert name(matching) == "ActivationMatching(inputs=(4, 2) numbers, points=3)"
    assert name(SinkhornRebasin()) == "SinkhornRebasin(L2Objective)"
    assert name(SinkhornRebasin(start=WeightMatching())) == "SinkhornRebasin(L2Objective, start=WeightMatching)"
    assert name(SinkhornRebasin(MidObjective(), iterations=3)) == "SinkhornRebasin(MidObjective, iterations=3)"


def test_every_aligner_can_be_named(barrier):
    objective = ["--aligner=SinkhornRebasin", "--aligner.iterations=3", "--aligner.objective=MidObjective"]
    written, _ = barrier("--aligner=ActivationMatching", *objective, "--n=4", "--pairs=2", "--points=3")
    names = [row["aligner"] for row in written["results"]]
    assert names[1] == "ActivationMatching"
    assert names[2] == "SinkhornRebasin(MidObjective, iterations=3)"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--n=1"], "n must be at least 2, got 1"),
        (["--points=2"], "at least 3 points, got 2"),
        (["--pairs=0"], "pairs must be at least 1, got 0"),
        (["--reference=99"], "has no run 99"),
        (["--aligner=Horoscope"], "Horoscope"),
        (["--aligner=WeightMatching", "--aligner=WeightMatching"], "given twice"),
        (["--split=train"], "split"),
        (["--batch_size=100000"], "batch_size 100000 does not fit"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_option(options, words, zoo, tmp_path, error_of):
    assert words in error_of(["barrier", "--zoo", str(zoo), "--output", str(tmp_path), *options])


def test_a_missing_zoo(error_of, tmp_path):
    assert "there is no zoo at" in error_of(["barrier", "--zoo", str(tmp_path / "nothing")])


def test_a_zoo_without_data_to_judge_networks_on(error_of, tmp_path):
    task = Gaussians([3, 2, 1])
    write_networks(tmp_path / "zoo", task.draw(3, torch.Generator().manual_seed(0)), task.space, task=task)
    assert "barriers need a task with data" in error_of(["barrier", "--zoo", str(tmp_path / "zoo")])
    write_networks(tmp_path / "orphan", task.draw(3, torch.Generator().manual_seed(0)), task.space)
    assert "barriers need a task with data" in error_of(["barrier", "--zoo", str(tmp_path / "orphan")])


def test_networks_of_one_run_have_no_pairs(error_of, tmp_path):
    task = BreastCancer([30, 3, 2])
    Collector(runs=1, epochs=1).collect(task, tmp_path / "one", progress=False)
    assert "at least two runs" in error_of(["barrier", "--zoo", str(tmp_path / "one")])
