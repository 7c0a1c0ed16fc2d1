"""The distilled autoregressive student as a folder that transformers loads."""

from typing import Any

from wrinklefree.downloads.settings import BaseSource
from wrinklefree.export.settings import ExportSettings
from wrinklefree.export.stage import export_student
from wrinklefree.tracking.stage import Stage, stage_main


def export(stage: Stage) -> dict[str, Any]:
    settings = stage.section("export", ExportSettings)
    base = stage.section("base.source", BaseSource)
    model, mixture = stage.inputs["model"], stage.inputs["mixture"]
    return export_student(settings, model, mixture, stage.folder, base)


if __name__ == "__main__":
    stage_main("export", export, inputs=["model", "mixture"], last=True)
