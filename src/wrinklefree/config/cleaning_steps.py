"""The steps of ``cleaning``: what is removed from the documents of a source."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from wrinklefree.config.section import Fraction, Ngram, PositiveInt, Section


class LanguageSettings(Section):
    """Keep the documents of one language, as py3langid tells it."""

    enabled: bool = True
    """Whether documents are told by language at all."""
    code: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] = "en"
    """ISO 639 code of the language."""
    min_probability: Fraction = 0.3
    """A document stays if the language has at least this probability."""


class ParagraphSettings(Section):
    """Exact de-duplication of paragraphs, the text between blank lines, in the training split."""

    deduplicate: bool = True
    """Of equal paragraphs keep the first."""
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
    """This many words in a row, compared in lower case and without punctuation."""
    max_training_documents: PositiveInt = 10
    """Words in a row that more training documents of the source have are templates, and stay.

    As for GPT-3 (2005.14165, appendix C).
    """


class CleaningSteps(Section):
    """The steps, in the order in which they are taken.

    As ``sources.<name>.cleaning``: what differs for one source from the section ``cleaning``.
    """

    deduplicate_documents: bool = True
    """Of documents with equal text keep the first."""
    min_characters: PositiveInt = 1
    """Shorter documents are dropped."""
    max_characters: PositiveInt = 10_000_000
    """Longer documents are dropped."""
    language: LanguageSettings = LanguageSettings()
    """Documents of other languages."""
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
