import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sentence_distill.pipeline.teacher import exact_length_batches


@given(st.lists(st.integers(1, 40), max_size=200), st.integers(1, 100))
def test_batches_hold_each_row_once_at_one_length_within_the_budget(lengths, budget):
    lengths = np.array(lengths, dtype=np.int64)
    batches = list(exact_length_batches(lengths, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(set(lengths[batch])) == 1
        assert len(batch) == 1 or lengths[batch].sum() <= budget


def test_a_budget_is_used_up_before_the_next_batch_begins():
    assert [len(batch) for batch in exact_length_batches(np.full(10, 3), 12)] == [4, 4, 2]
