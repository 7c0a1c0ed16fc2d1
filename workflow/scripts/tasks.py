"""The questions of benchmarks, and how many of them stand in the training text."""

from typing import Any

from wrinklefree.tasks.settings import TasksSettings
from wrinklefree.tasks.stage import prepare_tasks
from wrinklefree.tracking.stage import Stage, stage_main


def tasks(stage: Stage) -> dict[str, Any]:
    facts = prepare_tasks(
        stage.section("tasks", TasksSettings),
        stage.collection("documents"),
        stage.folder,
        cache=stage.downloads,
    )
    for name, counts in facts["tasks"].items():
        stage.terminal.say(
            f"{stage.terminal.label}: {name}: {counts['questions']:,} questions, each after"
            f" {counts['few_shot']} solved examples; {counts['contaminated']:,} stand in the"
            " training text"
        )
    return facts


if __name__ == "__main__":
    stage_main("tasks", tasks, collections=["documents"])
