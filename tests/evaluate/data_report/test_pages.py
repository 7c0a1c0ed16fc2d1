from __future__ import annotations

from collections.abc import Callable

from wrinklefree.evaluate.data_report.pages import samples_page, visible
from wrinklefree.evaluate.data_report.report import DataReport


def test_characters_that_hide_or_reorder_text_are_escaped_and_all_others_stay():
    assert visible("a\x00b\x1b[1m\tc\n") == "a\\u0000b\\u001b[1m\tc\n"
    assert visible("left \u202e thgir \u2066") == "left \\u202e thgir \\u2066"
    assert visible("é 漢字 \u200d שלום 👩\u200d🔬") == "é 漢字 \u200d שלום 👩\u200d🔬"


def test_every_domain_shows_its_samples_as_text_and_not_as_markup(
    report: DataReport, read_page: Callable[[str], tuple[list[str], list[str]]]
):
    shown, tags = read_page(samples_page(report.domains))
    assert tags.count("h2") == 2
    assert tags.count("pre") == 4
    assert set(tags) == {"html", "meta", "title", "style", "h2", "div", "p", "pre"}
    for domain in report.domains.values():
        assert all(sample.text in shown for sample in domain.samples)
