from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wrinklefree.errors import UserError
from wrinklefree.mixture import build as mixture_module
from wrinklefree.mixture.build import build_mixture
from wrinklefree.mixture.rows import Rows, read_mixture
from wrinklefree.mixture.settings import MixtureSettings
from wrinklefree.tokens.settings import TokenizeSettings
from wrinklefree.tokens.shards import ShardCounts, ShardWriter, write_token_index
from wrinklefree.tokens.tokenize import tokenize_source
from wrinklefree.tokens.tokenizer import load_tokenizer, token_bytes

END = 0


def mixed(sequence_length: int = 8, **weights: float) -> MixtureSettings:
    return MixtureSettings(
        sequence_length=sequence_length,
        shuffle_buffer_size=4,
        weights=weights or {"d": 1.0},
        max_repetition=2.5,
    )


def pieces(rows: Rows) -> list[list[int]]:
    """All pieces of a split, read through the reader."""
    found = []
    for number in range(len(rows)):
        tokens, ids, positions, *_ = rows.read(number)
        assert (tokens[ids == -1] == END).all()
        for piece in range(ids.max() + 1):
            assert positions[ids == piece].tolist() == list(range((ids == piece).sum()))
            found.append(tokens[ids == piece].tolist())
    return found


def documents_of(rows: Rows) -> dict[int, list[int]]:
    """The token ids of all documents by number, put together from the rows."""
    found: dict[int, dict[int, int]] = {}
    for number in range(len(rows)):
        tokens, ids, _, documents, places = rows.read(number)
        for token, document, place in zip(
            *(column[ids >= 0].tolist() for column in (tokens, documents, places)), strict=True
        ):
            assert place not in found.setdefault(document, {}), "a token is in two rows"
            found[document][place] = token
    assert all(sorted(places) == list(range(len(places))) for places in found.values())
    return {n: [found[n][place] for place in range(len(found[n]))] for n in sorted(found)}


def cut(documents: list[list[int]], length: int) -> list[list[int]]:
    ended = [[*ids, END] for ids in documents]
    return [ids[at : at + length] for ids in ended for at in range(0, len(ids), length)]


DOCUMENTS = st.lists(st.lists(st.integers(3, 319), max_size=30), min_size=1, max_size=25)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(first=DOCUMENTS, second=DOCUMENTS, held=DOCUMENTS)
def test_rows_hold_every_piece_of_all_sources_of_a_domain_once(
    token_folder, tokenizer_folder: Path, tmp_path: Path, first, second, held
) -> None:
    tokens = {
        "a": token_folder("d", {"train": first, "held_out": held}),
        "b": token_folder("d", {"train": second}),
    }
    facts = build_mixture(mixed(), tokens, tokenizer_folder, tmp_path)["domains"]["d"]
    (domain,) = read_mixture(tmp_path).domains
    for rows, documents, split in (
        (domain.train, first + second, "train"),
        (domain.held_out, held, "held_out"),
    ):
        # Numbered source after source, whatever the order in which the rows have them.
        ended = [[*ids, END] for ids in documents]
        assert documents_of(rows) == dict(enumerate(ended))
        if facts[split]["documents_cut"] == 0:
            assert sorted(pieces(rows)) == sorted(cut(documents, 8))
        assert facts[split]["documents"] == len(documents)
        count = sum(len(ids) + 1 for ids in documents)
        assert facts[split]["tokens"] == count
        assert facts[split]["utilisation"] == pytest.approx(count / (len(rows) * 8))

    assert facts["held_out"]["documents_cut"] == 0
    sizes = {name: len(documents) for name, documents in (("a", first), ("b", second))}
    assert {name: counts["train"] for name, counts in facts["sources"].items()} == sizes


