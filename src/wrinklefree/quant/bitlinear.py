"""The ternary linear layer of BitNet b1.58 (arXiv 2402.17764), with a dial for its strength.

Shapes: M tokens (any leading dimensions), N input features, O output features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrinklefree.kernels.packed_matmul import packed_matmul
from wrinklefree.kernels.ternary_linear import ternary_linear
from wrinklefree.kernels.ternary_linear.products import quantizes_inside, reads_packed
from wrinklefree.quant.codes import Codes, WeightCodes, activation_codes
from wrinklefree.quant.learned_scale import LearnedScale, alpha_of
from wrinklefree.quant.scales import count_vectors, fitted_scale
from wrinklefree.quant.settings import Granularity, QuantizerSettings, Scale
from wrinklefree.quant.ternary import quantize_activation, quantize_weight, ternary_codes

ABSMEAN = QuantizerSettings()
"""One scale for a weight, its mean magnitude: that of BitNet b1.58."""


class _StraightThrough(torch.autograd.Function):
    """``x + strength * (quantize(x) - x)``, whose gradient is passed on as it is.

    Against the same formula written with ``detach`` it saves two temporaries, and at strength 1 the
    result is ``quantize(x)`` to the bit.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, quantize: Callable[[Tensor], Tensor], strength: float
    ) -> Tensor:
        quantized = quantize(value)
        return quantized if strength == 1.0 else torch.lerp(value, quantized, strength)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class TernaryLayer(nn.Module):
    """Abstract: a weight that a layer sees as ternary, with int8 activations, at some strength.

    ``quantization_lambda`` is the strength: 0 is a plain linear layer, 1 is fully quantized. It is
    in no state dict. Whatever it is, the gradients are those of a linear layer at the (partly)
    quantized values, but for a learned scale, which stops those of weights beyond its clip (see
    ``LearnedScale``).
    """

    weight: nn.Parameter
    """Of one matrix [O, N], or of a stack of them, [E, O, N]."""
    alpha: nn.Parameter | None
    """Of a learned scale, one per scale: its codes stand for two thirds of it."""
    strength: Tensor
    """``quantization_lambda`` for compiled layers, to which another number is another program."""
    scale: Scale
    granularity: Granularity

    def _quantize_by(self, quantizer: QuantizerSettings, vectors: int) -> None:
        """To be called once there is a weight; ``vectors``: how many scales it has."""
        self.scale, self.granularity = quantizer.scale, quantizer.granularity
        self.vectors = vectors
        alpha = None
        if self.scale == "learned":
            weight_VL = self.weight.detach().reshape(vectors, -1)
            alpha = nn.Parameter(alpha_of(fitted_scale(weight_VL, self.scale)))
        self.register_parameter("alpha", alpha)
        self.register_buffer("strength", torch.ones(()), persistent=False)
        self.quantization_lambda = 1.0
        self._codes = WeightCodes()
        self._at_hand: Codes | None = None

    @property
    def quantization_lambda(self) -> float:
        """The strength, 0 to 1."""
        return self._lambda

    @quantization_lambda.setter
    def quantization_lambda(self, value: float) -> None:
        self._lambda = value
        self._is_partly_quantized = 0.0 < value < 1.0
        self.strength.fill_(value)

    @property
    def is_exact(self) -> bool:
        """Whether the layer multiplies integers: its codes are all that it reads of its input."""
        has_one_sum = self.alpha is None and self.granularity != "group"
        return has_one_sum and self.quantization_lambda == 1.0

    @torch.no_grad()
    def ternary_codes(self) -> tuple[Tensor, Tensor]:
        """Codes, int8 [O, N], and what a code of 1 stands for: a scalar, [O, 1] or [O, N].

        Of a stack, [E, O, N], both have the matrices one under the other, [E O, …].
        """
        weight_ON = self.weight.flatten(0, -2)
        return ternary_codes(weight_ON, self.scale, self.vectors, self.alpha)

    def _weight_codes(self) -> Codes:
        if self._at_hand is not None:
            return self._at_hand
        if torch.compiler.is_compiling():
            weight_ON = self.weight.detach().flatten(0, -2)
            return _ternary_codes(weight_ON, self.scale, self.vectors)
        fit = None if self.scale == "learned" or self.vectors != 1 else self.scale
        return self._codes.of(self.weight, self.ternary_codes, fit)

    def _seen_activation(self, activation_MN: Tensor) -> Tensor:
        strength = self.quantization_lambda
        if strength == 0.0:
            return activation_MN
        return _straight_through(activation_MN, quantize_activation, strength)

    def _seen_weight(self) -> Tensor:
        strength = self.quantization_lambda
        if self.alpha is not None:
            # At strength 0 too: alpha gets a gradient of 0 there, and with it an optimizer's state.
            seen_ON: Any = LearnedScale.apply(self.weight, self.alpha, strength)
            return seen_ON
        if strength == 0.0:
            return self.weight
        quantize = partial(quantize_weight, scale=self.scale, vectors=self.vectors)
        return _straight_through(self.weight, quantize, strength)


