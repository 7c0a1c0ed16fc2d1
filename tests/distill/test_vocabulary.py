from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from wrinklefree.distill.vocabulary import check_tokenizers, check_vocabulary_sizes
from wrinklefree.errors import UserError


@pytest.mark.filterwarnings("ignore:.*mean_resizing.*")
def test_vocabularies_must_match_but_for_a_mask_token_at_the_end(tiny_model):
    teacher, student = tiny_model(), tiny_model(1)
    check_vocabulary_sizes(teacher, student)
    check_vocabulary_sizes(teacher, student, mask_token_id=39)
    student.resize_token_embeddings(41, mean_resizing=False)
    check_vocabulary_sizes(teacher, student, mask_token_id=40)
    for mask_token_id in (None, 39):
        with pytest.raises(UserError, match="40 tokens and the student one of 41"):
            check_vocabulary_sizes(teacher, student, mask_token_id)
    with pytest.raises(UserError, match="41 tokens and the student one of 40"):
        check_vocabulary_sizes(student, teacher, mask_token_id=40)


def test_tokens_must_have_the_same_ids(tmp_path):
    def folder(name, words, added=()):
        tokenizer = Tokenizer(
            WordLevel({word: index for index, word in enumerate(words)}, words[0])
        )
        tokenizer.add_special_tokens([AddedToken(token) for token in added])
        (tmp_path / name).mkdir()
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
        return tmp_path / name

    teacher = folder("teacher", ["?", "a", "b"])
    check_tokenizers(teacher, folder("same", ["?", "a", "b"]))
    check_tokenizers(teacher, folder("grown", ["?", "a", "b"], ["|<MASK>|"]))
    with pytest.raises(UserError, match=r"token 'a' is number 1 .* 2 for the student"):
        check_tokenizers(teacher, folder("swapped", ["?", "b", "a"]))
    with pytest.raises(UserError, match=r"token 'b' is number 2 .* absent for the student"):
        check_tokenizers(teacher, folder("lacking", ["?", "a"]))


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("")
    with pytest.raises(UserError, match="tokenizer.json is not a readable tokenizer"):
        check_tokenizers(tmp_path, tmp_path)
