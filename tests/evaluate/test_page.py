from __future__ import annotations

from collections.abc import Callable

import pytest

from wrinklefree.evaluate.page import sections_page, text_page

TEXT = "a < b & <script>alert(1)</script>\n  ≤ 3 ± 1\n"


@pytest.mark.parametrize(
    "page", [text_page("a < b", TEXT), sections_page("a < b", [(TEXT, [(TEXT, TEXT)])])]
)
def test_the_text_is_shown_as_it_is_and_not_as_markup(
    page: str, read_page: Callable[[str], tuple[list[str], list[str]]]
):
    shown, tags = read_page(page)
    assert shown.count(TEXT) == page.count("alert(1)")
    assert "script" not in tags
