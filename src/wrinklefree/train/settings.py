"""What every training stage has, and what quantization in the loop adds."""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from wrinklefree.mixture.settings import DataSettings
from wrinklefree.optim.settings import OptimizerSettings, ScheduleSettings
from wrinklefree.quant.settings import LambdaWarmupSettings
from wrinklefree.schema.reads import AveragingName
from wrinklefree.schema.section import (
    Decay,
    NonNegativeFloat,
    Precision,
    Rows,
    RowsAtOnce,
    Section,
    Steps,
    StepsOrZero,
)
from wrinklefree.stability.settings import ClippingSettings, SpikeSettings

LEAST_FINAL_LR_FRACTION = 0.3
"""What a curriculum's last rows need of the peak learning rate."""


USUAL_LAMBDA_WARMUP = (0.05, 0.1)
"""The share of a stage's steps in which quantization grows."""
LONG_TRAINING = 1000
"""Steps from which on a share of them says something: of a short run's it is a handful."""


class CurriculumDecayWarning(UserWarning):
    """A curriculum keeps its best text for the end, where the learning rate is nearly 0."""


class UnusualLambdaWarmupWarning(UserWarning):
    """Quantization of a long training grows faster or slower than is known to work."""


class LastAverageSettings(Section):
    """The mean of the parameters after some of the last steps, the very last one included."""

    checkpoints: Annotated[int, Field(ge=2, le=10_000)] = 6
    """Number of steps whose parameters are averaged."""
    interval: Steps = 10
    """Steps between them."""


class ExponentialAverageSettings(Section):
    """The running mean of the parameters over all steps."""

    decay: Decay = 0.99
    """Weight of the past."""


class AveragingSettings(Section):
    """The finished model is an average of parameters, and a block of settings for each kind.

    Only the block of the chosen one counts; the other is validated and has no effect.
    """

    name: AveragingName = "none"
    """Kind of average. ``none``: the parameters of the last step."""
    last: LastAverageSettings = LastAverageSettings()
    """The mean over some of the last steps."""
    ema: ExponentialAverageSettings = ExponentialAverageSettings()
    """The running mean over all steps."""


