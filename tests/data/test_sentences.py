import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentence_distill.data.errors import UserError
from sentence_distill.data.sentences import SentenceRules, normalise, split_sentences

ANY = SentenceRules(min_words=1, max_words=10_000)


@pytest.mark.parametrize(
    ("paragraph", "sentences"),
    [
        (
            "Dr. Smith met J. R. R. Tolkien at 3.5 p.m. on Jan. 5th. They talked.",
            ["Dr. Smith met J. R. R. Tolkien at 3.5 p.m. on Jan. 5th.", "They talked."],
        ),
        (
            "He was born c. 1850 in St. Louis and died in 1912. His son, John Jr., lived.",
            ["He was born c. 1850 in St. Louis and died in 1912.", "His son, John Jr., lived."],
        ),
        (
            "The U.S. Army spent $1.5 million. It won.",
            ["The U.S. Army spent $1.5 million.", "It won."],
        ),
        (
            'She said "Hello. How are you?" and left. Nobody answered.',
            ['She said "Hello. How are you?" and left.', "Nobody answered."],
        ),
        ("First line.\nSecond line\nThird line.", ["First line.", "Second line", "Third line."]),
    ],
)
def test_paragraphs_are_split_at_sentence_ends_only(paragraph, sentences):
    assert [sentence.text for sentence in split_sentences(paragraph, ANY)] == sentences


def test_without_splitting_a_record_is_one_sentence():
    rules = SentenceRules(split=False, min_words=1)
    assert [s.text for s in split_sentences(" One. Two.\tThree. ", rules)] == ["One. Two. Three."]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Two words", "too few words"),
        ("one two three four five six", "too many words"),
        ("1 2 3 4", "no letters"),
        ("These are four words", ""),
        (" \t ", "empty"),
        ("\x00\ufeff", "empty"),
    ],
)
def test_what_can_not_be_used_carries_its_reason(text, reason):
    rules = SentenceRules(split=False, min_words=3, max_words=5)
    assert [s.reason for s in split_sentences(text, rules)] == [reason]


@pytest.mark.parametrize(
    ("text", "pair", "reason"),
    [
        (" One. Two.\u00a0Three. \tThey  all ran. ", "One. Two. Three.\tThey all ran.", ""),
        ("Only two\tThese are three", "Only two\tThese are three", "too few words"),
        ("These are three\t1 2 3", "These are three\t1 2 3", "no letters"),
        ("These are three\t\x00 ", "These are three\t", "empty"),
        ("\t", "\t", "empty"),
    ],
)
def test_a_pair_is_one_candidate_each_side_of_which_has_to_keep_the_rules(text, pair, reason):
    rules = SentenceRules(pairs=True)
    assert (rules.split, rules.splitter) == (False, "none")
    assert [(s.text, s.reason) for s in split_sentences(text, rules)] == [(pair, reason)]


def test_spans_of_two_to_eight_words_come_after_a_share_of_the_sentences():
    sentences = [f"Number {n} of the old ships left on a day in May." for n in range(400)]
    found = [[s.text for s in split_sentences(text, SentenceRules(spans=0.25))] for text in sentences]
    assert [texts[0] for texts in found] == sentences
    spans = [(texts[0], texts[1]) for texts in found if len(texts) == 2]
    assert len(spans) == pytest.approx(100, abs=30)
    assert all(f" {span} " in f" {sentence} " for sentence, span in spans)
    assert {len(span.split()) for _, span in spans} == set(range(2, 9))
    assert {sentence.index(span) > 0 for sentence, span in spans} == {True, False}
    # The same spans each time, and no more than the sentences that pass the rules have.
    again = [[s.text for s in split_sentences(text, SentenceRules(spans=0.25))] for text in sentences]
    assert again == found
    assert len(list(split_sentences("Two words", SentenceRules(spans=1.0)))) == 1
    assert len(list(split_sentences("1 2 3 4 5 6 7 8 9 a", SentenceRules(spans=1.0)))) in (1, 2)
    assert len(list(split_sentences(sentences[0], SentenceRules(spans=1.0)))) == 2


def test_spans_of_pairs_are_refused():
    with pytest.raises(UserError, match="--spans works on single sentences"):
        SentenceRules(pairs=True, spans=0.5)


def test_rules_that_leave_nothing_are_refused():
    with pytest.raises(UserError, match="min-words"):
        SentenceRules(min_words=5, max_words=4)


@given(st.text(max_size=300))
def test_splitting_loses_and_invents_no_character(text):
    sentences = [s.text for s in split_sentences(text, ANY)]
    # Sentence by sentence NFC and over the whole text NFC differ where a sentence ends between a letter
    # and its combining mark, so the comparison is made on decomposed text.
    flat = unicodedata.normalize("NFD", "".join(sentences)).replace(" ", "")
    assert flat == unicodedata.normalize("NFD", normalise(text)).replace(" ", "")


@given(st.text(max_size=200))
def test_normalised_text_stays_as_it_is(text):
    once = normalise(text)
    assert normalise(once) == once
    assert "\x00" not in once
    assert once == once.strip()


def test_an_initial_before_a_no_break_space_and_a_period_does_not_end_the_run():
    line = "He was followed by Johann R\u00a0. Winckler in the year 1849, and by others."
    assert "splitter failed" not in {candidate.reason for candidate in split_sentences(line, SentenceRules())}


def test_a_line_on_which_the_splitter_panics_is_rejected(monkeypatch):
    class PanicException(BaseException):  # as Rust's comes to Python
        pass

    def panic(language, line):
        raise PanicException("end byte index 45 is not a char boundary")

    monkeypatch.setattr("sentencex.segment", panic)
    (candidate,) = split_sentences("One sentence here. Another one there.", SentenceRules())
    assert candidate.reason == "splitter failed"


SPACES = [" ", "\u00a0", "\u2003", "\u3000", "\u200b"]
MARKS = [".", "...", "!", "?", '"', "\u201c", "(", ")", "-", "\u2014", "'s", "\u3002", "\u0301"]
WORDS = ["A", "H.", "Dr.", "J. R. R.", "1.", "2.5", "\u00e9", "\u65e5\u672c", "word", "Word", "\U0001f600", "vs."]
PIECES = SPACES + MARKS + WORDS


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
def test_the_splitter_takes_any_mixture_of_initials_marks_and_spaces(text):
    assert "splitter failed" not in {candidate.reason for candidate in split_sentences(text, SentenceRules())}


@settings(max_examples=500)
@given(st.text())
def test_text_that_is_clean_as_it_is_comes_out_as_the_slow_way_gives_it(text):
    text = unicodedata.normalize("NFC", text)
    control = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff\u200b]")
    assert normalise(text) == " ".join(control.sub(" ", text).split())
