"""Rows of all domains, and the order in which training sees them."""

from typing import Any

from wrinklefree.mixture.build import build_mixture
from wrinklefree.mixture.settings import MixtureSettings
from wrinklefree.mixture.summary import mixed
from wrinklefree.tracking.stage import Stage, stage_main


def mixture(stage: Stage) -> dict[str, Any]:
    facts = build_mixture(
        stage.section("mixture", MixtureSettings),
        stage.collection("tokens"),
        stage.inputs["tokenizer"],
        stage.folder,
    )
    stage.terminal.say(f"{stage.terminal.label}: {mixed(facts)}")
    return facts


if __name__ == "__main__":
    stage_main("mixture", mixture, inputs=["tokenizer"], collections=["tokens"])
