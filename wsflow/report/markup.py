"""HTML of pages, tables and figures; all text is escaped, and nothing is fetched."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Sequence
from html import escape
from itertools import count
from typing import NamedTuple

from wsflow.report.style import STYLE


class Section(NamedTuple):
    """A part of a page.

    Attributes:
        title: Its heading.
        body: HTML.
    """

    title: str
    body: str

    @property
    def anchor(self) -> str:
        """Where links to it lead, unless another section of the page has the same."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """A whole page.

    Args:
        title: Plain text.
        lead: HTML below the title.
        sections: In order; the contents link to them.
    """
    anchors: dict[str, Section] = {}
    for section in sections:
        anchors[free(section.anchor or "section", anchors)] = section
    links = "".join(f'<li><a href="#{anchor}">{escape(section.title)}</a></li>' for anchor, section in anchors.items())
    body = "\n".join(
        f'<section id="{anchor}">\n<h2>{escape(section.title)}</h2>\n{section.body}\n</section>'
        for anchor, section in anchors.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{escape(title)}</h1>\n{lead}\n</header>\n"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def free(name: str, taken: Collection[str]) -> str:
    """A name or, where it is taken, the name with the first number from 2 on that is free."""
    return next(one for one in (name if k == 1 else f"{name}-{k}" for k in count(1)) if one not in taken)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", numbers: bool = True) -> str:
    """A table whose first column names the rows; it scrolls sideways where the screen is narrow.

    Args:
        head: Plain text; the first belongs to the names.
        rows: Plain text.
        caption: Plain text below it; lines are kept.
        numbers: Whether all columns but the first are numbers.
    """
    top = "".join(f'<th scope="col">{_lines(cell)}</th>' for cell in head)
    body = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    text = f"<figcaption>{_lines(caption)}</figcaption>" if caption else ""
    kind, label = ' class="numbers"' if numbers else "", escape(head[0] or "table")
    return (
        f'<figure class="table"><div class="scroll" tabindex="0" role="group" aria-label="{label}">'
        f"<table{kind}>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>{text}</figure>"
    )


def picture(svg: bytes, alt: str, caption: str, wide: bool = False) -> str:
    """A figure, inlined.

    Args:
        svg: The picture.
        alt: What it shows, in words.
        caption: Plain text below it.
        wide: Whether it takes the whole width, and scrolls where that is too narrow.
    """
    data = base64.b64encode(svg).decode()
    image = f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(alt)}">'
    if wide:
        image = f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(alt)}">{image}</div>'
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}>{image}<figcaption>{_lines(caption)}</figcaption></figure>"


def figures(pictures: Iterable[str]) -> str:
    """Pictures side by side as far as there is room."""
    return '<div class="figures">\n' + "\n".join(pictures) + "\n</div>"


def missing(what: str, why: str) -> str:
    """What stands where something could not be shown."""
    return f'<p class="missing"><strong>{escape(what)}</strong> is missing: {escape(why)}.</p>'


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def details(summary: str, body: str) -> str:
    """What is shown when it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>\n{body}\n</details>"


def preformatted(text: str) -> str:
    """Text as it is, such as a file."""
    return f'<pre tabindex="0">{escape(text)}</pre>'


def definitions(entries: Iterable[tuple[str, str]]) -> str:
    """Terms, and for each HTML that says what it is."""
    return "<dl>\n" + "\n".join(f"<dt>{escape(term)}</dt><dd>{body}</dd>" for term, body in entries) + "\n</dl>"


def _lines(text: str) -> str:
    return "<br>".join(escape(line) for line in text.splitlines())
