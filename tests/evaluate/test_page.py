from __future__ import annotations

from html.parser import HTMLParser

import pytest

from wrinklefree.evaluate.page import sections_page, text_page

TEXT = "a < b & <script>alert(1)</script>\n  ≤ 3 ± 1\n"


@pytest.mark.parametrize(
    "page", [text_page("a < b", TEXT), sections_page("a < b", [(TEXT, [(TEXT, TEXT)])])]
)
def test_the_text_is_shown_as_it_is_and_not_as_markup(page: str):
    shown: list[str] = []
    tags: list[str] = []

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            shown.append(data)

        def handle_starttag(self, tag: str, attrs: object) -> None:
            tags.append(tag)

    Reader().feed(page)
    assert shown.count(TEXT) == page.count("alert(1)")
    assert "script" not in tags
