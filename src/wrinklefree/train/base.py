"""The ``base`` stage: the dense model, trained here or brought from elsewhere."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from wrinklefree.downloads.settings import ScratchBaseSettings
from wrinklefree.models.dense import build_scratch, load_source
from wrinklefree.models.exportable import export_obstacles, llama_cpp_obstacles, require_gguf
from wrinklefree.models.folder import save_model
from wrinklefree.models.forward import require_embeddings
from wrinklefree.models.transforms import ModelFormat
from wrinklefree.stability.initial_loss import check_initial_loss
from wrinklefree.tokens.tokenizer import vocabulary_size
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.base_settings import BaseSettings, ScratchSettings
from wrinklefree.train.data import arrange, open_data
from wrinklefree.train.history import write_history
from wrinklefree.train.in_stage import stage_trainer


class NoExportWarning(UserWarning):
    """What is trained from a base can't be exported, or not for all tools."""


def make_base(stage: Stage) -> dict[str, Any]:
    """Train the dense model from scratch, or load the pretrained one, into ``stage.folder``."""
    settings: BaseSettings = stage.section("base", BaseSettings)
    if settings.scratch:
        return _train(stage, settings.scratch)
    assert not isinstance(settings.source, ScratchBaseSettings), "then there is a scratch"
    model = load_source(settings.source, cache=stage.downloads)
    require_embeddings(model, vocabulary_size(stage.inputs["tokenizer"]), "tokenizer")
    _foresee_export(stage, model)
    save_model(stage.folder, model, ModelFormat(), stage.inputs["tokenizer"])
    write_history(stage.folder, [])
    return {"parameters": model.num_parameters()}


def _foresee_export(stage: Stage, model: PreTrainedModel) -> None:
    """Say before any training what would end it: the rest of the pipeline can do without.

    Raises
    ------
    UserError : GGUF files are asked for by name, and ``model`` can't have any.
    """
    tokenizer, export = stage.inputs["tokenizer"], stage.foreseen.get("export", {})
    ternary = stage.foreseen.get("subln", {})
    subln = ternary.get("gain") != "none"
    if not ternary.get("prune"):  # which makes another shape of it
        require_gguf(export, model, tokenizer, subln=subln)
    if export.get("linear_class") == "none":
        return
    if reasons := export_obstacles(model):
        warnings.warn(
            f"the stage export will refuse what is trained from this base: {'; '.join(reasons)}."
            " Everything up to evaluate works (snakemake evaluate, or dvc repro"
            " evaluate); for an export choose another base or shape",
            NoExportWarning,
            stacklevel=2,
        )
    elif export.get("gguf") != [] and (
        reasons := llama_cpp_obstacles(model, tokenizer, subln=subln)
    ):
        with_subln, advice = "", ""
        if subln and not llama_cpp_obstacles(model, tokenizer, subln=False):
            with_subln = " with SubLN"
            advice = "; without SubLN (subln.gain: none) llama.cpp would, too"
        warnings.warn(
            f"llama.cpp would not run what is trained from this base{with_subln}, so that the stage"
            f" export writes no GGUF file: {'; '.join(reasons)}. transformers will run it{advice}",
            NoExportWarning,
            stacklevel=2,
        )


def _train(stage: Stage, settings: ScratchSettings) -> dict[str, Any]:
    data = open_data(stage, settings.training)
    data, data_facts = arrange(stage, settings.training, data, model=None)
    model = build_scratch(
        settings.model,
        vocabulary_size=data.vocabulary_size,
        sequence_length=data.sequence_length,
        end_of_text_id=data.end_of_text_id,
        seed=stage.seed,
    )
    _foresee_export(stage, model)
    trainer = stage_trainer(
        stage,
        model,
        data,
        settings.training,
        check_first_loss=partial(check_initial_loss, vocabulary_size=data.vocabulary_size),
    )
    facts = trainer.run()
    save_model(stage.folder, model, ModelFormat(), stage.inputs["tokenizer"])
    return {"parameters": model.num_parameters(), **data_facts, **facts}
