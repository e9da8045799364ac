"""The page about a run: whole, in one file, with the numbers of its evaluation, and plain about what is missing."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import wsflow
from wsflow.cli import main
from wsflow.description import plain
from wsflow.flow import ListGrid, Sampler, sample_prior
from wsflow.report.card import novelty
from wsflow.report.figures import nearest_curves
from wsflow.report.markup import Section
from wsflow.report.markup import page as written
from wsflow.report.networks import MOVED, PATHS, Networks, _projected, paths
from wsflow.report.runs import Case, read_runs
from wsflow.report.sections import Gallery, Studied, _paths

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; every tag that is opened is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory) -> Path:
    """A run with samples, an evaluation on test data and a second one with more steps."""
    folder = shutil.copytree(trained.parents[1], tmp_path_factory.mktemp("runs") / "flow")
    for case, steps in (("few", 2), ("more", 3)):
        samples = str(folder / case / "samples")
        checkpoint = str(folder / "checkpoints" / "last.ckpt")
        drawn = ["predict", "--ckpt_path", checkpoint, "--n=6", f"--steps={steps}", "--accelerator=cpu"]
        assert main([*drawn, "--out", samples]) == 0
        assert main(["evaluate", "--samples", samples, "--split=test", "--n=6", "--baselines=false"]) == 0
    assert main(["bayes", "--samples", str(folder / "few" / "samples"), "--split=test", "--sizes=1,3"]) == 0
    return folder


@pytest.fixture(scope="module")
def out(run, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("page")
    assert main(["report", str(run), "--out", str(place), "--n=6", "--licence", "CC0 <1.0>"]) == 0
    return place


@pytest.fixture(scope="module")
def page(out) -> Page:
    return Page((out / "index.html").read_text())


def test_nothing_is_fetched(page):
    assert not [tag for tag, _ in page.seen if tag in ("script", "link", "iframe", "object")]
    for tag, attributes in page.seen:
        for name in ("src", "href", "srcset"):
            if name in attributes:
                assert attributes[name].startswith("data:image/svg+xml;base64," if tag == "img" else "#")


def test_links_lead_somewhere_and_figures_have_words(page):
    anchors = [attributes["id"] for _, attributes in page.seen if "id" in attributes]
    assert len(anchors) == len(set(anchors))
    assert {a["href"][1:] for tag, a in page.seen if tag == "a"} == set(anchors)
    images = [attributes for tag, attributes in page.seen if tag == "img"]
    assert len(images) >= 7
    assert all(image["alt"] for image in images)


def test_tables_hold_the_numbers_of_the_evaluation(page, run):
    for case in ("few", "more"):
        report = json.loads((run / case / "report.json").read_text())
        for kind in ("samples", "heldout"):
            assert f"{report[f'{kind}.accuracy']:.3f} ± {report[f'{kind}.accuracy.std']:.3f}" in page.cells
        assert f"{report['samples.nn_ratio.function']:.3f}" in page.cells
        if case == "few":  # whose networks are looked at
            for kind in ("samples", "heldout"):
                assert f"{report[f'{kind}.ensemble_nll']:.4f}" in page.cells
        assert f"{1e3 * report['timing.seconds_per_network']:.3g}" in page.cells


def test_ensembles_that_were_scored_are_shown(page, run):
    (networks,) = json.loads((run / "few" / "bayes.json").read_text())["networks"].values()
    scores = networks["sizes"]["3"]
    assert any(cell.startswith(f"{scores['mean']['brier']:.4f}") for cell in page.cells)


def test_settings_and_card(page):
    assert page.cells[page.cells.index("model.coupling") + 1] == "TrajectoryCoupling"
    assert "max_epochs: 2" in page.text
    assert "CC0 <1.0>" in page.text
    assert "CC BY 4.0" in page.text
    assert "40 runs, 40 snapshots" in page.text
    assert re.search(r"Novelty test ?(few: )?(passed|closer)", page.text)


def test_figures_lie_beside_the_page(out):
    names = {path.name for path in (out / "figures").iterdir()}
    stems = {path.rpartition(".")[0] for path in names}
    assert {f"{stem}.{suffix}" for stem in stems for suffix in ("svg", "png")} == names
    for title in ("Reliability", "Path-of-samples", "Nearest-neighbours", "Error-overlap", "steps-accuracy"):
        assert any(title in stem for stem in stems), title
    for path in (out / "figures").glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    assert not list(out.rglob("*.tmp"))


def test_what_is_missing_is_said(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "bare")
    shutil.rmtree(other / "more")
    for gone in (other / "few" / "samples", other / "logs"):
        shutil.rmtree(gone)
    (other / "fit.yaml").unlink()
    report = other / "few" / "report.json"
    report.write_text(report.read_text().replace(str(run), str(other)))
    assert main(["report", str(other), "--out", str(tmp_path / "page"), "--n=6"]) == 0
    text = Page((tmp_path / "page" / "index.html").read_text()).text
    assert "Reliability is missing: the generated networks are not there any more." in text
    assert "The training curve of bare is missing: its folder holds no logs." in text
    assert "fit.yaml of bare is missing: not in its folder." in text
    assert "Figure 7.3) is missing: no run was evaluated at several numbers of steps." in text


def test_what_one_file_lacks_does_not_cost_the_page(run, tmp_path):
    """A log torn by a killed process, scores and times of another shape, a task of a package that is not here."""
    other = shutil.copytree(run, tmp_path / "odd")
    report = other / "few" / "report.json"
    report.write_text(report.read_text().replace(str(run), str(other)))
    (log,) = other.glob("logs/csv/version_*/metrics.csv")
    log.write_bytes(log.read_bytes() + b"\xff,1\n" + log.read_bytes().splitlines()[-1][:-7])
    whole = read_runs([run])[0].curves
    (other / "few" / "bayes.json").write_text('{"networks": []}')
    (other / "timing.json").write_text('{"fit": {"seconds": 3}, "predict": 2.0}')
    checkpoint = torch.load(other / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["data"]["init_args"]["task"] = {"class_path": "away.Task"}
    torch.save(checkpoint, other / "checkpoints" / "last.ckpt")
    assert main(["report", str(other), "--out", str(tmp_path / "page"), "--n=6"]) == 0
    text = Page((tmp_path / "page" / "index.html").read_text()).text
    assert "Ensembles by size: odd is missing: bayes.json cannot be read (AttributeError)." in text
    assert "The data's origin is missing: DescriptionError: 'away.Task' cannot be imported" in text
    assert "Seconds that the commands of a run took." in text
    assert "The training curve of odd is missing" not in text
    assert read_runs([other])[0].curves == whole
    log.write_text("epoch,train/flow_loss\n1,0.5\n")
    assert read_runs([other])[0].curves == {}


def test_a_run_that_was_moved_is_shown_with_its_own_samples(run, tmp_path):
    """Where the run was made there may be another one by now."""
    moved = shutil.copytree(run, tmp_path / "moved")
    cases = read_runs([moved])[0].cases
    assert len(cases) == 2
    assert all(case.samples.is_relative_to(moved) for case in cases)
    elsewhere = shutil.copytree(moved / "few" / "samples", tmp_path / "elsewhere" / "samples")
    main(["evaluate", "--samples", str(elsewhere), "--n=6", "--baselines=false", "--out", str(moved / "report.json")])
    shutil.copytree(moved / "more" / "samples", moved / "samples")  # of another prediction, by the same name
    assert next(case for case in read_runs([moved])[0].cases if not case.name).samples == elsewhere
    report = json.loads((moved / "few" / "report.json").read_text())
    for text, words in (
        ({"origin": report["origin"]}, "no scores of samples"),
        (report["origin"], "no report of wsflow"),
    ):
        (moved / "few" / "report.json").write_text(json.dumps(text))
        with pytest.raises(ValueError, match=rf"few/report.json is .*{words}"):
            read_runs([moved])


def test_damaged_times_are_left_out(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "odd")
    (other / "timing.json").write_text("{")
    assert read_runs([other])[0].timing == {}


def test_paths_end_where_the_samples_of_the_same_grid_do(trained):
    flow = wsflow.load(trained)
    space, few = flow.weight_space, torch.randn(3, flow.weight_space.dim)
    known = Networks(flow.task, "val", few, few, few)
    second = {}
    for name, grid in (("equal", None), ("late", ListGrid([0.0, 0.9, 0.95, 1.0]))):
        sampling = {"steps": 3, "seed": 5, **({"grid": plain(grid)} if grid else {})}
        found = paths(Case("", {}, None, {"sampling": sampling}), flow, known)
        last = flow.sample(PATHS + MOVED, 5, Sampler(steps=3, grid=grid)).double()
        starts = sample_prior(flow.module.prior, flow.module.geometry, 5, range(PATHS + MOVED)).double()
        assert last.shape == (PATHS + MOVED, space.dim)
        end = _projected(torch.stack([starts, last]), starts, starts).states[-1]
        np.testing.assert_allclose(np.abs(found.states[-1]), np.abs(end), rtol=1e-4, atol=1e-4)
        assert found.states.shape[0] == 4
        second[name] = np.abs(found.states[1] - found.states[0]).mean() / np.abs(end - found.states[0]).mean()
    assert second["equal"] == pytest.approx(1 / 3, abs=0.05)
    assert second["late"] == pytest.approx(0.9, abs=0.05)


def test_paths_of_a_solver_that_chooses_its_steps_and_what_captions_say(trained, run):
    flow = wsflow.load(trained)
    few = torch.randn(3, flow.weight_space.dim)
    sampling = {"steps": 5, "solver": {"class_path": "wsflow.flow.DormandPrince", "init_args": {}}, "noise": 0.1}
    case, known = Case("", {}, None, {"sampling": sampling}), Networks(flow.task, "val", few, few, few)
    assert paths(case, flow, known).states.shape[0] == 6
    one = Studied(replace(read_runs([run])[0], cases=[case]), flow, known)
    assert _paths(one)[1].endswith("Drawn without the noise that the samples were generated with.")


def test_several_runs_stand_side_by_side(run, tmp_path):
    bare = tmp_path / "runs" / "second"
    (bare / "checkpoints").mkdir(parents=True)
    (bare / "checkpoints" / "last.ckpt").write_bytes(b"no checkpoint")
    (bare / "fit.yaml").write_text("model: {coupling: IndependentCoupling}\n")
    shutil.copytree(run, bare.parent / "first")
    assert main(["report", str(bare.parent), "--out", str(tmp_path / "page"), "--n=4"]) == 0
    page = Page((tmp_path / "page" / "index.html").read_text())
    place = page.cells.index("model.coupling")
    assert page.cells[place + 1 : place + 3] == ["TrajectoryCoupling", "IndependentCoupling"]
    assert "The evaluation of second is missing: its folder holds no report.json." in page.text
    assert re.search(r"Reliability is missing: [^.]*", page.text)


def test_names_that_come_to_the_same_stay_apart():
    """Runs "a/b" and "a b", a run that has the name of a section, and one without a letter."""
    titles = ["a/b", "Settings", "a b", "settings", "(1)", "?", "a b 2"]
    found = Page(written("<b>", "", [Section(title, title) for title in titles]))
    anchors = [attributes["id"] for _, attributes in found.seen if "id" in attributes]
    assert anchors == ["a-b", "settings", "a-b-2", "settings-2", "1", "section", "a-b-2-2"]
    assert [a["href"][1:] for tag, a in found.seen if tag == "a"] == anchors
    gallery = Gallery()
    for name, distance in (("a/b", 1.0), ("a b", 2.0)):
        gallery.add(name, nearest_curves({"generated": np.array([distance])}), name, name)
    assert list(gallery.files) == ["a-b.svg", "a-b.png", "a-b-2.svg", "a-b-2.png"]
    assert gallery.files["a-b.png"] != gallery.files["a-b-2.png"]


def test_a_novelty_test_without_numbers_is_not_passed():
    numbers = {"samples.nn_ratio.function": 1.0, "samples.nn_ratio.weight": 1.0, "samples.z_u": 0.1}
    assert novelty(numbers).startswith("passed")
    assert novelty(numbers | {"samples.z_u": -3.0}).startswith("closer")
    for name in numbers:
        assert novelty(numbers | {name: float("nan")}) is None
        assert novelty({key: value for key, value in numbers.items() if key != name}) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no run folder"),
        ({}, "holds no checkpoint"),
        ({"checkpoints/last.ckpt": ""}, "no evaluation lies in"),
        ({"checkpoints/last.ckpt": "", "report.json": "{"}, "report.json is damaged"),
        ({"checkpoints/last.ckpt": "", "report.json": "{}"}, "is no report of wsflow evaluate"),
        ({"checkpoints/last.ckpt": "", "fit.yaml": "a: [1"}, "fit.yaml is damaged"),
    ],
)
def test_bad_input(content, words, tmp_path, error_of):
    folder = tmp_path / "run"
    for name, text in (content or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    if content == {}:
        folder.mkdir()
    assert words in error_of(["report", str(folder), "--out", str(tmp_path / "page")])
    assert not (tmp_path / "page").exists()


def test_networks_that_have_replaced_those_of_an_evaluation_are_not_taken_for_them(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "again")
    file, report = other / "few" / "samples" / "zoo.json", other / "few" / "report.json"
    values = json.loads(report.read_text())
    report.write_text(json.dumps(values | {"origin": values["origin"] | {"samples": str(file.parent)}}))
    assert all(case.samples is not None for case in read_runs([other])[0].cases)
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | {"seconds_per_network": 2 * manifest["seconds_per_network"]}))
    samples = {case.name: case.samples for case in read_runs([other])[0].cases}
    assert samples["few"] is None
    assert samples["more"] == other / "more" / "samples"
