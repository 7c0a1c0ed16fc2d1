"""The ``world_model`` stage: a dense and a ternary model that predict frames, trained alike.

The tokens of a clip are one row; its first frames are always given (1X's masked world model:
MaskGIT over factorized tokens of frames). Nothing is read but the settings.

Shapes: N clips, F frames, P pixels of a frame's width and height, T tokens of a clip, V
vocabularies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.evaluate.canvas import save_svg
from wrinklefree.evaluate.page import text_page, write_texts
from wrinklefree.mixture.token_rows import TokenRows
from wrinklefree.models.factorized import words_of
from wrinklefree.models.folder import write_json
from wrinklefree.models.transforms import ternary
from wrinklefree.research.part_of_stage import part_of
from wrinklefree.research.world_model.model import build, predicted
from wrinklefree.research.world_model.patches import PatchTokenizer
from wrinklefree.research.world_model.report import frames_plot, losses_plot, table_text
from wrinklefree.research.world_model.settings import WorldModelSettings
from wrinklefree.research.world_model.shapes import clips
from wrinklefree.stability.initial_loss import check_initial_loss
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.in_stage import stage_trainer
from wrinklefree.train.loop import Trainer
from wrinklefree.train.objectives.masked import MaskedTokens
from wrinklefree.train.objectives.objective import Objective
from wrinklefree.train.settings import QuantizedTrainingSettings, TrainingSettings

SCHEMA = 1
MODELS = {"dense": TrainingSettings, "ternary": QuantizedTrainingSettings}


@dataclass(frozen=True)
class World:
    """What both models learn from and are asked about."""

    settings: WorldModelSettings
    tokenizer: PatchTokenizer
    train_NT: Tensor
    held_out_NT: Tensor
    held_out: np.ndarray
    """The held-out frames themselves, [N, F, P, P]."""

    @property
    def context(self) -> int:
        """Tokens of a clip that are always given."""
        return self.settings.context_frames * self.settings.places

    @property
    def mask_token_id(self) -> int:
        """The number behind the last token."""
        return math.prod(self.settings.tokenizer.sizes)


def make_world(settings: WorldModelSettings, seed: int) -> World:
    """Draw all clips, fit the tokenizer on the first ones of the training, and make tokens."""
    tokenizer, tokens = None, []
    for frames in clips(settings.video, "train", seed):
        tokenizer = tokenizer or PatchTokenizer.fitted(settings.tokenizer, frames)
        tokens.append(tokenizer.encode(frames))
    assert tokenizer is not None
    held_out = np.concatenate(list(clips(settings.video, "held_out", seed)))
    train_NT, held_out_NT = np.concatenate(tokens), tokenizer.encode(held_out)
    return World(
        settings, tokenizer, torch.from_numpy(train_NT), torch.from_numpy(held_out_NT), held_out
    )


def train_world_models(stage: Stage) -> dict[str, Any]:
    """Make the world, train both models and let them predict, into ``stage.folder``.

    Files
    -----
    ``world_model.json``::

        schema       1
        sizes        words of each vocabulary
        initial_loss the logarithm of all tokens, nats per token, where both models should begin
        models       {name: {first_loss, loss: held out, of masked tokens, in nats per token;
                      healthy_norms: share of steps; and what ``scores`` says}}
        copied       ``scores`` of the last given frame in place of all that follow
        tokenized    ``scores`` of the true tokens: what no prediction can be better than

    ``table.txt``, ``table.html``, ``plots/``; ``<name>/history.jsonl`` of every training.

    Raises
    ------
    UserError : an untrained model's loss is not that of a guess.
    """
    settings = stage.section("world_model", WorldModelSettings)
    world = make_world(settings, stage.seed)
    past_NT, video = world.held_out_NT[:, : world.context], settings.video
    ahead_NT = past_NT[:, -settings.places :].repeat(1, video.frames - settings.context_frames)
    answers = {"copied": torch.cat([past_NT, ahead_NT], 1), "tokenized": world.held_out_NT}
    models, histories = {}, {}
    for name in MODELS:
        trainer, models[name] = _trained(stage, world, name)
        histories[name] = trainer.state.history
        answers[name] = _answers(world, trainer.model)
        models[name] |= scores(world, answers[name])
    content = {
        "schema": SCHEMA,
        "sizes": list(settings.tokenizer.sizes),
        "initial_loss": math.log(world.mask_token_id),
        "models": models,
        **{name: scores(world, answers[name]) for name in ("copied", "tokenized")},
    }
    write_json(stage.folder / "world_model.json", content)
    table = table_text(content)
    write_texts(stage.folder, {"table.txt": table, "table.html": text_page("World model", table)})
    plots = stage.folder / "plots"
    save_svg(losses_plot(histories, content["initial_loss"]), plots / "losses.svg")
    frames = {name: _frames(world, tokens_NT) for name, tokens_NT in answers.items()}
    save_svg(frames_plot(world.held_out, frames, settings.context_frames), plots / "frames.svg")
    stage.terminal.say(table)
    return {"loss": {name: found["loss"] for name, found in models.items()}}


def _trained(stage: Stage, world: World, name: str) -> tuple[Trainer, dict[str, Any]]:
    """Goes on from the part's own checkpoints."""
    settings = world.settings
    part = part_of(stage, name, f"{name}, {len(world.train_NT):,} clips")
    model = build(settings, stage.seed)
    if name == "ternary":
        ternary(settings.quantizer).apply(model)
    objective = Objective(MaskedTokens(world.mask_token_id, world.context, stage.seed))
    trainer = stage_trainer(
        part,
        model,
        TokenRows(world.train_NT, seed=stage.seed),
        settings.training.of(MODELS[name]),
        objective,
        check_first_loss=partial(check_initial_loss, vocabulary_size=world.mask_token_id),
    )
    facts = trainer.run()
    return trainer, {
        "first_loss": facts["loss_first"],
        "loss": held_out_loss(trainer, world.held_out_NT),
        "healthy_norms": facts["gradient_health"]["healthy_share"],
    }


