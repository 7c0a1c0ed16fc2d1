"""Ternary training inside of ``transformers.Trainer``, for projects that are built around it.

The loop, its callbacks, logging and checkpoints are transformers'; the objective, optimizer,
learning rate, clipping and strength of quantization are ours, by the same settings. One process:
``train.loop.Trainer`` trains in several.

Shapes: B rows, T tokens of a row.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, Sampler, SequentialSampler, default_collate
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import Batch, BatchSource, LabelledBatch
from wrinklefree.models.forward import require_embeddings, require_float32, require_positions
from wrinklefree.optim.build import build_optimizer
from wrinklefree.optim.schedule import learning_rate_fraction
from wrinklefree.quant.bitlinear import set_quantization_lambda
from wrinklefree.quant.warmup import quantization_lambda
from wrinklefree.stability.clippers import build_clipper
from wrinklefree.train.data import samples_per_step
from wrinklefree.train.objectives.objective import LossOutput, Objective
from wrinklefree.train.objectives.question import Prepared
from wrinklefree.train.runtime import Runtime
from wrinklefree.train.settings import QuantizedTrainingSettings, TrainingSettings
from wrinklefree.train.totals import summed_terms
from wrinklefree.train.wrapping import make_train_step

_CLIPPER = "clipper.pt"
_NOT_LEARNT = -100
_USED = {
    "batch_size", "checkpoint_interval", "clipping", "gradient_accumulation_steps", "lambda_warmup",
    "log_interval", "optimizer", "precision", "router_balance_weight", "schedule", "steps",
}  # fmt: skip
"""Settings with an effect in transformers' loop; the others belong to our own or to a stage."""
_OVERRULED = (
    "adam_beta1", "adam_beta2", "adam_epsilon", "bf16_full_eval", "fp16", "fp16_full_eval",
    "label_smoothing_factor", "learning_rate", "lr_scheduler_type", "optim", "torch_compile",
    "warmup_steps", "weight_decay",
)  # fmt: skip
"""Arguments of transformers that would have no effect, or cast the parameters."""


def training_arguments(
    settings: TrainingSettings, output_dir: str | Path, **more: Any
) -> TrainingArguments:
    """Arguments of transformers that agree with ``settings``; ``more`` may add any others."""
    return TrainingArguments(
        **{
            "output_dir": str(output_dir),
            **_shared(settings),
            "max_grad_norm": 1.0,  # above 0, so that clipping is asked for
            "remove_unused_columns": False,
            "report_to": "none",
            **more,
        }
    )


class TrainingRows(Dataset[dict[str, Tensor]]):
    """The rows of a training in the order in which our own loop reads them."""

    def __init__(self, data: BatchSource, settings: TrainingSettings) -> None:
        self.data = data
        self._length = settings.steps * samples_per_step(settings)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        row = self.data.batch(sample, 0, batch_size=1, micro_batches=1)
        return {name: tensor[0] for name, tensor in vars(row).items()}


