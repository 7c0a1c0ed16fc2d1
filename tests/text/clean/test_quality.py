from __future__ import annotations

import hashlib
import math
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cleaner import OFF, Texts, slow_ngrams, write

from wrinklefree.errors import UserError
from wrinklefree.text.clean.quality import (
    FEATURE_BITS,
    FEATURES,
    INVERSE_STRENGTH,
    quality_scores,
    train_judges,
    word_features,
)
from wrinklefree.text.clean.repeats import digest
from wrinklefree.text.documents.settings import CleaningSteps, QualitySettings

WORDS = [f"word{number}" for number in range(60)]
GOOD, BAD = WORDS[:40], WORDS[20:]


def documents(words: list[str], count: int, seed: int, length: int = 12) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, k=length)) for _ in range(count)]


def training(texts: list[str]) -> Texts:
    return [(text, "train") for text in texts]


def settings(**changed: Any) -> QualitySettings:
    chosen = {"enabled": True, "good": ["good"], "bad": ["bad"], **changed}
    return QualitySettings.model_validate(chosen)


def judges(folder: Path, good: Texts, bad: Texts, **changed: Any) -> tuple[np.ndarray, Any]:
    raw = {"good": write(folder / "good", good), "bad": write(folder / "bad", bad)}
    return train_judges(raw, settings(**changed))


def on(**changed: Any) -> dict[str, Any]:
    return {**OFF, "quality": settings(**changed).model_dump(exclude_unset=True)}


def half(text: str) -> int:
    return digest(text)[-1] % 2


def slow_feature(words: tuple[str, ...]) -> int:
    total = 0
    for word in words:
        hashed = hashlib.blake2b(word.encode(), digest_size=8).digest()
        total = (total * 0x9E3779B97F4A7C15 + int.from_bytes(hashed, "little")) % 2**64
    return total // 2 ** (64 - FEATURE_BITS)


def slow_score(text: str, weights: np.ndarray, intercept: float, ngram: int) -> float:
    runs = [run for n in range(1, ngram + 1) for run in slow_ngrams(text, n)]
    counts = Counter(slow_feature(run) for run in runs)
    values = {feature: math.log(1 + count) for feature, count in counts.items()}
    length = math.sqrt(sum(value**2 for value in values.values()))
    logit = intercept + sum(weights[f] * value / length for f, value in values.items())
    return 1 / (1 + math.exp(-logit))


@pytest.mark.parametrize("ngram", [1, 2, 3])
def test_scores_are_those_of_a_slow_sum_over_runs_of_words(ngram: int) -> None:
    judges_FH = np.random.default_rng(0).normal(size=(FEATURES + 1, 2))
    texts = [*documents(WORDS, 20, 0), "One, two - TWO one two!", "lonely", "", "!?", "ö Ö"]
    expected = [
        slow_score(text, judges_FH[:-1, half(text)], judges_FH[-1, half(text)], ngram)
        for text in texts
    ]
    found = quality_scores(texts, judges_FH, ngram)
    assert found == pytest.approx(expected, abs=1e-12)
    alone = [quality_scores([text], judges_FH, ngram)[0] for text in texts]
    assert np.array_equal(found, alone)


def test_each_judge_is_where_the_loss_over_the_other_half_has_no_slope(tmp_path: Path) -> None:
    good, bad = documents(GOOD, 30, 1), documents(BAD, 90, 2)
    judges_FH, _ = judges(tmp_path, training(good), training(bad))
    for number in range(2):
        texts = [text for text in good + bad if half(text) != number]
        sign_D = np.array([1.0 if text in good else -1.0 for text in texts])
        weight_D = np.where(sign_D > 0, 1 / (sign_D > 0).sum(), 1 / (sign_D < 0).sum())
        weight_D *= len(texts) / 2
        features_DF = word_features(texts, 2)
        judge_F = judges_FH[:, number]
        margin_D = sign_D * (features_DF @ judge_F[:-1] + judge_F[-1])
        pull_D = INVERSE_STRENGTH * weight_D * sign_D / (1 + np.exp(margin_D))
        slope_F = judge_F - np.append(features_DF.T @ pull_D, pull_D.sum())
        assert np.abs(slope_F).max() < 1e-3 * np.abs(judge_F).max()


def test_planted_words_are_found_and_random_labels_are_not(tmp_path: Path) -> None:
    planted = training(documents(GOOD, 80, 3)), training(documents(BAD, 80, 4))
    assert judges(tmp_path / "planted", *planted)[1]["auc"] > 0.99
    same = training(documents(WORDS, 150, 5)), training(documents(WORDS, 150, 6))
    assert 0.4 < judges(tmp_path / "random", *same)[1]["auc"] < 0.6


def test_runs_of_words_tell_texts_whose_words_are_the_same(tmp_path: Path) -> None:
    pairs = [f"{a} {b}" for a, b in zip(WORDS[::2], WORDS[1::2], strict=True)]
    good = documents(pairs, 80, 7)
    draw = random.Random(8)
    bad = [" ".join(draw.sample(text.split(), 24)) for text in good]
    aucs = [
        judges(tmp_path / str(n), training(good), training(bad), ngram=n)[1]["auc"] for n in (1, 2)
    ]
    assert aucs[0] < 0.6
    assert aucs[1] > 0.95


