import numpy as np
import pytest

from sentence_distill.student.batches import near_length_batches


@pytest.mark.parametrize("seed", range(5))
def test_each_row_is_in_one_batch_of_near_lengths_within_the_budget(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 60, size=300)
    batches = list(near_length_batches(lengths, 500))
    assert sorted(np.concatenate(batches).tolist()) == list(range(300))
    assert [list(lengths[batch]) for batch in batches] == [sorted(lengths[batch]) for batch in batches]
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= 500 for batch in batches)


def test_many_rows_of_a_length_are_not_padded_and_few_share_a_batch():
    many = np.repeat([9, 10, 30], 500)
    assert all(len(set(many[batch])) == 1 for batch in near_length_batches(many, 4096))
    few = np.array([9, 10, 11, 12])
    assert [list(batch) for batch in near_length_batches(few, 4096)] == [[0, 1, 2, 3]]


def test_a_row_over_the_budget_is_a_batch_of_its_own():
    batches = [list(batch) for batch in near_length_batches(np.array([200, 3, 200]), 100)]
    assert batches == [[1], [0], [2]]


def test_nothing_gives_no_batch():
    assert list(near_length_batches(np.array([], dtype=np.int64), 100)) == []
