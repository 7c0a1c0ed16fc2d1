"""A teacher can only teach a student that speaks its vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.tokens.tokenizer import read_tokenizer


def check_vocabulary_sizes(
    teacher: PreTrainedModel, student: PreTrainedModel, mask_token_id: int | None = None
) -> None:
    """Raise UserError unless both models have the same number of logits.

    A diffusion student may have one more: its mask token, if that follows the teacher's last id.
    """
    check_vocabulary_size(vocabulary_size(teacher), student, mask_token_id)


def vocabulary_size(model: PreTrainedModel) -> int:
    """How many tokens have an embedding."""
    return cast(nn.Embedding, model.get_input_embeddings()).weight.shape[0]


def check_vocabulary_size(
    teacher_size: int, student: PreTrainedModel, mask_token_id: int | None = None
) -> None:
    """As ``check_vocabulary_sizes``, of a teacher with ``teacher_size`` logits."""
    student_size = vocabulary_size(student)
    grown = mask_token_id == teacher_size and student_size == teacher_size + 1
    if teacher_size != student_size and not grown:
        raise UserError(
            f"the teacher has a vocabulary of {teacher_size} tokens and the student one of"
            f" {student_size}; distillation compares them token by token."
            " Use a teacher with the student's tokenizer"
        )


def check_tokenizers(teacher: Path, student: Path) -> None:
    """Raise UserError unless the tokens of one model folder have the same ids in the other.

    Both folders hold a ``tokenizer.json``. The student may have more tokens, such as its mask
    token.
    """
    teacher_ids, student_ids = (
        read_tokenizer(folder).get_vocab(with_added_tokens=True) for folder in (teacher, student)
    )
    for token, identity in sorted(teacher_ids.items(), key=lambda item: item[1]):
        if student_ids.get(token) != identity:
            raise UserError(
                f"token {token!r} is number {identity} for the teacher in {teacher} and"
                f" {student_ids.get(token, 'absent')} for the student in {student};"
                " use a teacher with the student's tokenizer, or set universal in the distillation"
            )
