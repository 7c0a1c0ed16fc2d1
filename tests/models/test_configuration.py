from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig

from wrinklefree.errors import UserError
from wrinklefree.models import configuration
from wrinklefree.models.configuration import checked_config

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
NAN = float("nan")


def test_a_configuration_is_that_of_its_architecture() -> None:
    config = checked_config(CONFIG, "config.json")
    assert isinstance(config, LlamaConfig)
    assert (config.hidden_size, config.rope_parameters["rope_theta"]) == (64, 10000.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "abc"}, r"hidden_size: .*'abc'"),
        ({"hidden_size": -1}, r"hidden_size: .*found -1"),
        ({"hidden_size": 0}, r"hidden_size: .*found 0"),
        ({"hidden_size": 64.5}, r"hidden_size: .*found 64\.5"),
        ({"hidden_size": 10**12}, r"hidden_size: .*found 1000000000000"),
        ({"num_hidden_layers": 10**12}, r"num_hidden_layers: "),
        ({"num_attention_heads": 0}, r"num_attention_heads: .*found 0"),
        ({"hidden_size": 66}, r"hidden_size 66 is no multiple of num_attention_heads 4"),
        ({"num_key_value_heads": 3}, r"4 is no multiple of num_key_value_heads 3"),
        ({"model_type": "qwen3_moe", "num_local_experts": 4, "num_experts_per_tok": 5},
         r"num_experts_per_tok 5 is more than num_experts 4"),
        ({"model_type": "qwen3_moe", "moe_intermediate_size": 0}, r"moe_intermediate_size: .*0"),
        ({"vocab_size": True}, r"vocab_size: .*found True"),
        ({"rms_norm_eps": NAN}, r"rms_norm_eps: .*found nan"),
        ({"rms_norm_eps": -1e-5}, r"rms_norm_eps: .*found -1e-05"),
        ({"attention_dropout": NAN}, r"attention_dropout is nan"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e-300}},
         r"rope_parameters\.rope_theta is 1e-300; expected a number from 1 to"),
        ({"rope_theta": 1e-300}, r"rope_theta is 1e-300"),
        ({"rope_theta": NAN}, r"rope_theta is nan"),
        ({"rope_theta": "10000"}, r"rope_theta is '10000'"),
        ({"rope_parameters": {"rope_type": "nosuch", "rope_theta": 1e4}}, "nosuch"),
        ({"rope_parameters": 3}, "rope_parameters"),
        ({"hidden_act": "nosuch"}, "nosuch"),
        ({"head_dim": 7}, "head_dim"),
        ({"model_type": None}, r"model_type is missing; expected .* llama, qwen2 or qwen3"),
        ({"model_type": "nosuch"}, r"model_type is 'nosuch'; expected"),
        ({"model_type": ["llama"]}, r"model_type is \['llama'\]; expected"),
        ({"model_type": "nosuch", "auto_map": {"AutoConfig": "a.B"}},
         r"'nosuch' is an architecture of the model's own code \(auto_map\).*remove auto_map"),
    ],
)  # fmt: skip
def test_a_number_that_cannot_be_is_named_with_its_key(
    changes: dict[str, Any], message: str
) -> None:
    content = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    with pytest.raises(UserError, match=rf"(?s)^there/config\.json: .*{message}"):
        checked_config(content, "there/config.json")


def test_an_alias_of_the_architecture_is_checked_as_well() -> None:
    with pytest.raises(UserError, match="num_hidden_layers: .*found 1000000000000"):
        checked_config({"model_type": "gpt2", "n_layer": 10**12}, "config.json")


def test_a_model_larger_than_the_memory_is_refused_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = 4 * 75_712  # parameters, the tied head counted once
    monkeypatch.setattr(configuration, "machine_memory", lambda: needed)
    checked_config({**CONFIG, "tie_word_embeddings": True}, "config.json")
    monkeypatch.setattr(configuration, "machine_memory", lambda: needed - 1)
    with pytest.raises(UserError, match=r"GB of memory; correct the sizes \(hidden_size 64"):
        checked_config({**CONFIG, "tie_word_embeddings": True}, "config.json")


def test_sizes_that_are_each_possible_and_together_too_large_are_refused() -> None:
    sizes = {"hidden_size": 2**20, "num_hidden_layers": 100}
    with pytest.raises(UserError, match="GB in float32, and this machine has"):
        checked_config({**CONFIG, **sizes}, "config.json")
