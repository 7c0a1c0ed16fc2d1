"""What a model costs: its parameters by kind, its bytes, and the arithmetic of a token.

The energy is an estimate of arithmetic alone, and no measurement::

    energy = 1.5 pJ * multiply-adds + 1.1 pJ * scalings + 0.1 pJ * additions

with the energies of an operation at 45 nm and 0.9 V of Horowitz, "Computing's energy problem",
ISSCC 2014 (figure 1.1.9): multiplication in fp16 1.1 pJ, addition in fp16 0.4 pJ, addition in int32
0.1 pJ. The BitNet papers (arXiv 2310.11453, 2402.17764) take the same table, and 0.03 pJ for an
addition, that of int8; a sum of thousands of int8 codes does not fit in 8 bits, so that here it is
int32. Left out is what costs more: a read of 64 bits from DRAM is 1,300 to 2,600 pJ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain

from torch import nn
from transformers import PreTrainedModel

from wrinklefree.quant.bitlinear import TernaryLayer
from wrinklefree.quant.packing import CODES_PER_BYTE

MULTIPLY_FP16, ADD_FP16, ADD_INT32 = 1.1, 0.4, 0.1
"""pJ"""
_SCALE_BYTES = 4


@dataclass(frozen=True)
class Cost:
    """Parameters of a model, and the operations of a token that it reads and predicts the next of.

    Operations are those of products with weights. Attention to other tokens, norms and activations
    are left out. Of experts a token takes some; layers that leave tokens out count as if they took
    all.
    """

    embedding: int
    """Parameters, also where the head is tied to it."""
    ternary: int
    matrices: int
    """Parameters of dense matrices, routers and convolutions."""
    norms: int
    """Gains, biases and whatever else is a vector."""
    scales: int
    """Of ternary matrices; learned ones are no parameters here."""
    additions: int
    """Of an int8 code to an int32 sum, one for each ternary weight, whether it is 0 or not."""
    multiply_adds: int
    """In fp16, one for each weight of a dense matrix, the head's among them."""
    scalings: int
    """Multiplications in fp16, one for each input and each scaled sum of a ternary matrix."""

    @property
    def parameters(self) -> int:
        """Of all kinds."""
        return self.embedding + self.ternary + self.matrices + self.norms

    @property
    def picojoules(self) -> float:
        """The estimate for a token: see the formula of this file."""
        return (
            (MULTIPLY_FP16 + ADD_FP16) * self.multiply_adds
            + MULTIPLY_FP16 * self.scalings
            + ADD_INT32 * self.additions
        )

    def bytes_with(self, float_bytes: int) -> int:
        """With four codes in a byte, scales in float32, and floats of that size for the rest."""
        codes = -(-self.ternary // CODES_PER_BYTE)
        rest = self.parameters - self.ternary
        return codes + _SCALE_BYTES * self.scales + float_bytes * rest

    def as_json(self) -> dict[str, int | float]:
        """``cost.<model>`` of ``evaluation.json``."""
        sizes = {"bytes_float32": self.bytes_with(4), "bytes_float16": self.bytes_with(2)}
        return asdict(self) | sizes | {"picojoules": self.picojoules}


def cost_of(model: PreTrainedModel) -> Cost:
    """Counted from the modules of ``model``, without heads for later tokens."""
    counts = dict.fromkeys(Cost.__dataclass_fields__, 0)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert head is not None, "a causal language model has a head"
    for module, parameter in _parameters(model.get_decoder(), head):
        share = 1.0
        if parameter.ndim == 3 and not isinstance(module, nn.Conv1d):  # of experts
            share = model.config.num_experts_per_tok / len(parameter)
        if isinstance(module, TernaryLayer) and parameter is module.weight:
            outputs, inputs = parameter.flatten(0, -2).shape
            matrices = len(parameter) if parameter.ndim == 3 else 1
            counts["ternary"] += parameter.numel()
            counts["scales"] += module.vectors
            counts["additions"] += round(share * parameter.numel())
            sums = max(outputs, module.vectors)
            counts["scalings"] += round(share * (sums + matrices * inputs))
        elif module is embedding:
            counts["embedding"] += parameter.numel()
        elif parameter.ndim > 1:
            counts["matrices"] += parameter.numel()
            counts["multiply_adds"] += round(share * parameter.numel())
        elif not (isinstance(module, TernaryLayer) and parameter is module.alpha):
            counts["norms"] += parameter.numel()
    if head.weight is embedding.weight:
        counts["multiply_adds"] += head.weight.numel()
    return Cost(**counts)


def _parameters(*parts: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """Each parameter once, with the module that owns it, in order: of a tie, the embedding."""
    seen: set[int] = set()
    for module in chain.from_iterable(part.modules() for part in parts):
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield module, parameter
