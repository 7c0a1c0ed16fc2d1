"""The ``evaluate`` stage: every model of a run on the same held-out text, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from wrinklefree.evaluate import plots, ternary_plots
from wrinklefree.evaluate.answers import score_tasks
from wrinklefree.evaluate.canvas import DENSE, MODEL_COLORS, save_svg
from wrinklefree.evaluate.cost import Cost, cost_of
from wrinklefree.evaluate.generate import (
    Sample,
    generate_samples,
    samples_markdown,
    samples_page,
)
from wrinklefree.evaluate.history import History, curves_csv, read_history
from wrinklefree.evaluate.likelihood import score_model
from wrinklefree.evaluate.loss_noise import loss_noise
from wrinklefree.evaluate.page import text_page, write_texts
from wrinklefree.evaluate.scores import LABELS, ModelScore, recovered_share
from wrinklefree.evaluate.settings import EvaluateSettings
from wrinklefree.evaluate.table import markdown_table, plain_table, row_of
from wrinklefree.evaluate.task_scores import TaskScore, answers_jsonl
from wrinklefree.evaluate.ternary import LayerTernary, pooled, ternary_csv, ternary_layers
from wrinklefree.mixture.loader import HeldOutData
from wrinklefree.mixture.rows import read_mixture
from wrinklefree.models.folder import load_model, read_format
from wrinklefree.models.future_heads import read_future_heads
from wrinklefree.models.prune import pruned_like
from wrinklefree.models.transforms import InsertBitlinear, Kind, ModelFormat
from wrinklefree.quant.bitlinear import set_quantization_lambda
from wrinklefree.tokens.tokenizer import load_tokenizer
from wrinklefree.tracking.left_out import why_left_out
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.history import HISTORY

SCHEMA = 1
BASE, PRUNED, NAIVE = "base", "pruned", "naive"
TRAINED = ("stage2", "distill_ar", "dlm", "distill_dlm")
"""Models that a training stage of ours wrote, so that a history must lie beside them."""
KINDS: dict[str, Kind] = {
    "base": "dense",
    "subln": "ternary",
    "stage2": "ternary",
    "distill_ar": "ternary",
    "dlm": "diffusion",
    "distill_dlm": "diffusion",
}
"""The models of a run in the order of the table, and what each must be."""
_STYLES = {name: "bold" if color == DENSE else color for name, color in MODEL_COLORS.items()}
"""Of a model's rows in a terminal, dark or light."""
EXPORTED = "distill_ar"
SHOWN_BITS_PER_BYTE = (BASE, EXPORTED)
"""Whose bits per byte are among the metrics: what goes in, and what is exported."""
SHOWN_TERNARY = ("distill_ar", "stage2", "distill_dlm", "dlm", NAIVE)
"""Whose codes are plotted, and whose cost is in the table: the first of these that there is."""


@dataclass
class _Examination:
    """What all models are examined on, and what was found about each by name."""

    settings: EvaluateSettings
    held_out: HeldOutData
    weights: dict[str, float]
    seed: int
    tasks: Path | None
    say: Callable[[str], None]
    scores: dict[str, ModelScore] = field(default_factory=dict)
    ternary: dict[str, list[LayerTernary]] = field(default_factory=dict)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    answers: dict[str, dict[str, TaskScore]] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)

    def examine(
        self, name: str, model: PreTrainedModel, model_format: ModelFormat, folder: Path
    ) -> None:
        """Score and sample one model, fully quantized if it is a quantized one.

        Its tokenizer is in ``folder``.
        """
        set_quantization_lambda(model, 1.0)
        self.costs[name] = cost_of(model)
        if model_format.find(InsertBitlinear):
            self.ternary[name] = ternary_layers(model, name)
        self.scores[name] = score_model(
            name,
            model,
            model_format,
            self.held_out,
            self.weights,
            self.settings,
            seed=self.seed,
        )
        tokenizer = load_tokenizer(folder)
        self.samples[name] = generate_samples(
            model, model_format, tokenizer, self.held_out.end_of_text_id, self.settings
        )
        if self.tasks and self.scores[name].kind == "autoregressive":
            batch_size = self.settings.batch_size
            self.answers[name] = score_tasks(model, folder, self.tasks, batch_size, self.say)

    @property
    def shown_ternary(self) -> str:
        """The model whose codes are plotted and whose cost is in the table."""
        return next(name for name in SHOWN_TERNARY if name in self.ternary)

    def recovered(self) -> dict[str, float | None]:
        """By name of the ternary autoregressive models: a NELBO is no loss like the base's."""
        naive, base = (self.scores[name].overall.loss for name in (NAIVE, BASE))
        return {
            name: recovered_share(score.overall.loss, naive=naive, base=base)
            for name, score in self.scores.items()
            if score.quantized and score.kind == "autoregressive"
        }


