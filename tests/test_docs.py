"""The examples of documentation pages run, and print what the pages say they print."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
FENCE = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("page", "least"),
    [("symmetries.md", 11), ("fields.md", 6), ("large_networks.md", 2), ("sampling.md", 8), ("bayes.md", 4)],
)
def test_examples_run_and_print_what_the_page_says(page: str, least: int) -> None:
    names: dict[str, object] = {"__name__": page}
    blocks = FENCE.findall((DOCS / page).read_text())
    assert len(blocks) >= least
    for (language, code), following in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page, "exec"), names)
        assert printed.getvalue() == (following[1] if following[0] == "text" else ""), code


def test_the_figure_of_the_symmetries_is_drawn_by_its_script(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    script = tmp_path / "figures" / "symmetries.py"
    script.write_text((DOCS / "figures" / "symmetries.py").read_text())
    code = compile(script.read_text(), str(script), "exec")
    exec(code, {"__name__": "__main__", "__file__": str(script)})
    assert (tmp_path / "symmetries.png").stat().st_size > 10_000
