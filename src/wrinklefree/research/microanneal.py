"""The ``microanneal`` stage: is the candidate mixture better than the present one?

Shapes: S seeds, N held-out documents of a domain.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wrinklefree.errors import UserError
from wrinklefree.evaluate.canvas import save_svg
from wrinklefree.evaluate.columns import header, plain_rows
from wrinklefree.evaluate.page import text_page, write_texts
from wrinklefree.models.folder import write_json
from wrinklefree.research.anneals import read_arm
from wrinklefree.research.intervals import Difference, paired_difference
from wrinklefree.research.measure import target_shares
from wrinklefree.research.plots import differences
from wrinklefree.research.settings import TARGET, VerdictSettings
from wrinklefree.tracking.artifact import read_manifest
from wrinklefree.tracking.stage import Stage

SCHEMA = 1


def compare_arms(stage: Stage) -> dict[str, Any]:
    """Differences of the two arms with their uncertainty, and a verdict, into ``stage.folder``.

    Files
    -----
    ``microanneal.json``::

        schema       1
        confidence   of the intervals
        target       {domain: share of its loss in the target}
        weights      {arm: {domain: weight}}
        documents    {domain: held-out documents}
        differences  {"target" or domain: verdict, mean, low, high, seeds_error,
                      documents_error, per_seed; candidate less present, nats per token}

    ``table.txt``, ``table.html``, ``plots/differences.svg``.

    Raises
    ------
    UserError : the arms were not made alike.
    """
    settings = stage.section("microanneal.verdict", VerdictSettings)
    _check_made_alike(stage.inputs["present"], stage.inputs["candidate"])
    present, candidate = (read_arm(stage.inputs[name]) for name in ("present", "candidate"))
    shares = target_shares(settings.target, present["present"])
    found = compare(present, candidate, shares, settings.confidence)
    documents = {name: len(scores["tokens"]) for name, scores in _first(present).items()}
    write_json(
        stage.folder / "microanneal.json",
        {
            "schema": SCHEMA,
            "confidence": settings.confidence,
            "target": shares,
            "weights": {arm["arm"]: arm["weights"] for arm in (present, candidate)},
            "documents": documents,
            "differences": {name: difference.as_json() for name, difference in found.items()},
        },
    )
    whole = sum(count for name, count in documents.items() if shares[name])
    table = table_text(
        found,
        settings.confidence,
        seeds=len(present["seeds"]),
        documents={TARGET: whole, **documents},
    )
    page = text_page("Microanneal", table)
    write_texts(stage.folder, {"table.txt": table, "table.html": page})
    plot = differences(found, settings.confidence)
    save_svg(plot, stage.folder / "plots" / "differences.svg")
    stage.terminal.say(table)
    target = found[TARGET]
    return {"verdict": target.verdict, "mean": target.mean, "low": target.low, "high": target.high}


def compare(
    present: dict[str, Any], candidate: dict[str, Any], shares: dict[str, float], confidence: float
) -> dict[str, Difference]:
    """The difference of the target and of every domain, from the contents of two ``arm.json``."""
    nats: dict[str, np.ndarray] = {}
    tokens: dict[str, np.ndarray] = {}
    for domain, scores in _first(present).items():
        tokens[domain] = np.array(scores["tokens"])
        pairs = [
            (candidate["seeds"][seed][domain], domains[domain])
            for seed, domains in present["seeds"].items()
        ]
        assert all(c["tokens"] == p["tokens"] == scores["tokens"] for c, p in pairs)
        nats[domain] = np.array([np.subtract(c["nats"], p["nats"]) for c, p in pairs])
    found = {TARGET: paired_difference(nats, tokens, shares, confidence)}
    for domain in nats:
        found[domain] = paired_difference(nats, tokens, {domain: 1.0}, confidence)
    return found


def table_text(
    found: dict[str, Difference], confidence: float, *, seeds: int, documents: dict[str, int]
) -> str:
    """What the stage says on the terminal, at most 80 columns wide.

    ``documents``: how many ``found`` is from, by its names.
    """
    table = [["", "documents", "difference", f"{confidence:.0%} interval", "verdict"]]
    for name, difference in found.items():
        table.append(
            [
                header(name),
                str(documents[name]),
                f"{difference.mean:+.4f}",
                f"{difference.low:+.4f} to {difference.high:+.4f}",
                difference.verdict,
            ]
        )
    return "\n".join(
        [
            f"Microanneal: {_sentence(found[TARGET])}",
            "",
            f"Candidate less present, nats per token, {seeds} seeds, the same text:",
            *plain_rows(table),
            "",
            "Each interval speaks for itself: among many domains one is off now and then.",
            "",
        ]
    )


def _sentence(target: Difference) -> str:
    if target.verdict == "undecided":
        return "undecided whether the candidate mixture is better or worse."
    size = f"{abs(target.mean):.4f} nats per token"
    return f"the candidate mixture is {target.verdict}, by {size}."


def _first(arm: dict[str, Any]) -> dict[str, Any]:
    """Scores by domain of the first seed, whose documents are those of every seed."""
    return next(iter(arm["seeds"].values()))


def _check_made_alike(present: Path, candidate: Path) -> None:
    """Raise UserError unless the arms differ in nothing but their mixtures."""
    manifests = [read_manifest(folder) for folder in (present, candidate)]
    for manifest in manifests:
        manifest.settings["microanneal"].pop("arms")
    for what in ("inputs", "settings"):
        if getattr(manifests[0], what) != getattr(manifests[1], what):
            raise UserError(
                f"{present} and {candidate} were made with other {what}, so their losses can't be"
                " compared; run both arms of microanneal_run again"
            )
