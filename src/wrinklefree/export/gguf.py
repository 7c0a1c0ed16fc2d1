"""The student as a GGUF file, which llama.cpp runs.

Architecture ``bitnet`` of llama.cpp has the norms of SubLN and a head that is the embedding; it has
no biases, no norms of queries and keys and no heads of a size of their own. A model without SubLN
is of the architecture that its dense base is of: ``llama``, ``qwen2`` or ``qwen3``. Weights are
written from the codes: see ``blocks``.

Shapes: O rows (outputs), N inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, SpecialVocab, TokenType
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.export.blocks import (
    ROW_MULTIPLES,
    BlockType,
    block_type,
    pack_blocks,
    pack_i2_s,
    rounded,
)
from wrinklefree.export.student import Student
from wrinklefree.models.exportable import (
    I2_S_BLOCK,
    LLAMA3_ROPE,
    SMALLEST_BLOCK,
    llama_cpp_obstacles,
    pretokenizer_of,
)
from wrinklefree.models.folder import stored_tensors
from wrinklefree.models.layers import head_size
from wrinklefree.models.surgery import has_subln
from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.tokens.tokenizer import (
    TOKENIZER_FILE,
    begin_of_text,
    end_of_text_of,
    load_tokenizer,
)

NAMES = {
    "lm_head": "output",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj.norm": "attn_sub_norm",
    "self_attn.o_proj.linear": "attn_output",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "mlp.down_proj.norm": "ffn_sub_norm",
    "mlp.down_proj.linear": "ffn_down",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
}
"""What llama.cpp calls the parts of a tensor's name."""
_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
_I2_S_FILE_TYPE = 40
"""bitnet.cpp's number of such files."""
_SMALLEST_SCALE, _LARGEST_SCALE = 2.0**-14, 65504.0
"""Of float16 with all of its bits."""


def write_gguf(
    path: Path, student: Student, kind: BlockType, embedding: BlockType
) -> dict[str, int]:
    """Write ``student`` to ``path``.

    Parameters
    ----------
    kind : of the ternary matrices: blocks of codes (rows that are no whole number of them are
        Q4_0), I2_S, or F32, F16, Q8_0.
    embedding : type of the embedding and of the head, which may be the same: F32, F16 or Q8_0.

    Returns
    -------
    How many matrices have each type, by its name.

    Raises
    ------
    UserError : llama.cpp has no graph for the model.
    """
    model = student.model
    block = I2_S_BLOCK if kind == BlockType.I2_S else SMALLEST_BLOCK
    if reasons := llama_cpp_obstacles(model, student.folder, subln=has_subln(model), block=block):
        raise UserError(f"llama.cpp cannot run this model: {'; '.join(reasons)}")
    writer = GGUFWriter(path, graph_of(model))
    if kind == BlockType.I2_S:
        writer.add_file_type(_I2_S_FILE_TYPE)
    _write_shape(writer, model.config)
    _write_tokenizer(writer, student.folder, model.config.vocab_size)
    counts: dict[str, int] = {}
    for name, values, scale in tensors_of(model):
        if scale is not None:
            if not _SMALLEST_SCALE <= scale <= _LARGEST_SCALE:
                raise UserError(
                    f"{name} has a scale of {scale:.3g}, which float16 does not hold, and a GGUF"
                    " block has no other; export.gguf: [] and export.i2_s: false go without such"
                    " files"
                )
            if kind == BlockType.I2_S:
                own, data = kind, pack_i2_s(values, scale)
            elif kind in ROW_MULTIPLES:
                own = block_type(values.shape[1], kind)
                data = pack_blocks(values, scale, own)
            else:
                own, data = kind, rounded(values * np.float32(scale), kind)
            counts[own.name] = counts.get(own.name, 0) + 1
        else:
            own = embedding if name in _VOCABULARY else BlockType.F32
            data = rounded(values, own)
        # As int8: of bytes the package would look up how long blocks are, which it must know then.
        raw: Any = own
        writer.add_tensor(gguf_name(name), data.view(np.int8), values.shape, raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return counts


def graph_of(model: PreTrainedModel) -> str:
    """llama.cpp's name of the architecture of a ternary ``model``."""
    return "bitnet" if has_subln(model) else model.config.model_type


def tensors_of(model: PreTrainedModel) -> Iterator[tuple[str, np.ndarray, float | None]]:
    """Name, values and None, or codes (int8) and what a code of 1 stands for, of all that a file
    holds of ``model``, with rows in the order of llama.cpp's graph."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BitLinear)}
    in_pairs = graph_of(model) == "llama"
    for name, tensor in stored_tensors(model).items():
        parent, _, part = name.rpartition(".")
        if parent in layers and part == "weight":
            codes_ON, scale = layers[parent].ternary_codes()
            rows_ON = codes_ON.cpu().numpy()
            if in_pairs and parent.endswith(("q_proj", "k_proj")):
                rows_ON = _in_pairs(rows_ON, head_size(model.config))
            yield name, rows_ON, float(scale)
        elif part != "alpha":  # a learned scale is in the blocks
            yield name, tensor.detach().float().cpu().numpy(), None
    if model.config.rope_parameters.get("rope_type") == LLAMA3_ROPE:
        rotary: Any = model.get_decoder().get_submodule("rotary_emb")
        plain_H = rotary.compute_default_rope_parameters(model.config)[0]
        yield "rope_freqs.weight", (plain_H / rotary.inv_freq.cpu()).numpy(), None


def _in_pairs(rows_ON: np.ndarray, size: int) -> np.ndarray:
    """Rows of heads of a ``size`` so that those which rotary embeddings turn together, half a head
    apart in transformers, are neighbours, as they are in llama.cpp's graph of Llama only."""
    halves = rows_ON.reshape(-1, 2, size // 2, rows_ON.shape[1])
    return halves.swapaxes(1, 2).reshape(rows_ON.shape)


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
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_rope_dimension_count(head_size(config))
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
    tokenizer = load_tokenizer(folder)
    begin, end = begin_of_text(tokenizer), end_of_text_of(tokenizer, folder)
    named = SpecialVocab(folder, special_token_types=("bos",), n_vocab=vocabulary_size)
    writer.add_eos_token_id(end)
    writer.add_bos_token_id((begin or [named.special_token_ids.get("bos", end)])[0])
    writer.add_add_bos_token(bool(begin))  # as every row of training does
    if named.chat_template:
        writer.add_chat_template(named.chat_template)
