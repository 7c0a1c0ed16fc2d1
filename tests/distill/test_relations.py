from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from wrinklefree.distill import relations
from wrinklefree.distill.relations import (
    relation_vectors,
    relations_divergence,
    streamed_divergence,
)
from wrinklefree.errors import UserError
from wrinklefree.kernels.relation_loss import reference
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.forward import next_token_logits
from wrinklefree.models.layers import layer_at
from wrinklefree.models.projections import Projections, captured_projections


def projections(heads, key_heads, size, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, heads, 6, size), (2, key_heads, 6, size), (2, key_heads, 6, size))
    return Projections(
        *(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    )


def slow_relations(x, row, head, heads, query, temperature, allowed):
    """One row of one relation head's softmax, as a dictionary over the allowed tokens."""
    flat = [torch.cat(list(x[row, :, token])) for token in range(x.shape[2])]
    width = len(flat[0]) // heads
    parts = [vector[head * width : (head + 1) * width] for vector in flat]
    unit = [part / part.norm() for part in parts]
    scores = {key: math.exp(float(unit[query] @ unit[key]) / temperature) for key in allowed}
    return {key: score / sum(scores.values()) for key, score in scores.items()}


def slow_divergence(teacher, student, pieces, causal, heads, temperature):
    result = torch.zeros(2, 6, dtype=torch.float64)
    for name in ("query_BHTD", "key_BKTD", "value_BKTD"):
        for row in range(2):
            for query in range(6):
                allowed = [
                    key
                    for key in range(6)
                    if key == query
                    or (pieces[row][key] == pieces[row][query] >= 0 and (not causal or key < query))
                ]
                for head in range(heads):
                    arguments = (row, head, heads, query, temperature, allowed)
                    p = slow_relations(getattr(teacher, name), *arguments)
                    q = slow_relations(getattr(student, name), *arguments)
                    divergence = sum(p[key] * math.log(p[key] / q[key]) for key in allowed)
                    result[row, query] += divergence / heads
    return result


def divergence(teacher, student, pieces, *, heads=4, temperature=1.0, **rest):
    vectors = (relation_vectors(one, heads) for one in (teacher, student))
    return relations_divergence(*vectors, torch.tensor(pieces), temperature=temperature, **rest)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "temperature"), [(4, 1.0), (2, 0.3)])
def test_divergence_follows_its_definition_though_head_counts_differ(causal, heads, temperature):
    teacher, student = projections(4, 2, 8, seed=1), projections(6, 3, 4, seed=2)
    pieces = [[0, 0, 0, 1, 1, -1], [0, 0, 0, 0, 0, 0]]
    options = {"heads": heads, "temperature": temperature, "causal": causal}
    ours = divergence(teacher, student, pieces, **options)
    expected = slow_divergence(teacher, student, pieces, causal, heads, temperature)
    torch.testing.assert_close(ours, expected)
    some = divergence(teacher, student, pieces, queries=slice(2, 5), **options)
    torch.testing.assert_close(some, expected[:, 2:5])


def test_other_documents_padding_and_with_causal_the_future_are_not_compared():
    pieces = [[0, 0, 0, 1, 1, -1], [0, 0, 0, 0, -1, -1]]
    teacher, student = projections(4, 2, 8, seed=1), projections(4, 2, 8, seed=2)
    for causal in (False, True):
        before = divergence(teacher, student, pieces, causal=causal)
        changed = projections(4, 2, 8, seed=2)
        changed.query_BHTD[:, :, 2] += 1.0
        after = divergence(teacher, changed, pieces, causal=causal)
        moved = (before - after).abs() > 1e-12
        past = not causal
        assert moved[0].tolist() == [past, past, True, False, False, False]
        assert moved[1].tolist() == [past, past, True, True, False, False]
        assert before[torch.tensor(pieces) < 0].abs().max() < 1e-12


def test_what_is_asked_of_the_kernel_for_cuda_is_the_same_divergence(monkeypatch):
    monkeypatch.setattr(relations, "relation_divergence", reference.relation_divergence)
    teacher, student = projections(4, 2, 12, seed=4), projections(2, 2, 24, seed=5)
    pieces = torch.tensor([[0, 0, 0, 1, 1, -1], [0, 0, 0, 0, -1, -1]])
    how = {"causal": True, "temperature": 0.5}
    both = [relation_vectors(found, 4) for found in (teacher, student)]
    streamed = streamed_divergence(*both, pieces, **how)
    torch.testing.assert_close(streamed, relations_divergence(*both, pieces, **how))