def compare_models(stage: Stage) -> dict[str, Any]:
    """Evaluate every model of the run that was made, into ``stage.folder``, and say the table."""
    facts = evaluate_models(
        stage.section("evaluate", EvaluateSettings),
        {name: stage.inputs[name] for name in KINDS if not why_left_out(stage.inputs[name])},
        stage.inputs["mixture"],
        stage.folder,
        seed=stage.seed,
        tasks=stage.inputs.get("tasks"),
        say=stage.terminal.say,
    )
    for line in (stage.folder / "table.txt").read_text(encoding="utf-8").splitlines():
        stage.terminal.say(line, _STYLES.get(row_of(line), ""))
    return facts


@torch.no_grad()
def evaluate_models(
    settings: EvaluateSettings,
    models: dict[str, Path],
    mixture: Path,
    folder: Path,
    *,
    seed: int,
    tasks: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Score, sample and describe every model, and write what was found into ``folder``.

    To the models given, ``naive`` is added: the dense base with the run's ternary layers put in and
    nothing else done, the damage against which every other ternary model is measured; and, if
    layers or features of it were left out, ``pruned``: what was left, still dense.

    Parameters
    ----------
    models : model folders by name, in the order of the table. ``base`` must be among them, dense
        and autoregressive. Those of :data:`TRAINED` hold a ``history.jsonl``, and so does a base
        that was trained here.
    mixture : folder of the mixture artifact, for held-out rows and the weights of the domains.
    seed : of the maskings that estimate the likelihood of a diffusion model.
    tasks : folder of the tasks artifact; autoregressive models answer what is in it.
    say : is told a line for every model that is done.

    Returns
    -------
    Facts: ``loss`` and ``recovered`` by model, ``zero_share`` by ternary model; ``accepted`` by
    model with heads for later tokens: the share of their guesses that were right.

    Files
    -----
    ``evaluation.json``::

        schema     1
        seed       int
        weights    {domain: weight in the mixture}
        models     {model: {
                       kind                 "autoregressive" | "block_diffusion"
                       quantized            bool
                       loss                 nats per token, mean over domains by weight;
                                            for block_diffusion the NELBO, an upper bound
                       perplexity           exp(loss); null where it overflows
                       bits_per_byte        null where the scored tokens stand for no bytes
                       loss_standard_error  over documents; null where a domain has only one
                       loss_variance        of the losses of held-out rows, domains by weight:
                                            {total, within, between domains (nats²),
                                            between_share}
                       domains              {domain: loss to loss_standard_error as above;
                                             rows, documents, tokens, bytes: what was scored;
                                             loss_variance: of its rows}}}
        training_noise  {stage: {rows: as loss_variance, of training rows,
                         steps: {total: variance of step losses, composition: its part that
                         comes from the shares of domains in steps, composition_share, at most 1}}
                         or null for a stage of one step}
        recovered  {ternary autoregressive model: share of the naive damage undone, or null}
        ternary    {ternary model: {minus, zero, plus: shares of the codes; layers, weights}}
        cost       {model: {embedding, ternary, matrices, norms: parameters; scales; additions,
                    multiply_adds, scalings: of a token; bytes_float32, bytes_float16: with
                    floats of that size; picojoules: an estimate of a token's arithmetic}}
        tasks      {autoregressive model: {task: {questions; few_shot: solved examples before
                    each; contaminated: questions that stand in the training text; acc,
                    acc_norm and their standard errors; acc_norm null where choices are not
                    compared by length; cut: questions longer than the model's positions, of
                    which it read the end alone}}}
        samples    {model: [{prompt, text, tokens, forward_passes, ended; with heads for later
                    tokens guessed and accepted, too; of a diffusion model unmasked: [[part of the
                    text, pass of its block that committed it], of each token]}]}

    ``metrics.json``, the few of these numbers that runs are compared by::

        loss           {model: as above}
        recovered      {ternary autoregressive model but naive: as above, unless null}
        bits_per_byte  {model of :data:`SHOWN_BITS_PER_BYTE`: as above, unless null}
        acc            {task: of the exported model, as above}; none without tasks

    ``answers.jsonl`` (see :func:`answers_jsonl`), where there are tasks, to compare models by
    question. ``curves/<stage>.csv`` (see :func:`curves_csv`) of every training stage,
    ``table.md`` and ``table.txt`` (100 and 80 columns), ``samples.md``, both as pages as well,
    ``ternary.csv`` (a line per ternary layer), ``plots/*.svg``. All are functions of the arguments
    alone.

    Raises
    ------
    UserError : a model or its tokenizer is missing or damaged, or not finite, or a model is not of
        the kind that its name says.
    """
    assert BASE in models, "every comparison is with the dense base"
    formats = [read_format(path, KINDS[name]) for name, path in models.items() if name in KINDS]
    steps = (found.find(InsertBitlinear) for found in formats)
    quantizing = next((step for step in steps if step), InsertBitlinear())
    histories = _histories(models)
    weights = {domain.name: domain.weight for domain in read_mixture(mixture).domains}
    found = _Examination(settings, HeldOutData(mixture), weights, seed, tasks, say)
    for name, path in models.items():
        model, model_format = load_model(path)
        read_future_heads(path, model)
        nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
        found.examine(name, model, model_format, path)
        if name == BASE:
            if (student := models.get("subln")) and (pruned := pruned_like(model, student)):
                nn.Module.to(pruned, model.device)
                found.examine(PRUNED, pruned, model_format, path)
            naive = ModelFormat().then(quantizing)
            naive.apply(model)
            found.examine(NAIVE, model, naive, path)
        say(f"{LABELS.get(name, name)}: {found.scores[name].overall.loss:.3f} nats per token")
    _write(folder, found, histories)
    _plot(folder / "plots", found, histories)
    return _facts(found)


def _histories(models: dict[str, Path]) -> dict[str, History]:
    """Histories of the models that were trained here; a pretrained base has none."""
    histories = {}
    for name, path in models.items():
        file = path / HISTORY
        trained_base = name == BASE and file.is_file() and file.stat().st_size > 0
        if trained_base or name in TRAINED:
            histories[name] = read_history(path)
    return histories


def _write(folder: Path, found: _Examination, histories: dict[str, History]) -> None:
    recovered = found.recovered()
    evaluation = {
        "schema": SCHEMA,
        "seed": found.seed,
        "weights": found.weights,
        "models": {name: score.as_json() for name, score in found.scores.items()},
        "training_noise": {
            name: noise.as_json() if (noise := loss_noise(history)) else None
            for name, history in histories.items()
        },
        "recovered": recovered,
        "ternary": {name: pooled(layers) for name, layers in found.ternary.items()},
        "cost": {name: cost.as_json() for name, cost in found.costs.items()},
        "tasks": {
            model: {task: score.as_json() for task, score in answers.items()}
            for model, answers in found.answers.items()
        },
        "samples": {
            name: [sample.as_json() for sample in samples]
            for name, samples in found.samples.items()
        },
    }
    content = json.dumps(evaluation, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    shown = (BASE, PRUNED, found.shown_ternary)
    costs = {name: found.costs[name] for name in shown if name in found.costs}
    table = plain_table(found.scores, recovered, found.answers, costs)
    metrics = json.dumps(_metrics(found, recovered), indent=1, allow_nan=False) + "\n"
    texts = {
        "evaluation.json": content,
        "metrics.json": metrics,
        "table.md": markdown_table(found.scores, recovered, found.answers, costs),
        "table.txt": table,
        "table.html": text_page("Held-out loss", table),
        "samples.md": samples_markdown(found.samples, found.settings.new_tokens),
        "samples.html": samples_page(found.samples),
        "ternary.csv": ternary_csv(found.ternary),
    }
    if lines := answers_jsonl(found.answers):
        texts["answers.jsonl"] = lines
    curves = {f"{name}.csv": curves_csv(history) for name, history in histories.items()}
    (folder / "curves").mkdir(parents=True, exist_ok=True)
    write_texts(folder, texts)
    write_texts(folder / "curves", curves)


def _metrics(
    found: _Examination, recovered: dict[str, float | None]
) -> dict[str, dict[str, float]]:
    """``metrics.json``. A number that there is not is left out: DVC shows null as a value."""
    scores = {name: score.overall for name, score in found.scores.items()}
    bits = {name: scores[name].bits_per_byte for name in SHOWN_BITS_PER_BYTE if name in scores}
    shares = {name: share for name, share in recovered.items() if name != NAIVE}
    metrics = {
        "loss": {name: score.loss for name, score in scores.items()},
        "recovered": {name: share for name, share in shares.items() if share is not None},
        "bits_per_byte": {name: value for name, value in bits.items() if value is not None},
    }
    if answers := found.answers.get(EXPORTED):
        metrics["acc"] = {task: score.acc for task, score in answers.items()}
    return metrics


def _plot(folder: Path, found: _Examination, histories: dict[str, History]) -> None:
    shown = found.shown_ternary
    save_svg(plots.held_out_loss(found.scores), folder / "held_out_loss.svg")
    layers = found.ternary[shown]
    save_svg(ternary_plots.ternary_shares(layers, shown), folder / "ternary_shares.svg")
    save_svg(ternary_plots.latent_weights(layers, shown), folder / "latent_weights.svg")
    save_svg(ternary_plots.ternary_scales(layers, shown), folder / "ternary_scales.svg")
    if histories:
        save_svg(ternary_plots.code_changes(histories), folder / "code_changes.svg")
        save_svg(plots.loss_terms(histories), folder / "loss_terms.svg")
        save_svg(plots.training_loss(histories), folder / "training_loss.svg")
        save_svg(plots.gradient_norms(histories), folder / "gradient_norms.svg")
        save_svg(plots.loss_variance(histories), folder / "loss_variance.svg")
        save_svg(plots.domain_loss(histories), folder / "domain_loss.svg")


def _facts(found: _Examination) -> dict[str, Any]:
    accepted = {
        name: sum(sample.accepted for sample in samples) / guessed
        for name, samples in found.samples.items()
        if (guessed := sum(sample.guessed for sample in samples))
    }
    facts: dict[str, Any] = {
        "loss": {name: score.overall.loss for name, score in found.scores.items()},
        "recovered": found.recovered(),
        "zero_share": {name: pooled(layers)["zero"] for name, layers in found.ternary.items()},
    }
    return facts | ({"accepted": accepted} if accepted else {})
