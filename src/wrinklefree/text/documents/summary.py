"""One line of what a stage of text made, from the facts in its manifest."""

from __future__ import annotations

from typing import Any


def fetched(facts: dict[str, Any]) -> str:
    """Documents, megabytes, and what was left out."""
    line = f"{facts['documents']:,} documents, {_megabytes(facts['bytes'])}"
    left_out = {"empty": facts["dropped_empty"], **facts["bad_records"]}
    reasons = [f"{count:,} {reason}" for reason, count in left_out.items() if count]
    return line + (f"; left out: {', '.join(reasons)}" if reasons else "")


def cleaned(facts: dict[str, Any]) -> str:
    """How much was kept, and which part every step dropped, most first."""
    read, kept = (
        sum(split["bytes"] for split in facts[kind].values()) for kind in ("read", "kept")
    )
    line = f"kept {_megabytes(kept)} of {_megabytes(read)}"
    dropped = {step: counts["bytes"] for step, counts in facts["dropped"].items()}
    steps = sorted(dropped, key=lambda step: -dropped[step])
    parts = [f"{step} {100 * dropped[step] / read:.2f} %" for step in steps if dropped[step]]
    line += f"; dropped: {', '.join(parts)}" if parts else ""
    if learnt := facts.get("quality"):
        line += f"; good text told from bad with AUC {learnt['auc']:.3f}"
    return line


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
