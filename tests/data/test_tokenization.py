import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from sentence_distill.data import tokenization
from sentence_distill.data.hub import packaged_teacher
from sentence_distill.data.tokenization import TextTokenizer, Tokens
from tests.conftest import make_sentences

lists = st.lists(st.lists(st.integers(5, 60_000), max_size=6), max_size=8)


def as_lists(tokens):
    return [tokens[row].tolist() for row in range(len(tokens))]


@given(lists)
def test_texts_come_back_as_they_were(ids):
    tokens = Tokens.of(ids)
    assert as_lists(tokens) == ids
    assert tokens.lengths.tolist() == [len(each) for each in ids]


@given(lists, st.data())
def test_rows_are_taken_in_the_order_given_and_cut_where_asked(ids, data):
    rows = data.draw(st.lists(st.integers(0, len(ids) - 1), max_size=9)) if ids else []
    most = data.draw(st.lists(st.integers(0, 7), min_size=len(rows), max_size=len(rows)))
    tokens, rows_ = Tokens.of(ids), np.array(rows, dtype=np.int64)
    assert as_lists(tokens.take(rows_, 3)) == [ids[row][:3] for row in rows]
    assert as_lists(tokens.take(rows_, np.array(most, dtype=np.int64))) == [
        ids[row][:count] for row, count in zip(rows, most, strict=True)
    ]
    assert as_lists(tokens.cut(4)) == [each[:4] for each in ids]


@given(lists, st.lists(st.integers(0, 4), max_size=2), st.lists(st.integers(0, 4), max_size=2))
def test_special_tokens_stand_around_each_text(ids, prefix, suffix):
    wrapped = Tokens.of(ids, np.uint16).wrapped(prefix, suffix)
    assert as_lists(wrapped) == [[*prefix, *each, *suffix] for each in ids]
    assert wrapped.ids.dtype == np.uint16


@given(lists, lists)
def test_texts_are_joined_side_by_side_and_one_after_the_other(first, second):
    count = min(len(first), len(second))
    parts = [Tokens.of(first[:count]), Tokens.of(second[:count])]
    assert as_lists(Tokens.joined(parts)) == [[*a, *b] for a, b in zip(first[:count], second[:count], strict=True)]
    assert as_lists(Tokens.concatenated([Tokens.of(first), Tokens.of(second)])) == first + second


@given(lists)
def test_padding_stands_behind_the_ends(ids):
    padded, lengths = Tokens.of(ids).padded()
    longest = max([1, *map(len, ids)])
    assert padded.tolist() == [each + [0] * (longest - len(each)) for each in ids]
    assert lengths.tolist() == [len(each) for each in ids]


def test_sentences_of_one_length_make_a_rectangle():
    tokens = Tokens.of([[1, 2], [3], [4, 5]])
    assert tokens.rectangle(np.array([2, 0]), 2).tolist() == [[4, 5], [1, 2]]


def word_piece(**normalizer):
    """MiniLM's vocabulary under a BERT normalizer of these options."""
    settings_ = json.loads((packaged_teacher() / "tokenizer.json").read_text(encoding="utf-8"))
    settings_["normalizer"] = {"type": "BertNormalizer", **normalizer}
    return TextTokenizer(json.dumps(settings_))