def test_relations_are_computed_in_float32_under_autocast_too():
    teacher, student = (
        Projections(*(getattr(one, f.name).bfloat16() for f in fields(one)))
        for one in (projections(4, 2, 8, seed=1), projections(6, 3, 4, seed=2))
    )
    assert {v.dtype for v in relation_vectors(student, 4)} == {torch.float32}
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(divergence(teacher, student, [[0] * 6] * 2, causal=True))
    assert found[0].dtype == torch.float32 and torch.equal(*found)


def test_heads_must_divide_every_projection():
    teacher = projections(4, 2, 8, seed=1)
    with pytest.raises(UserError, match=r"relations.heads is 5.*4 heads of size 8.*divisor of 32"):
        relation_vectors(teacher, 5)


@pytest.mark.parametrize(
    ("layers", "fraction", "layer"), [(28, 0.8, 22), (28, 0.86, 24), (28, 1.0, 27), (2, 0.0, 0)]
)
def test_the_layer_is_a_fraction_of_the_depth(tiny_model, layers, fraction, layer):
    model = tiny_model()
    model.config.num_hidden_layers = layers
    assert layer_at(model, fraction) == layer


def forward(model, batch):
    mask = causal_document_mask(batch.document_ids_BT)
    return next_token_logits(model, batch.tokens_BT, batch.positions_BT, mask)


@pytest.mark.parametrize("layer", [0, 1])
def test_captured_projections_are_those_of_the_layer(tiny_model, pack, layer):
    model, other, batch = tiny_model(), tiny_model(1), pack([[7, 4]], 12)
    attention = model.model.layers[layer].self_attn
    inputs = {}
    hook = attention.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.update(kwargs), with_kwargs=True
    )
    plain = forward(model, batch)
    hook.remove()
    with captured_projections(model, [layer]) as capture:
        watched = forward(model, batch)
        forward(other, batch)
    assert torch.equal(plain, watched)
    query, key, value = (
        projection(inputs["hidden_states"]).unflatten(-1, (-1, 16)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *inputs["position_embeddings"])
    assert torch.equal(capture[layer].query_BHTD, query)
    assert torch.equal(capture[layer].key_BKTD, key)
    assert torch.equal(capture[layer].value_BKTD, value)
    capture[layer].key_BKTD.sum().backward()
    assert attention.k_proj.weight.grad is not None


def test_queries_and_keys_are_taken_after_their_norms(pack):
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        attn_implementation="sdpa",
    )
    model = Qwen3ForCausalLM(config).eval()
    attention = model.model.layers[0].self_attn
    nn.init.constant_(attention.q_norm.weight, 3.0)
    with captured_projections(model, [0]) as capture:
        forward(model, pack([[9]], 9))
    # A rotation keeps the norm, which qk-norm has set: 3 sqrt(16) and sqrt(16).
    query, key = capture[0].query_BHTD, capture[0].key_BKTD
    for projection, norm in ((query, 12.0), (key, 4.0)):
        expected = torch.full(projection.shape[:-1], norm)
        torch.testing.assert_close(projection.norm(dim=-1), expected, rtol=1e-3, atol=0)


def test_the_attention_function_is_restored_also_after_an_error(tiny_model):
    model, table = tiny_model(), dict(ALL_ATTENTION_FUNCTIONS)
    chosen, other = (layer.self_attn for layer in model.model.layers)
    with pytest.raises(RuntimeError), captured_projections(model, [0]):
        with captured_projections(model, [0]):
            pass
        assert chosen.config._attn_implementation != "sdpa"
        assert other.config._attn_implementation == "sdpa"
        raise RuntimeError
    assert chosen.config is other.config is model.config
    assert dict(ALL_ATTENTION_FUNCTIONS) == table


def test_eager_attention_is_refused(tiny_model):
    model = tiny_model()
    model.set_attn_implementation("eager")
    with (
        pytest.raises(UserError, match="attention implementation eager"),
        captured_projections(model, [0]),
    ):
        pass
