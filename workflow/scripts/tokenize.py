"""Token files of one source."""

from typing import Any

from wrinklefree.text.documents.settings import Source
from wrinklefree.tokens.settings import TokenizeSettings
from wrinklefree.tokens.summary import tokenized
from wrinklefree.tokens.tokenize import tokenize_source
from wrinklefree.tracking.stage import Stage, stage_main


def tokenize(stage: Stage) -> dict[str, Any]:
    facts = tokenize_source(
        stage.section("tokenize", TokenizeSettings),
        stage.inputs["documents"],
        stage.inputs["tokenizer"],
        stage.folder,
        work=stage.work,
        max_tokens=stage.section(f"sources.{stage.instance}", Source).max_tokens,
    )
    stage.terminal.say(f"{stage.terminal.label}: {tokenized(facts)}")
    return facts


if __name__ == "__main__":
    stage_main("tokenize", tokenize, inputs=["documents", "tokenizer"], instance="source")
