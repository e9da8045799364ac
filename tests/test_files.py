"""Files that are whole, and that processes change in turn."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from wsflow import cli
from wsflow.commands import run
from wsflow.commands.comparison import Settings, keep, known_entry
from wsflow.commands.results import merge, read_results
from wsflow.commands.run import read_timing, record_timing
from wsflow.files import claimed, held, replacing, write_whole


def test_what_was_there_stays_where_writing_fails(tmp_path: Path) -> None:
    place = tmp_path / "made" / "file.json"
    write_whole(place, "first \u00e9")
    assert place.read_bytes() == "first \u00e9".encode()

    def fail() -> None:
        with replacing(place) as file:
            file.write(b"half")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fail()
    assert place.read_text() == "first \u00e9"
    assert [path.name for path in place.parent.iterdir()] == ["file.json"]


def test_a_full_disk_is_one_line_with_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "made" / "zoo.safetensors"

    def full(_: object) -> None:
        with replacing(place):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(cli.COMMANDS, "collect", (full, "says nothing"))
    assert cli.main(["collect"]) == 1
    assert capsys.readouterr().err == (
        f"wsflow: error: no space left on the disk for {place}: free some and begin again; what was finished is kept\n"
    )
    assert not list(place.parent.iterdir())


def test_processes_that_change_a_file_together_lose_nothing(tmp_path: Path) -> None:
    """Each reads, waits and writes, forty times."""
    place = tmp_path / "count"
    place.write_text("0")
    program = (
        "import sys, time; from pathlib import Path; from wsflow.files import held, write_whole\n"
        "place = Path(sys.argv[1])\n"
        "for _ in range(40):\n"
        "    with held(place):\n"
        "        count = int(place.read_text()); time.sleep(0.002); write_whole(place, str(count + 1))\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", program, str(place)]) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert place.read_text() == "80"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_a_folder_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), held(tmp_path / "x"):
        raise ValueError("inside")
    with held(tmp_path / "x"):
        pass


def test_a_claimed_folder_is_one_processes_own_until_that_ends(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    program = (
        "import sys; from pathlib import Path; from wsflow.files import claimed\n"
        "with claimed(Path(sys.argv[1])): print('mine', flush=True); input()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(BlockingIOError), claimed(folder):
            pass
        other.kill()
    with claimed(folder), pytest.raises(BlockingIOError), claimed(folder):
        pass
    assert not list(folder.iterdir())


def test_methods_of_two_processes_keep_their_seeds(tmp_path: Path) -> None:
    """Each began with the results as they were; what one measures of a seed does not undo the other's."""
    path, file = tmp_path / "found.json", "small.yaml"
    settings = Settings({"a": {"n": 1}, "b": {}}, {"task": "x", "outliers": None, "sizes": [1]})
    first, second = (known_entry(path, file, "a", settings) for _ in range(2))
    for entry, seed in ((first, 1), (second, 0)):
        entry["by_seed"][str(seed)], entry["read"][str(seed)] = {"1": {"nll": float(seed)}}, {}
    keep(path, file, {}, "a", first, 1)
    found = keep(path, file, {}, "a", second, 0)
    assert list(found["by_seed"]) == list(found["read"]) == ["0", "1"]
    assert known_entry(path, file, "a", settings) == found
    other = Settings({"a": {"n": 2}}, settings.shared)
    changed = known_entry(path, file, "a", other)
    assert changed["by_seed"] == {}
    changed["by_seed"]["5"], changed["read"]["5"] = {}, {}
    assert list(keep(path, file, {}, "a", changed, 5)["by_seed"]) == ["5"]


def test_cases_and_times_of_two_commands_stand_side_by_side(tmp_path: Path) -> None:
    path, origin = tmp_path / "results.json", {"settings": {"n": 1}, "command": "c"}
    for seed in (1, 0):
        merge(path, "case", seed, {"samples.accuracy": 0.5 + seed}, origin)
    found = read_results(path)["case"]
    assert found["samples.accuracy"] == 1.0
    assert found["origin"]["seeds"] == [0, 1]
    assert list(json.loads(path.read_text())) == ["case"]
    record_timing(tmp_path, fit=1.0)
    record_timing(tmp_path, evaluate=2.0)
    assert read_timing(tmp_path) == {"fit": 1.0, "evaluate": 2.0}


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_damaged_times_are_begun_anew(content: str, tmp_path: Path) -> None:
    (tmp_path / "timing.json").write_text(content)
    with pytest.warns(UserWarning, match=r"timing.json is damaged"):
        record_timing(tmp_path, fit=1.0)
    assert read_timing(tmp_path) == {"fit": 1.0}


def test_times_that_cannot_be_written_cost_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("Read-only file system")

    monkeypatch.setattr(run, "write_whole", refuse)
    with pytest.warns(UserWarning, match=r"timing.json cannot be written, times are not kept: Read-only"):
        record_timing(tmp_path, fit=1.0)


def test_an_interrupted_training_has_the_status_of_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning ends it with exit(1)."""

    def interrupted(_: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    monkeypatch.setitem(cli.COMMANDS, "fit", (interrupted, "says nothing"))
    assert cli.main(["fit"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == "wsflow: interrupted\n"


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "collect", (interrupted, "says nothing"))
    assert cli.main(["collect"]) == cli.INTERRUPTED == 130
    assert capsys.readouterr().err == "wsflow: interrupted\n"
