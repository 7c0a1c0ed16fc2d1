"""What is put into a dense model, as an ordered list of named steps.

Each step has its settings and one function, which applies it to a model in place. A model is its
architecture with the steps of its ``wrinklefree.json`` applied in order; a stage appends its own.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.models.depths import mix_depths, refuse_skipping
from wrinklefree.models.state_space import refuse_states
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.quant.bitlinear import ABSMEAN
from wrinklefree.quant.settings import QuantizerSettings
from wrinklefree.schema.section import Section

Kind = Literal["dense", "ternary", "diffusion"]


class MixDepths(Section):
    """Some layers compute a share of the tokens."""

    name: Literal["mixture_of_depths"] = "mixture_of_depths"
    every: Annotated[int, Field(ge=2)]
    capacity: Annotated[float, Field(gt=0, le=1)]
    seed: int = 0

    def apply(self, model: PreTrainedModel) -> None:
        """Put routers in; raises UserError where layers are of an unknown architecture."""
        mix_depths(model, self.every, self.capacity, self.seed)


class InsertSubln(Section):
    """Norms before ``o_proj`` and ``down_proj``."""

    name: Literal["subln"] = "subln"

    def apply(self, model: PreTrainedModel) -> None:
        """Insert them."""
        insert_subln(model)


class InsertBitlinear(Section):
    """Linear layers of the decoder quantize; the stored weights are the latent ones."""

    name: Literal["bitlinear"] = "bitlinear"
    quantizer: QuantizerSettings = ABSMEAN

    def apply(self, model: PreTrainedModel) -> None:
        """Replace the layers; raises UserError where the quantizer does not fit."""
        insert_bitlinear(model, self.quantizer)


class DiffuseBlocks(Section):
    """The model fills blocks of masks in. Its embedding has the mask token already."""

    name: Literal["block_diffusion"] = "block_diffusion"
    block_size: Annotated[int, Field(ge=1)]
    token_shift: Literal["none", "noisy", "clean_boundary"]
    mask_token_id: Annotated[int, Field(ge=0)]

    def apply(self, model: PreTrainedModel) -> None:
        """Change nothing; raises UserError where the model has no such token, or has states."""
        refuse_states(
            model,
            "they read no token behind another one, and blocks of masks are filled in from both"
            " sides; set dlm.enabled to false",
        )
        refuse_skipping(model, "blocks of masks have no routers; set dlm.enabled to false")
        if self.mask_token_id >= (size := model.config.vocab_size):
            raise UserError(
                f"block_diffusion.mask_token_id is {self.mask_token_id}, but the embedding ends at"
                f" {size - 1}"
            )


Transform = MixDepths | InsertSubln | InsertBitlinear | DiffuseBlocks
Step = TypeVar("Step", MixDepths, InsertSubln, InsertBitlinear, DiffuseBlocks)
TRANSFORMS: dict[str, type[Transform]] = {
    "mixture_of_depths": MixDepths,
    "subln": InsertSubln,
    "bitlinear": InsertBitlinear,
    "block_diffusion": DiffuseBlocks,
}
"""In the order in which they are applied; keys are the names in ``wrinklefree.json``."""
_KINDS: dict[tuple[str, ...], Kind] = {
    (): "dense",
    ("bitlinear",): "ternary",
    ("subln", "bitlinear"): "ternary",
    ("bitlinear", "block_diffusion"): "diffusion",
    ("mixture_of_depths", "bitlinear"): "ternary",
    ("mixture_of_depths", "subln", "bitlinear"): "ternary",
    ("subln", "bitlinear", "block_diffusion"): "diffusion",
}


class ModelFormat(Section):
    """What a model has beyond its dense architecture."""

    transforms: tuple[Annotated[Transform, Field(discriminator="name")], ...] = ()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if list(self.names) != [name for name in TRANSFORMS if name in self.names]:
            raise ValueError(
                f"{', '.join(self.names)}: expected each at most once, in the order"
                f" {', '.join(TRANSFORMS)}"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the steps in order."""
        return tuple(transform.name for transform in self.transforms)

    @property
    def kind(self) -> Kind | None:
        """Which of the models of the pipeline has this format; None if none has."""
        return _KINDS.get(self.names)

    def then(self, *transforms: Transform) -> ModelFormat:
        """This, and ``transforms`` after it."""
        return ModelFormat(transforms=(*self.transforms, *transforms))

    def find(self, step: type[Step]) -> Step | None:
        """The step of that class, if the model has it."""
        return next((found for found in self.transforms if isinstance(found, step)), None)

    def apply(self, model: PreTrainedModel) -> None:
        """Apply every step to the dense ``model``, in place."""
        for transform in self.transforms:
            transform.apply(model)


def ternary(
    quantizer: QuantizerSettings = ABSMEAN, *before: MixDepths, subln: bool = True
) -> ModelFormat:
    """SubLN, if it is wanted, and ternary layers, as stage subln makes them, after what is
    ``before`` them."""
    norms = (InsertSubln(),) if subln else ()
    return ModelFormat(transforms=(*before, *norms, InsertBitlinear(quantizer=quantizer)))
