import json
import multiprocessing
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.sentences import SentenceRules
from sentence_distill.pipeline import plan as plan_module
from sentence_distill.pipeline import plan as scan
from sentence_distill.pipeline.plan import Plan, make_plan, mark_duplicates
from tests.conftest import make_sentences

RULES = SentenceRules(min_words=2)


def plan_of(path, rows):
    return make_plan(Corpus.open([str(path)]), RULES, rows, {"f": 1}, lambda n: None)


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), max_size=100))
def test_a_hash_is_a_duplicate_from_its_second_occurrence_on(hashes):
    seen = set()
    expected = [hash_ in seen or bool(seen.add(hash_)) for hash_ in hashes]
    assert mark_duplicates(np.array(hashes, dtype=np.uint64)).tolist() == expected


def test_slices_end_at_records_and_cover_all_of_them(tmp_path):
    (tmp_path / "a.txt").write_text("One two. Three four. Five six.\nSeven eight.\n")
    (tmp_path / "b.txt").write_text("Nine ten.\nOne two.\nx\n")
    plan = plan_of(tmp_path, 2)
    assert [(s.start.file, s.start.record, s.records, s.sentences) for s in plan.slices] == [
        (0, 0, 1, 3),
        (0, 1, 2, 2),
        (1, 1, 2, 1),
    ]
    assert plan.slices[2].duplicates.tolist() == [0]
    assert plan.rows == 5


def test_a_plan_comes_back_from_disk_as_it_was(tmp_path):
    (tmp_path / "a.txt").write_text("One two. Three four.\nOne two.\n")
    plan = plan_of(tmp_path / "a.txt", 2)
    plan.save(tmp_path / "plan.arrow")
    loaded = Plan.load(tmp_path / "plan.arrow")
    assert (loaded.hash, loaded.fingerprint) == (plan.hash, {"f": 1})
    content = bytearray((tmp_path / "plan.arrow").read_bytes())
    for place in range(0, len(content), 7):
        content[place] ^= 1
        (tmp_path / "plan.arrow").write_bytes(content)
        assert Plan.load(tmp_path / "plan.arrow") is None
        content[place] ^= 1
    (tmp_path / "plan.arrow").write_bytes(b"ARROW1 and nothing more")
    assert Plan.load(tmp_path / "plan.arrow") is None
    assert Plan.load(tmp_path / "none") is None


def test_a_corpus_without_a_usable_sentence_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("1\n2\n")
    with pytest.raises(UserError, match=r"no usable sentence: of 2 .* 2 are rejected as 'too few words'"):
        plan_of(tmp_path / "a.txt", 10)
    (tmp_path / "a.jsonl").write_text(json.dumps({"data": [{"text": "The red cat ran."}] * 9}, indent=1))
    with pytest.raises(UserError, match=r"a\.jsonl, line 1 begins a JSON object that continues on the next line; .*jq"):
        plan_of(tmp_path / "a.jsonl", 10)


def test_cuts_fall_where_a_slice_has_enough_sentences_and_span_files(tmp_path):
    words = "The red cat ran over the bridge."
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text((words + " " + words + "\n") * 7)
    plan = make_plan(Corpus.open([str(tmp_path)]), SentenceRules(), 9, {}, lambda n: None)
    assert [(part.start.file, part.start.record, part.records, part.sentences) for part in plan.slices] == [
        *((0, 0, 5, 10), (0, 5, 5, 10), (1, 3, 5, 10), (2, 1, 5, 10), (2, 6, 1, 2)),
    ]


@pytest.mark.parametrize("block", [1, 5, 8192])
def test_records_of_which_none_is_usable_do_not_pile_up_in_one_slice(tmp_path, monkeypatch, block):
    monkeypatch.setattr(plan_module, "_MOST_RECORDS", 20)
    monkeypatch.setattr(scan, "_BLOCK_RECORDS", block)
    (tmp_path / "a.txt").write_text("x\n" * 45 + "One two. Three four.\n" + "x\n" * 18 + "Five six.\n" + "x\n" * 19)
    plan = plan_of(tmp_path / "a.txt", 2)
    assert [(part.start.record, part.records, part.sentences) for part in plan.slices] == [
        *((0, 20, 0), (20, 20, 0), (40, 6, 2), (46, 20, 1), (66, 18, 0)),
    ]
    # A large slice has room for as many more.
    assert [part.records for part in plan_of(tmp_path / "a.txt", 3).slices] == [24, 24, 24, 12]


def test_several_processes_make_the_plan_of_one(tmp_path, monkeypatch):
    for number, sentences in enumerate((50, 3, 200)):
        (tmp_path / f"{number}.txt").write_text("\n".join(make_sentences(sentences, seed=number % 2)))
    corpus = Corpus.open([str(tmp_path)])
    alone = make_plan(corpus, SentenceRules(), 20, {}, lambda n: None)
    monkeypatch.setattr(scan, "_PARALLEL_BYTES", 0)
    monkeypatch.setattr(scan, "cores", lambda: 2)
    # A child of whoever calls is none of the scan's.
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    other.start()
    try:
        assert make_plan(corpus, SentenceRules(), 20, {}, lambda n: None).hash == alone.hash
        other.join(0.5)
        assert other.is_alive()
    finally:
        other.kill()
        other.join()


@pytest.mark.parametrize("block", [1, 3, 8])
def test_a_plan_does_not_depend_on_how_records_are_read_in_blocks(tmp_path, monkeypatch, block):
    (tmp_path / "corpus.txt").write_text("\n".join(make_sentences(40)) + "\n\nNo.\n")
    corpus = Corpus.open([str(tmp_path / "corpus.txt")])
    expected = make_plan(corpus, SentenceRules(), 7, {}, lambda n: None)
    monkeypatch.setattr(scan, "_BLOCK_RECORDS", block)
    assert make_plan(corpus, SentenceRules(), 7, {}, lambda n: None).hash == expected.hash