def test_training_documents_are_cut_to_fill_rows_and_held_out_ones_are_not(
    token_folder, tokenizer_folder: Path, tmp_path: Path
) -> None:
    sizes = np.random.default_rng(6).integers(110, 250, size=300).tolist()
    documents = [[5] * size for size in sizes]
    tokens = {"a": token_folder("d", {"train": documents, "held_out": documents})}
    facts = build_mixture(mixed(256), tokens, tokenizer_folder, tmp_path)["domains"]["d"]
    assert facts["train"]["utilisation"] > 0.99
    assert 0 < facts["train"]["documents_cut"] < 70
    assert facts["held_out"]["utilisation"] < 0.92
    assert facts["held_out"]["documents_cut"] == 0
    (domain,) = read_mixture(tmp_path).domains
    for rows in (domain.train, domain.held_out):
        assert documents_of(rows) == {n: [*ids, END] for n, ids in enumerate(documents)}


def test_shards_of_a_source_follow_each_other(
    token_folder, tokenizer_folder: Path, tmp_path: Path
) -> None:
    """The rows of a source in two shards are those of the same documents in one."""
    random = np.random.default_rng(4)
    documents = [random.integers(3, 320, size=n).tolist() for n in random.integers(0, 20, size=50)]
    other = token_folder("d", {"train": [[7] * 5] * 30})
    one = token_folder("d", {"train": documents, "held_out": [[5]]})
    two = token_folder("d", {"held_out": [[5]]})
    ids: dict[str, Any] = {"vocabulary_size": 320, "end_of_text_id": END}
    counts = []
    for number, part in enumerate((documents[:20], documents[20:])):
        writer = ShardWriter(two, "train", number, **ids)
        writer.append(part)
        counts.append(writer.close())
    splits = {"train": counts, "held_out": [ShardCounts(0, 2, 1)]}
    write_token_index(two, domain="d", splits=splits, **ids)
    files = []
    for folder in (one, two):
        build_mixture(mixed(), {"a": folder, "b": other}, tokenizer_folder, tmp_path)
        files.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert files[0] == files[1]


