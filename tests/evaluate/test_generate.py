from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.evaluate.generate import (
    Sample,
    decode_greedily,
    generate_samples,
    samples_markdown,
    samples_page,
)
from wrinklefree.evaluate.settings import EvaluateSettings
from wrinklefree.models.surgery import insert_bitlinear
from wrinklefree.models.transforms import DiffuseBlocks, ModelFormat
from wrinklefree.tokens.tokenizer import load_tokenizer

SETTINGS = EvaluateSettings(
    rows_per_domain=1,
    batch_size=1,
    likelihood_draws=1,
    prompts=["the city", "a function"],
    new_tokens=9,
)
DIFFUSION = ModelFormat().then(
    DiffuseBlocks(block_size=4, token_shift="clean_boundary", mask_token_id=2)
)
NEVER = 299
"""An end of text that the models under test do not come upon."""


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


def test_prompts_begin_as_rows_of_training_do(tiny_llama, beginning_folder: Path) -> None:
    model, tokenizer = tiny_llama(3), load_tokenizer(beginning_folder)
    found = generate_samples(model, ModelFormat(), tokenizer, NEVER, SETTINGS)
    for sample in found:
        prompt = [1, *tokenizer.encode(sample.prompt, add_special_tokens=False).ids]
        expected = _plain_greedy(model, prompt, SETTINGS.new_tokens)
        assert sample.text == tokenizer.decode(expected, skip_special_tokens=False)


@torch.no_grad()
def _plain_greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("ternary", [False, True])
def test_cached_greedy_decoding_is_the_argmax_of_a_whole_forward_pass(tiny_llama, ternary: bool):
    model = tiny_llama(3)
    if ternary:
        insert_bitlinear(model)
    expected = _plain_greedy(model, [5, 9, 11], 12)
    assert len(set(expected)) > 2
    found = decode_greedily(model, [5, 9, 11], new_tokens=12, end_of_text_id=-1)
    assert found == expected


def test_decoding_stops_with_the_end_of_text(tiny_llama):
    model = tiny_llama(3)
    free = decode_greedily(model, [5, 9, 11], new_tokens=12, end_of_text_id=-1)
    end = free[4]
    found = decode_greedily(model, [5, 9, 11], new_tokens=12, end_of_text_id=end)
    assert found == free[: free.index(end) + 1]


def test_every_prompt_is_continued_by_as_many_tokens_as_set(tiny_llama, tokenizer: Tokenizer):
    model = tiny_llama(3)
    samples = generate_samples(model, ModelFormat(), tokenizer, NEVER, SETTINGS)
    assert [sample.prompt for sample in samples] == SETTINGS.prompts
    for sample in samples:
        ids = tokenizer.encode(sample.prompt, add_special_tokens=False).ids
        expected = _plain_greedy(model, ids, 9)
        assert sample.text == tokenizer.decode(expected, skip_special_tokens=False)
        assert (sample.tokens, sample.forward_passes, sample.ended) == (9, 9, False)


@pytest.mark.parametrize("model_format", [ModelFormat(), DIFFUSION])
def test_fewer_new_tokens_are_a_beginning_of_the_same_text(
    tiny_llama, tokenizer: Tokenizer, model_format: ModelFormat
):
    counts = (0, 5, 9)
    settings = [SETTINGS.model_copy(update={"new_tokens": count}) for count in counts]
    none, some, all_of_it = (
        generate_samples(tiny_llama(3), model_format, tokenizer, NEVER, setting)[0]
        for setting in settings
    )
    assert (none.text, none.tokens, none.forward_passes) == ("", 0, 0)
    assert (some.tokens, all_of_it.tokens) == (5, 9)
    # A character may end within the shorter text; the decoder then shows it as damaged.
    assert all_of_it.text.startswith(some.text.rstrip("\ufffd"))


def test_diffusion_in_blocks_of_one_token_is_greedy_decoding(tiny_llama, tokenizer: Tokenizer):
    one = ModelFormat().then(DIFFUSION.transforms[0].model_copy(update={"block_size": 1}))
    model = tiny_llama(3)
    greedy = generate_samples(model, ModelFormat(), tokenizer, NEVER, SETTINGS)
    single = generate_samples(model, one, tokenizer, NEVER, SETTINGS)
    assert [replace(sample, unmasked=()) for sample in single] == greedy
    assert {number for sample in single for _, number in sample.unmasked} == {1}
    blocks = generate_samples(model, DIFFUSION, tokenizer, NEVER, SETTINGS)
    assert [sample.text for sample in blocks] != [sample.text for sample in greedy]


