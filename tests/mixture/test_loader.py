from __future__ import annotations

import math
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import Batch
from wrinklefree.mixture.build import build_mixture
from wrinklefree.mixture.loader import HeldOutData, TrainingData
from wrinklefree.mixture.order import WeightChange
from wrinklefree.mixture.settings import MixtureSettings
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.forward import next_token_logits
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.quant.bitlinear import set_quantization_lambda
from wrinklefree.tokens.tokenizer import load_tokenizer, token_bytes

LENGTH = 16


@pytest.fixture
def documents() -> dict[str, list[list[int]]]:
    """Training documents by domain: token ids without the end of text."""
    random = np.random.default_rng(11)
    return {
        name: [random.integers(3, 320, size=n).tolist() for n in random.integers(0, 45, size=count)]
        for name, count in (("web", 45), ("code", 20))
    }


@pytest.fixture
def mixture(
    token_folder, tokenizer_folder: Path, tmp_path: Path, documents: dict[str, list[list[int]]]
) -> Path:
    tokens = {}
    for name, training in documents.items():
        held_out = [list(reversed(ids)) for ids in training]
        tokens[name] = token_folder(name, {"train": training, "held_out": held_out})
    settings = MixtureSettings(
        sequence_length=LENGTH, shuffle_buffer_size=10, weights={"web": 0.7, "code": 0.3}
    )
    folder = tmp_path / "mixture"
    folder.mkdir()
    build_mixture(settings, tokens, tokenizer_folder, folder)
    return folder


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def joined(batches: list[Batch]) -> Batch:
    names = [field.name for field in fields(Batch)]
    return Batch(**{name: torch.cat([getattr(b, name) for b in batches]) for name in names})


def test_a_token_has_a_predecessor_if_the_one_before_it_is_of_its_piece(mixture: Path):
    held_out = HeldOutData(mixture)
    for domain in held_out.domains:
        for batch in held_out.batches(domain, rows=100, batch_size=7):
            ids_BT = batch.document_ids_BT
            assert not batch.has_predecessor_BT[:, 0].any()
            expected_BT = (ids_BT[:, 1:] == ids_BT[:, :-1]) & (ids_BT[:, 1:] >= 0)
            assert torch.equal(batch.has_predecessor_BT[:, 1:], expected_BT)


def test_two_pieces_of_one_document_do_not_precede_each_other():
    documents, positions = torch.tensor([[0] * 5 + [-1] * 2]), torch.tensor([[0, 1, 2, 0, 1, 0, 1]])
    rows = torch.zeros(1, dtype=torch.int64)
    batch = Batch(positions, documents, positions, documents, positions, rows, rows)
    assert batch.has_predecessor_BT[0].tolist() == [False, True, True, False, True, False, False]


def test_batch_has_the_documented_shapes_types_and_fields(mixture: Path) -> None:
    data = TrainingData(mixture, seed=5)
    assert (data.domains, data.sequence_length) == (["code", "web"], LENGTH)
    assert (data.vocabulary_size, data.end_of_text_id) == (320, 0)
    batch = data.batch(3, 1, batch_size=4, micro_batches=2)
    for name, tensor in vars(batch).items():
        assert tensor.dtype == torch.int64
        assert tensor.shape == ((4, LENGTH) if name.endswith("_BT") else (4,))
    assert batch.sample_B.tolist() == [28, 29, 30, 31]


