import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.sentences import SentenceRules
from sentence_distill.pipeline.plan import Plan, make_plan, mark_duplicates

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
    with pytest.raises(UserError, match="no sentence that can be used"):
        plan_of(tmp_path / "a.txt", 10)