class WrinkleFreeTrainer(Trainer):
    """``transformers.Trainer`` with our objective, optimizer, schedule, clipping and strength.

    What is logged as ``loss`` is the whole objective; ``train/loss``, the cross-entropy (nats per
    token), and every term of the objective are logged by the names of our own loop. All are means
    over the steps since the last line, as ``loss`` is.

    Parameters
    ----------
    model : with or without ternary layers, in float32.
    args : of :func:`training_arguments`, or others that agree with ``settings``.
    train_dataset : :class:`TrainingRows`, or examples with ``input_ids`` and, if there are,
        ``attention_mask`` and ``labels`` (-100: not learnt; each is for its own token, as
        everywhere in transformers), collated to tensors of equal length.
    objective : the next token, where none is given.

    Raises
    ------
    UserError : arguments and settings differ, one is asked for that has no effect here, or a target
        of the objective's ``gradient_ratios``, there are several processes or GPUs, or the model is
        not in float32 or made for other rows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        settings: TrainingSettings,
        train_dataset: Any,
        *,
        objective: Objective | None = None,
        **named: Any,
    ) -> None:
        _check(args, settings)
        if objective and objective.gradient_ratios and objective.gradient_ratios.targets:
            raise UserError(
                f"gradient_ratios.{next(iter(objective.gradient_ratios.targets))} has no effect"
                " inside of transformers.Trainer: give the term a weight, or train with"
                " wrinklefree.train.loop.Trainer"
            )
        require_float32(model)
        self.settings = settings
        self.runtime = Runtime.here(settings.precision, args.device)
        if args.bf16 and self.runtime.precision != "bfloat16":
            raise UserError(
                f"TrainingArguments.bf16 is true, but products are computed in"
                f" {self.runtime.precision} by precision {settings.precision} of the settings; set"
                " precision to bfloat16, or leave bf16 out"
            )
        self.clipper = build_clipper(settings.clipping)
        self.train_step = make_train_step(model, objective, settings, self.runtime)
        self._clipped: dict[str, float] = {}
        self._outputs: list[LossOutput] = []
        """Of the micro-batches of this step."""
        self._steps: list[dict[str, float]] = []
        """What was lost in the steps that are not logged yet."""
        if isinstance(train_dataset, TrainingRows):
            require_embeddings(model, train_dataset.data.vocabulary_size)
            require_positions(model, train_dataset.data.sequence_length)
            named.setdefault("data_collator", default_collate)
        super().__init__(model=model, args=args, train_dataset=train_dataset, **named)
        self.loss_is_scaled_for_ga = True
        if isinstance(settings, QuantizedTrainingSettings):
            self.add_callback(_Strength(settings))

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer of the settings."""
        if self.optimizer is None:
            self.optimizer = build_optimizer(self.train_step.model, self.settings.optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of the settings."""
        if self.lr_scheduler is None:
            steps, schedule = self.settings.steps, self.settings.schedule
            # Transformers asks for a rate once more behind the last step.
            self.lr_scheduler = LambdaLR(
                optimizer or self.optimizer,
                lambda step: learning_rate_fraction(min(step, steps - 1), steps, schedule),
            )
        return self.lr_scheduler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's loss of a micro-batch, over the denominator of the whole step."""
        objective = self.train_step.objective
        prepared = self._prepared(inputs)
        denominator = num_items_in_batch or objective.corruption.denominator(prepared)
        with self.runtime.computing():
            output = objective.loss(self.train_step(prepared), prepared, float(denominator))
        if torch.is_grad_enabled():  # in a step, and in no evaluation
            self._outputs.append(replace(output, loss=output.loss.detach()))
        return (output.loss, {"loss": output.loss}) if return_outputs else output.loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The objective's loss of an evaluation batch."""
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)), None, None

    def log(self, logs: dict[str, float], *more: Any, **named: Any) -> None:
        """What transformers logs, what was lost, and what the clipper did to the latest step."""
        if "loss" in logs:
            steps, self._steps = self._steps, []
            means = {name: statistics.fmean(step[name] for step in steps) for name in steps[0]}
            logs = logs | means | self._clipped
        super().log(logs, *more, **named)

    def _prepared(self, inputs: Mapping[str, Tensor]) -> Prepared:
        batch = as_batch(inputs)
        if not isinstance(self.train_dataset, TrainingRows):
            require_embeddings(self.train_step.model, int(batch.tokens_BT.max()) + 1, "text")
            require_positions(self.train_step.model, batch.tokens_BT.shape[1])
        return self.train_step.objective.corruption.prepare(batch, self.state.global_step)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        self._outputs.clear()
        corruption = self.train_step.objective.corruption
        return sum(map(corruption.denominator, map(self._prepared, batch_samples)))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        rows = train_dataset or self.train_dataset
        if isinstance(rows, TrainingRows):
            return SequentialSampler(rows)
        return super()._get_train_sampler(train_dataset)

    def _clip_grad_norm(self, model: nn.Module) -> float:
        stats = self.clipper.clip(list(self.train_step.model.parameters()))
        if not math.isfinite(stats.raw_norm):
            raise UserError(
                f"step {self.state.global_step + 1}: the gradient is not finite; lower the rate, or"
                " go on from a checkpoint before it"
            )
        losses, tokens = (
            sum(float(getattr(output, name).sum()) for output in self._outputs)
            for name in ("row_loss_B", "row_tokens_B")
        )
        self._steps.append({"train/loss": losses / tokens, **summed_terms(self._outputs)})
        self._clipped = {"grad_norm_clipped": stats.clipped_norm, **stats.metrics}
        return stats.raw_norm

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        # Into the layout of published files transformers takes experts apart, and reads none of
        # them when it goes on.
        model: Any = self.model
        model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
        try:
            super()._save(output_dir, state_dict)
        finally:
            del model.save_pretrained

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        missing, tensors = set(load_result.missing_keys), self.train_step.model.state_dict()
        read = {tensor.data_ptr() for name, tensor in tensors.items() if name not in missing}
        lost = {name for name in missing if tensors[name].data_ptr() not in read}  # and not tied
        if wrong := sorted(lost | set(load_result.unexpected_keys)):
            raise UserError(
                f"the checkpoint is of another model: {wrong[0]} and {len(wrong) - 1} other tensors"
                " are in one of them only; make the model as it was made for that training"
            )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        torch.save(self.clipper.state_dict(), Path(output_dir) / _CLIPPER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = torch.load(Path(checkpoint) / _CLIPPER, weights_only=True)
            self.clipper.load_state_dict(state)


class _Strength(TrainerCallback):
    """Sets the strength of quantization at the beginning of every step."""

    def __init__(self, settings: QuantizedTrainingSettings) -> None:
        self._warmup = settings.lambda_warmup

    def on_step_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """By the number of the step, so that a resumed run has nothing to remember."""
        strength = quantization_lambda(state.global_step, self._warmup)
        set_quantization_lambda(named["model"], strength)


def as_batch(inputs: Mapping[str, Tensor]) -> Batch:
    """Rows of ours from what a collator made: our own tensors, or those of transformers."""
    if "tokens_BT" in inputs:
        return (LabelledBatch if "label_BT" in inputs else Batch)(**inputs)
    tokens_BT = inputs["input_ids"]
    real_BT = inputs.get("attention_mask", torch.ones_like(tokens_BT)).bool()
    positions_BT = (real_BT.long().cumsum(-1) - 1).clamp(min=0)
    document_BT = torch.where(real_BT, 0, -1)
    zeros_B = torch.zeros_like(tokens_BT[:, 0])
    source_BT = positions_BT.where(real_BT, -1)
    rows = (tokens_BT, document_BT, positions_BT, document_BT, source_BT, zeros_B, zeros_B)
    if "labels" not in inputs:
        return Batch(*rows)
    learnt_BT = (inputs["labels"] != _NOT_LEARNT) & real_BT & (positions_BT > 0)
    return LabelledBatch(*rows, learnt_BT)


def _shared(settings: TrainingSettings) -> dict[str, int]:
    return {
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "logging_steps": settings.log_interval,
        "save_steps": settings.checkpoint_interval,
    }


def _check(args: TrainingArguments, settings: TrainingSettings) -> None:
    for name, wanted in _shared(settings).items():
        if (found := getattr(args, name)) != wanted:
            raise UserError(
                f"TrainingArguments.{name} is {found}, but the settings say {wanted}; make the"
                " arguments with training_arguments(settings, …)"
            )
    for name in _OVERRULED:
        if getattr(args, name) != getattr(TrainingArguments, name):
            raise UserError(
                f"TrainingArguments.{name} has no effect here, or would cast parameters: leave it"
                " out, the settings say what is done"
            )
    if args.max_grad_norm <= 0:
        raise UserError("max_grad_norm must be above 0, for clipping is ours")
    if args.world_size > 1 or args.n_gpu > 1:
        raise UserError(
            "several processes or GPUs: train with wrinklefree.train.loop.Trainer, or show this"
            " process one GPU (CUDA_VISIBLE_DEVICES=0)"
        )
    for name, field in type(settings).model_fields.items():
        default = field.get_default(call_default_factory=True)
        if name not in _USED and getattr(settings, name) != default:
            raise UserError(
                f"{name} has no effect inside of transformers' loop; leave it out, and give terms"
                " of a teacher or of later tokens as objective"
            )