def test_a_buffer_in_place_of_the_mixtures_own_keeps_rows_within_it(mixture: Path) -> None:
    own, same_size, small = (
        TrainingData(mixture, seed=5, shuffle_buffer_size=size) for size in (None, 10, 2)
    )
    batches = [d.batch(0, 0, batch_size=12, micro_batches=1) for d in (own, same_size, small)]
    assert same(batches[0], batches[1]) and not same(batches[0], batches[2])
    web = TrainingData(
        mixture, seed=5, shuffle_buffer_size=2, weights={"web": 1.0, "code": 0.0}
    ).batch(0, 0, batch_size=8, micro_batches=1)
    in_order = TrainingData(mixture, seed=5).domain_batch("web", rows=10**6, offset=0).tokens_BT
    rows = [(in_order == row_T).all(1).nonzero()[0, 0].item() for row_T in web.tokens_BT]
    assert [row // 2 for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_rows_are_pieces_with_positions_of_their_own_and_padding_last(mixture: Path) -> None:
    data = TrainingData(mixture, seed=5)
    batch = data.batch(0, 0, batch_size=64, micro_batches=1)
    for tokens, ids, positions in zip(
        batch.tokens_BT.tolist(),
        batch.document_ids_BT.tolist(),
        batch.positions_BT.tolist(),
        strict=True,
    ):
        real = ids.index(-1) if -1 in ids else LENGTH
        assert ids[real:] == [-1] * (LENGTH - real)
        assert tokens[real:] == [data.end_of_text_id] * (LENGTH - real)
        for at in range(real):
            begins = at == 0 or ids[at] != ids[at - 1]
            assert positions[at] == (0 if begins else positions[at - 1] + 1)
            if begins and at > 0:
                assert ids[at] == ids[at - 1] + 1
            # The text has no end of text of its own, so one always ends a piece.
            if tokens[at] == data.end_of_text_id:
                assert at + 1 == real or ids[at + 1] != ids[at]


def test_every_token_says_which_of_which_document_it_is(
    mixture: Path, documents: dict[str, list[list[int]]]
) -> None:
    """One epoch through the loader gives every document back, from the rows it was split over."""
    data = TrainingData(mixture, seed=5)
    samples = next(n for n in range(1000) if min(data.epochs(n).values()) >= 1)
    batch = data.batch(0, 0, batch_size=samples, micro_batches=1)
    found: dict[str, dict[int, dict[int, int]]] = {name: {} for name in data.domains}
    columns = (batch.tokens_BT, batch.source_documents_BT, batch.source_positions_BT)
    for domain, *row in zip(batch.domain_B.tolist(), *(c.tolist() for c in columns), strict=True):
        for token, document, place in zip(*row, strict=True):
            if document >= 0:
                known = found[data.domains[domain]].setdefault(document, {})
                assert known.setdefault(place, token) == token
            else:
                assert place == -1
    for name, expected in documents.items():
        assert len(found[name]) == len(expected)
        for number, ids in enumerate(expected):
            assert found[name][number] == dict(enumerate([*ids, data.end_of_text_id]))


@pytest.mark.parametrize(("batch_size", "micro_batches"), [(12, 1), (1, 12), (3, 4), (4, 3)])
def test_samples_of_a_step_do_not_depend_on_its_division(
    mixture: Path, batch_size: int, micro_batches: int
) -> None:
    whole = TrainingData(mixture, seed=5)
    divided = TrainingData(mixture, seed=5)
    for step in (0, 40, 7):
        parts = [
            divided.batch(step, part, batch_size=batch_size, micro_batches=micro_batches)
            for part in reversed(range(micro_batches))
        ]
        assert same(joined(parts[::-1]), whole.batch(step, 0, batch_size=12, micro_batches=1))


def test_training_reads_training_rows_of_the_domain_it_names(mixture: Path) -> None:
    data = TrainingData(mixture, seed=5)
    rows = {
        name: {
            tuple(row)
            for row in np.fromfile(mixture / f"{name}.train.rows", "<u2")
            .reshape(-1, LENGTH)
            .tolist()
        }
        for name in data.domains
    }
    batch = data.batch(0, 0, batch_size=300, micro_batches=1)
    seen: dict[str, set[tuple[int, ...]]] = {name: set() for name in data.domains}
    for tokens, domain in zip(batch.tokens_BT.tolist(), batch.domain_B.tolist(), strict=True):
        seen[data.domains[domain]].add(tuple(tokens))
    assert seen == rows


def test_weights_replace_those_of_the_mixture_and_changes_hold_from_their_sample_on(
    mixture: Path,
) -> None:
    web, code = {"web": 1.0, "code": 0.0}, {"web": 0.0, "code": 1.0}
    change = WeightChange(21, code)
    data = TrainingData(mixture, seed=5, weights=web, changes=[change])
    domains = data.batch(0, 0, batch_size=60, micro_batches=1).domain_B
    assert domains.tolist() == [data.domains.index("web")] * 21 + [data.domains.index("code")] * 39
    assert [data.weights_at(n) for n in (0, 20, 21, 10**9)] == [web, web, code, code]
    assert TrainingData(mixture, seed=5).weights_at(0) == {"web": 0.7, "code": 0.3}
    first = TrainingData(mixture, seed=5, changes=[WeightChange(0, code), WeightChange(9, web)])
    assert [first.weights_at(n) for n in (0, 9)] == [code, web]


def test_epochs_count_how_often_each_domain_is_read(mixture: Path) -> None:
    data = TrainingData(mixture, seed=5, changes=[WeightChange(30, {"web": 0.0, "code": 1.0})])
    batch = data.batch(0, 0, batch_size=200, micro_batches=1)
    for index, name in enumerate(data.domains):
        rows = (mixture / f"{name}.train.rows").stat().st_size // (2 * LENGTH)
        assert data.epochs(200)[name] == int((batch.domain_B == index).sum()) / rows
    assert data.epochs(0) == {"web": 0.0, "code": 0.0}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"web": 1.0}, r"differ in code; name all of code, web"),
        ({"web": 0.5, "code": 0.3, "wiki": 0.2}, r"differ in wiki"),
        ({"web": 0.5, "code": 0.4}, r"weights from sample 7 sum to 0\.9"),
        ({"web": 1.5, "code": -0.5}, r"one is negative"),
        ({"web": math.nan, "code": 0.5}, r"sum to nan"),
    ],
)
def test_weights_that_do_not_fit_the_mixture_are_refused(
    mixture: Path, weights: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        TrainingData(mixture, seed=1, changes=[WeightChange(7, weights)])


def test_a_share_for_a_domain_without_training_rows_is_refused(
    token_folder, tokenizer_folder: Path, tmp_path: Path
) -> None:
    text = {"train": [[5, 6]], "held_out": [[7]]}
    tokens = {"a": token_folder("web", text), "b": token_folder("code", {"held_out": [[8]]})}
    weights = {"web": 1.0, "code": 0.0}
    settings = MixtureSettings(sequence_length=8, shuffle_buffer_size=4, weights=weights)
    build_mixture(settings, tokens, tokenizer_folder, tmp_path)
    TrainingData(tmp_path, seed=1, weights=weights).batch(0, 0, batch_size=9, micro_batches=1)
    with pytest.raises(UserError, match="domain code a share, but .* has no training rows of it"):
        TrainingData(tmp_path, seed=1, weights={"web": 0.5, "code": 0.5})


def test_easy_first_sorts_the_rows_of_each_domain_and_keeps_them(mixture: Path) -> None:
    data, samples = TrainingData(mixture, seed=5), 24
    scores = data.mean_piece_lengths(samples)
    plain = data.batch(0, 0, batch_size=samples, micro_batches=1)
    easy = data.easy_first(samples, scores).batch(0, 0, batch_size=samples, micro_batches=1)
    assert same(data.batch(0, 0, batch_size=samples, micro_batches=1), plain), "data is as it was"
    assert torch.equal(easy.domain_B, plain.domain_B)
    for index in range(len(data.domains)):
        mine, before = (b.tokens_BT[b.domain_B == index].tolist() for b in (easy, plain))
        assert Counter(map(tuple, mine)) == Counter(map(tuple, before))
        pieces = [
            np.unique(ids[ids >= 0], return_counts=True)[1]
            for ids in easy.document_ids_BT[easy.domain_B == index].numpy()
        ]
        lengths = [float((counts**2).sum() / counts.sum()) for counts in pieces]
        assert lengths == sorted(lengths) and len(set(lengths)) > 2


def test_the_rows_of_a_run_come_once_each_by_domain(mixture: Path) -> None:
    data, samples = TrainingData(mixture, seed=5), 150
    assert max(data.epochs(samples).values()) > 1
    batches = list(data.batches_of(samples, 4))
    assert all(len(batch.domain_B.unique()) == 1 for batch in batches)
    run = data.batch(0, 0, batch_size=samples, micro_batches=1)
    for name, chosen in data.rows_of_run(samples).items():
        index = data.domains.index(name)
        mine = torch.cat([b.sample_B for b in batches if int(b.domain_B[0]) == index])
        assert mine.tolist() == chosen.tolist() == sorted(set(chosen.tolist()))
        tokens = torch.cat([b.tokens_BT for b in batches if int(b.domain_B[0]) == index])
        read = {tuple(row) for row in run.tokens_BT[run.domain_B == index].tolist()}
        assert {tuple(row) for row in tokens.tolist()} == read


@pytest.mark.parametrize("piece", [0, 1, 2])
def test_a_document_has_no_influence_on_the_others_of_its_row(mixture: Path, piece: int) -> None:
    """From an edited file through the loader to the logits, compared bit by bit."""
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    insert_subln(model)
    insert_bitlinear(model)
    set_quantization_lambda(model, 1.0)

    @torch.no_grad()
    def read() -> tuple[Batch, torch.Tensor]:
        batch = TrainingData(mixture, seed=5).batch(0, 0, batch_size=32, micro_batches=1)
        mask = causal_document_mask(batch.document_ids_BT)
        return batch, next_token_logits(model, batch.tokens_BT, batch.positions_BT, mask)

    before, logits_before = read()
    chosen = int((before.document_ids_BT == 2).any(1).nonzero()[0])
    places = (before.document_ids_BT[chosen] == piece).nonzero()[:, 0]
    path = mixture / f"{TrainingData(mixture, seed=5).domains[before.domain_B[chosen]]}.train.rows"
    rows = np.fromfile(path, "<u2").reshape(-1, LENGTH)
    row = int((rows == before.tokens_BT[chosen].numpy()).all(1).nonzero()[0][0])
    rows[row, places.numpy()] = 3 + (rows[row, places.numpy()] + 100) % 317
    rows.tofile(path)
    after, logits_after = read()
    edited_BT = before.tokens_BT != after.tokens_BT
    assert torch.equal(edited_BT[chosen].nonzero()[:, 0], places)
    assert torch.equal(logits_before[~edited_BT], logits_after[~edited_BT])
    assert not torch.isclose(logits_before[edited_BT], logits_after[edited_BT]).all(1).any()


def test_seed_changes_the_batch(mixture: Path) -> None:
    batches = [
        TrainingData(mixture, seed=seed).batch(0, 0, batch_size=8, micro_batches=1)
        for seed in (1, 1, 2)
    ]
    assert same(batches[0], batches[1])
    assert not same(batches[0], batches[2])


def test_held_out_rows_come_once_in_order_up_to_the_limit(
    mixture: Path, tokenizer_folder: Path
) -> None:
    data = HeldOutData(mixture)
    every = np.fromfile(mixture / "web.held_out.rows", "<u2").reshape(-1, LENGTH)
    batches = list(data.batches("web", rows=10_000, batch_size=7))
    assert [len(b.sample_B) for b in batches[:-1]] == [7] * (len(batches) - 1)
    assert np.array_equal(joined(batches).tokens_BT.numpy(), every)
    assert joined(batches).domain_B.unique().tolist() == [data.domains.index("web")]
    few = joined(list(data.batches("web", rows=5, batch_size=2)))
    assert few.sample_B.tolist() == [n * len(every) // 5 for n in range(5)]
    assert np.array_equal(few.tokens_BT.numpy(), every[few.sample_B.numpy()])
    assert data.token_bytes_V.dtype == torch.int64
    assert data.token_bytes_V.tolist() == token_bytes(load_tokenizer(tokenizer_folder)).tolist()
    with pytest.raises(UserError, match="no domain 'wiki'; it has code, web"):
        next(data.batches("wiki", rows=1, batch_size=1))