def test_what_the_tokens_of_a_diffusion_model_add_is_its_text(tiny_llama, tokenizer: Tokenizer):
    for sample in generate_samples(tiny_llama(3), DIFFUSION, tokenizer, NEVER, SETTINGS):
        assert "".join(part for part, _ in sample.unmasked) == sample.text
        assert len(sample.unmasked) == sample.tokens
        assert 1 < max(number for _, number in sample.unmasked) <= 4


def test_a_page_shows_the_pass_that_committed_each_token_and_markdown_lists_them():
    parts = ((" \n", 1), ("a", 1), (" <b>", 3), ("", 2), ("\n", 2))
    samples = {"dlm": [Sample("a", " \na <b>\n", 5, 3, False, unmasked=parts)]}
    shown = re.findall(r"<pre>(.*?)</pre>", samples_page(samples), re.DOTALL)[0]
    assert re.sub(r"<(/?span|sub)[^>]*>", "", shown) == "a1</sub> &lt;b&gt;3</sub>"
    assert re.findall(r"/ (\d+)%", shown) == ["0", "50"]
    assert samples_markdown(samples, 5).endswith("each token stood: 1 1 3 2 2\n")
    assert samples["dlm"][0].as_json()["unmasked"] == parts


def test_the_end_of_text_is_counted_but_not_shown(tiny_llama, tokenizer: Tokenizer):
    model = tiny_llama(3)
    ids = tokenizer.encode("the city", add_special_tokens=False).ids
    first = _plain_greedy(model, ids, 1)[0]
    sample = generate_samples(model, ModelFormat(), tokenizer, first, SETTINGS)[0]
    assert sample == Sample("the city", "", 1, 1, True)


def test_an_empty_prompt_is_refused(tiny_llama, tokenizer: Tokenizer):
    settings = SETTINGS.model_copy(update={"prompts": ["the", ""]})
    with pytest.raises(UserError, match="prompt 2 is empty"):
        generate_samples(tiny_llama(3), ModelFormat(), tokenizer, NEVER, settings)


def test_a_continuation_beyond_the_models_positions_is_refused(tiny_llama, tokenizer: Tokenizer):
    settings = SETTINGS.model_copy(update={"new_tokens": 64})
    with pytest.raises(UserError, match="the model ends at 64 positions"):
        generate_samples(tiny_llama(3), ModelFormat(), tokenizer, NEVER, settings)


def test_markdown_shows_any_text_as_it_is_and_all_models_under_each_prompt():
    samples = {
        "base": [Sample("one\ntwo", "# no heading\n```", 3, 3, True)],
        "dlm": [Sample("one\ntwo", "", 0, 0, False)],
    }
    lines = samples_markdown(samples, 3).splitlines()
    assert "    # no heading" in lines
    assert "    ```" in lines
    assert not any(line.startswith(("# no", "```")) for line in lines)
    assert sum("forward passes" in line for line in lines) == 2
    assert lines.index("    two") == lines.index("    one") + 1


def test_a_page_has_all_models_beside_each_other_under_each_prompt_without_blank_ends():
    samples = {
        "base": [Sample("a < b", "\n \n  c\n\nd\n\n", 3, 3, True)],
        "dlm": [Sample("a < b", "\n\n", 2, 4, False)],
    }
    heading, texts = samples_page(samples).split('<div class="texts">')
    assert heading.endswith("<h2>a &lt; b</h2>\n")
    assert re.findall(r"<pre>(.*?)</pre>", texts, re.DOTALL) == ["  c\n\nd", "(blank)"]
    assert "2 tokens in 4 forward passes, cut" in texts


def test_samples_show_codes_that_a_terminal_would_obey_spelled_out():
    sample = Sample("a\x1b[2Jb", "c\x9b\x07d\te", 2, 2, False)
    text = samples_markdown({"base": [sample]}, 2)
    assert "    a\\x1b[2Jb\n" in text and "    c\\x9b\\x07d\te\n" in text
