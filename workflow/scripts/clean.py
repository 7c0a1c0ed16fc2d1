"""The documents of one source without repeated, unfit and contaminated text."""

from typing import Any

from wrinklefree.config.cleaning import CleaningSettings
from wrinklefree.config.sources import Source
from wrinklefree.data.clean.source import clean_source
from wrinklefree.tracking.stage import Stage, stage_main


def clean(stage: Stage) -> dict[str, Any]:
    assert stage.instance
    return clean_source(
        stage.instance,
        stage.section("cleaning", CleaningSettings),
        stage.section(f"sources.{stage.instance}", Source).cleaning,
        stage.collection("raw"),
        stage.folder,
        work=stage.work,
        cache=stage.downloads,
    )


if __name__ == "__main__":
    stage_main("clean", clean, collections=["raw"], instance="source")
