"""The tokenizer: a BPE trained on the cleaned text, or the base model's own."""

from typing import Any

from wrinklefree.config.tokens import BpeTokenizerSettings, TokenizerSettings
from wrinklefree.config.training import BaseSource
from wrinklefree.data.tokenizer import train_tokenizer, vocabulary_size
from wrinklefree.tracking.stage import Stage, stage_main


def tokenizer(stage: Stage) -> dict[str, Any]:
    settings = stage.section("tokenizer", TokenizerSettings)
    if isinstance(settings, BpeTokenizerSettings):
        return train_tokenizer(settings, stage.collection("documents"), stage.folder)
    from wrinklefree.models.base import tokenizer_of_base

    base = stage.section("base.source", BaseSource)
    tokenizer_of_base(base, stage.folder, cache=stage.downloads)
    return {"vocabulary_size": vocabulary_size(stage.folder)}


if __name__ == "__main__":
    stage_main("tokenizer", tokenizer, collections=["documents"])
