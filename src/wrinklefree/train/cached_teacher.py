"""A teacher whose logits were cached before the training: it need not be in memory then.

A file is of some rows. A row is found by what it says, so that other seeds, orders and rates of the
same text find it as well. Files are whole or absent: what was killed goes on with missing rows.

Shapes: B rows, T tokens of a row, K kept tokens, O = K + 1 outcomes.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.distill.top_logits import TopLogits
from wrinklefree.distill.vocabulary import check_vocabulary_size, vocabulary_size
from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import Batch
from wrinklefree.models.forward import logits_of, tokens_at_once
from wrinklefree.tracking.files import sha256_of_file, write_atomically
from wrinklefree.tracking.progress import Progress
from wrinklefree.train.objectives.distillation import DenseTeacher
from wrinklefree.train.objectives.question import Question
from wrinklefree.train.runtime import Runtime

ROWS_OF_A_FILE = 64
_KEY_BYTES = 16
_SUFFIX = ".safetensors"


def row_keys(batch: Batch) -> list[bytes]:
    """What every row says: its tokens, and where documents begin."""
    parts = torch.stack([batch.tokens_BT, batch.document_ids_BT, batch.positions_BT], dim=1)
    return [
        hashlib.sha256(row.numpy().tobytes()).digest()[:_KEY_BYTES] for row in parts.cpu().unbind()
    ]


class LogitsCache:
    """The files of a folder. Raises UserError for one that is damaged."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.reread()

    def reread(self) -> None:
        """Find what is in the folder now, where other processes write too."""
        self._files: dict[Path, Any] = {}
        self._found: dict[bytes, tuple[Path, int]] = {}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            self._open(path)

    def __contains__(self, key: bytes) -> bool:
        return key in self._found

    def add(self, keys: list[bytes], ids_BTK: Tensor, log_BTO: Tensor) -> None:
        """Write the distributions after every token of some rows."""
        keys_BX = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8)
        tensors = {
            "keys": keys_BX.view(len(keys), _KEY_BYTES),
            "ids": ids_BTK.int().cpu().contiguous(),
            "log": log_BTO.bfloat16().cpu().contiguous(),
        }
        content = save(tensors)
        name = hashlib.sha256(content).hexdigest()
        write_atomically(self._folder / f"{name}{_SUFFIX}", content)
        self._open(self._folder / f"{name}{_SUFFIX}")

    def read(self, keys: list[bytes]) -> tuple[Tensor, Tensor]:
        """``ids_BTK``, int64, and ``log_BTO``, float32, of some rows; KeyError for one unknown."""
        ids, logs = [], []
        for key in keys:
            path, row = self._found[key]
            ids.append(self._files[path].get_slice("ids")[row].long())
            logs.append(self._files[path].get_slice("log")[row].float())
        return torch.stack(ids), torch.stack(logs)

    def _open(self, path: Path) -> None:
        try:
            if sha256_of_file(path) != path.stem:
                raise UserError(f"{path}: damaged; delete it, and its rows are computed again")
            file = safe_open(path, framework="pt")  # closed when forgotten: it maps the file
            keys = file.get_tensor("keys")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: can't be read ({error}); delete it") from error
        self._files[path] = file
        self._found |= {bytes(key.tolist()): (path, row) for row, key in enumerate(keys)}


@torch.no_grad()
def fill_cache(
    cache: LogitsCache,
    model: PreTrainedModel,
    batches: Iterable[Batch],
    runtime: Runtime,
    *,
    rows: int,
    kept: int,
    temperature: float,
    mask_token_id: int | None = None,
    label: str = "",
) -> None:
    """Write what ``model`` says after every token of ``batches``, of ``rows`` rows in all.

    Of several processes each writes its share of the batches, into one folder, and finds all.
    """
    teacher, vocabulary = DenseTeacher(model), vocabulary_size(model)
    shown = Progress(f"{label}: teacher", "rows", rows, shown=runtime.leads)
    with contextlib.closing(shown) as progress:
        pending: list[tuple[bytes, Tensor, Tensor]] = []
        for number, batch in enumerate(batches):
            keys = row_keys(batch)
            own = number % runtime.ranks == runtime.rank
            if own and not all(key in cache for key in keys):
                with runtime.computing():
                    moved = batch.to(runtime.device)
                    lesson = teacher.read(moved, moved.document_ids_BT, {})
                    for key, hidden_TD in zip(keys, lesson.hidden_BTD, strict=True):
                        parts = [
                            TopLogits.of(
                                logits_of(model, part_ND, mask_token_id), kept, temperature
                            )
                            for part_ND in hidden_TD.split(tokens_at_once(vocabulary))
                        ]
                        ids_TK = torch.cat([part.ids_NK for part in parts])
                        pending.append((key, ids_TK, torch.cat([part.log_NO for part in parts])))
            if len(pending) >= ROWS_OF_A_FILE:
                _write(cache, pending)
            progress.advance(len(keys))
        _write(cache, pending)
    if runtime.ranks > 1:
        runtime.wait()
        cache.reread()


def _write(cache: LogitsCache, pending: list[tuple[bytes, Tensor, Tensor]]) -> None:
    if pending:
        keys, ids, logs = zip(*pending, strict=True)
        cache.add(list(keys), torch.stack(ids), torch.stack(logs))
        pending.clear()


@dataclass(frozen=True)
class CachedLesson:
    """What is cached of a micro-batch."""

    batch: Batch
    ids_BTK: Tensor
    log_BTO: Tensor

    def divergence_N(self, student_NV: Tensor, question: Question, **how: Any) -> Tensor:
        """Of the student's logits, at asked tokens that have another before them."""
        before = question.row_N, question.position_N - 1
        top = TopLogits(self.ids_BTK[before], self.log_BTO[before].log_softmax(-1))
        return top.divergence(student_NV, **how)


class CachedTeacher:
    """Reads the cache; knows nothing of the inside of the teacher."""

    model = None

    def __init__(self, cache: LogitsCache, vocabulary_size: int) -> None:
        self._cache = cache
        self._vocabulary_size = vocabulary_size

    def check(self, student: PreTrainedModel, mask_token_id: int | None) -> None:
        """Raise UserError where the vocabularies differ by more than the mask token."""
        check_vocabulary_size(self._vocabulary_size, student, mask_token_id)

    def read(self, batch: Batch, piece_BT: Tensor, looks: Mapping[str, Any]) -> CachedLesson:
        """Find the rows; raises UserError for one that is not there."""
        assert not looks, "the settings refuse terms that look inside"
        try:
            ids_BTK, log_BTO = self._cache.read(row_keys(batch))
        except KeyError:
            raise UserError(
                "a row of the training is not among those whose logits were cached"
            ) from None
        return CachedLesson(batch, ids_BTK.to(piece_BT.device), log_BTO.to(piece_BT.device))
