"""The forward pass that training and evaluation share, and what its ids must be.

Shapes: B rows, T tokens of a row, N selected tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.kernels.sum_by_blocks import block_size
from wrinklefree.kernels.vocabulary_loss import has_kernel
from wrinklefree.kernels.vocabulary_loss.reference import widened
from wrinklefree.models.attention import AttentionRule

_DROPOUTS = ("dropout", "pdrop")
"""Ends of the keys of a configuration that say how often activations are left out."""
LEAST_TOKENS = 256
"""Fewest tokens of a block of logits: each block reads the whole head, however short it is."""


def tokens_at_once(vocabulary_size: int) -> int:
    """How many tokens a block of logits has."""
    return block_size(vocabulary_size, least=LEAST_TOKENS)


def next_token_logits(
    model: PreTrainedModel, tokens_BT: Tensor, positions_BT: Tensor, mask: AttentionRule
) -> Tensor:
    """Logits, float [B, T, V], of the token after each position.

    Parameters
    ----------
    tokens_BT, positions_BT : int64. Positions may restart or repeat.
    mask : who may attend to whom, of B rows of T tokens. It is used as given: nothing causal is
        added, so that block-diffusion inputs of two halves pass as well.
    """
    return model(
        input_ids=tokens_BT,
        position_ids=positions_BT,
        attention_mask=mask.of(model),
        use_cache=False,
    ).logits


def hidden_states(
    model: PreTrainedModel, tokens_BT: Tensor, positions_BT: Tensor, mask: AttentionRule
) -> Tensor:
    """The decoder's output after its last norm, [B, T, D]; arguments as ``next_token_logits``."""
    return model.get_decoder()(
        input_ids=tokens_BT,
        position_ids=positions_BT,
        attention_mask=mask.of(model),
        use_cache=False,
    ).last_hidden_state


def logits_of(
    model: PreTrainedModel, hidden_ND: Tensor, mask_token_id: int | None = None
) -> Tensor:
    """Logits of selected rows, at least float32, [N, V]; -inf at the mask token, if one is given.

    The head is a product with the whole vocabulary: over rows without a target it is wasted. All
    rows of a batch at once are the largest tensor there is: whoever can, takes some at a time.
    """
    return widened(loss_logits_of(model, hidden_ND, mask_token_id))


def loss_logits_of(
    model: PreTrainedModel, hidden_ND: Tensor, mask_token_id: int | None = None
) -> Tensor:
    """As ``logits_of``, of the head's own type where ``kernels.vocabulary_loss`` has a kernel.

    For losses that widen what they read, so that no copy is made of the largest tensor there is.
    """
    head = model.get_output_embeddings()
    assert head is not None, "a causal language model has a head"
    logits_NV = head(hidden_ND)
    if not has_kernel(logits_NV):
        logits_NV = widened(logits_NV)
    return logits_NV if mask_token_id is None else _excluded(logits_NV, mask_token_id)


def without_mask_token(logits_NV: Tensor, mask_token_id: int) -> Tensor:
    """Logits, the vocabulary last, with the mask token's at -inf and in at least float32.

    The mask token stands for a question and is never an answer. An id beyond the vocabulary (a
    teacher that lacks the token) leaves the logits as they are.
    """
    return _excluded(widened(logits_NV), mask_token_id)


def _excluded(logits_NV: Tensor, token: int) -> Tensor:
    ids_V = torch.arange(logits_NV.shape[-1], device=logits_NV.device)
    return logits_NV.masked_fill(ids_V == token, float("-inf"))


def require_embeddings(
    model: PreTrainedModel, vocabulary_size: int, whose: str = "mixture"
) -> None:
    """Raise a UserError unless every token id below ``vocabulary_size`` has an embedding.

    The embedding may be larger: many models pad it to a round number.
    """
    embeddings = model.config.vocab_size
    if vocabulary_size > embeddings:
        raise UserError(
            f"the {whose} has token ids up to {vocabulary_size - 1}, but the model's embedding ends"
            f" at {embeddings - 1}: they come from different tokenizers. Run the stages of both"
            " again with one tokenizer (tokenizer.kind: base for a pretrained model)"
        )


def dropouts(configuration: Mapping[str, Any]) -> list[str]:
    """The keys of a model's configuration by which activations are left out at random."""
    return [key for key, value in configuration.items() if key.endswith(_DROPOUTS) and value]


def require_no_dropout(model: PreTrainedModel) -> None:
    """Raise a UserError where a step of the model would not be a function of what it reads."""
    if keys := dropouts(model.config.to_dict()):
        raise UserError(
            f"{keys[0]} of the {model.config.model_type} model is {getattr(model.config, keys[0])}:"
            " training here leaves out no activations. Load the model with"
            f" {', '.join(f'{key}=0.0' for key in keys)}"
        )


@torch.no_grad()
def require_plain_logits(model: PreTrainedModel, where: str) -> None:
    """Raise a UserError where the model's logits are not what its head makes of its hidden states,
    as ``logits_of`` takes them: some architectures scale or cap them behind the head."""
    tokens_1T = torch.arange(min(8, model.config.vocab_size), device=model.device)[None]
    theirs_1TV = model(input_ids=tokens_1T, use_cache=False).logits
    decoded = model.get_decoder()(input_ids=tokens_1T, use_cache=False)
    ours_1TV = logits_of(model, decoded.last_hidden_state)
    if not torch.allclose(ours_1TV, theirs_1TV.to(ours_1TV.dtype), rtol=1e-3, atol=1e-4):
        raise UserError(
            f"{where}: a {model.config.model_type} model that changes its logits behind the head"
            " (as logits_scaling, logit_scale or final_logit_softcapping do), which training and"
            " evaluation here leave out; take a model without"
        )


def require_positions(model: PreTrainedModel, sequence_length: int, whose: str = "model") -> None:
    """Raise a UserError where rows are longer than the model's positions, or its windows, reach."""
    longest = model.config.max_position_embeddings
    window = getattr(model.config, "sliding_window", None)
    kinds = getattr(model.config, "layer_types", None) or ["sliding_attention"]
    if window and window < sequence_length and "sliding_attention" in kinds:
        raise UserError(
            f"the mixture's rows have {sequence_length} tokens, but layers of the {whose} attend to"
            f" the last {window} only (sliding_window), which training here does not: it lets a"
            " token see its whole document. Lower mixture.sequence_length, or take a model whose"
            " layers attend to all"
        )
    if sequence_length > longest:
        raise UserError(
            f"the mixture's rows have {sequence_length} tokens, but the {whose}'s"
            f" max_position_embeddings is {longest}: beyond it positions mean nothing to the model."
            " Lower mixture.sequence_length, or run the stage that makes the model again if it was"
            " made for shorter rows"
        )


def require_float32(model: PreTrainedModel) -> None:
    """Raise a UserError where a parameter has another type."""
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise UserError(
                f"parameter {name} is {parameter.dtype}, and training needs float32: smaller types"
                " lose most updates of a normal size. Use precision: bfloat16 for speed instead"
            )
