from collections import Counter

import pytest

from sentence_distill.data.labelled import synthetic_examples

WORDS = [f"w{i}" for i in range(12)]
ALWAYS_MASK = {"p_mask": 1, "p_ngram": 0}
ONLY_NGRAMS = {"p_mask": 0, "p_ngram": 1}
# Each of its words is another, so that a copy shows where it was cut.
SENTENCES = [" ".join(f"{word}.{row}" for word in WORDS) for row in range(200)]


def augment(texts, **options):
    """The examples, and behind them the synthetic ones, as columns."""
    added = list(zip(*synthetic_examples(texts, **options), strict=True)) or [()] * len(texts)
    return tuple([*column, *more] for column, more in zip(texts, added, strict=True))


def test_the_examples_come_first_and_their_copies_after_them():
    texts = (["the old dog ran", "a red house"],)
    (column,) = augment(texts, copies=1, mask="[MASK]", seed=0, **ALWAYS_MASK)
    assert column == ["the old dog ran", "a red house", "[MASK] [MASK] [MASK] [MASK]", "[MASK] [MASK] [MASK]"]
    assert augment(texts, copies=0, mask="[MASK]", seed=0) == texts


def test_what_is_there_already_is_dropped():
    (column,) = augment((["one two", "three four", ""],), copies=5, mask="?", seed=0, **ALWAYS_MASK)
    assert column == ["one two", "three four", "", "? ?"]
    unchanged = {"p_mask": 0, "p_ngram": 0}
    assert list(synthetic_examples((["one  two", "two"],), copies=5, mask="?", seed=0, **unchanged)) == []


def test_n_grams_are_runs_of_one_to_five_words_equally_often():
    copies = [copy.split() for (copy,) in synthetic_examples((SENTENCES,), copies=9, mask="?", seed=0, **ONLY_NGRAMS)]
    for words in copies:
        first = int(words[0].split(".")[0][1:])
        assert [word.split(".")[0] for word in words] == WORDS[first : first + len(words)]
    lengths = Counter(map(len, copies))
    assert set(lengths) == {1, 2, 3, 4, 5}
    # 1,800 were drawn; single words are more often drawn twice.
    assert all(270 < lengths[n] < 420 for n in (1, 2, 3, 4, 5))
    assert {words[0].split(".")[0] for words in copies} == set(WORDS)


def test_a_text_shorter_than_the_n_gram_stays_whole():
    copies = list(synthetic_examples((["a b"],), copies=50, mask="?", seed=0, **ONLY_NGRAMS))
    assert sorted(copies) == [("a",), ("b",)]


def test_words_are_masked_and_texts_cut_with_the_paper_s_probabilities():
    copies = [copy.split() for (copy,) in synthetic_examples((SENTENCES,), copies=20, mask="[MASK]", seed=0)]
    whole = [words for words in copies if len(words) == len(WORDS)]
    # Those without any mask are the examples and dropped: 4,000 * 0.75 * (1 - 0.9 ** 12), and less for duplicates.
    assert 1900 < len(whole) < 2160
    masked = sum(words.count("[MASK]") for words in whole)
    # Given at least one mask, 12 words hold 1.2 / (1 - 0.9 ** 12) on average.
    assert masked / len(whole) == pytest.approx(1.2 / (1 - 0.9**12), rel=0.08)


def test_pairs_have_the_first_the_second_and_both_sentences_augmented_in_turn():
    pairs = (["a b"] * 1, ["c d"])
    copies = synthetic_examples(pairs, copies=3, mask="?", seed=0, **ALWAYS_MASK)
    assert list(copies) == [("? ?", "c d"), ("a b", "? ?"), ("? ?", "? ?")]


def test_the_same_seed_gives_the_same_examples_and_another_seed_others():
    first, again, other = (augment((SENTENCES,), copies=3, mask="[MASK]", seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_probability_above_one_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        next(synthetic_examples((["a"],), copies=1, mask="?", seed=0, p_mask=1.5))
