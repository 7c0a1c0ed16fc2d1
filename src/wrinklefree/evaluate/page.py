"""Plain text as files and as web pages, for reports that show pages only. Imports no torch."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

_STYLE = (
    "body { font: 14px/1.5 sans-serif; margin: 1.5em; max-width: 60em; }"
    " h2 { margin: 2em 0 0; font-size: 16px; }"
    " p { margin: 1.2em 0 0.3em; color: #666; }"
    " pre { font: 14px/1.5 monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }"
)


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write texts by file name into ``folder``, as the same bytes on every system."""
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def text_page(title: str, text: str) -> str:
    """A page that shows ``text`` as it is, in letters of one width."""
    return _page(title, f"<pre>{html.escape(text)}</pre>\n")


def sections_page(title: str, sections: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> str:
    """A page of texts, each under a line of its own, in sections with a heading."""
    parts = []
    for heading, texts in sections:
        parts.append(f"<h2>{html.escape(heading)}</h2>\n")
        for line, text in texts:
            parts.append(f"<p>{html.escape(line)}</p>\n<pre>{html.escape(text)}</pre>\n")
    return _page(title, "".join(parts))


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n{body}</html>\n"
    )