def test_a_document_is_judged_by_what_has_not_learnt_its_text(tmp_path: Path) -> None:
    good, bad = training(documents(GOOD, 40, 9)), training(documents(BAD, 40, 10))
    text = "a text of words that nothing else has"
    before, _ = judges(tmp_path / "without", good, bad)
    for kind, sources in (
        ("good", ([*good, (text, "train")], bad)),
        ("bad", (good, [*bad, (text, "train")])),
    ):
        after, _ = judges(tmp_path / kind, *sources)
        assert quality_scores([text], after, 2) == quality_scores([text], before, 2)
        other = 1 - half(text)
        assert not np.array_equal(after[:, other], before[:, other])


def test_held_out_documents_teach_nothing(tmp_path: Path) -> None:
    good, bad = training(documents(GOOD, 40, 11)), training(documents(BAD, 40, 12))
    held_out: Texts = [(text, "held_out") for text in documents(BAD, 40, 13)]
    before, after = (
        judges(tmp_path / name, texts, bad)
        for name, texts in (("without", good), ("with", [*good, *held_out]))
    )
    assert np.array_equal(before[0], after[0])
    assert before[1] == after[1]


def test_at_most_so_many_megabytes_are_learnt_from_all_over_a_source(tmp_path: Path) -> None:
    # 3 MB of which the second half is worth nothing, and documents that are too long for any share.
    first, second = (documents([words], 30, 0, 50_000 // 7) for words in ("first", "second"))
    first, second = ([f"{text} {n}" for n, text in enumerate(texts)] for texts in (first, second))
    long = "word " * 400_000
    good = training([long, *first, *second])
    judges_FH, facts = judges(tmp_path, good, training(documents(BAD, 40, 14)), max_megabytes=1)
    assert 15 <= facts["good"] <= 25
    assert facts["bad"] == 40
    assert (quality_scores(["first", "second"], judges_FH, 2) > 0.5).all()


OTHERS = {"good": training(documents(GOOD, 60, 15)), "bad": training(documents(BAD, 60, 16))}
NEW_GOOD, NEW_BAD = documents(GOOD[:20], 10, 17), documents(BAD[20:], 10, 18)


def test_bad_training_documents_go_and_are_counted_and_held_out_ones_stay(clean) -> None:
    texts: Texts = [
        *training([*NEW_GOOD, *NEW_BAD]),
        (NEW_BAD[0], "held_out"),
        (NEW_GOOD[0], "held_out"),
    ]
    left, facts, _ = clean(texts, others=OTHERS, **on())
    assert left == [*texts[:10], *texts[20:]]
    size = sum(len(text) for text in NEW_BAD)
    assert facts["dropped"]["quality"] == {"documents": 10, "paragraphs": 0, "bytes": size}
    assert facts["quality"]["good"] == facts["quality"]["bad"] == 60
    off = clean(texts, others=OTHERS, **on(enabled=False))
    assert off[0] == texts
    assert "quality" not in off[1]


def test_the_threshold_decides_how_good_a_document_must_be(clean) -> None:
    between = documents(GOOD[20:], 30, 19)
    texts = training([*NEW_GOOD, *between])
    kept = [len(clean(texts, others=OTHERS, **on(threshold=least))[0]) for least in (0.0, 0.5, 0.7)]
    assert kept[0] == 40
    assert 10 < kept[1] < 40
    assert kept[2] < kept[1]


def test_a_source_may_be_judged_by_settings_of_its_own(clean) -> None:
    texts = training([*NEW_GOOD, *NEW_BAD])
    own = CleaningSteps.model_validate({"quality": {"enabled": True}})
    general = on(enabled=False)
    assert clean(texts, others=OTHERS, own=own, **general)[0] == texts[:10]


def test_a_bad_source_is_filtered_and_a_good_one_is_not(clean) -> None:
    mixed = training([*documents(BAD, 80, 20), *documents(GOOD, 20, 21)])
    left, _, _ = clean(mixed, others={"good": OTHERS["good"]}, **on(bad=["s"]))
    assert len(set(left) & set(mixed[80:])) > 15
    assert len(set(left) & set(mixed[:80])) < 10
    as_good = clean(mixed, others={"bad": OTHERS["bad"]}, **on(good=["s"]))
    assert as_good[0] == mixed
    assert "quality" not in as_good[1]


def test_too_little_text_of_a_kind_is_named(clean) -> None:
    with pytest.raises(UserError, match=r"quality\.bad: half of the bad documents.*: tiny has too"):
        clean(training(NEW_GOOD), others=OTHERS | {"tiny": training(["a"])}, **on(bad=["tiny"]))


ANOTHER_PROCESS = """
import sys
from pathlib import Path
from wrinklefree.text.clean.quality import train_judges
from wrinklefree.text.documents.settings import QualitySettings

folder = Path(sys.argv[1])
settings = QualitySettings(enabled=True, good=["good"], bad=["bad"])
judges_FH, _ = train_judges({name: folder / name for name in ("good", "bad")}, settings)
sys.stdout.buffer.write(judges_FH.tobytes())
"""


def test_other_processes_and_threads_learn_the_same_to_the_bit(tmp_path: Path) -> None:
    good, bad = documents(WORDS, 300, 22, 60), documents(BAD, 300, 23, 60)
    judges_FH, _ = judges(tmp_path, training(good), training(bad))
    variables = {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "3"}
    command = [sys.executable, "-c", ANOTHER_PROCESS, str(tmp_path)]
    result = subprocess.run(command, env=os.environ | variables, capture_output=True, check=True)
    assert result.stdout == judges_FH.tobytes()
