from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tokenizers.normalizers import NFC
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.distill.universal import Spelling, aligned, universal_distance
from wrinklefree.mixture.batch import Batch
from wrinklefree.train.distill_settings import DistillationSettings
from wrinklefree.train.objectives.distillation import distillation
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import TrainStep
from wrinklefree.train.universal_teacher import UniversalTeacher

TEXT = "the population of the city is 1234 and the code — größer als 56 — defines it"


@pytest.fixture
def ours(tokenizer_folder: Path) -> Spelling:
    return Spelling(tokenizer_folder)


@pytest.fixture
def theirs(save_tokenizer: Callable[[Path, list[str]], None], tmp_path: Path) -> Spelling:
    save_tokenizer(tmp_path, ["<|endoftext|>"])
    return Spelling(tmp_path)


def encoded(spelling: Spelling, text: str) -> list[int]:
    return spelling.tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("widths", [(11, 11), (7, 12), (12, 7)])
def test_the_distance_is_that_of_sorted_probabilities(widths: tuple[int, int]) -> None:
    teacher, student = (torch.randn(3, width, dtype=torch.float64) for width in widths)
    found = universal_distance(teacher, student, 2.0)
    for row in range(3):
        one, other = (
            sorted((logits[row] / 2).softmax(0).tolist(), reverse=True) + [0.0] * 12
            for logits in (teacher, student)
        )
        pairs = zip(one, other, strict=False)
        assert found[row].item() == pytest.approx(sum(abs(a - b) for a, b in pairs))
    shuffled = teacher[:, torch.randperm(widths[0])]
    torch.testing.assert_close(universal_distance(teacher, shuffled, 1.0), torch.zeros(3).double())


def test_tokens_that_begin_at_the_same_byte_find_each_other(
    ours: Spelling, theirs: Spelling
) -> None:
    ids = [*encoded(ours, TEXT), ours.end_of_text_id]
    other, begin = aligned(ours, theirs, ids)
    assert other == [*encoded(theirs, TEXT), theirs.end_of_text_id]
    assert begin[len(ids) - 1] == len(other) - 1  # the ends of text
    places = [
        [len(b"".join(piece)) for piece in (spelled[:n] for n in range(len(spelled)))]
        for spelled in (spelled_out(ours, ids), spelled_out(theirs, other))
    ]
    expected = {
        number: places[1].index(place)
        for number, place in enumerate(places[0])
        if number and place in places[1]
    }
    assert begin == expected and len(expected) > 10


def test_a_text_begins_as_each_model_reads_it(
    ours: Spelling, beginning_folder: Path, theirs: Spelling
) -> None:
    beginning, ids = Spelling(beginning_folder), encoded(ours, TEXT)
    other, begin = aligned(ours, theirs, ids)
    # The first token of a text is predicted by what comes before it, where both have that.
    assert aligned(beginning, theirs, [1, *ids]) == (
        other,
        {1: 0} | {number + 1: found for number, found in begin.items()},
    )
    other, begin = aligned(ours, beginning, ids)
    assert other == [1, *ids] and begin == {number: number + 1 for number in range(1, len(ids))}
    other, begin = aligned(beginning, beginning, [1, *ids])
    assert other == [1, *ids] and begin == {number: number for number in range(1, len(ids) + 1)}


def spelled_out(spelling: Spelling, ids: list[int]) -> list[bytes]:
    """The bytes of each token, from what each beginning of the text decodes to."""
    whole = spelling.tokenizer.decode(ids).encode()
    lengths = [len(spelling.tokenizer.id_to_token(id)) if spelling.is_text(id) else 0 for id in ids]
    starts = [sum(lengths[:number]) for number in range(len(ids) + 1)]
    return [whole[start:end] for start, end in pairwise(starts)]


def test_a_piece_that_is_cut_within_a_character_is_left_out(
    ours: Spelling, theirs: Spelling
) -> None:
    ids = encoded(ours, "größer")
    cut = next(n for n in range(1, len(ids)) if "\ufffd" in ours.tokenizer.decode(ids[:n]))
    assert aligned(ours, theirs, ids[:cut]) == ([], {})
    assert aligned(ours, theirs, []) == ([], {})


def rows_of(rows: list[list[list[int]]]) -> Batch:
    """Rows of pieces, padded to the longest."""
    length = max(sum(map(len, pieces)) for pieces in rows)
    tokens, documents = torch.zeros(2, len(rows), length, dtype=torch.int64)
    positions = torch.zeros_like(tokens)
    documents -= 1
    for row, pieces in enumerate(rows):
        start = 0
        for number, piece in enumerate(pieces):
            end = start + len(piece)
            tokens[row, start:end] = torch.tensor(piece)
            documents[row, start:end] = number
            positions[row, start:end] = torch.arange(len(piece))
            start = end
    row_B = torch.arange(len(rows))
    return Batch(tokens, documents, positions, documents, positions, row_B * 0, row_B)


def small(vocabulary: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


def test_the_teacher_reads_every_document_in_its_own_tokens(
    ours: Spelling, theirs: Spelling
) -> None:
    texts = [[TEXT, "a city"], ["of the code 77"]]
    pieces = [[[*encoded(ours, text), ours.end_of_text_id] for text in row] for row in texts]
    batch, teacher, student = rows_of(pieces), small(300, 1), small(320, 2)
    settings = DistillationSettings.model_validate(
        {
            "weights": {"cross_entropy": 0.0, "relations": 0.0},
            "temperature": 2.0,
            "gradient_ratios": {"interval": 0},
        }
    )
    objective = distillation(NextToken(), settings, UniversalTeacher(teacher, theirs, ours))
    prepared = objective.corruption.prepare(batch, 0)
    outputs = TrainStep(student, objective)(prepared)
    count = objective.corruption.denominator(prepared)
    found = objective.loss(outputs, prepared, count)
    total = torch.tensor(0.0, dtype=torch.float64)
    for row in pieces:
        for ids in row:
            other, begin = aligned(ours, theirs, ids)
            said, asked = teacher(torch.tensor([other])).logits, student(torch.tensor([ids])).logits
            for number, place in begin.items():
                pair = said[:, place - 1], asked[:, number - 1]
                total = total + 4 * universal_distance(*pair, 2.0).sum()
    torch.testing.assert_close(found.terms["distill/logits"], total.detach() / count)
    weight = student.get_input_embeddings().weight
    gradients = [torch.autograd.grad(loss, weight)[0] for loss in (found.loss, total / count)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    "changes",
    [
        {"relations": {"heads": 2, "causal": True}},
        {"weights": {"relations": 0.0, "hidden": 1.0}},
        {"weights": {"relations": 0.0}, "gradient_ratios": {"hidden": 0.1}},
    ],
    ids=str,
)
def test_terms_that_compare_single_tokens_inside_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="other tokenizers, which have no relations and no"):
        DistillationSettings.model_validate({"universal": True, **changes})
    allowed = {"universal": True, "weights": {"relations": 0.0}}
    assert DistillationSettings.model_validate(allowed).universal


def test_tokens_that_spell_a_text_otherwise_are_no_lesson(ours: Spelling, theirs: Spelling) -> None:
    theirs.tokenizer.normalizer = NFC()
    assert aligned(ours, theirs, encoded(ours, "the cafe of the city"))[1]
    assert aligned(ours, theirs, encoded(ours, "the cafe\u0301 of the city")) == ([], {})
