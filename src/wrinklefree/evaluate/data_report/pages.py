"""Samples of text as a page."""

from __future__ import annotations

import unicodedata

from wrinklefree.evaluate.data_report.report import DomainReport
from wrinklefree.evaluate.page import sections_page

_REORDERING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Bidirectional classes of the characters that change the direction of what follows."""

Section = tuple[str, list[tuple[str, str]]]


def samples_page(domains: dict[str, DomainReport]) -> str:
    """The beginnings of some training documents of every domain, whatever characters they have."""
    sections: list[Section] = [
        (
            name,
            [
                (f"{visible(sample.id)}, {sample.characters:,} characters", visible(sample.text))
                for sample in domain.samples
            ],
        )
        for name, domain in domains.items()
    ]
    return sections_page("Samples of training text", sections)


def visible(text: str) -> str:
    """``text`` with control characters, and those that reorder others, written as escapes."""
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    control = unicodedata.category(character) == "Cc" and character not in "\n\t"
    reorders = unicodedata.bidirectional(character) in _REORDERING
    return f"\\u{ord(character):04x}" if control or reorders else character
