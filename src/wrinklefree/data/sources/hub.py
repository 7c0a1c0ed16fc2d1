"""Documents of a Hugging Face data set, streamed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from wrinklefree.config.sources import HubSource
from wrinklefree.data.document import Document
from wrinklefree.errors import UserError


def documents(source: HubSource, *, cache: Path) -> Iterator[Document]:
    """Rows of the data set in its own order, the row number as id.

    Raises UserError if ``datasets`` is not installed, the data set can't be opened or a row has no
    text. ``cache`` is not used: rows are streamed.
    """
    if importlib.util.find_spec("datasets") is None:
        raise UserError(
            f"source {source.dataset} is of kind hub, which needs the datasets library:"
            " pip install 'wrinklefree[hub]'"
        )
    from datasets import load_dataset  # heavy, and optional

    try:
        rows = load_dataset(
            source.dataset,
            source.subset,
            split=source.split,
            revision=source.revision,
            streaming=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot open data set {source.dataset} (subset {source.subset}, split {source.split},"
            f" revision {source.revision}): {error}. Check these four settings, your network and,"
            " for a gated data set, HF_TOKEN"
        ) from error
    for number, row in enumerate(rows):
        text = row.get(source.text_field)
        if not isinstance(text, str):
            raise UserError(
                f"row {number} of {source.dataset} has no string under {source.text_field!r}"
                f" (columns: {sorted(row)}); set text_field to the column that holds the text"
            )
        yield Document(str(number), text)