class BitLinear(TernaryLayer):
    """A linear layer that sees ternary weights and int8 activations.

    At strength 1 the product is one of integers and exact (``kernels/ternary_linear``): its bits do
    not depend on machine and threads. Scales that are learned, or of groups along the inputs, and
    strengths below 1 are products of floats.

    Parameters
    ----------
    quantizer : the weight's scale; its ``scale`` and ``granularity`` are attributes of the layer.
    head_size : outputs of an attention head; only granularity ``head`` needs it.

    Raises
    ------
    ValueError : the weight has no whole number of groups or heads.
    """

    bias: nn.Parameter | None
    reads_alone = False
    """Whether no other layer reads its input, and so could use the codes of it."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        quantizer: QuantizerSettings = ABSMEAN,
        head_size: int | None = None,
    ) -> None:
        """Weights as in ``nn.Linear``."""
        super().__init__()
        self._adopt(nn.Linear(in_features, out_features, bias), quantizer, head_size)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        quantizer: QuantizerSettings = ABSMEAN,
        head_size: int | None = None,
    ) -> BitLinear:
        """A layer that owns the very parameters of ``linear``."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._adopt(linear, quantizer, head_size)
        layer.training = linear.training
        return layer

    def _adopt(
        self, linear: nn.Linear, quantizer: QuantizerSettings, head_size: int | None
    ) -> None:
        self.out_features, self.in_features = linear.weight.shape
        vectors = count_vectors(self.out_features, self.in_features, quantizer, head_size)
        self.weight = cast(nn.Parameter, linear.weight)
        self.register_parameter("bias", cast("nn.Parameter | None", linear.bias))
        self._quantize_by(quantizer, vectors)

    def forward(self, activation_MN: Tensor, codes: Codes | None = None) -> Tensor:
        """float [..., N] to float [..., O].

        Parameters
        ----------
        codes : of the activation, from whoever has them already, for a layer that ``is_exact``.
            Of the activation nothing is read then; its gradient goes there.
        """
        if torch.compiler.is_compiling() and self._is_partly_quantized:
            return self._forward_at(self.strength, activation_MN)
        if self.is_exact:
            return self._integer_product(activation_MN, codes)
        assert codes is None, "the layer reads values, and has codes only"
        return F.linear(self._seen_activation(activation_MN), self._seen_weight(), self.bias)

    def _integer_product(self, activation_MN: Tensor, made: Codes | None) -> Tensor:
        dtype, weight_codes = product_dtype(activation_MN), self._weight_codes()
        inside = made is None and self.reads_alone and quantizes_inside(activation_MN)
        codes = (activation_MN, None) if inside else made or activation_codes(activation_MN)
        if reads_packed(codes, weight_codes):
            packed_QN = self._codes.packed(weight_codes[0])
            codes_MN = codes[0].flatten(0, -2)
            scale_M1 = None if codes[1] is None else codes[1].flatten(0, -2)
            output_MO = packed_matmul(codes_MN, scale_M1, packed_QN, weight_codes[1], dtype)
            output_MO = output_MO.reshape(*activation_MN.shape[:-1], -1)
        else:
            output_MO = ternary_linear(activation_MN, self.weight, codes, weight_codes, dtype=dtype)
        return output_MO if self.bias is None else output_MO + self.bias.to(dtype)

    def _forward_at(self, strength: Tensor, activation_MN: Tensor) -> Tensor:
        """``forward`` between strengths 0 and 1, of which a compiled layer serves all."""
        seen_MN = _partly(activation_MN, quantize_activation(activation_MN), strength)
        if self.alpha is not None:
            quantized_ON: Any = LearnedScale.apply(self.weight, self.alpha, 1.0)
            seen_ON = torch.lerp(self.weight, quantized_ON, strength.to(self.weight.dtype))
        else:
            quantized_ON = _quantize_weight(self.weight.detach(), self.scale, self.vectors)
            seen_ON = _partly(self.weight, quantized_ON, strength)
        return F.linear(seen_MN, seen_ON, self.bias)

    def extra_repr(self) -> str:
        """Sizes, as ``nn.Linear`` shows them, the quantizer and the strength."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features},"
            f" bias={self.bias is not None}, scale={self.scale}, granularity={self.granularity},"
            f" quantization_lambda={self.quantization_lambda}"
        )


def product_dtype(activation_MN: Tensor) -> torch.dtype:
    """What a product with the activation returns: its own type, or that of autocast."""
    kind, dtype = activation_MN.device.type, activation_MN.dtype
    autocast = torch.is_autocast_enabled(kind) and dtype != torch.float64
    return torch.get_autocast_dtype(kind) if autocast else dtype


@torch.library.custom_op("wrinklefree::ternary_codes", mutates_args=())
def _ternary_codes(weight_ON: Tensor, scale: str, vectors: int) -> tuple[Tensor, Tensor]:
    # One node of a compiled graph, so that no compiler rounds in its own way.
    return ternary_codes(weight_ON, cast(Scale, scale), vectors)


@_ternary_codes.register_fake
def _(weight_ON: Tensor, scale: str, vectors: int) -> tuple[Tensor, Tensor]:
    shape = () if vectors == 1 else (len(weight_ON), 1)
    scale_dtype = torch.promote_types(weight_ON.dtype, torch.float32)
    return (
        torch.empty_like(weight_ON, dtype=torch.int8),
        weight_ON.new_empty(shape, dtype=scale_dtype),
    )


@torch.library.custom_op("wrinklefree::quantize_weight", mutates_args=())
def _quantize_weight(weight_ON: Tensor, scale: str, vectors: int) -> Tensor:
    return quantize_weight(weight_ON, cast(Scale, scale), vectors)


@_quantize_weight.register_fake
def _(weight_ON: Tensor, scale: str, vectors: int) -> Tensor:
    return torch.empty_like(weight_ON)


def set_quantization_lambda(model: nn.Module, value: float) -> None:
    """Give every ``TernaryLayer`` in ``model`` the strength ``value``, in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"quantization lambda {value}: expected 0 to 1")
    for layer in ternary_layers_by_name(model).values():
        layer.quantization_lambda = float(value)


