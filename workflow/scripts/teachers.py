"""Dense models that teach beside the base, or in its place."""

from typing import Any

from wrinklefree.models.teacher_settings import TeacherSettings
from wrinklefree.tracking.stage import Stage, stage_main


def teachers(stage: Stage) -> dict[str, Any]:
    settings: dict[str, TeacherSettings] = stage.section("teachers", dict[str, TeacherSettings])
    if not settings:
        return {"parameters": {}}
    from wrinklefree.models.teachers import bring_teachers  # which takes seconds to load

    return bring_teachers(settings, stage.folder, cache=stage.downloads)


if __name__ == "__main__":
    stage_main("teachers", teachers)