@torch.no_grad()
def held_out_loss(trainer: Trainer, tokens_NT: Tensor) -> float:
    """The objective's cross-entropy of masked tokens, nats per token; masks follow from the row."""
    step = trainer.train_step.eval()
    rows, corruption = TokenRows(tokens_NT, seed=0), step.objective.corruption
    loss = tokens = 0.0
    for number in range(len(tokens_NT)):
        batch = rows.batch(number, 0, batch_size=1, micro_batches=1).to(trainer.runtime.device)
        prepared = corruption.prepare(batch, step=0)
        output = step.objective.loss(step(prepared), prepared, corruption.denominator(prepared))
        loss += output.row_loss_B.double().sum().item()
        tokens += output.row_tokens_B.sum().item()
    return loss / tokens


def _answers(world: World, model: PreTrainedModel) -> Tensor:
    """The held-out clips as the model goes on from their first frames, int64 [N, T]."""
    settings, device = world.settings, model.device
    how: dict[str, Any] = {
        "context": world.context,
        "mask_token_id": world.mask_token_id,
        "passes": settings.decoding_passes,
    }
    parts = world.held_out_NT.to(device).split(settings.training.batch_size)
    return torch.cat([predicted(model.eval(), part_NT, **how).cpu() for part_NT in parts])


def _frames(world: World, tokens_NT: Tensor) -> np.ndarray:
    return world.tokenizer.decode(tokens_NT.numpy(), world.settings.video.size)


def scores(world: World, tokens_NT: Tensor) -> dict[str, Any]:
    """How near predicted frames are to the true ones.

    Returns
    -------
    ``right``: share of right words, by vocabulary; ``error``: root of the mean square of a pixel
    (black is 0, white 1), ``errors``: the same of every predicted frame.
    """
    context, first = world.context, world.settings.context_frames
    sizes = world.settings.tokenizer.sizes
    found, true = (words_of(each[:, context:], sizes) for each in (tokens_NT, world.held_out_NT))
    off = (_frames(world, tokens_NT) - world.held_out)[:, first:].astype(np.float64) ** 2
    return {
        "right": (found == true).double().mean((0, 1)).tolist(),
        "error": float(np.sqrt(off.mean())),
        "errors": np.sqrt(off.mean((0, 2, 3))).tolist(),
    }
