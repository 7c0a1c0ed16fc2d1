"""A training on rows that are made by the stage itself, as research stages have them."""

from __future__ import annotations

from typing import TypeVar

from pydantic import model_validator

from wrinklefree.optim.settings import OptimizerSettings, ScheduleSettings
from wrinklefree.quant.settings import LambdaWarmupSettings
from wrinklefree.schema.section import Precision, RowsAtOnce, Section, Steps
from wrinklefree.train.settings import QuantizedTrainingSettings, TrainingSettings

Training = TypeVar("Training", bound=TrainingSettings)


class RowsTraining(Section):
    """A training on rows of its own, which come from no mixture."""

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
    lambda_warmup: LambdaWarmupSettings
    """Quantization strength over steps."""
    precision: Precision = "fp32"
    """Type that products are computed in; see ``stage2.precision``."""
    checkpoint_interval: Steps = 40
    """Steps between resumable checkpoints. Has no effect on the result."""
    log_interval: Steps = 20
    """Steps between lines of output. Has no effect on the result."""

    def of(self, kind: type[Training]) -> Training:
        """These settings as those of a training; a dense one has no quantization strength."""
        shared = type(self).model_fields.keys() & kind.model_fields.keys()
        return kind(**{field: getattr(self, field) for field in shared})

    @model_validator(mode="after")
    def _is_a_training(self) -> RowsTraining:
        self.of(QuantizedTrainingSettings)
        return self
