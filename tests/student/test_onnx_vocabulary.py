import json
import string

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from sentence_distill.data.errors import UserError
from sentence_distill.student.config import StudentConfig
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.export.vocabulary import count_tokens, frequent_tokens, prune_student, prune_tokenizer
from sentence_distill.student.model import Student

SPECIAL = ["[PAD]", "[UNK]", "[CLS]"]
TOKENS = ["[PAD]", "cat", "house", *string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase)]
TOKENS += ["[UNK]", "boat", "##s", "##house", "[CLS]"]
TOKENS = list(dict.fromkeys(TOKENS))


@pytest.fixture
def student():
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(TOKENS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(SPECIAL)
    torch.manual_seed(0)
    config = StudentConfig(vocabulary=len(TOKENS), target_dims=(4,), normalize=True, embedding_dim=4, hidden=3)
    return Student(StudentEncoder(config), tokenizer)


def pieces(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).tokens


def smaller(student, text, size, folder):
    (folder / "text.txt").write_text(text, encoding="utf-8")
    counts = count_tokens(student, [str(folder / "text.txt")])
    return prune_student(student, frequent_tokens(student.tokenizer, counts, size))


def test_frequent_words_stay_and_rare_ones_are_read_as_their_pieces(student, tmp_path):
    # 3 special tokens, 26 letters in both forms, and two of cat, house, boat and ##house.
    small = smaller(student, "house house\nboathouse boat cat boat", 57, tmp_path)
    assert small.encoder.config.vocabulary == 57
    assert pieces(student.tokenizer, "cat house boathouse") == ["cat", "house", "boat", "##house"]
    assert pieces(small.tokenizer, "cat house") == ["c", "##a", "##t", "house"]
    assert pieces(small.tokenizer, "boat Houses") == ["boat", "house", "##s"]


def test_what_could_be_read_can_be_read_still(student, tmp_path):
    small = smaller(student, "house", 55, tmp_path)
    assert "[UNK]" not in pieces(small.tokenizer, "cats boats boathouses and zebras")
    assert pieces(small.tokenizer, "boat é [CLS]") == ["b", "##o", "##a", "##t", "e", "[CLS]"]


def test_sentences_of_kept_tokens_keep_their_vectors(student, tmp_path):
    small = smaller(student, "house house boat boat", 57, tmp_path)
    sentences = ["House boat", "", "a boats b", "[CLS] house ?"]
    np.testing.assert_array_equal(small.encode(sentences), student.encode(sentences))


def test_a_vocabulary_that_is_not_cut_stays_as_it_is(student, tmp_path):
    small = smaller(student, "house", 10_000, tmp_path)
    assert small.tokenizer.get_vocab() == student.tokenizer.get_vocab()


def test_a_size_without_room_for_what_must_stay_is_refused(student, tmp_path):
    with pytest.raises(UserError, match=r"--vocabulary 54 is too small: .* are 55"):
        smaller(student, "house", 54, tmp_path)


def test_added_tokens_that_the_model_does_not_know_keep_their_rows(student):
    student.tokenizer.add_special_tokens(["<new>"])
    kept = np.array([0, TOKENS.index("[UNK]"), TOKENS.index("[CLS]"), len(TOKENS)])
    tokenizer = prune_tokenizer(student.tokenizer, kept)
    assert tokenizer.encode("cat <new>").ids == [1, 3]
    assert json.loads(tokenizer.to_str())["added_tokens"][-1]["id"] == 3


def test_other_kinds_of_tokenizers_are_refused(student):
    student.tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    with pytest.raises(UserError, match="this student's is BPE"):
        frequent_tokens(student.tokenizer, np.zeros(1), 1)
