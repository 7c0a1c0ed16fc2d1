"""The quality filter on a source with noise in it: what it drops, and what held-out loss gains.

Of the default run's encyclopaedic source a tenth of the training documents is good text. The others
are a pool, in which half of them are replaced by noise of the same length: code, passages of
speeches, or the document's own words in another order. The pool is bad text, as a crawl would be.
Small models are trained on the cleaned pool without the filter, with it, and on the documents of
the pool that are no noise, for equally many tokens. Ten minutes on two cores; needs ``data/raw``
and ``data/tokenizer``.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from _timing import ROOT, default_settings, print_header, require
from tokenizers import Tokenizer

from wrinklefree.mixture.token_rows import TokenRows
from wrinklefree.models.dense import build_scratch
from wrinklefree.research.intervals import paired_difference
from wrinklefree.text.clean.quality import quality_scores, train_judges
from wrinklefree.text.clean.settings import CleaningSettings
from wrinklefree.text.clean.source import clean_source
from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.parquet import DocumentWriter, read_documents, read_texts
from wrinklefree.text.documents.settings import QualitySettings
from wrinklefree.tokens.tokenizer import END_OF_TEXT
from wrinklefree.train.loop import Trainer
from wrinklefree.train.settings import TrainingSettings

SOURCE = "encyclopaedic"
NOISE = ("code", "speeches", "shuffled")
ROW = 256
BATCH_ROWS = 8
CONFIDENCE = 0.95
QUALITY = {"enabled": True, "good": ["good"], "bad": ["pool"]}
THRESHOLDS = (0.35, 0.5)


def make_pool(data: Path, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Folders of good and of pooled documents; the kind of each document of the pool."""
    draw = random.Random(0)
    noise = {name: "\n\n".join(read_texts(data / "raw" / name, "train")) for name in NOISE[:2]}
    raw = {name: folder / name for name in ("good", "pool")}
    for path in raw.values():
        path.mkdir()
    kinds = {}
    with DocumentWriter(raw["good"], SOURCE) as good, DocumentWriter(raw["pool"], SOURCE) as pool:
        for document, split in read_documents(data / "raw" / SOURCE):
            if split == "held_out" or draw.random() >= 0.1:
                noisy = split == "train" and draw.random() < 0.5
                kinds[document.id] = kind = draw.choice(NOISE) if noisy else "clean"
                pool.append(Document(document.id, noised(document.text, kind, noise, draw)), split)
            else:
                good.append(document, split)
    return raw, kinds


def noised(text: str, kind: str, noise: dict[str, str], draw: random.Random) -> str:
    if kind == "clean":
        return text
    if kind == "shuffled":
        words = text.split()
        return " ".join(draw.sample(words, len(words)))
    start = draw.randrange(len(noise[kind]) - len(text))
    return noise[kind][start : start + len(text)]


def cleaned(raw: dict[str, Path], folder: Path, **quality: Any) -> dict[str, str]:
    """Training texts by id that cleaning leaves of the pool."""
    general, _ = default_settings()
    chosen = general.cleaning.model_dump(exclude_unset=True) | {"quality": quality}
    out = folder / str(quality.get("threshold"))
    out.mkdir()
    facts = clean_source(
        "pool",
        CleaningSettings.model_validate(chosen),
        None,
        raw,
        out,
        work=folder / "work",
        cache=folder,
    )
    read, kept = (sum(split["bytes"] for split in facts[key].values()) for key in ("read", "kept"))
    dropped = sum(step["bytes"] for step in facts["dropped"].values())
    require(read == kept + dropped, "every byte kept or counted as dropped")
    if learnt := facts.get("quality"):
        print(f"judges of {learnt['good']} good and {learnt['bad']} bad: AUC {learnt['auc']}")
    return {
        document.id: document.text for document, split in read_documents(out) if split == "train"
    }


def print_dropped(before: dict[str, str], after: dict[str, str], kinds: dict[str, str]) -> None:
    total, left = (Counter(kinds[name] for name in texts) for texts in (before, after))
    shares = (f"{kind} {1 - left[kind] / total[kind]:.1%}" for kind in ("clean", *NOISE))
    print(f"dropped by the filter, of the documents: {', '.join(shares)}")


