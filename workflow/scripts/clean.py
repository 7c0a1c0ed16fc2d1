"""The documents of one source without repeated, unfit and contaminated text."""

from typing import Any

from wrinklefree.text.clean.settings import CleaningSettings
from wrinklefree.text.clean.source import clean_source
from wrinklefree.text.documents.settings import Source
from wrinklefree.text.documents.summary import cleaned
from wrinklefree.tracking.stage import Stage, stage_main


def clean(stage: Stage) -> dict[str, Any]:
    assert stage.instance
    facts = clean_source(
        stage.instance,
        stage.section("cleaning", CleaningSettings),
        stage.section(f"sources.{stage.instance}", Source).cleaning,
        stage.collection("raw"),
        stage.folder,
        work=stage.work,
        cache=stage.downloads,
    )
    stage.terminal.say(f"{stage.terminal.label}: {cleaned(facts)}")
    return facts


if __name__ == "__main__":
    stage_main("clean", clean, collections=["raw"], instance="source")
