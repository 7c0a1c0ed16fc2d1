"""What the data of a run is: counts, lengths, duplicates, shares and samples."""

from typing import Any

from wrinklefree.evaluate.data_report.stage import report_on_data
from wrinklefree.evaluate.settings import DataReportSettings
from wrinklefree.tracking.stage import Stage, stage_main


def data_report(stage: Stage) -> dict[str, Any]:
    facts = report_on_data(
        stage.section("data_report", DataReportSettings),
        stage.collection("raw"),
        stage.collection("documents"),
        stage.collection("tokens"),
        stage.inputs["mixture"],
        stage.folder,
        seed=stage.seed,
    )
    stage.terminal.say((stage.folder / "table.txt").read_text(encoding="utf-8"))
    return facts


if __name__ == "__main__":
    stage_main(
        "data_report",
        data_report,
        inputs=["mixture"],
        collections=["raw", "documents", "tokens"],
    )
