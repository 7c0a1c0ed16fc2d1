from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.mask_token import MASK_TOKEN, RESERVED_NAMES, MaskInit, add_mask_token
from wrinklefree.models.transforms import ModelFormat

Tiny = Callable[..., PreTrainedModel]
MakeTokenizer = Callable[..., Path]


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_token_gets_the_mean_row_in_a_grown_embedding(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path, tied: bool
) -> None:
    model = tiny(tie_word_embeddings=tied)
    before = [
        module.weight.detach().clone()
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    mask = add_mask_token(model, tokenizer_folder, tmp_path / "out", "mean", seed=0)
    assert mask == model.config.vocab_size - 1 == 97
    after = [
        module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    assert (after[0] is after[1]) == tied
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[:97], old)
        torch.testing.assert_close(new[97].detach(), old.double().mean(0).float())
    # The grown model is whole: it saves, loads and computes a loss over the new vocabulary.
    save_model(tmp_path / "model", model, ModelFormat(), tmp_path / "out")
    loaded, _ = load_model(tmp_path / "model")
    tokens = torch.tensor([[5, mask, 7]])
    assert loaded(input_ids=tokens, labels=tokens).loss.isfinite()
    assert model(input_ids=tokens, labels=tokens).logits.shape == (1, 3, 98)


def test_the_written_tokenizer_knows_the_token_and_the_old_one_is_left(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path
) -> None:
    before = (tokenizer_folder / "tokenizer.json").read_bytes()
    mask = add_mask_token(tiny(), tokenizer_folder, tmp_path / "out", "mean", seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.mask_token == MASK_TOKEN
    assert tokenizer.mask_token_id == mask
    assert (
        tokenizer("w1 w2").input_ids
        == AutoTokenizer.from_pretrained(tokenizer_folder)("w1 w2").input_ids
    )
    assert (tokenizer_folder / "tokenizer.json").read_bytes() == before


@pytest.mark.parametrize("name", RESERVED_NAMES)
def test_a_reserved_token_is_used_and_nothing_grows(
    tiny: Tiny, make_tokenizer: MakeTokenizer, tmp_path: Path, name: str
) -> None:
    source = make_tokenizer(tmp_path / "source", special=("<eos>", "<other>", name))
    model = tiny()
    old = model.get_input_embeddings().weight.detach().clone()
    assert add_mask_token(model, source, tmp_path / "out", "mean", seed=0) == 2
    new = model.get_input_embeddings().weight.detach()
    assert new.shape == old.shape
    others = [row for row in range(97) if row != 2]
    assert torch.equal(new[others], old[others])
    torch.testing.assert_close(new[2], old[others].double().mean(0).float())


def test_a_padded_embedding_does_not_grow_and_its_padding_is_not_in_the_mean(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = tiny(vocab_size=128)
    with torch.no_grad():
        model.get_input_embeddings().weight[97:] = 1e3
    old = model.get_input_embeddings().weight.detach().clone()
    assert add_mask_token(model, tokenizer_folder, tmp_path / "out", "mean", seed=0) == 97
    new = model.get_input_embeddings().weight.detach()
    assert new.shape == old.shape
    torch.testing.assert_close(new[97], old[:97].double().mean(0).float())
    assert torch.equal(new[98:], old[98:])


def row_of(tiny: Tiny, source: Path, folder: Path, init: MaskInit, seed: int) -> torch.Tensor:
    model = tiny(hidden_size=256, initializer_range=0.3)
    mask = add_mask_token(model, source, folder, init, seed)
    return model.get_input_embeddings().weight[mask].detach()


def test_random_rows_follow_the_seed_and_the_models_deviation(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path
) -> None:
    first, again, other = (
        row_of(tiny, tokenizer_folder, tmp_path / "out", "random", seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0.25 < first.std().item() < 0.35


def test_zero_rows_are_zero(tiny: Tiny, tokenizer_folder: Path, tmp_path: Path) -> None:
    assert not row_of(tiny, tokenizer_folder, tmp_path / "out", "zero", 0).any()
