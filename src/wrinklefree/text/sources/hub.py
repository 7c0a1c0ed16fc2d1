"""Documents of a Hugging Face data set, streamed."""

from __future__ import annotations

import importlib.util
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wrinklefree.downloads.local_files import digest_of_files, files_of_folder
from wrinklefree.errors import UserError
from wrinklefree.schema.section import COMMIT
from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.settings import HubSource
from wrinklefree.text.sources.bad_records import BadRecords
from wrinklefree.tracking.files import is_disk_full

TRIES = 4
_WAIT_SECONDS = 2.0


class MovingRevisionWarning(UserWarning):
    """A data set's revision is a name that may stand for other data tomorrow."""


def documents(source: HubSource, *, cache: Path, bad: BadRecords) -> Iterator[Document]:
    """Rows of the data set in its own order, the row number as id.

    A connection that breaks is opened again at the row where it broke, a few times.

    Raises UserError if ``datasets`` is not installed, the data set can't be opened, has no such
    column or ends in an error. A row without a text goes to ``bad``. ``cache`` is not used: rows
    are streamed.
    """
    if importlib.util.find_spec("datasets") is None:
        raise UserError(
            f"source {source.dataset} is of kind hub, which needs the datasets library:"
            " pip install 'wrinklefree[hub]'"
        )
    if Path(source.dataset).is_dir():
        _check_digest(source, digest_of_files(files_of_folder(Path(source.dataset))))
    elif source.sha256 is not None:
        raise UserError(
            f"source {source.dataset}: sha256 is for a local folder, which this is not; remove it,"
            " revision pins what comes from the hub"
        )
    elif not re.fullmatch(COMMIT, source.revision):
        warnings.warn(
            f"revision {source.revision} of {source.dataset} is no commit: it may stand for other"
            " data tomorrow; set revision to the commit's 40 digits",
            MovingRevisionWarning,
            stacklevel=2,
        )
    for number, row in enumerate(_rows(source)):
        text = row.get(source.text_field)
        where = f"row {number} of {source.dataset}"
        if source.text_field not in row:
            raise UserError(
                f"{where} has no column {source.text_field!r} (columns: {sorted(row)}); set"
                " text_field to the column that holds the text"
            )
        if isinstance(text, str):
            yield Document(str(number), text)
        else:
            bad.report(
                "no text",
                f"{where}: {type(text).__name__} instead of a string under {source.text_field!r}"
                f" (columns: {sorted(row)}); set text_field to the column that holds the text",
            )


def _check_digest(source: HubSource, found: str) -> None:
    if source.sha256 is None:
        raise UserError(
            f"source {source.dataset} is a local folder, whose files may change without a trace;"
            f" pin them: sha256: {found}"
        )
    if found != source.sha256:
        raise UserError(
            f"source {source.dataset}: its files have sha256 {found}, expected {source.sha256}: a"
            " file was edited, added, renamed or lost. If it should be so, write the new value to"
            " the source in params.yaml"
        )


def _rows(source: HubSource) -> Iterator[dict[str, Any]]:
    """All rows, opening the stream again after a failure; tries count from the last good row."""
    from aiohttp import ClientError  # these two come with datasets

    # Defined in httpx or httpx2, whichever this version speaks through.
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    # Of the network, mostly; all others are of a file that is broken in itself.
    transient = (OSError, HTTPError, ClientError)
    number, failures = 0, 0
    while True:
        try:
            for row in _opened(source).skip(number):
                yield row
                number, failures = number + 1, 0
            return
        except UserError:
            raise
        except transient as error:
            if is_disk_full(error):  # of the cache of datasets
                raise
            failures += 1
            if failures == TRIES:
                raise UserError(
                    f"{source.dataset} could not be read beyond row {number}, tried {TRIES} times:"
                    f" {error}. Check the network and run again"
                ) from error
            time.sleep(_WAIT_SECONDS * 2 ** (failures - 1))
        except Exception as error:  # of every library that reads files of some kind
            raise UserError(
                f"{source.dataset}: a file is damaged, cut short or unlike the others at row"
                f" {number} or after it ({type(error).__name__}: {error}). Take another revision,"
                " or report it to the data set's owner"
            ) from error


def _opened(source: HubSource) -> Any:
    from datasets import load_dataset  # heavy, and optional

    try:
        return load_dataset(
            source.dataset,
            source.subset,
            data_dir=source.folder,
            split=source.split,
            revision=source.revision,
            streaming=True,
        )
    except Exception as error:  # datasets lets those of its libraries pass
        if is_disk_full(error):
            raise
        raise UserError(
            f"cannot open data set {source.dataset} (subset {source.subset}, folder"
            f" {source.folder}, split {source.split}, revision {source.revision}):"
            f" {type(error).__name__}: {error}. Check these five settings, your network,"
            " for a gated data set HF_TOKEN, and whether its first file is whole and not empty"
        ) from error
