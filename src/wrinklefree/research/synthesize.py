"""The ``synthesize`` stage: text that a teacher writes, where the student is behind it.

A teacher of another tokenizer can teach through its text. It continues beginnings of training
documents; which ones is drawn in proportion to how many nats per byte more the student needs for
the document than the teacher. What comes out is no part of this run: as a source of kind ``files``,
pinned by its hash, it is one more domain of the next, and is cleaned as any other.

Shapes: N tokens of a text, B documents, P tokens of a prompt, S tokens of prompt and continuation.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.models.folder import load_model
from wrinklefree.models.losses import cross_entropies
from wrinklefree.models.teachers import brought
from wrinklefree.research.synthesize_settings import SynthesizeSettings
from wrinklefree.text.documents.parquet import read_documents
from wrinklefree.tokens.tokenizer import begin_of_text, load_tokenizer
from wrinklefree.tracking.files import sha256_of_json, write_atomically
from wrinklefree.tracking.progress import Progress, progress
from wrinklefree.tracking.stage import Stage

DOCUMENTS = "documents.jsonl"
CANDIDATES = "candidates.jsonl"
_CUT_CHARACTER = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Writer:
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: Tokenizer

    @classmethod
    def of(cls, model: PreTrainedModel, folder: Path) -> Writer:
        """With the tokenizer of ``folder``, on a GPU where there is one."""
        nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
        # What a model brings for generation (a penalty of repetition, say) is asked of nobody.
        model.generation_config = GenerationConfig()
        return cls(model, load_tokenizer(folder))

    @cached_property
    def special_ids(self) -> list[int]:
        """Tokens that are no text, each of which ends one: a chat model has several."""
        added = self.tokenizer.get_added_tokens_decoder()
        return sorted(number for number, token in added.items() if token.special)

    @cached_property
    def _begin(self) -> list[int]:
        return begin_of_text(self.tokenizer)

    @property
    def _room(self) -> int:
        """How many tokens of a text its positions hold."""
        return self.model.config.max_position_embeddings - len(self._begin)

    def ids(self, text: str) -> list[int]:
        """Tokens of plain text from its beginning on."""
        return [*self._begin, *self.tokenizer.encode(text, add_special_tokens=False).ids]

    def reach(self, text: str) -> int:
        """How many characters its positions hold."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return encoding.offsets[: self._room][-1][1]

    @torch.no_grad()
    def nats_per_byte(self, text: str) -> float:
        """What it needs for the text behind its first token, as far as its positions reach."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        length = min(len(encoding.ids), self._room)
        (begin, end) = (encoding.offsets[index][1] for index in (0, length - 1))
        ids_N = torch.tensor(self._begin + encoding.ids[:length], device=self.model.device)
        hidden_ND = self.model.get_decoder()(ids_N[None], use_cache=False).last_hidden_state[0]
        first = len(self._begin)
        nats = cross_entropies(self.model, hidden_ND[first:-1], ids_N[first + 1 :])
        return nats.double().sum().item() / max(len(text[begin:end].encode()), 1)


@dataclass(frozen=True)
class Candidate:
    """A training document that may be continued."""

    id: str
    source: str
    text: str
    """Its beginning."""
    student: float | None = None
    """Nats per byte; None where nobody was asked."""
    teacher: float | None = None

    @property
    def excess(self) -> float:
        """How many nats per byte the student is behind; 0 where it is not."""
        assert self.student is not None and self.teacher is not None
        return max(self.student - self.teacher, 0.0)


def synthesize(stage: Stage) -> dict[str, Any]:
    """Write the documents, into ``stage.folder``.

    Files
    -----
    ``documents.jsonl``: ``id``, ``text``, and of its ``prompt`` the candidate's id.
    ``candidates.jsonl``: ``id``, ``source``, and with ``prompts: excess`` nats per byte of
    ``student`` and ``teacher``.

    Raises
    ------
    UserError : the teacher can't be had, no training document is long enough, or the student is
        nowhere behind the teacher.
    """
    settings = stage.section("synthesize", SynthesizeSettings)
    teacher = _teacher(settings, stage.downloads)
    known = stage.work / CANDIDATES
    if not known.is_file():  # a resumed stage draws from the same numbers, to the last bit
        found = _candidates(settings, stage.collection("documents"), teacher, stage.seed)
        if settings.prompts == "excess":
            found = _asked(found, stage.inputs["student"], teacher)
        write_atomically(known, json.dumps([asdict(one) for one in found]))
    candidates = [Candidate(**one) for one in json.loads(known.read_text(encoding="utf-8"))]
    if len(candidates) < settings.candidates:
        stage.terminal.say(f"synthesize: only {len(candidates):,} documents are long enough")
    prompts = drawn_prompts(settings, candidates, stage.seed)
    documents = list(_written(stage, settings, teacher, prompts))
    kept = [document for document in documents if document["tokens"] >= settings.least_new_tokens]
    if not kept:
        raise UserError(
            f"all {len(documents)} continuations have fewer than {settings.least_new_tokens}"
            " tokens; lower synthesize.least_new_tokens"
        )
    _write_lines(stage.folder / DOCUMENTS, kept)
    unsaid = ("text",) if settings.prompts == "excess" else ("text", "student", "teacher")
    told = [{k: v for k, v in asdict(one).items() if k not in unsaid} for one in candidates]
    _write_lines(stage.folder / CANDIDATES, told)
    facts = {
        "documents": len(kept),
        "dropped_short": len(documents) - len(kept),
        "tokens": sum(document["tokens"] for document in kept),
        "candidates": len(candidates),
        "prompts": {
            source: sum(prompt.source == source for prompt in prompts)
            for source in sorted({one.source for one in candidates})
        },
    }
    stage.terminal.say(
        f"synthesize: {len(kept):,} documents with {facts['tokens']:,} new tokens;"
        f" {facts['dropped_short']} were too short"
    )
    return facts


def _asked(candidates: list[Candidate], folder: Path, teacher: Writer) -> list[Candidate]:
    student = Writer.of(load_model(folder, "dense", "ternary")[0], folder)
    found = []
    for one in progress(candidates, "synthesize: excess", "documents", len(candidates)):
        text = one.text[: min(student.reach(one.text), teacher.reach(one.text))]
        asked = {"student": student.nats_per_byte(text), "teacher": teacher.nats_per_byte(text)}
        found.append(replace(one, **asked))
    return found


def _teacher(settings: SynthesizeSettings, cache: Path) -> Writer:
    with brought(settings.teacher, "synthesize.teacher", cache) as (model, tokenizer):
        teacher = Writer.of(model, tokenizer)
    longest, wanted = model.config.max_position_embeddings, settings.prompt_tokens
    if wanted + settings.new_tokens > longest:
        raise UserError(
            f"synthesize: prompt_tokens {wanted} and new_tokens {settings.new_tokens} are more than"
            f" the teacher's {longest} positions; lower one"
        )
    return teacher


def _candidates(
    settings: SynthesizeSettings, folders: dict[str, Path], teacher: Writer, seed: int
) -> list[Candidate]:
    """Those training documents whose ids have the lowest keyed hashes, in that order."""

    def long_enough() -> Iterator[tuple[str, Candidate]]:
        for source, folder in sorted(folders.items()):
            for document, split in read_documents(folder):
                text = document.text[: settings.candidate_characters]
                # A token has at least one byte.
                if split == "train" and len(text.encode()) > settings.prompt_tokens:
                    key = sha256_of_json([seed, source, document.id])
                    yield key, Candidate(document.id, source, text)

    # Of four times as many that shall be left, tokens are counted.
    likely = heapq.nsmallest(4 * settings.candidates, long_enough(), key=lambda pair: pair[0])
    found = [one for _, one in likely if len(teacher.ids(one.text)) > settings.prompt_tokens]
    if not found:
        raise UserError(
            f"of {len(likely):,} training documents none has more than synthesize.prompt_tokens"
            f" {settings.prompt_tokens} tokens in its first {settings.candidate_characters}"
            " characters; lower it"
        )
    return found[: settings.candidates]


def drawn_prompts(
    settings: SynthesizeSettings, candidates: list[Candidate], seed: int
) -> list[Candidate]:
    """``settings.documents`` candidates, with replacement."""
    weights = np.ones(len(candidates))
    if settings.prompts == "excess":
        weights = np.array([one.excess for one in candidates])
        if not weights.any():
            raise UserError(
                f"the student is behind the teacher in none of {len(candidates)} documents; use"
                " synthesize.prompts: uniform, or a better teacher"
            )
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(candidates), settings.documents, p=weights / weights.sum())
    return [candidates[index] for index in chosen]


def _written(
    stage: Stage, settings: SynthesizeSettings, teacher: Writer, prompts: list[Candidate]
) -> Iterator[dict[str, Any]]:
    """The documents in order; a killed stage finds those that it wrote before in its ``work``."""
    size = settings.batch_size
    with closing(Progress("synthesize", "documents", len(prompts))) as shown:
        for start in range(0, len(prompts), size):
            file, batch = stage.work / f"documents_{start:08}.json", prompts[start : start + size]
            if not file.is_file():
                ids = [teacher.ids(one.text)[: settings.prompt_tokens] for one in batch]
                texts = continued(teacher, ids, settings, stage.seed + start)
                written = [
                    {"id": f"{stage.seed}/{start + number}", "prompt": one.id, **text}
                    for number, (one, text) in enumerate(zip(batch, texts, strict=True))
                ]
                write_atomically(file, json.dumps(written))
            yield from json.loads(file.read_text(encoding="utf-8"))
            shown.advance(len(batch))
    shown.finish()


def continued(
    teacher: Writer, prompts: list[list[int]], settings: SynthesizeSettings, seed: int
) -> list[dict[str, Any]]:
    """``text`` and its number of new ``tokens``, of prompts that have equally many tokens."""
    ends = teacher.special_ids
    how = GenerationConfig(
        do_sample=True,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=0,
        max_new_tokens=settings.new_tokens,
        eos_token_id=ends,
        pad_token_id=ends[0],
    )
    model: Any = teacher.model
    prompt_BP = torch.tensor(prompts, device=model.device)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.no_grad():
        torch.manual_seed(seed)
        ids_BS = model.generate(
            prompt_BP, attention_mask=torch.ones_like(prompt_BP), generation_config=how
        )
    found = []
    for ids in ids_BS.tolist():
        new = ids[prompt_BP.shape[1] :]
        new = new[: next((n for n, token in enumerate(new) if token in ends), len(new))]
        text = teacher.tokenizer.decode(ids[: prompt_BP.shape[1]] + new)
        found.append({"text": text.rstrip(_CUT_CHARACTER), "tokens": len(new)})
    return found


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    lines = (json.dumps(record, ensure_ascii=False, sort_keys=True) for record in records)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
