from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datatrove.utils.dataset import DatatroveFileDataset

from wrinklefree.tokens.shards import (
    ShardCounts,
    ShardWriter,
    read_tokens,
    write_token_index,
)

DOCUMENTS = [[5, 6, 7], [], [8], [9, 10]]
FLAT = [5, 6, 7, 0, 0, 8, 0, 9, 10, 0]
TRAIN = "train.00000.ds"
ENDS = "train.00000.ds.index"


def write(folder: Path, vocabulary_size: int = 100) -> Path:
    """Two splits of one shard each, that of training in two parts."""
    ids = {"vocabulary_size": vocabulary_size, "end_of_text_id": 0}
    train, held_out = (ShardWriter(folder, split, 0, **ids) for split in ("train", "held_out"))
    train.append(DOCUMENTS[:3])
    train.append([])
    train.append(DOCUMENTS[3:])
    held_out.append([[1]])
    splits = {"train": [train.close()], "held_out": [held_out.close()]}
    assert splits == {"train": [ShardCounts(0, 10, 4)], "held_out": [ShardCounts(0, 2, 1)]}
    write_token_index(folder, domain="d", splits=splits, **ids)
    return folder


@pytest.mark.parametrize(
    ("vocabulary_size", "dtype"), [(65_536, "<u2"), (65_537, "<u4"), (11, "<u2")]
)
def test_files_have_the_documented_layout(tmp_path: Path, vocabulary_size: int, dtype: str) -> None:
    write(tmp_path, vocabulary_size)
    assert (tmp_path / TRAIN).read_bytes() == np.array(FLAT, dtype=dtype).tobytes()
    ends = np.array([4, 5, 7, 10], dtype="<u8")
    assert (tmp_path / ENDS).read_bytes() == ends.tobytes()
    folder = read_tokens(tmp_path)
    assert (folder.domain, folder.vocabulary_size, folder.end_of_text_id) == (
        "d",
        vocabulary_size,
        0,
    )
    assert folder.splits["train"].shards[0].tokens.tolist() == FLAT
    assert folder.splits["held_out"].shards[0].ends.tolist() == [2]


def test_largest_id_of_a_16_bit_vocabulary_survives(tmp_path: Path) -> None:
    ids = {"vocabulary_size": 65_536, "end_of_text_id": 65_535}
    writer = ShardWriter(tmp_path, "train", 0, **ids)
    writer.append([[65_534]])
    splits = {"train": [writer.close()], "held_out": []}
    write_token_index(tmp_path, domain="d", splits=splits, **ids)
    assert read_tokens(tmp_path).splits["train"].shards[0].tokens.tolist() == [65_534, 65_535]


def test_split_without_documents_is_readable(
    tmp_path: Path, write_tokens: Callable[..., Path]
) -> None:
    write_tokens(tmp_path, "d", {"train": [[1]]}, 10)
    assert read_tokens(tmp_path).splits["held_out"].shards == ()
    assert read_tokens(tmp_path).splits["held_out"].token_count == 0
    assert not list(tmp_path.glob("held_out.*"))


def in_shards(folder: Path, vocabulary_size: int) -> dict[str, list[list[int]]]:
    """Three shards with documents of all lengths from 0, the second without a held-out one."""
    random = np.random.default_rng(vocabulary_size)
    ids: dict[str, Any] = {"vocabulary_size": vocabulary_size, "end_of_text_id": 0}
    shards: dict[str, list[ShardCounts]] = {"train": [], "held_out": []}
    documents: dict[str, list[list[int]]] = {"train": [], "held_out": []}
    for shard, counts in enumerate([(40, 3), (25, 0), (1, 9)]):
        for split, count in zip(shards, counts, strict=True):
            writer = ShardWriter(folder, split, shard, **ids)
            new = [random.integers(1, vocabulary_size, n % 23).tolist() for n in range(count)]
            documents[split] += new
            writer.append(new[:10])
            writer.append(new[10:])
            shards[split].append(writer.close())
    write_token_index(folder, domain="d", splits=shards, **ids)
    return documents


@pytest.mark.parametrize("vocabulary_size", [50_000, 150_000])
def test_shards_hold_the_documents_in_order(tmp_path: Path, vocabulary_size: int) -> None:
    documents = in_shards(tmp_path, vocabulary_size)
    for split, part in read_tokens(tmp_path).splits.items():
        read = [
            document.tolist()
            for shard in part.shards
            for document in np.split(shard.tokens, shard.ends[:-1].astype(np.int64))
        ]
        assert read == [[*document, 0] for document in documents[split]]
        assert part.document_count == len(documents[split])
        assert part.token_count == sum(map(len, read))
    numbers = sorted(path.name for path in tmp_path.glob("held_out.*.ds"))
    assert numbers == ["held_out.00000.ds", "held_out.00002.ds"]


@pytest.mark.parametrize("vocabulary_size", [50_000, 150_000])
@pytest.mark.parametrize("sequence_length", [7, 12])
def test_datatrove_reads_the_same_tokens_and_positions(
    tmp_path: Path, vocabulary_size: int, sequence_length: int
) -> None:
    in_shards(tmp_path, vocabulary_size)
    window = sequence_length + 1
    windows = 0
    folder = read_tokens(tmp_path)
    for split in folder.splits:
        paths = sorted(tmp_path.glob(f"{split}.*.ds"))
        for path, shard in zip(paths, folder.splits[split].shards, strict=True):
            theirs = DatatroveFileDataset(
                str(path), sequence_length, token_size=shard.tokens.itemsize, return_positions=True
            )
            starts = np.concatenate([[0], shard.ends[:-1]]).astype(np.int64)
            document = np.searchsorted(shard.ends, np.arange(len(shard.tokens)), side="right")
            position = np.arange(len(shard.tokens)) - starts[document]
            assert len(theirs) == len(shard.tokens) // window
            for number in range(len(theirs)):
                here = slice(number * window, (number + 1) * window)
                # A document that goes on from the window before starts at 0 again there.
                begun = np.maximum(starts[document[here]], here.start)
                assert theirs[number]["input_ids"].tolist() == shard.tokens[here].tolist()
                expected = np.arange(here.start, here.stop) - begun
                assert theirs[number]["positions"].tolist() == expected.tolist()
                inside = starts[document[here]] >= here.start
                assert np.array_equal(expected[inside], position[here][inside])
                windows += 1
    assert windows > 40
