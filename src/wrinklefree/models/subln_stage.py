"""The ``subln`` stage: surgery on the dense base, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wrinklefree.errors import UserError
from wrinklefree.mixture.few_rows import first_training_rows, spread_held_out_rows
from wrinklefree.mixture.loader import HeldOutData, TrainingData
from wrinklefree.models.calibration import calibrate_subln
from wrinklefree.models.exportable import llama_cpp_obstacles, require_gguf
from wrinklefree.models.folder import load_model, save_model, write_json
from wrinklefree.models.forward import require_embeddings, require_positions
from wrinklefree.models.losses import mean_next_token_loss
from wrinklefree.models.prune import (
    IMPORTANCES,
    check_prune,
    feature_importances,
    layer_importances,
    prune_features,
    prune_layers,
)
from wrinklefree.models.reconstruct import reconstruct_layers
from wrinklefree.models.settings import PruneSettings, SublnSettings
from wrinklefree.models.surgery import entries_by_kind, insert_bitlinear, insert_subln
from wrinklefree.models.transforms import MixDepths, ternary
from wrinklefree.tracking.stage import Stage
from wrinklefree.tracking.terminal import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wrinklefree.mixture.batch import Batch

_PRUNING: dict[str, tuple[Callable[..., Any], Callable[..., PreTrainedModel]]] = {
    "layers": (layer_importances, prune_layers),
    "intermediate_size": (feature_importances, prune_features),
}


def make_ternary(stage: Stage) -> dict[str, Any]:
    """Put SubLN and ternary layers into the dense model, into ``stage.folder``.

    Said is what they do to its loss.
    """
    settings = stage.section("subln", SublnSettings)
    mixture, rows = stage.inputs["mixture"], settings.calibration_rows
    training = first_training_rows(TrainingData(mixture, seed=stage.seed), rows)
    held_out = spread_held_out_rows(HeldOutData(mixture), rows)
    reconstruct = None
    if (chosen := settings.reconstruct).kind == "layers":
        batches = first_training_rows(
            TrainingData(mixture, seed=stage.seed), chosen.rows, chosen.batch_size
        )
        log = stage.run.log_metrics
        reconstruct = partial(
            reconstruct_layers, batches=batches, settings=chosen, work=stage.work, log=log
        )
    facts = insert_subln_stage(
        settings,
        stage.inputs["model"],
        training,
        held_out,
        stage.folder,
        reconstruct,
        stage.foreseen.get("export", {}),
        stage.seed,
    )
    for what, station in facts.get("pruned", {}).items():
        stage.terminal.say(
            f"{stage.terminal.label}: {what} {station['remaining']}:"
            f" {station['parameters_after']:,} of {station['parameters_before']:,} parameters,"
            f" held-out loss {station['loss_after']:.3f}"
        )
    for kind, entries in facts["entries"].items():
        names = [name.removesuffix(".weight") for name in entries]
        stage.terminal.say(f"{stage.terminal.label}: {kind} are {', '.join(names)}")
    without = f" with SubLN, {facts['loss_ternary_without_subln']:.3f} without"
    stage.terminal.say(
        f"{stage.terminal.label}: held-out loss {facts['loss_before']:.3f} dense,"
        f" {facts['loss_after_lambda1']:.3f} ternary{without * bool(facts['gains'])}"
    )
    return facts


def insert_subln_stage(
    settings: SublnSettings,
    base: Path,
    training: Iterable[Batch],
    held_out: Iterable[Batch],
    folder: Path,
    reconstruct: Callable[[PreTrainedModel], dict[str, Any]] | None = None,
    export: dict[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the model of folder ``base`` with ternary layers, and SubLN if asked, to ``folder``.

    Parameters
    ----------
    training : rows on which the gains are fitted.
    held_out : other rows, on which the losses are measured: on its own rows a fit looks too good.
    reconstruct : trains the ternary layers of a model with calibrated gains, and returns facts.
    export : the section of that stage, for :func:`require_gguf`.
    seed : of the routers of ``mixture_of_depths``.

    Returns
    -------
    facts : ``calibration_rows`` and ``held_out_rows`` count what was used. Losses are in nats per
        token of the held-out rows. ``loss_before``: the dense base.
        ``loss_ternary_without_subln``: the base quantized naively. ``loss_after_lambda0`` and
        ``loss_after_lambda1``: as written, not quantized and quantized. ``gains``: one entry per
        norm, see ``calibrate_subln``. ``entries``: see ``entries_by_kind``. ``pruned``, where
        something was left out: for layers and features how many remain, parameters and loss; the
        importances of all are in ``importances.json``. ``reconstruction``, where layers were
        trained: what ``reconstruct`` returned, and ``loss_before_reconstruction`` is the quantized
        loss before it.

    Raises
    ------
    UserError : the base is not dense, has fewer layers or features than shall remain, or a loss
        that is not finite; its layers are no whole number of groups; or the rows have a token id
        that it has no embedding for or more tokens than it has positions; or GGUF files are asked
        for that it can't have.
    """
    training, held_out = list(training), list(held_out)
    model, _ = load_model(base, "dense")
    largest = max(int(batch.tokens_BT.max()) for batch in (*training, *held_out))
    require_embeddings(model, largest + 1)
    require_positions(model, held_out[0].tokens_BT.shape[1])
    facts: dict[str, Any] = {
        "gain": settings.gain,
        "calibration_rows": _count_rows(training),
        "held_out_rows": _count_rows(held_out),
    }
    facts["loss_before"] = mean_next_token_loss(model, held_out, 0.0)
    if not math.isfinite(facts["loss_before"]):
        raise UserError(
            f"{base}: its held-out loss is {facts['loss_before']}: the weights are finite, but too"
            " large or not those of its config.json; use another base"
        )
    model, pruned = _pruned(model, settings.prune, training, held_out, folder)
    facts |= pruned
    depths = settings.mixture_of_depths
    mixing = [MixDepths(**depths.model_dump(), seed=seed)] if depths else []
    for mix in mixing:
        mix.apply(model)
    insert_bitlinear(model, settings.quantizer)
    require_gguf(export or {}, model, base, subln=settings.has_norms)
    facts["loss_ternary_without_subln"] = mean_next_token_loss(model, held_out, 1.0)
    facts["gains"] = []
    if settings.gain != "none":
        insert_subln(model)
        facts["gains"] = calibrate_subln(model, training, settings.gain)
    facts["entries"] = entries_by_kind(model)
    if reasons := llama_cpp_obstacles(model, base, subln=settings.has_norms):
        say(f"subln: llama.cpp will not run this model, transformers will: {'; '.join(reasons)}")
    if reconstruct:
        facts["loss_before_reconstruction"] = mean_next_token_loss(model, held_out, 1.0)
        facts["reconstruction"] = reconstruct(model)
    facts["loss_after_lambda0"] = mean_next_token_loss(model, held_out, 0.0)
    facts["loss_after_lambda1"] = mean_next_token_loss(model, held_out, 1.0)
    made = ternary(settings.quantizer, *mixing, subln=settings.has_norms)
    save_model(folder, model, made, tokenizer=base)
    return facts


def _pruned(
    model: PreTrainedModel,
    settings: PruneSettings,
    training: list[Batch],
    held_out: list[Batch],
    folder: Path,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """What is left of the model, and facts of every station, where something was left out."""
    check_prune(settings, model)
    stations: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    for name, (measure, prune) in _PRUNING.items():
        if (remaining := getattr(settings, name)) is None:
            continue
        before = model.num_parameters()
        tables[name] = measure(model, training)
        model = prune(model, tables[name], remaining)
        stations[name] = {
            "remaining": remaining,
            "parameters_before": before,
            "parameters_after": model.num_parameters(),
            "loss_after": mean_next_token_loss(model, held_out, 0.0),
        }
    if not stations:
        return model, {}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / IMPORTANCES, tables)
    return model, {"pruned": stations}


def _count_rows(batches: list[Batch]) -> int:
    return sum(len(batch.tokens_BT) for batch in batches)
