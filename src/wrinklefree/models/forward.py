"""The forward pass that training and evaluation share, and what its ids must be.

Shapes: B rows, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.errors import UserError


def next_token_logits(
    model: PreTrainedModel, tokens_BT: Tensor, positions_BT: Tensor, mask_B1TT: Tensor
) -> Tensor:
    """Logits, float [B, T, V], of the token after each position.

    Parameters
    ----------
    tokens_BT, positions_BT : int64. Positions may restart or repeat.
    mask_B1TT : bool, True where the query may attend to the key. It is used as given: nothing
        causal is added, so that block-diffusion inputs of two halves pass as well.
    """
    assert mask_B1TT.ndim == 4, "a mask of fewer dimensions would be combined with a causal one"
    return model(
        input_ids=tokens_BT,
        position_ids=positions_BT,
        attention_mask=mask_B1TT,
        use_cache=False,
    ).logits


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


def require_positions(model: PreTrainedModel, sequence_length: int) -> None:
    """Raise a UserError where rows are longer than the model's positions reach."""
    longest = model.config.max_position_embeddings
    if sequence_length > longest:
        raise UserError(
            f"the mixture's rows have {sequence_length} tokens, but the model's"
            f" max_position_embeddings is {longest}: beyond it positions mean nothing to the model."
            " Lower mixture.sequence_length, or run the stage that makes the model again if it was"
            " made for shorter rows"
        )
