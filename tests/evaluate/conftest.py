"""A tiny run: a tokenizer, a mixture with three domains, and models in folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from wrinklefree.mixture.rows import (
    MIXTURE_FILE,
    OFFSET_DTYPE,
    PIECE_DTYPE,
    TOKEN_BYTES_DTYPE,
    TOKEN_BYTES_FILE,
)
from wrinklefree.models.folder import save_model
from wrinklefree.models.transforms import DiffuseBlocks, ModelFormat, ternary
from wrinklefree.tokens.tokenizer import load_tokenizer, token_bytes

VOCABULARY, LENGTH, END, MASK = 300, 17, 0, 2
HELD_OUT_ROWS = {"code": 5, "prose": 7, "spare": 3}
WEIGHTS = {"code": 0.25, "prose": 0.75, "spare": 0.0}
DIFFUSION = DiffuseBlocks(block_size=4, token_shift="clean_boundary", mask_token_id=MASK)


def tiny_model(seed: int, *, scale: float = 0.3) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=scale,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[..., PreTrainedModel]:
    """``tiny_llama(seed)``: a random model of two layers."""
    return tiny_model


@pytest.fixture(scope="session")
def tokenizer_folder(
    save_tokenizer: Callable[[Path, list[str]], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, ["<|endoftext|>", "<|padding|>", "|<MASK>|"])
    return folder


@pytest.fixture(scope="session")
def mixture(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    generator = np.random.default_rng(4)
    domains = []
    for name, rows in HELD_OUT_ROWS.items():
        counts = {}
        for split, number in (("train", 1), ("held_out", rows)):
            counts[split] = _write_rows(folder / f"{name}.{split}", number, generator)
        domains.append({"name": name, "weight": WEIGHTS[name], "splits": counts})
    index = {
        "sequence_length": LENGTH,
        "shuffle_buffer_size": 10,
        "max_repetition": 4.0,
        "vocabulary_size": VOCABULARY,
        "end_of_text_id": END,
        "dtype": "uint16",
        "domains": domains,
    }
    (folder / MIXTURE_FILE).write_text(json.dumps(index))
    bytes_V = token_bytes(load_tokenizer(tokenizer_folder))
    bytes_V.astype(TOKEN_BYTES_DTYPE).tofile(folder / TOKEN_BYTES_FILE)
    return folder


def _write_rows(stem: Path, rows: int, generator: np.random.Generator) -> dict[str, int]:
    """Rows of random documents: one of a single token, one that goes on, a padded tail."""
    tokens = generator.integers(3, VOCABULARY, size=(rows, LENGTH)).astype("<u2")
    pieces: list[tuple[int, int, int]] = []
    offsets = [0]
    for row in range(rows):
        lengths = [1 + row % 2, 6, LENGTH - 7 - row % 2 - row % 3]
        ends = np.cumsum(lengths)
        tokens[row, ends[:2] - 1] = END
        tokens[row, ends[2] :] = END
        pieces += [(len(pieces) + number, 0, length) for number, length in enumerate(lengths)]
        offsets.append(len(pieces))
    tokens.tofile(f"{stem}.rows")
    np.array(pieces, dtype=PIECE_DTYPE).tofile(f"{stem}.pieces")
    np.array(offsets, dtype=OFFSET_DTYPE).tofile(f"{stem}.offsets")
    return {"rows": rows, "pieces": len(pieces), "tokens": sum(length for *_, length in pieces)}


def write_history(folder: Path, steps: int = 30, *, quantized: bool = True) -> None:
    lines = []
    for step in range(1, steps + 1):
        record = {
            "step": step,
            "tokens": step * 100,
            "train/loss": 5.0 - step / steps,
            "train/learning_rate": 1e-3,
            "train/grad_norm_raw": 1.0 + (step == 20) * 9.0,
            "train/grad_norm_clipped": 1.0,
            "train/grad_norm": 1.0,
            "train/grad_clipped": float(step == 20),
            "train/zclip_ema_mean": 1.0,
            "train/zclip_ema_std": 0.1,
            "train/loss/prose": 4.9 - step / steps,
            "train/share/prose": 0.7 if step % 3 else 1.0,
            "train/loss_variance": 0.5,
        }
        if quantized:
            record["train/lambda"] = min(step / 10, 1.0)
        if step % 3:
            record["train/loss/code"] = 4.0 - step / steps
            record["train/share/code"] = 0.3
        lines.append(json.dumps(record))
    (folder / "history.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def run_models(
    tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], dict[str, Path]]:
    """A function that makes a fresh copy of the model folders of a run."""

    def build() -> dict[str, Path]:
        root = tmp_path_factory.mktemp("models")
        folders = {}
        # Of a base with this seed naive ternarization does damage, which can be recovered.
        seeds = {"base": 13, "subln": 1, "stage2": 2, "distill_ar": 3, "dlm": 4}
        for name, seed in seeds.items():
            model = tiny_model(seed)
            model_format = ModelFormat() if name == "base" else ternary()
            if name == "dlm":
                model_format = model_format.then(DIFFUSION)
            model_format.apply(model)
            save_model(root / name, model, model_format, tokenizer_folder)
            if name != "subln":
                write_history(root / name, quantized=name != "base")
            folders[name] = root / name
        return folders

    return build


@pytest.fixture(scope="session")
def require_readable_labels() -> Callable[[Figure], None]:
    """Asserts that the labels of a figure lie within it and apart from each other."""

    def require(figure: Figure) -> None:
        figure.draw_without_rendering()
        inside = figure.bbox.padded(1.0)
        for axes in figure.axes:
            boxes = [
                text.get_window_extent()
                for text in [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
                if text.get_text() and axes.axison
            ]
            for index, box in enumerate(boxes):
                assert inside.containsx(box.x0) and inside.containsx(box.x1)
                assert inside.containsy(box.y0) and inside.containsy(box.y1)
                assert not any(box.overlaps(other) for other in boxes[:index])

    return require


@pytest.fixture(scope="session")
def read_page() -> Callable[[str], tuple[list[str], list[str]]]:
    """(texts, tags) of a web page, in order."""

    def read(page: str) -> tuple[list[str], list[str]]:
        shown: list[str] = []
        tags: list[str] = []

        class Reader(HTMLParser):
            def handle_data(self, data: str) -> None:
                shown.append(data)

            def handle_starttag(self, tag: str, attrs: object) -> None:
                tags.append(tag)

        Reader().feed(page)
        return shown, tags

    return read
