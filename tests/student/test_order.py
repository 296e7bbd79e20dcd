import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sentence_distill.student.dataset import count_batches, shard_windows, window_batches


@given(st.lists(st.integers(1, 20), min_size=1, max_size=300), st.integers(1, 50))
def test_a_window_s_rows_are_each_in_one_batch_of_one_length(lengths, batch_size):
    lengths = np.array(lengths)
    batches = list(window_batches(lengths, batch_size, np.random.default_rng(0)))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(len(set(lengths[batch])) == 1 and len(batch) <= batch_size for batch in batches)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=300), st.integers(1, 50))
def test_batches_are_counted_without_forming_them(lengths, batch_size):
    batches = window_batches(np.array(lengths), batch_size, np.random.default_rng(0))
    assert count_batches(np.bincount(lengths), batch_size) == len(batches)


def test_the_order_is_a_function_of_the_seed():
    lengths = np.random.default_rng(0).integers(1, 9, 500)
    first, same, other = (
        np.concatenate(list(window_batches(lengths, 16, np.random.default_rng(seed)))) for seed in (1, 1, 2)
    )
    assert (first == same).all()
    assert (first != other).any()


def test_neighbours_in_the_corpus_are_not_neighbours_in_training():
    lengths = np.random.default_rng(0).integers(5, 40, 20_000)
    order = np.concatenate(list(window_batches(lengths, 64, np.random.default_rng(0))))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03


@given(st.lists(st.integers(0, 100), min_size=1, max_size=40), st.integers(1, 300), st.integers(0, 3))
def test_every_shard_is_in_one_window_of_enough_rows(rows, window_rows, epoch):
    windows = shard_windows(rows, window_rows, seed=0, epoch=epoch)
    assert sorted(shard for window in windows for shard in window) == list(range(len(rows)))
    assert all(sum(rows[shard] for shard in window) >= window_rows for window in windows[:-1])


def test_each_epoch_has_its_own_order_of_shards():
    orders = [shard_windows([1] * 20, 100, seed=0, epoch=epoch)[0] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