NORMALIZERS = {
    "uncased": {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
    "cased": {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": False},
    "accents kept": {"clean_text": True, "handle_chinese_chars": True, "strip_accents": False, "lowercase": True},
    "uncleaned": {"clean_text": False, "handle_chinese_chars": False, "strip_accents": True, "lowercase": True},
}
# Plain words among whatever Unicode holds, and what tokenizers stumble over.
ODD = "[CLS] [SEP] [MASK] [unk] ##s \u200d \u0301 \u0130 \u03a3 \u4e2d \uac00 \ufb01 \U0001f469 \ufe0f \ufffd"
odd = st.sampled_from(ODD.split(" "))
blanks = st.sampled_from(["\x00", "\x0b", "\x1c", "\x85", "\u2028", "\u3000", " ", "x" * 100, "y" * 101])
texts = st.lists(
    st.lists(st.one_of(odd, blanks, st.text(max_size=6), st.sampled_from(["the ", "unaffable", "Cafe", "3.5"]))).map(
        "".join
    ),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="module", params=list(NORMALIZERS))
def tokenizer(request):
    found = word_piece(**NORMALIZERS[request.param])
    assert found._wordpiece is not None
    return found


@settings(max_examples=300, deadline=None)
@given(texts)
def test_word_piece_gives_the_ids_of_the_tokenizers_library(tokenizer, texts):
    expected = tokenizer.backend.encode_batch(texts, add_special_tokens=False)
    assert as_lists(tokenizer.tokenize(texts)) == [encoding.ids for encoding in expected]


def test_texts_without_tokens_and_no_texts(tokenizer):
    assert as_lists(tokenizer.tokenize(["", " \t", "a"])) == [
        [],
        [],
        tokenizer.backend.encode("a", None, False, False).ids,
    ]
    assert as_lists(tokenizer.tokenize([])) == []


def test_other_models_and_what_nanotoken_does_not_know_are_left_to_tokenizers(caplog):
    bpe = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    assert as_lists(TextTokenizer(bpe.to_str()).tokenize(["ab", "ba"])) == [[2], [1, 0]]
    assert caplog.text == ""
    unknown = Tokenizer(models.WordPiece({"a": 0, "?": 1}, unk_token="?"))
    unknown.normalizer = normalizers.Replace("b", "a")
    unknown.pre_tokenizer = pre_tokenizers.Whitespace()
    assert as_lists(TextTokenizer(unknown.to_str()).tokenize(["b a c"])) == [[0, 0, 1]]
    assert "falling back to the tokenizers library" in caplog.text


class Wrong:
    """A nanotoken whose ids differ in one place."""

    class UnsupportedTokenizerError(ValueError):
        pass

    class WordPieceTokenizer:
        @classmethod
        def from_json(cls, content):
            right = Tokenizer.from_str(content)

            def encode_batch(texts, **options):
                found = Tokens.of([one.ids for one in right.encode_batch(list(texts), add_special_tokens=False)])
                found.ids[len(found.ids) // 2] += 1
                return found.ids, found.offsets

            wrong = cls()
            wrong.encode_batch = encode_batch
            return wrong


@pytest.mark.parametrize("fault", ["missing", "wrong"])
def test_where_nanotoken_is_missing_or_disagrees_the_ids_stay_right(monkeypatch, caplog, fault):
    sentences = make_sentences(20)
    expected = as_lists(word_piece(**NORMALIZERS["uncased"]).tokenize(sentences))
    monkeypatch.setitem(__import__("sys").modules, "nanotoken", None if fault == "missing" else Wrong)
    found = word_piece(**NORMALIZERS["uncased"])
    assert as_lists(found.tokenize(sentences)) == expected
    assert ("not installed" if fault == "missing" else "disagree") in caplog.text


def test_the_hard_texts_tell_normalizers_apart():
    """They would show a nanotoken that lower-cased, cleaned or stripped otherwise than it is told."""
    found = [word_piece(**options).tokenize(tokenization._HARD_TEXTS).ids.tolist() for options in NORMALIZERS.values()]
    assert all(one != other for place, one in enumerate(found) for other in found[:place])


def test_padding_and_truncation_of_the_file_do_not_count_and_a_copy_is_the_same():
    settings_ = Tokenizer.from_str(word_piece(**NORMALIZERS["uncased"]).to_str())
    settings_.enable_truncation(3)
    settings_.enable_padding(length=8)
    loaded = TextTokenizer(settings_.to_str())
    assert as_lists(pickle.loads(pickle.dumps(loaded)).tokenize(["a b c d e f"])) == as_lists(  # noqa: S301
        loaded.tokenize(["a b c d e f"])
    )
    assert loaded.tokenize(["a b c d e f"]).lengths.tolist() == [6]


def test_what_is_no_tokenizer_is_a_value_error():
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        TextTokenizer("{}")