class TrainingSettings(Section):
    """A training: how long, with which optimizer, on which rows."""

    steps: Steps
    """Optimizer steps."""
    batch_size: RowsAtOnce
    """Rows per micro-batch."""
    gradient_accumulation_steps: RowsAtOnce = 1
    """Micro-batches per optimizer step."""
    optimizer: OptimizerSettings
    """Which optimizer trains, and how."""
    schedule: ScheduleSettings
    """The learning rate over steps."""
    router_balance_weight: NonNegativeFloat = 0.01
    """Weight of the load-balancing loss, which makes routers spread tokens evenly over the experts.
    Has no effect without experts."""
    clipping: ClippingSettings = ClippingSettings()
    """How gradients are clipped."""
    spikes: SpikeSettings = SpikeSettings()
    """What is done about a loss that jumps."""
    averaging: AveragingSettings = AveragingSettings()
    """Whether the finished model is an average of parameters."""
    data: DataSettings = DataSettings()
    """Which rows are read, and in which order."""
    precision: Precision = "fp32"
    """Data type that products are computed in. Parameters and optimizer state stay fp32. ``auto``:
    bfloat16 where the machine multiplies it faster."""
    activation_checkpointing: bool = False
    """Keep only the inputs of each decoder layer, and run the layer again for its gradients. This
    takes far less memory and about a third more time. Has no effect on the result."""
    compile: bool = False
    """Compile decoder layers with ``torch.compile``. This takes a minute or more at the start, and
    steps are faster. Rounding differs, so the result differs as it does between machines. Without a
    GPU, attention then computes all pairs of tokens of a long row, those that are masked too."""
    checkpoint_interval: Steps = 40
    """Steps between resumable checkpoints. Has no effect on the result."""
    log_interval: Steps = 20
    """Steps between lines of output. Has no effect on the result."""
    evaluate_interval: StepsOrZero = 0
    """Steps between measurements of the held-out loss, which the history keeps. 0: no
    measurements."""
    evaluate_rows_per_domain: Rows = 8
    """Held-out rows of each domain to measure it on, the same rows each time."""
    telemetry_interval: StepsOrZero = 0
    """Steps between measurements of the error of int8 activations and of how updates change ternary
    codes, which the history keeps. 0: no measurements."""
    max_skipped_steps: StepsOrZero = 0
    """How many steps may be left out because loss or gradient is not finite. The next one stops the
    run."""

    @model_validator(mode="before")
    @classmethod
    def _zclip_stands_in_clipping(cls, given: Any) -> Any:
        if isinstance(given, dict) and "zclip" in given:
            raise ValueError(
                "zclip stands in clipping: write clipping: {name: zclip, zclip: {…}}, and"
                " clipping: {name: none} for what was zclip: {enabled: false}"
            )
        return given

    @model_validator(mode="after")
    def _some_step_trains(self) -> Self:
        if self.max_skipped_steps >= self.steps:
            raise ValueError(
                f"max_skipped_steps is {self.max_skipped_steps} and steps {self.steps}: all could"
                " be skipped and nothing trained; lower it"
            )
        return self

    @model_validator(mode="after")
    def _layers_can_be_compiled(self) -> Self:
        if self.compile and self.activation_checkpointing and self.optimizer.name == "muonclip":
            raise ValueError(
                "compile and activation_checkpointing don't go together with optimizer.name"
                " muonclip, which reads attention logits inside of each layer; leave out one"
            )
        return self

    @model_validator(mode="after")
    def _rate_reaches_its_peak_and_decays(self) -> Self:
        if self.schedule.warmup_steps >= self.steps:
            raise ValueError(
                f"schedule.warmup_steps is {self.schedule.warmup_steps} and steps {self.steps}:"
                " warmup must end before the last step; lower it or train longer"
            )
        return self

    @model_validator(mode="after")
    def _phases_begin_within_the_run(self) -> Self:
        if self.data.phases and (last := self.data.phases[-1].from_step) >= self.steps:
            raise ValueError(
                f"data.phases has one from step {last} on and steps is {self.steps}: it would never"
                " begin; lower its from_step, leave it out or train longer"
            )
        return self

    @model_validator(mode="after")
    def _curriculum_meets_a_learning_rate(self) -> Self:
        final = self.schedule.final_lr_fraction
        decays = self.schedule.kind != "constant" and final < LEAST_FINAL_LR_FRACTION
        if self.data.order != "shuffled" and decays:
            warnings.warn(
                f"data.order {self.data.order} with schedule.final_lr_fraction {final:g}: the rows"
                " that come last are hardly learnt from; a curriculum's gain over a random order is"
                f" lost (arXiv 2511.18903). Use {LEAST_FINAL_LR_FRACTION:g} or more, or schedule"
                " constant",
                CurriculumDecayWarning,
                stacklevel=2,
            )
        return self


class QuantizedTrainingSettings(TrainingSettings):
    """Training with quantization in the loop."""

    lambda_warmup: LambdaWarmupSettings
    """Quantization strength over steps."""

    @model_validator(mode="after")
    def _trains_fully_quantized(self) -> Self:
        if self.lambda_warmup.warmup_steps >= self.steps:
            raise ValueError(
                f"lambda_warmup.warmup_steps is {self.lambda_warmup.warmup_steps} and steps"
                f" {self.steps}: no step would train the fully quantized model; lower it or train"
                " longer"
            )
        return self

    @model_validator(mode="after")
    def _quantization_grows_at_the_usual_pace(self) -> Self:
        warmup, (low, high) = self.lambda_warmup, USUAL_LAMBDA_WARMUP
        grows = warmup.warmup_steps > 0 and warmup.schedule != "hard"
        usual = low <= warmup.warmup_steps / self.steps <= high
        if grows and self.steps >= LONG_TRAINING and not usual:
            warnings.warn(
                f"lambda_warmup.warmup_steps {warmup.warmup_steps} of {self.steps} steps is outside"
                f" {low:.0%} to {high:.0%} of them, which is recommended. Use"
                f" {round(low * self.steps)} to {round(high * self.steps)}, 0 for none, or"
                " schedule hard for a late change to ternary weights",
                UnusualLambdaWarmupWarning,
                stacklevel=2,
            )
        return self
