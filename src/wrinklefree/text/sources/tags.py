"""Plain text of HTML fragments."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_BREAKS = frozenset({"br", "p", "div", "li", "tr", "ul", "ol", "h1", "h2", "h3", "h4", "h5", "h6"})
_HIDDEN = frozenset({"script", "style"})
_SPACES = re.compile(r"[ \t\r\f\v]+")
_SPACE_AROUND_NEWLINE = re.compile(r" ?\n ?")
_MANY_NEWLINES = re.compile(r"\n{3,}")


class _TextParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in _HIDDEN
        if tag in _BREAKS:
            self.parts.append("\n")

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """``<![...`` that is no section of SGML is a comment, as for a browser."""
        try:
            return super().parse_marked_section(i, report)
        except AssertionError:  # html.parser's way to refuse it
            return self.parse_bogus_comment(i)

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in _HIDDEN and self.hidden > 0
        if tag in _BREAKS and tag != "br":
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def strip_tags(text: str) -> str:
    """Remove HTML tags, resolve entities, turn breaks and paragraphs into newlines.

    Runs of spaces become one, more than one empty line becomes one.
    """
    parser = _TextParser()
    parser.feed(text)
    parser.close()
    plain = _SPACES.sub(" ", "".join(parser.parts).replace("\xa0", " "))
    return _MANY_NEWLINES.sub("\n\n", _SPACE_AROUND_NEWLINE.sub("\n", plain)).strip()
