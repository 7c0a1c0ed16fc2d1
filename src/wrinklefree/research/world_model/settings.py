"""``world_model``: videos made here, their tokens, and a model that predicts frames."""

from __future__ import annotations

import math
from typing import Annotated, Self

from pydantic import Field, model_validator

from wrinklefree.models.settings import ModelSettings
from wrinklefree.quant.settings import QuantizerSettings
from wrinklefree.research.rows_training import RowsTraining
from wrinklefree.schema.section import PositiveInt, Rows, RowsAtOnce, Section

MOST_TOKENS = 2**31
"""Of all vocabularies together: a token is one number."""


class VideoSettings(Section):
    """Clips of bright shapes on black, which move evenly and bounce off the edges."""

    clips: Rows = 4096
    """Number of clips to train on."""
    held_out_clips: Rows = 64
    """Number of clips to test on."""
    frames: Annotated[int, Field(ge=2, le=1024)] = 8
    """Frames of a clip."""
    size: Annotated[int, Field(ge=8, le=256)] = 16
    """Width and height of a frame in pixels."""
    shapes: Annotated[int, Field(ge=1, le=100)] = 2
    """Shapes of a clip. Later ones pass in front of earlier ones."""
    most_speed: Annotated[float, Field(ge=0.0, le=100.0)] = 1.5
    """Largest speed along each axis, in pixels per frame."""


class PatchTokenizerSettings(Section):
    """A token for every patch: its principal components, each rounded to one of a few levels."""

    patch_size: Annotated[int, Field(ge=1, le=64)] = 4
    """Width and height of a patch in pixels."""
    levels: list[list[Annotated[int, Field(ge=2, le=1024)]]] = [[8, 8], [8, 8], [4, 4]]
    """A list for each vocabulary: the levels of its components, in order of their variance. The
    vocabulary has as many words as their product."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Words of each vocabulary."""
        return tuple(map(math.prod, self.levels))

    @model_validator(mode="after")
    def _is_a_token(self) -> Self:
        components, pixels = sum(map(len, self.levels)), self.patch_size**2
        if not all(self.levels) or not 0 < components <= pixels:
            raise ValueError(
                f"levels has {components} components in {len(self.levels)} vocabularies; expected a"
                f" component or more in each, and in all at most the {pixels} pixels of a patch"
            )
        if (tokens := math.prod(self.sizes)) > MOST_TOKENS:
            raise ValueError(
                f"levels make {tokens} tokens, more than {MOST_TOKENS}; use fewer or smaller levels"
            )
        return self


class WorldModelSettings(Section):
    """A masked model of video tokens, dense and ternary, trained alike."""

    video: VideoSettings = VideoSettings()
    """The videos."""
    tokenizer: PatchTokenizerSettings = PatchTokenizerSettings()
    """How frames become tokens, and tokens frames."""
    model: ModelSettings
    """Shape of the model."""
    quantizer: QuantizerSettings = QuantizerSettings()
    """How the weights of the ternary model become ternary."""
    training: RowsTraining
    """How both are trained. The dense one is not quantized."""
    context_frames: PositiveInt = 4
    """Number of frames that are always given. The others are masked and predicted."""
    decoding_passes: RowsAtOnce = 8
    """Passes in which all other frames are predicted, the surest tokens first."""

    @property
    def places(self) -> int:
        """Tokens of a frame."""
        return (self.video.size // self.tokenizer.patch_size) ** 2

    @model_validator(mode="after")
    def _frames_are_patches(self) -> Self:
        size, patch = self.video.size, self.tokenizer.patch_size
        if size % patch:
            raise ValueError(
                f"video.size {size} is no multiple of tokenizer.patch_size {patch}; change one"
            )
        if self.model.state_space:
            raise ValueError(
                "model.state_space is given, but masked tokens are predicted from both sides, and"
                " states read one; leave it out"
            )
        if self.context_frames >= self.video.frames:
            raise ValueError(
                f"context_frames is {self.context_frames} of video.frames {self.video.frames}:"
                " nothing would be predicted; lower it"
            )
        return self