def print_seconds(raw: dict[str, Path]) -> None:
    settings = QualitySettings.model_validate(QUALITY)
    started = time.perf_counter()
    judges_FH, _ = train_judges(raw, settings)
    trained = time.perf_counter()
    texts = list(read_texts(raw["pool"], "train"))
    opened = time.perf_counter()
    quality_scores(texts, judges_FH, settings.ngram)
    rate = sum(len(text.encode()) for text in texts) / (time.perf_counter() - opened) / 1e6
    print(f"training both judges {trained - started:.1f} s, judging {rate:.1f} MB/s")


def rows_of(texts: list[str], tokenizer: Tokenizer) -> torch.Tensor:
    """Documents one after the other, int64 [rows, 256]."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    ids = [i for text in tokenizer.encode_batch(texts) for i in (*text.ids, end)]
    tokens = torch.tensor(ids)
    return tokens[: len(tokens) // ROW * ROW].view(-1, ROW)


def held_out_losses(
    rows: torch.Tensor, documents: list[list[int]], steps: int, seed: int
) -> np.ndarray:
    """Nats of each held-out document under a small model trained on ``rows``, [N]."""
    general, _ = default_settings()
    rate = {"lr": 0.01, "adamw_lr": 0.01, "weight_decay": 0.1}
    training = {"steps": steps, "batch_size": BATCH_ROWS, "schedule": {"warmup_steps": steps // 10}}
    settings = TrainingSettings.model_validate(
        training | {"optimizer": {"name": "muon", "muon": rate}}
    )
    end = documents[0][0]
    vocabulary = general.tokenizer.vocabulary_size  # pyright: ignore[reportAttributeAccessIssue]
    model = build_scratch(general.experiments.runs.model, vocabulary, ROW, end, seed)
    Trainer(model, TokenRows(rows, seed=seed), settings).run()
    model.eval()
    nats = []
    with torch.no_grad():
        for ids in documents:
            tokens_1T = torch.tensor([ids])
            loss = model(tokens_1T, labels=tokens_1T).loss
            nats.append(float(loss) * (len(ids) - 1))
    return np.array(nats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="of a default run")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    sources = [arguments.data / "raw" / name for name in (SOURCE, *NOISE[:2])]
    if not all((path / "manifest.json").is_file() for path in sources):
        print("no figures: data/raw is not complete; run `snakemake tokenizer` first")
        return
    print_header("Quality filter")
    tokenizer = Tokenizer.from_file(str(arguments.data / "tokenizer" / "tokenizer.json"))
    with TemporaryDirectory() as folder:
        raw, kinds = make_pool(arguments.data, Path(folder))
        pool = cleaned(raw, Path(folder))
        arms = {"pool": pool}
        for threshold in THRESHOLDS:
            arms[f"from {threshold}"] = cleaned(raw, Path(folder), **QUALITY, threshold=threshold)
            print_dropped(pool, arms[f"from {threshold}"], kinds)
        held_out = list(read_texts(raw["pool"], "held_out"))
        print_seconds(raw)
    arms["no noise"] = {name: text for name, text in pool.items() if kinds[name] == "clean"}
    end = tokenizer.token_to_id(END_OF_TEXT)
    documents = [[end, *text.ids[: ROW - 1]] for text in tokenizer.encode_batch(held_out)]
    tokens_N = np.array([len(ids) - 1 for ids in documents])
    nats = {}
    for name, texts in arms.items():
        rows = rows_of(list(texts.values()), tokenizer)
        losses = [
            held_out_losses(rows, documents, arguments.steps, seed)
            for seed in range(arguments.seeds)
        ]
        nats[name] = np.stack(losses)
        mean = nats[name].sum() / tokens_N.sum() / arguments.seeds
        found = paired_difference(
            {SOURCE: nats[name] - nats["pool"]}, {SOURCE: tokens_N}, {SOURCE: 1.0}, CONFIDENCE
        )
        print(
            f"{name:<10} {len(rows)} rows, {arguments.steps * BATCH_ROWS} read: loss {mean:.3f},"
            f" against the pool {found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
        )


if __name__ == "__main__":
    main()
