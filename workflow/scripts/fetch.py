"""Documents of one source, as parquet with a held-out split."""

from typing import Any

from wrinklefree.text.documents.settings import HeldOutSettings, Source
from wrinklefree.text.documents.summary import fetched
from wrinklefree.text.sources.fetch import fetch_source
from wrinklefree.tracking.stage import Stage, stage_main


def fetch(stage: Stage) -> dict[str, Any]:
    assert stage.instance
    facts = fetch_source(
        stage.instance,
        stage.section(f"sources.{stage.instance}", Source),
        stage.section("held_out", HeldOutSettings),
        stage.folder,
        cache=stage.downloads,
    )
    stage.terminal.say(f"{stage.terminal.label}: {fetched(facts)}")
    return facts


if __name__ == "__main__":
    stage_main("fetch", fetch, instance="source")
