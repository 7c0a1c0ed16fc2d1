"""The ``teachers`` stage: dense models beside the base, from wherever a base may come from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from wrinklefree.errors import UserError
from wrinklefree.models.dense import load_source
from wrinklefree.models.folder import save_model
from wrinklefree.models.teacher_settings import TeacherSettings
from wrinklefree.models.transforms import ModelFormat
from wrinklefree.tokens.base_tokenizer import tokenizer_of_base


def bring_teachers(
    settings: dict[str, TeacherSettings], folder: Path, *, cache: Path
) -> dict[str, Any]:
    """Write each teacher with its tokenizer into ``folder / name``.

    Returns
    -------
    Facts: ``parameters`` by name.

    Raises
    ------
    UserError : a model or its tokenizer can't be had or read.
    """
    parameters = {}
    for name, teacher in settings.items():
        try:
            model = load_source(teacher.source, cache=cache)
            with tempfile.TemporaryDirectory() as tokenizer:
                tokenizer_of_base(teacher.source, Path(tokenizer), cache=cache)
                save_model(folder / name, model, ModelFormat(), Path(tokenizer))
        except UserError as error:
            # A base is brought by the same lines.
            named = str(error).replace("base.source", f"teachers.{name}.source")
            raise UserError(named) from error
        parameters[name] = model.num_parameters()
    return {"parameters": parameters}
