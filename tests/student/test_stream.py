import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

from sentence_distill.data.errors import UserError
from sentence_distill.student.dataset import ShardStream


def all_rows(shards):
    tables = [pa.ipc.open_file(str(path)).read_all() for path in sorted(shards.glob("shard-*.arrow"))]
    return pa.concat_tables(tables).to_pydict()


def key(ids, target):
    return tuple(ids), tuple(np.asarray(target, dtype=np.float32))


def test_an_epoch_trains_on_each_row_once_and_never_on_a_held_out_one(shards):
    table = all_rows(shards)
    expected = {
        key(ids, vector)
        for id_, ids, vector in zip(table["id"], table["input_ids"], table["embedding"], strict=True)
        if id_ >= 0.1 * 2**64
    }
    stream = ShardStream(shards, held_out=0.1)
    for epoch in range(2):
        seen = [
            key(ids, vector)
            for batch in stream.batches(batch_size=16, seed=0, epoch=epoch)
            for ids, vector in zip(batch.input_ids.tolist(), batch.targets.numpy(), strict=True)
        ]
        assert len(seen) == len(expected) == stream.train_rows
        assert set(seen) == expected


def test_a_smaller_fraction_is_part_of_a_larger_one_and_holds_the_same_rows_out(shards):
    streams = [ShardStream(shards, held_out=0.1, train_fraction=fraction) for fraction in (0.2, 0.6, 1.0)]
    rows = [{(path, row) for path, train, _ in stream.split() for row in train.tolist()} for stream in streams]
    assert rows[0] < rows[1] < rows[2]
    assert len(rows[0]) == pytest.approx(0.2 * len(rows[2]), rel=0.25)
    assert [stream.train_rows for stream in streams] == [len(part) for part in rows]
    assert len({len(stream.held_out()[0]) for stream in streams}) == 1
    batches = streams[0].batches(batch_size=16, seed=0, epoch=0)
    assert sum(len(batch.input_ids) for batch in batches) == len(rows[0])


def test_shards_are_mapped_and_not_copied(shards):
    from sentence_distill.pipeline.shards import Shard

    before = pa.total_allocated_bytes()
    opened = [Shard.open(path) for path in sorted(shards.glob("shard-*.arrow"))]
    assert sum(len(shard.ids) for shard in opened) == 900
    assert pa.total_allocated_bytes() == before


def test_chosen_layers_are_read_alone(sd, teacher_folder, corpus_file, tmp_path):
    embed = ("embed", "--corpus", corpus_file, "--teacher", teacher_folder, "--out", tmp_path / "shards")
    assert sd(*embed, "--layers", "1,2", "--pooling", "mean") == 0
    both, last = (ShardStream(tmp_path / "shards", held_out=0.1, layers=layers) for layers in (None, (2,)))
    for whole, part in zip(*(stream.batches(batch_size=16, seed=0, epoch=0) for stream in (both, last)), strict=True):
        assert torch.equal(whole.input_ids, part.input_ids)
        assert torch.equal(whole.targets[:, 32:], part.targets)
    assert torch.equal(both.held_out()[1][:, 32:], last.held_out()[1])


def test_held_out_rows_are_those_that_are_not_trained_on(shards):
    stream = ShardStream(shards, held_out=0.1)
    input_ids, targets = stream.held_out()
    table = all_rows(shards)
    rows = zip(table["id"], table["input_ids"], table["embedding"], strict=True)
    expected = [(ids, vector) for id_, ids, vector in sorted(rows) if id_ < 0.1 * 2**64]
    assert [ids.tolist() for ids in input_ids] == [ids for ids, _ in expected]
    np.testing.assert_array_equal(targets.numpy(), np.array([vector for _, vector in expected], dtype=np.float32))
    assert len(targets) == len(expected) == len(table["id"]) - stream.train_rows


def test_the_rows_to_validate_on_are_those_of_the_lowest_ids_of_all_shards(shards, monkeypatch):
    monkeypatch.setattr("sentence_distill.student.dataset._HELD_OUT_ROWS", 20)
    input_ids, targets = ShardStream(shards, held_out=0.1).held_out()
    table = all_rows(shards)
    expected = sorted(zip(table["id"], table["input_ids"], strict=True))[:20]
    assert [ids.tolist() for ids in input_ids] == [ids for _, ids in expected]
    assert len(targets) == 20


def test_skipped_batches_leave_the_rest_as_it_was(shards):
    stream = ShardStream(shards, held_out=0.1)
    whole = list(stream.batches(batch_size=16, seed=3, epoch=1))
    rest = list(stream.batches(batch_size=16, seed=3, epoch=1, skip=7))
    assert len(whole) == stream.steps(16, 3, 1) == len(rest) + 7
    for expected, batch in zip(whole[7:], rest, strict=True):
        assert torch.equal(batch.input_ids, expected.input_ids)
        assert torch.equal(batch.targets, expected.targets)


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_a_damaged_shard_is_named_before_a_row_of_it_is_used(shards, tmp_path, damage):
    folder = shutil.copytree(shards, tmp_path / "shards")
    shard = folder / "shard-00002.arrow"
    content = bytearray(shard.read_bytes())
    content[-2000] ^= 1
    shard.unlink()
    if damage == "flipped":
        shard.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-00002\.arrow.*sd embed"):
        list(ShardStream(folder, held_out=0.1).batches(batch_size=16, seed=0, epoch=0))


@pytest.mark.parametrize(
    ("prepare", "message"), [("nothing", "no folder"), ("empty", "no shards"), ("open", "not complete")]
)
def test_a_folder_that_is_no_finished_run_is_an_error_that_says_what_to_do(shards, tmp_path, prepare, message):
    folder = tmp_path / "shards"
    if prepare == "empty":
        folder.mkdir()
    elif prepare == "open":
        shutil.copytree(shards, folder)
        (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=message):
        ShardStream(folder, held_out=0.1)


def test_held_out_texts_are_those_of_the_held_out_tokens_lowest_ids_first(shards):
    table = all_rows(shards)
    stream = ShardStream(shards, held_out=0.3)
    tokens, targets = stream.held_out()
    rows = sorted((row for row, id_ in enumerate(table["id"]) if id_ < 0.3 * 2**64), key=table["id"].__getitem__)
    assert stream.held_out_texts() == [table["text"][row] for row in rows]
    for place, row in enumerate(rows):
        assert tokens.take(np.array([place])).ids.tolist() == table["input_ids"][row]
        assert targets[place].tolist() == pytest.approx(table["embedding"][row])
    assert stream.held_out_texts(5) == [table["text"][row] for row in rows[:5]]
