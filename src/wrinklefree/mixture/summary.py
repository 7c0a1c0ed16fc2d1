"""One line of what a mixture holds, from the facts in its manifest."""

from __future__ import annotations

from typing import Any


def mixed(facts: dict[str, Any]) -> str:
    """Training tokens of every domain, and how full its rows are."""
    return "; ".join(
        f"{name} {domain['train']['tokens']:,} tokens, rows"
        f" {100 * domain['train']['utilisation']:.2f} % filled"
        for name, domain in facts["domains"].items()
        if domain["train"]["rows"]
    )