def test_writing_in_parts_changes_nothing(
    token_folder, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(3)
    documents = [random.integers(3, 320, size=n).tolist() for n in random.integers(0, 40, size=60)]
    tokens = {"a": token_folder("d", {"train": documents, "held_out": documents[:5]})}
    files = []
    for part in (1 << 22, 8, 24):
        monkeypatch.setattr(mixture_module, "ROWS_PER_WRITE_TOKENS", part)
        build_mixture(mixed(), tokens, tokenizer_folder, tmp_path)
        files.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert files[0] == files[1] == files[2]


def test_sources_of_a_domain_alternate_in_proportion_to_their_size(
    token_folder, tokenizer_folder: Path, tmp_path: Path
) -> None:
    held = {"held_out": [[5]]}
    tokens = {
        "large": token_folder("d", {"train": [[3] * 7] * 60, **held}),
        "small": token_folder("d", {"train": [[4] * 7] * 20}),
    }
    build_mixture(mixed(), tokens, tokenizer_folder, tmp_path)
    first_tokens = read_mixture(tmp_path).domains[0].train.tokens[:, 0]
    for start in range(0, 80, 20):
        assert (first_tokens[start : start + 20] == 4).sum() == 5


def test_index_lists_domains_by_name_with_their_settings(
    token_folder, tokenizer_folder: Path, tmp_path: Path
) -> None:
    documents = {"train": [[3, 4]], "held_out": [[5]]}
    tokens = {name: token_folder(name, documents) for name in ("web", "code", "maths")}
    settings = mixed(16, web=0.75, maths=0.25, code=0.0)
    facts = build_mixture(settings, tokens, tokenizer_folder, tmp_path)
    mixture = read_mixture(tmp_path)
    assert [(d.name, d.weight) for d in mixture.domains] == [
        ("code", 0.0),
        ("maths", 0.25),
        ("web", 0.75),
    ]
    assert (mixture.sequence_length, mixture.shuffle_buffer_size) == (16, 4)
    assert mixture.max_repetition == 2.5
    assert (mixture.vocabulary_size, mixture.end_of_text_id) == (320, END)
    assert mixture.token_bytes_V.tolist() == token_bytes(load_tokenizer(tokenizer_folder)).tolist()
    assert "epoch_samples" not in facts["domains"]["code"]
    assert facts["domains"]["maths"]["epoch_samples"] == pytest.approx(4.0)
    assert facts["domains"]["web"]["epoch_samples"] == pytest.approx(4 / 3)


def test_domain_without_text_to_train_on_or_to_measure_is_an_error(
    token_folder, tokenizer_folder: Path, tmp_path: Path
) -> None:
    no_train = {"a": token_folder("d", {"held_out": [[5]]})}
    with pytest.raises(UserError, match="domain d has weight 1 but no training documents"):
        build_mixture(mixed(), no_train, tokenizer_folder, tmp_path)
    no_held_out = {"a": token_folder("d", {"train": [[5]]})}
    with pytest.raises(UserError, match="domain d has no held-out documents"):
        build_mixture(mixed(), no_held_out, tokenizer_folder, tmp_path)
    both = {"a": token_folder("d", {"train": [[5]], "held_out": [[5]]})}
    with pytest.raises(UserError, match=r"domain e has weight 0\.5 but no training documents"):
        build_mixture(mixed(d=0.5, e=0.5), both, tokenizer_folder, tmp_path)
    with pytest.raises(UserError, match=r"is of domain d, which mixture\.weights does not name"):
        build_mixture(mixed(e=1.0), both, tokenizer_folder, tmp_path)


def test_tokens_of_another_tokenizer_are_refused(
    token_folder, tokenizer_folder: Path, tmp_path: Path
) -> None:
    folder = token_folder("d", {"train": [[5]], "held_out": [[5]]})
    index = json.loads((folder / "tokens.json").read_text())
    (folder / "tokens.json").write_text(json.dumps({**index, "vocabulary_size": 321}))
    with pytest.raises(UserError, match="another tokenizer: vocabulary 321"):
        build_mixture(mixed(), {"a": folder}, tokenizer_folder, tmp_path)


def test_tokens_of_another_tokenizer_of_as_many_ids_are_refused(
    raw, tokenizer_folder: Path, tmp_path: Path
) -> None:
    other, tokens, folder = (tmp_path / name for name in ("other", "tokens", "mixture"))
    shutil.copytree(tokenizer_folder, other)
    tokens.mkdir()
    folder.mkdir()
    text = raw("d", {"train": ["one two"], "held_out": ["three"]})
    one = TokenizeSettings(processes=1)
    tokenize_source(one, text, tokenizer_folder, tokens, work=tmp_path / "work")
    build_mixture(mixed(), {"a": tokens}, other, folder)
    serialized = json.loads((other / "tokenizer.json").read_text())
    serialized["model"]["merges"].reverse()
    (other / "tokenizer.json").write_text(json.dumps(serialized))
    with pytest.raises(UserError, match="made by another tokenizer than .*other, of as many ids"):
        build_mixture(mixed(), {"a": tokens}, other, folder)


ON_A_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from wrinklefree.mixture.settings import MixtureSettings
from wrinklefree.mixture.build import build_mixture
from wrinklefree.tracking.files import is_disk_full
tokens, tokenizer, folder, limit = (*map(Path, sys.argv[1:4]), int(sys.argv[4]))
settings = MixtureSettings(sequence_length=8, shuffle_buffer_size=4, weights={"d": 1.0})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    build_mixture(settings, {"a": tokens}, tokenizer, folder)
except Exception as error:
    print(is_disk_full(error))
"""


@pytest.mark.parametrize(
    ("document", "count", "limit", "last"),
    [
        ([], 240, 700, "d.train.pieces"),  # 480 bytes of rows, 4800 of pieces
        ([5] * 7, 1, 700, "token_bytes"),  # 320 ids of 4 bytes
    ],
)
def test_a_full_disk_is_recognised_whichever_file_it_meets(
    token_folder, tokenizer_folder: Path, tmp_path: Path,
    document: list[int], count: int, limit: int, last: str,
) -> None:  # fmt: skip
    tokens = token_folder("d", {"train": [document] * count, "held_out": [[5]]})
    paths = (str(path) for path in (tokens, tokenizer_folder, tmp_path))
    command = [sys.executable, "-c", ON_A_FULL_DISK, *paths, str(limit)]
    assert subprocess.check_output(command, text=True).split() == ["True"]
    assert (tmp_path / last).stat().st_size == limit, "another file met the limit"
