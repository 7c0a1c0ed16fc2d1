from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from wrinklefree.evaluate.data_report.texts import (
    SAMPLE_CHARACTERS,
    Size,
    SourceTexts,
    lowest_ranks,
    read_source,
)
from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.parquet import DocumentWriter


def write(folder: Path, train: list[str], held_out: list[str]) -> Path:
    folder.mkdir()
    with DocumentWriter(folder, "prose") as writer:
        for split, texts in (("train", train), ("held_out", held_out)):
            for number, text in enumerate(texts):
                writer.append(Document(f"{split}{number}", text), split)
    return folder


def read(folder: Path, train: int, held_out: int = 0, *, samples: int = 2, seed: int = 1):
    counts = {"train": train, "held_out": held_out}
    return read_source(folder, counts, samples=samples, seed=seed)


def texts_of(found: SourceTexts) -> list[str]:
    return [sample.text for sample in found.samples]


def test_documents_and_bytes_of_utf_8_are_counted_by_split(tmp_path: Path):
    found = read(write(tmp_path / "a", ["é", "abc", "abc"], ["x"]), 3, 1)
    assert found.sizes == {"train": Size(3, 8), "held_out": Size(1, 1)}
    assert found.left == Size()
    expected = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in ("é", "abc")]
    numbers = [int.from_bytes(digest, "little") for digest in expected]
    assert found.digests["train"].tolist() == [*numbers, numbers[1]]


def test_documents_behind_the_last_that_became_tokens_are_left_and_nothing_else(tmp_path: Path):
    found = read(write(tmp_path / "a", ["one", "two", "three"], ["four"]), 2, 1, samples=9)
    assert found.sizes["train"] == Size(2, 6)
    assert found.left == Size(1, 5)
    assert len(found.digests["train"]) == 2
    assert sorted(texts_of(found)) == ["one", "two"]


def test_samples_are_of_the_training_split_and_drawn_by_the_seed_alone(tmp_path: Path):
    train = [f"text {number}" for number in range(50)]
    forward = write(tmp_path / "a", train, ["held out"] * 9)
    backward = write(tmp_path / "b", train[::-1], [])
    drawn = {tuple(texts_of(read(forward, 50, 9, samples=3, seed=seed))) for seed in range(20)}
    assert len(drawn) > 15
    assert all(text in train for texts in drawn for text in texts)
    assert texts_of(read(backward, 50, samples=3)) == texts_of(read(forward, 50, 9, samples=3))


@pytest.mark.parametrize("samples", [0, 1, 4, 99])
def test_as_many_different_texts_are_drawn_as_asked_for_and_there_are(tmp_path: Path, samples: int):
    found = read(write(tmp_path / "a", ["a", "b", "a", "c", "b", "d"], []), 6, samples=samples)
    assert len(set(texts_of(found))) == len(found.samples) == min(samples, 4)
    first = {"a": "train0", "b": "train1", "c": "train3", "d": "train5"}
    assert all(sample.id == first[sample.text] for sample in found.samples)


def test_every_text_is_drawn_equally_often(tmp_path: Path):
    folder = write(tmp_path / "a", ["a", "b", "c", "d"], [])
    seeds = range(400)
    first = [texts_of(read(folder, 4, samples=1, seed=seed))[0] for seed in seeds]
    # Standard deviation of each count: sqrt(400 * 1/4 * 3/4) = 8.7.
    assert all(abs(first.count(text) - 100) < 35 for text in "abcd")


def test_samples_of_sources_are_drawn_as_if_they_were_one(tmp_path: Path):
    one, other = [f"text {n}" for n in range(30)], [f"text {n}" for n in range(20, 60)]
    parts = read(write(tmp_path / "a", one, []), 30), read(write(tmp_path / "b", other, []), 40)
    whole = read(write(tmp_path / "c", one + other, []), 70)
    joined = lowest_ranks([sample for part in parts for sample in part.samples], 2)
    assert [sample.text for sample in joined] == texts_of(whole)


def test_a_long_text_is_cut_and_its_length_kept(tmp_path: Path):
    (sample,) = read(write(tmp_path / "a", ["x" * 5000], []), 1).samples
    assert (len(sample.text), sample.characters) == (SAMPLE_CHARACTERS, 5000)