@contextmanager
def quantization_lambda_of(model: nn.Module, value: float) -> Iterator[None]:
    """Inside the block every ``TernaryLayer`` has strength ``value``; after it, its own again."""
    before = {layer: layer.quantization_lambda for layer in ternary_layers_by_name(model).values()}
    set_quantization_lambda(model, value)
    try:
        yield
    finally:
        for layer, strength in before.items():
            layer.quantization_lambda = strength


@contextmanager
def codes_at_hand(layers: Iterable[TernaryLayer]) -> Iterator[None]:
    """Inside the block programs of ``torch.compile`` read the codes that the layers hold of their
    weights, where they would make them in every call; a layer that is not exact has none to read.
    """
    layers = [layer for layer in layers if layer.is_exact]
    try:
        for layer in layers:
            layer._at_hand = layer._weight_codes()
        yield
    finally:
        for layer in layers:
            layer._at_hand = None


def forget_codes(model: nn.Module) -> None:
    """Free what every ``TernaryLayer`` in ``model`` holds of its weight, as after a move of it."""
    for layer in ternary_layers_by_name(model).values():
        layer._codes.forget()


def resting_scales(model: nn.Module) -> set[str]:
    """Names of the learned scales on which nothing depends: those of layers at strength 0."""
    return {
        f"{name}.alpha"
        for name, layer in model.named_modules()
        if isinstance(layer, TernaryLayer) and layer.alpha is not None
        if layer.quantization_lambda == 0.0
    }


def _partly(value: Tensor, quantized: Tensor, strength: Tensor) -> Tensor:
    """What ``_StraightThrough`` is, in the operations that a compiler knows."""
    return value + ((quantized - value) * strength).detach().to(value.dtype)


def ternary_layers_by_name(model: nn.Module) -> dict[str, TernaryLayer]:
    """In the order of the model."""
    return {n: module for n, module in model.named_modules() if isinstance(module, TernaryLayer)}


def _straight_through(
    value: Tensor, quantize: Callable[[Tensor], Tensor], strength: float
) -> Tensor:
    quantized: Any = _StraightThrough.apply(value, quantize, strength)
    return quantized
