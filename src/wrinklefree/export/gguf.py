"""The student as a GGUF file, which llama.cpp runs.

Architecture ``bitnet`` of llama.cpp has the norms of SubLN and a head that is the embedding; it has
no biases, no norms of queries and keys and no heads of a size of their own. Weights are written
from the codes: see ``blocks``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, TokenType
from gguf.constants import GGMLQuantizationType as BlockType
from gguf.quants import quantize
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.export.blocks import ROW_MULTIPLES, block_type, pack_blocks
from wrinklefree.models.exportable import llama_cpp_obstacles, pretokenizer_of
from wrinklefree.models.folder import stored_tensors
from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.tokens.tokenizer import TOKENIZER_FILE, end_of_text_id

ARCHITECTURE = "bitnet"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj.norm": "attn_sub_norm",
    "self_attn.o_proj.linear": "attn_output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "mlp.down_proj.norm": "ffn_sub_norm",
    "mlp.down_proj.linear": "ffn_down",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
}
"""What llama.cpp calls the parts of a tensor's name."""
_SMALLEST_SCALE, _LARGEST_SCALE = 2.0**-14, 65504.0
"""Of float16 with all of its bits."""


def write_gguf(
    path: Path, model: PreTrainedModel, tokenizer: Path, kind: BlockType, embedding: BlockType
) -> dict[str, int]:
    """Write the ternary ``model`` to ``path``.

    Parameters
    ----------
    kind : of the ternary matrices: blocks of codes (rows that are no whole number of them are
        Q4_0), or F32, F16, Q8_0.
    embedding : type of the embedding, which is the head: F32, F16 or Q8_0.

    Returns
    -------
    How many matrices have each type, by its name.

    Raises
    ------
    UserError : llama.cpp has no graph for the model.
    """
    if reasons := llama_cpp_obstacles(model, tokenizer):
        raise UserError(f"llama.cpp cannot run this model: {'; '.join(reasons)}")
    writer = GGUFWriter(path, ARCHITECTURE)
    _write_shape(writer, model.config)
    _write_tokenizer(writer, tokenizer, model.config.vocab_size)
    counts: dict[str, int] = {}
    for name, tensor, layer in tensors_of(model):
        if layer:
            codes_ON, scale = layer.ternary_codes()
            codes, value = codes_ON.cpu().numpy(), float(scale)
            if not _SMALLEST_SCALE <= value <= _LARGEST_SCALE:
                raise UserError(
                    f"{name} has a scale of {value:.3g}, which float16 does not hold, and a GGUF"
                    " block has no other; export.gguf: [] goes without such files"
                )
            if kind in ROW_MULTIPLES:
                own = block_type(codes.shape[1], kind)
                data = pack_blocks(codes, value, own)
            else:
                own, data = kind, _rounded(codes * np.float32(value), kind)
            counts[own.name] = counts.get(own.name, 0) + 1
        else:
            own = embedding if name.startswith("model.embed_tokens") else BlockType.F32
            data = _rounded(tensor.detach().float().cpu().numpy(), own)
        raw = None if own == BlockType.F32 else own
        writer.add_tensor(gguf_name(name), data, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return counts


def _rounded(values: np.ndarray, kind: BlockType) -> np.ndarray:
    return values if kind == BlockType.F32 else quantize(values, kind)


def tensors_of(model: PreTrainedModel) -> Iterator[tuple[str, Tensor, BitLinear | None]]:
    """Name, tensor and, of a ternary weight, its layer, of all that a file holds of ``model``."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BitLinear)}
    for name, tensor in stored_tensors(model).items():
        parent, _, part = name.rpartition(".")
        if parent not in layers or part == "weight":  # a learned scale is in the blocks
            yield name, tensor, layers.get(parent)


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor of ours."""
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def _write_shape(writer: GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: GGUFWriter, folder: Path, vocabulary_size: int) -> None:
    content = json.loads((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
    added = {one["id"]: one["content"] for one in content["added_tokens"]}
    special = {one["id"] for one in content["added_tokens"] if one["special"]}
    tokens = {number: token for token, number in content["model"]["vocab"].items()} | added
    writer.add_tokenizer_model("gpt2")
    pretokenizer = pretokenizer_of(folder)
    assert pretokenizer, "llama_cpp_obstacles asks for it"
    writer.add_tokenizer_pre(pretokenizer)
    writer.add_token_list(
        [tokens.get(number, f"[PAD{number}]") for number in range(vocabulary_size)]
    )
    writer.add_token_types(
        [
            TokenType.CONTROL if number in special
            else TokenType.USER_DEFINED if number in added
            else TokenType.NORMAL if number in tokens
            else TokenType.UNUSED
            for number in range(vocabulary_size)
        ]
    )  # fmt: skip
    writer.add_token_merges(
        [one if isinstance(one, str) else " ".join(one) for one in content["model"]["merges"]]
    )
    end = end_of_text_id(folder)
    writer.add_eos_token_id(end)
    writer.add_bos_token_id(end)
    writer.add_add_bos_token(False)
    if (template := folder / "chat_template.jinja").is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))
