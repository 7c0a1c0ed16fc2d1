"""Plain text as files and as web pages, for reports that show pages only. Imports no torch."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

_STYLE = (
    "body { font: 14px/1.5 sans-serif; margin: 1.5em; }"
    " h2 { margin: 2em 0 0; font-size: 16px; }"
    " p { margin: 1.2em 0 0.3em; color: #595959; }"
    " .texts { display: grid; gap: 0 2em;"
    " grid-template-columns: repeat(auto-fill, minmax(min(20em, 100%), 1fr)); }"
    " pre { font: 14px/1.5 monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }"
    " pre sub { font-size: 10px; line-height: 0; }"
    " pre.table { white-space: pre; overflow-x: auto; }"
)


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write texts by file name into ``folder``, as the same bytes on every system."""
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def text_page(title: str, text: str) -> str:
    """A page that shows a table as it is, in letters of one width and lines that stay whole."""
    # What can be scrolled must be reached without a mouse.
    return _page(title, f'<pre class="table" tabindex="0">{html.escape(text)}</pre>\n')


Numbered = Sequence[tuple[str, int]]
"""The parts of a text, each with a number from 1."""


def sections_page(
    title: str, sections: Sequence[tuple[str, Sequence[tuple[str, str | Numbered]]]]
) -> str:
    """A page of texts, each under a line of its own, in sections; side by side where there is room.

    Parameters
    ----------
    sections : of each its heading, and its texts: the line, the text. A part with a number has that
        behind it, and is the darker the higher it is.
    """
    parts = []
    for heading, texts in sections:
        parts.append(f'<h2>{html.escape(heading)}</h2>\n<div class="texts">\n')
        for line, text in texts:
            shown = html.escape(text) if isinstance(text, str) else _numbered(text)
            parts.append(f"<div><p>{html.escape(line)}</p>\n<pre>{shown}</pre></div>\n")
        parts.append("</div>\n")
    return _page(title, "".join(parts))


def _numbered(parts: Numbered) -> str:
    """A colour that is half transparent at most stays behind letters on light and dark pages."""
    most = max(number for _, number in parts)
    return "".join(
        f'<span style="background: rgb(0 114 178 / {50 * (number - 1) // max(most - 1, 1)}%)">'
        f"{html.escape(part)}<sub>{number}</sub></span>"
        for part, number in parts
    )


def body_of(page: str) -> str:
    """What a page of this module shows, to be shown among others in the report's."""
    return page.partition("</style>\n")[2].removesuffix("</html>\n")


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n{body}</html>\n"
    )
