from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wrinklefree.errors import UserError
from wrinklefree.evaluate.scores import domain_score
from wrinklefree.mixture.build import build_mixture
from wrinklefree.mixture.loader import HeldOutData
from wrinklefree.mixture.settings import MixtureSettings
from wrinklefree.models.dense import build_scratch
from wrinklefree.models.losses import token_losses
from wrinklefree.models.settings import ModelSettings
from wrinklefree.research.measure import measure_held_out, require_documents
from wrinklefree.research.settings import MeasureSettings

MODEL = ModelSettings(
    hidden_size=16,
    intermediate_size=32,
    layers=1,
    heads=1,
    key_value_heads=1,
    rope_theta=10000.0,
    initializer_range=0.5,
)
HeldOut = Callable[[list[int]], HeldOutData]


@pytest.fixture
def held_out(tokenizer: Path, write_tokens: Callable[..., Path], tmp_path: Path) -> HeldOut:
    """``held_out(lengths)``: rows of 16 tokens of documents so long, ends of text not counted."""

    def make(lengths: list[int]) -> HeldOutData:
        generator = np.random.default_rng(3)
        folders = [tmp_path / name for name in ("tokens", "mixture")]
        for folder in folders:
            folder.mkdir()
        documents = [generator.integers(1, 300, length).tolist() for length in lengths]
        write_tokens(folders[0], "d", {"train": documents, "held_out": documents}, 300)
        settings = MixtureSettings(sequence_length=16, shuffle_buffer_size=5, weights={"d": 1.0})
        build_mixture(settings, {"a": folders[0]}, tokenizer, folders[1])
        return HeldOutData(folders[1])

    return make


@pytest.mark.parametrize("rows", [2, 4, 100])
def test_sums_of_documents_are_over_their_parts_in_all_the_rows_that_are_scored(
    held_out: HeldOut, rows: int
):
    data = held_out([70, 3, 0, 18, 5, 31, 0])
    model = build_scratch(MODEL, 300, 16, 0, seed=3)
    found = measure_held_out(model, data, MeasureSettings(rows_per_domain=rows, batch_size=3))["d"]
    nats: dict[tuple[str, int], float] = defaultdict(float)
    tokens: dict[tuple[str, int], int] = defaultdict(int)
    count_bytes: dict[tuple[str, int], int] = defaultdict(int)
    for batch in data.batches("d", rows=rows, batch_size=1):
        losses_T = token_losses(model, batch)[0].tolist()
        ids, documents = batch.document_ids_BT[0].tolist(), batch.source_documents_BT[0].tolist()
        for at in range(1, 16):
            if ids[at] < 0 or ids[at] != ids[at - 1]:
                continue
            for key in (("row", int(batch.sample_B)), ("document", documents[at])):
                nats[key] += losses_T[at]
                tokens[key] += 1
                count_bytes[key] += int(data.token_bytes_V[batch.tokens_BT[0, at]])
    for kind, sums in (("row", found.rows), ("document", found.documents)):
        keys = sorted(key for key in tokens if key[0] == kind)
        assert sums.tokens == [tokens[key] for key in keys]
        assert sums.bytes == [count_bytes[key] for key in keys]
        assert sums.nats == pytest.approx([nats[key] for key in keys], rel=1e-5)
    assert len(found.documents.tokens) != len(found.rows.tokens)
    assert domain_score(found, "d").loss_variance > 0
    total = sum(found.documents.nats) / sum(found.documents.tokens)
    assert domain_score(found, "d").score.loss == pytest.approx(total)


def test_one_row_of_several_documents_is_enough(held_out: HeldOut):
    data, settings = held_out([4, 4, 4]), MeasureSettings(rows_per_domain=100, batch_size=3)
    require_documents(data, settings)
    found = measure_held_out(build_scratch(MODEL, 300, 16, 0, seed=3), data, settings)["d"]
    assert (len(found.rows.tokens), len(found.documents.tokens)) == (1, 3)


def test_rows_of_a_single_document_are_refused(held_out: HeldOut):
    data = held_out([200, 10, 0])
    require_documents(data, MeasureSettings(rows_per_domain=100, batch_size=3))
    with pytest.raises(UserError, match="domain d that .*rows_per_domain 2 takes are from 1 docu"):
        require_documents(data, MeasureSettings(rows_per_domain=2, batch_size=3))
