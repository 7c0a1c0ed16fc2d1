"""The ``teachers`` stage: dense models beside the base, from wherever a base may come from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from wrinklefree.downloads.settings import BroughtSource
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
        with brought(teacher.source, f"teachers.{name}.source", cache) as (model, tokenizer):
            save_model(folder / name, model, ModelFormat(), tokenizer)
        parameters[name] = model.num_parameters()
    return {"parameters": parameters}


@contextmanager
def brought(
    source: BroughtSource, where: str, cache: Path
) -> Iterator[tuple[PreTrainedModel, Path]]:
    """A dense model and a folder of its own tokenizer, which is there inside the block only.

    A base is brought by the same lines: UserErrors name the setting ``where`` in place of its.
    """
    try:
        model = load_source(source, cache=cache)
        with tempfile.TemporaryDirectory() as tokenizer:
            tokenizer_of_base(source, Path(tokenizer), cache=cache)
            yield model, Path(tokenizer)
    except UserError as error:
        raise UserError(str(error).replace("base.source", where)) from error
