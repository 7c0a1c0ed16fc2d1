"""Plain text as a web page, for reports that show pages and not text files. Imports no torch."""

from __future__ import annotations

import html


def text_page(title: str, text: str) -> str:
    """A page that shows ``text`` as it is, in letters of one width."""
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n"
        "<style>pre { font: 14px/1.5 monospace; white-space: pre-wrap; margin: 1.5em; }</style>\n"
        f"<pre>{html.escape(text)}</pre>\n</html>\n"
    )
