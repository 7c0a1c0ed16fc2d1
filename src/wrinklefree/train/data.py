"""The rows of a training stage: weights by phase, repetition kept in bounds, and a curriculum."""

from __future__ import annotations

import contextlib
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.mixture.few_rows import ROWS_AT_A_TIME
from wrinklefree.mixture.loader import TrainingData
from wrinklefree.mixture.order import WeightChange
from wrinklefree.models.forward import require_embeddings
from wrinklefree.models.losses import row_losses
from wrinklefree.tracking.files import write_atomically
from wrinklefree.tracking.progress import Progress
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.settings import TrainingSettings

SCORES = "row_scores.npy"


def samples_per_step(settings: TrainingSettings) -> int:
    """Rows of an optimizer step."""
    return settings.batch_size * settings.gradient_accumulation_steps


def open_data(
    stage: Stage,
    settings: TrainingSettings,
    *,
    seed: int | None = None,
    weights: dict[str, float] | None = None,
    shuffle_buffer_size: int | None = None,
) -> TrainingData:
    """The rows of a stage in shuffled order, under the weights of its phases.

    Seed, weights and buffer are the stage's and the mixture's own where they are not given. Says
    how often the run reads each domain that it reads more than once. Raises UserError for a domain
    that it would read more than ``mixture.max_repetition`` times, and for weights that
    don't fit the mixture.
    """
    per_step = samples_per_step(settings)
    changes = [WeightChange(p.from_step * per_step, p.weights) for p in settings.data.phases]
    own = stage.seed if seed is None else seed
    data = TrainingData(
        stage.inputs["mixture"],
        seed=own,
        weights=weights,
        changes=changes,
        shuffle_buffer_size=shuffle_buffer_size,
    )
    samples = settings.steps * per_step
    for domain, epochs in data.epochs(samples).items():
        has = f"domain {domain} has {data.train_tokens(domain):,} training tokens"
        if epochs > data.max_repetition:
            raise UserError(
                f"{has}, which {settings.steps} steps of {per_step} rows would read {epochs:.6g}"
                f" times, more than mixture.max_repetition {data.max_repetition:g}: give it more"
                " text or less weight, train for fewer steps, or raise max_repetition"
            )
        if epochs > 1:
            stage.terminal.say(f"{stage.terminal.label}: {has}, read {epochs:.2f} times")
    return data


def arrange(
    stage: Stage, settings: TrainingSettings, data: TrainingData, model: PreTrainedModel | None
) -> tuple[TrainingData, dict[str, Any]]:
    """``data`` in the order that the settings ask for, and facts about its rows.

    Parameters
    ----------
    model : reads the rows for ``order: loss``. Not needed by other orders.

    Returns
    -------
    Facts: ``epochs``, how often the run reads each domain; ``weight_changes``, for every set of
    weights the first sample and step that it holds for; ``order``; with a curriculum ``scores``,
    SHA-256 of the rows' scores.

    Raises
    ------
    UserError : ``order`` is ``loss`` and the model has no embedding for some token id, finds a loss
        that is not finite, or the scores of a resumed run were damaged.
    """
    per_step = samples_per_step(settings)
    samples = settings.steps * per_step
    facts: dict[str, Any] = {
        "epochs": data.epochs(samples),
        "order": settings.data.order,
        "weight_changes": [
            {
                "first_sample": change.first_sample,
                "first_step": change.first_sample // per_step,
                "weights": change.weights,
            }
            for change in data.changes
        ],
    }
    if settings.data.order == "shuffled":
        return data, facts
    if settings.data.order == "length":
        scores = data.mean_piece_lengths(samples)
    else:
        assert model is not None, "rows are scored by a model"
        scores = _losses(stage, data, samples, model)
    facts["scores"] = hashlib.sha256(scores.astype("<f8").tobytes()).hexdigest()
    return data.easy_first(samples, scores), facts


def _losses(stage: Stage, data: TrainingData, samples: int, model: PreTrainedModel) -> np.ndarray:
    """Loss per token of every row of the run; kept, so that a resumed run has the same order."""
    require_embeddings(model, data.vocabulary_size)
    path = stage.work / SCORES
    rows = sum(len(chosen) for chosen in data.rows_of_run(samples).values())
    if path.is_file():
        return _read_scores(path, rows)
    stage.terminal.say(f"{stage.terminal.label}: {rows} rows are scored by their loss")
    if torch.cuda.is_available():
        nn.Module.to(model, "cuda")
    losses = []
    with contextlib.closing(Progress(stage.terminal.label, "rows", rows)) as progress:
        for batch in data.batches_of(samples, ROWS_AT_A_TIME):
            losses += row_losses(model, batch, 0.0).tolist()
            progress.advance(len(batch.sample_B))
    scores = np.array(losses)
    if not np.isfinite(scores).all():
        raise UserError(
            "data.order is loss, but the loss of some rows is not finite under the model that the"
            " stage starts from; mend the model or use another order"
        )
    content = io.BytesIO()
    np.save(content, scores)
    write_atomically(path, content.getvalue())
    return scores


def _read_scores(path: Path, rows: int) -> np.ndarray:
    try:
        scores = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: {error}; {_START_AGAIN.format(path.parent)}") from error
    if scores.shape != (rows,) or scores.dtype != np.float64 or not np.isfinite(scores).all():
        raise UserError(
            f"{path} has {scores.dtype.name} scores of shape {scores.shape}, expected {rows} finite"
            f" ones of float64; {_START_AGAIN.format(path.parent)}"
        )
    return scores


_START_AGAIN = "it was edited or damaged; delete the folder {} to start the stage again"
