from __future__ import annotations

from html.parser import HTMLParser

from wrinklefree.evaluate.page import text_page


def test_the_text_is_shown_as_it_is_and_not_as_markup():
    text = "a < b & <script>alert(1)</script>\n  ≤ 3 ± 1\n"
    shown: list[str] = []
    tags: list[str] = []

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            shown.append(data)

        def handle_starttag(self, tag: str, attrs: object) -> None:
            tags.append(tag)

    Reader().feed(text_page("a < b", text))
    assert text in "".join(shown)
    assert "script" not in tags
