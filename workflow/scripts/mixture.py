"""Rows of all domains, and the order in which training sees them."""

from typing import Any

from wrinklefree.config.tokens import MixtureSettings
from wrinklefree.data.mixture import build_mixture
from wrinklefree.tracking.stage import Stage, stage_main


def mixture(stage: Stage) -> dict[str, Any]:
    return build_mixture(
        stage.section("mixture", MixtureSettings),
        stage.collection("tokens"),
        stage.inputs["tokenizer"],
        stage.folder,
    )


if __name__ == "__main__":
    stage_main("mixture", mixture, inputs=["tokenizer"], collections=["tokens"])
