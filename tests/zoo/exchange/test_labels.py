"""Runs, steps and metrics from names and tables."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch

from wsflow.zoo import ZooError, import_zoo
from wsflow.zoo.exchange.folders import NetworkFile, natural
from wsflow.zoo.exchange.labels import from_names, from_table, labels

PATTERN = r"run(?P<run>\d+)_step(?P<step>\d+)_acc(?P<accuracy>[\d.]+)"


def files(*names):
    return [NetworkFile(Path(name), name, name.removesuffix(Path(name).suffix)) for name in names]


def test_natural_order():
    names = ["run10", "run9", "a/2", "a/10", "run09", "run", "10", "9"]
    assert sorted(names, key=natural) == ["9", "10", "a/2", "a/10", "run", "run09", "run9", "run10"]


def test_a_pattern_reads_runs_steps_and_metrics():
    found = labels(from_names(files("x/run7_step100_acc0.93.pt", "x/run7_step20_acc.5.ckpt"), PATTERN), 2)
    assert found.run.tolist() == [7, 7]
    assert found.step.tolist() == [100, 20]
    torch.testing.assert_close(found.metrics["accuracy"], torch.tensor([0.93, 0.5]))
    assert found.order(["a", "b"]) == [1, 0]


def test_runs_with_names_become_codes():
    found = labels(from_names(files("b12-1.pt", "b2-1.pt", "b12-2.pt"), r"(?P<run>\w+)-(?P<step>\d)"), 3)
    assert found.run.tolist() == [1, 0, 1]
    assert found.codes == {"run": ["b2", "b12"]}


def test_texts_become_codes_and_gaps_nan():
    found = labels({"optimizer": ["sgd", "adam", "", "sgd"], "lr": ["1e-3", "", "0.1", "-2"]}, 4)
    assert found.codes == {"optimizer": ["adam", "sgd"]}
    values = found.metrics["optimizer"].tolist()
    assert (values[:2], values[3]) == ([1, 0], 1)
    assert math.isnan(values[2])
    assert found.metrics["lr"][[0, 2, 3]].tolist() == pytest.approx([1e-3, 0.1, -2])
    assert math.isnan(found.metrics["lr"][1])


def test_metrics_get_the_names_of_a_zoos_own():
    columns = from_names(files("tl0.5_va.5.pt"), r"tl(?P<train_loss>[\d.]+)_va(?P<val_accuracy>[\d.]+)")
    assert set(columns) == {"train.loss", "val.accuracy"}


def test_without_runs_each_is_its_own_and_without_steps_they_count():
    assert labels({}, 3).run.tolist() == [0, 1, 2]
    assert labels({"run": ["5", "2", "5", "5"]}, 4).step.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"run": ["1", ""]}, "network 1 has no run"),
        ({"run": ["1", "2"], "step": ["1", "1.5"]}, r"a step is a whole number that is not negative, found '1\.5'"),
        ({"run": ["1", "2"], "step": ["-1", "1"]}, "found '-1'"),
        ({"step": ["1", "2"]}, "there are steps but no runs"),
    ],
)
def test_labels_that_cannot_be(columns, words):
    with pytest.raises(ZooError, match=words):
        labels(columns, 2)


def test_two_networks_of_one_step():
    found = labels({"run": ["3", "3"], "step": ["10", "10.0"]}, 2)
    with pytest.raises(ZooError, match=r"a\.pt and b\.pt are both step 10 of run 3"):
        found.order(["a.pt", "b.pt"])


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("run(?P<run>", "no regular expression: "),
        (r"run\d+", "names nothing; groups are written"),
        (r"walk(?P<run>\d+)", r"does not fit the file 'run1'"),
        (r"(?P<run>\d)(?P<step>\d)?", r"whole number that is not negative, found ''"),
    ],
)
def test_patterns_that_do_not_fit(pattern, words):
    with pytest.raises(ZooError, match=words):
        labels(from_names(files("run1.pt"), pattern), 1)


def table(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_table_by_file(tmp_path):
    path = table(tmp_path / "t.csv", "file,run,val_loss,note", "b.pt,2,0.5,x", "./sub/a,1,0.25,y", "more.pt,1,0,z")
    found = labels(from_table(path, files("sub/a.pt", "b.pt"), 2), 2)
    assert found.run.tolist() == [1, 2]
    assert found.metrics["val.loss"].tolist() == [0.25, 0.5]
    assert found.codes == {"note": ["x", "y"]}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["run,acc", "1,2"], r"needs a column 'file' with the names of the files"),
        (["file,acc", "a.pt,2"], r"has no row for the file 'b\.pt'"),
        (["file,acc", "a.pt,2", "a.pt,3"], r"has the file 'a\.pt' twice"),
        (["file,acc,acc", "a.pt,2,3"], "has 'acc' twice"),
        (["file,val_loss,val.loss", "a.pt,2,3"], r"has 'val\.loss' twice"),
        (["file,acc", "a.pt"], "line 2: 1 cells under 2 columns"),
        (["file,,acc", "a.pt,1,2"], "needs a header that names every column"),
        ([""], "needs a header"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, lines, words):
    with pytest.raises(ZooError, match=words):
        from_table(table(tmp_path / "t.csv", *lines), files("a.pt", "b.pt"), 2)


def test_tables_that_are_none(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00a,b")
    with pytest.raises(ZooError, match="cannot be read as CSV"):
        from_table(tmp_path / "t.csv", None, 1)
    with pytest.raises(ZooError, match="there is no table"):
        from_table(tmp_path / "absent.csv", None, 1)
    with pytest.raises(ZooError, match="has 1 rows, and there are 2 networks"):
        from_table(table(tmp_path / "u.csv", "acc", "1"), None, 2)


def test_labels_reach_the_zoo(mlp_space, states, theta, folder, out):
    names = ["run2_step20_acc0.9.pt", "run2_step3_acc0.5.pt", "run1_step8_acc0.7.pt"]
    for name, state in zip(names, states, strict=False):
        torch.save(state, folder / name)
    path = table(folder / "t.csv", "file,kind", f"{names[0]},wide", f"{names[1]},deep", f"{names[2]},wide")
    zoo = import_zoo(folder, out, mlp_space, pattern=PATTERN, table=path)
    assert torch.equal(zoo.theta, theta[[2, 1, 0]])
    assert (zoo.run.tolist(), zoo.step.tolist()) == ([1, 2, 2], [8, 3, 20])
    torch.testing.assert_close(zoo.metrics["accuracy"], torch.tensor([0.7, 0.5, 0.9]))
    assert zoo.metrics["kind"].tolist() == [1, 0, 1]
    assert zoo.manifest["import"]["codes"] == {"kind": ["deep", "wide"]}
    assert zoo.manifest["import"]["pattern"] == PATTERN
    with (out / "networks.csv").open() as file:
        assert [line["file"] for line in csv.DictReader(file)] == [names[2], names[1], names[0]]
    zoo.verify()


def test_a_pattern_and_a_table_cannot_both_say_something(mlp_space, states, folder, out, left):
    torch.save(states[0], folder / "run1.pt")
    path = table(folder / "t.csv", "file,run", "run1.pt,3")
    with pytest.raises(ZooError, match="the pattern and the table both say 'run'"):
        import_zoo(folder, out, mlp_space, pattern=r"(?P<run>\d)", table=path)
    assert left() == []
