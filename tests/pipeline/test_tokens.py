import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sentence_distill.pipeline.tokens import Tokens

sentences = st.lists(st.lists(st.integers(5, 60_000), max_size=6), max_size=8)


@given(sentences)
def test_sentences_come_back_as_they_were(lists):
    tokens = Tokens.of(lists)
    assert [tokens[row].tolist() for row in range(len(tokens))] == lists
    assert tokens.lengths.tolist() == [len(ids) for ids in lists]


@given(sentences, st.data())
def test_rows_are_taken_in_the_order_given_and_cut_where_asked(lists, data):
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=9)) if lists else []
    taken = Tokens.of(lists).take(np.array(rows, dtype=np.int64), most=3)
    assert [taken[row].tolist() for row in range(len(taken))] == [lists[row][:3] for row in rows]


@given(sentences, st.lists(st.integers(0, 4), max_size=2), st.lists(st.integers(0, 4), max_size=2))
def test_special_tokens_stand_around_each_sentence(lists, prefix, suffix):
    wrapped = Tokens.of(lists, np.uint16).wrapped(prefix, suffix)
    assert [wrapped[row].tolist() for row in range(len(wrapped))] == [[*prefix, *ids, *suffix] for ids in lists]
    assert wrapped.ids.dtype == np.uint16


def test_sentences_of_one_length_make_a_rectangle():
    tokens = Tokens.of([[1, 2], [3], [4, 5]])
    assert tokens.rectangle(np.array([2, 0]), 2).tolist() == [[4, 5], [1, 2]]
