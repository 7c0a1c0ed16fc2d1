"""What our model computes, and how far from it something else is.

Shapes: B rows, T tokens of a row, V vocabulary, O outputs, N inputs of a linear layer.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.quant.bitlinear import BitLinear, set_quantization_lambda

ROUNDING_NOISE = 1e-7


class Reference:
    """Logits of our model, float32 [B][T, V], with and without quantized activations, and how far
    rounding noise moves them.

    ``plain_model`` is the one without, ``model`` the one with."""

    def __init__(self, model: PreTrainedModel, tokens_BT: Tensor) -> None:
        self.rows: list[list[int]] = tokens_BT.tolist()
        self.model = model
        self.quantized = logits_of_rows(model, tokens_BT)
        self.plain_model = plain = with_codes_as_weights(model)
        self.plain = logits_of_rows(plain, tokens_BT)
        self.noise = relative(noisy_logits_of_rows(plain, tokens_BT), self.plain)
        self.quantization = relative(self.plain, self.quantized)
        self.quantization_divergence = mean_divergence(self.quantized, self.plain)


def with_codes_as_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with ternary weights and activations that are not quantized."""
    plain = copy.deepcopy(model)
    with torch.no_grad():
        for module in plain.modules():
            if isinstance(module, BitLinear):
                codes_ON, scale = module.ternary_codes()
                module.weight.copy_(codes_ON.to(module.weight) * scale)
    set_quantization_lambda(plain, 0.0)
    return plain


@torch.no_grad()
def logits_of_rows(model: PreTrainedModel, rows_BT: Tensor) -> list[np.ndarray]:
    """float32 [T, V] of every row, one after the other."""
    logits = (model(input_ids=row_T[None], use_cache=False).logits[0] for row_T in rows_BT)
    return [logits_TV.float().numpy() for logits_TV in logits]


def noisy_logits_of_rows(model: PreTrainedModel, rows_BT: Tensor) -> list[np.ndarray]:
    """As :func:`logits_of_rows`, with rounding noise on the embeddings."""
    generator = torch.Generator().manual_seed(0)

    def disturb(module: nn.Module, arguments: tuple[Any, ...], output_BTD: Tensor) -> Tensor:
        noise_BTD = torch.randn(output_BTD.shape, generator=generator).to(output_BTD)
        return output_BTD * (1.0 + ROUNDING_NOISE * noise_BTD)

    handle = model.get_input_embeddings().register_forward_hook(disturb)
    try:
        return logits_of_rows(model, rows_BT)
    finally:
        handle.remove()


def relative(values: list[np.ndarray], truth: list[np.ndarray]) -> float:
    """RMS of the difference over the RMS of ``truth``, of all rows together."""
    difference = size = 0.0
    for value_TV, true_TV in zip(values, truth, strict=True):
        difference += np.square(value_TV.astype(np.float64) - true_TV).sum()
        size += np.square(true_TV.astype(np.float64)).sum()
    return float(np.sqrt(difference / size))


def largest_difference(values: list[np.ndarray], truth: list[np.ndarray]) -> float:
    """The largest of any logit of any row."""
    pairs = zip(values, truth, strict=True)
    return max(float(np.abs(value_TV - true_TV).max()) for value_TV, true_TV in pairs)


def mean_divergence(truth: list[np.ndarray], values: list[np.ndarray]) -> float:
    """Mean over tokens of KL(truth || values), in nats."""
    divergences = []
    for true_TV, value_TV in zip(truth, values, strict=True):
        log_p_TV, log_q_TV = _log_softmax(true_TV), _log_softmax(value_TV)
        divergences.append((np.exp(log_p_TV) * (log_p_TV - log_q_TV)).sum(-1))
    return float(np.mean(divergences))


def distances(truth: list[np.ndarray], logits: list[np.ndarray]) -> dict[str, float]:
    """``relative_difference`` of logits, ``kl`` from the truth to them (mean, nats per token) and
    ``same_choices``: share of positions with the same likeliest token."""
    pairs = zip(logits, truth, strict=True)
    same = [a_TV.argmax(-1) == b_TV.argmax(-1) for a_TV, b_TV in pairs]
    return {
        "relative_difference": relative(logits, truth),
        "kl": mean_divergence(truth, logits),
        "same_choices": float(np.mean(same)),
    }


def _log_softmax(logits_TV: np.ndarray) -> np.ndarray:
    shifted_TV = logits_TV.astype(np.float64) - logits_TV.max(-1, keepdims=True)
    return shifted_TV - np.log(np.exp(shifted_TV).sum(-1, keepdims=True))
