from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wrinklefree.config.tokens import MixtureSettings
from wrinklefree.data.loader import Batch, HeldOutData, TrainingData
from wrinklefree.data.mixture import build_mixture
from wrinklefree.data.tokenizer import token_bytes
from wrinklefree.errors import UserError

LENGTH = 16


@pytest.fixture
def mixture(token_folder, tokenizer_folder: Path, tmp_path: Path) -> Path:
    random = np.random.default_rng(11)
    tokens = {}
    for name, count in (("web", 90), ("code", 40)):
        sizes = random.integers(0, 45, size=count)
        documents = [random.integers(3, 320, size=size).tolist() for size in sizes]
        splits = {"train": documents[: count // 2], "held_out": documents[count // 2 :]}
        tokens[name] = token_folder(name, splits)
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
    columns = zip(*(vars(batch).values() for batch in batches), strict=True)
    return Batch(*(torch.cat(column) for column in columns))


def test_batch_has_the_documented_shapes_types_and_fields(mixture: Path) -> None:
    data = TrainingData(mixture, seed=5)
    assert (data.domains, data.sequence_length) == (["code", "web"], LENGTH)
    assert (data.vocabulary_size, data.end_of_text_id) == (320, 0)
    batch = data.batch(3, 1, batch_size=4, micro_batches=2)
    for name, tensor in vars(batch).items():
        assert tensor.dtype == torch.int64
        assert tensor.shape == ((4, LENGTH) if name.endswith("_BT") else (4,))
    assert batch.sample_B.tolist() == [28, 29, 30, 31]


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
    assert data.token_bytes_V.tolist() == token_bytes(tokenizer_folder).tolist()
    with pytest.raises(UserError, match="no domain 'wiki'; it has code, web"):
        next(data.batches("wiki", rows=1, batch_size=1))


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("web.train.rows", -1, r"web\.train\.rows has .* not a multiple"),
        ("web.train.rows", -2 * LENGTH, r"web\.train\.rows has .* records, expected"),
        ("code.held_out.pieces", -4, r"code\.held_out\.pieces has .* records, expected"),
        ("code.train.offsets", 0, r"code\.train\.offsets has 0 records"),
        ("token_bytes", -4, r"token_bytes has 319 records, expected 320"),
        ("mixture.json", -5, r"cannot read .*mixture\.json"),
    ],
)
def test_truncated_mixture_is_refused(mixture: Path, name: str, size: int, message: str) -> None:
    truncate(mixture / name, size)
    for load in (lambda: TrainingData(mixture, seed=1), lambda: HeldOutData(mixture)):
        with pytest.raises(UserError, match=message):
            load()


@pytest.mark.parametrize(
    ("name", "dtype", "record", "value", "message"),
    [
        ("web.train.pieces", "<u4", 3, 0, "empty piece"),
        ("web.train.pieces", "<u4", 3, 17, "more than 16 tokens in a row"),
        ("web.train.offsets", "<u8", 2, 0, "does not divide"),
        ("web.train.offsets", "<u8", -1, 1, "does not divide"),
    ],
)
def test_edited_pieces_are_refused(
    mixture: Path, name: str, dtype: str, record: int, value: int, message: str
) -> None:
    data = np.fromfile(mixture / name, dtype)
    data[record] = value
    data.tofile(mixture / name)
    with pytest.raises(UserError, match=message):
        TrainingData(mixture, seed=1)


def test_token_beyond_the_vocabulary_names_file_and_row(mixture: Path) -> None:
    tokens = np.fromfile(mixture / "web.held_out.rows", "<u2")
    tokens[2 * LENGTH + 3] = 320
    tokens.tofile(mixture / "web.held_out.rows")
    with pytest.raises(UserError, match=r"web\.held_out\.rows row 2 has token id 320"):
        list(HeldOutData(mixture).batches("web", rows=9999, batch_size=4))
