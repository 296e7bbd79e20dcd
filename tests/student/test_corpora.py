"""Shards of several corpora: which each row is from, how often it is read, and fidelity by corpus."""

import json
import shutil
from collections import Counter

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import file_hash
from sentence_distill.data.sources import distinct_names
from sentence_distill.pipeline.files import dump_json
from sentence_distill.pipeline.manifest import verify_folder
from sentence_distill.student.config import TrainConfig
from sentence_distill.student.dataset import ShardStream
from sentence_distill.student.figures import Distillation, quality
from sentence_distill.student.metrics import by_corpus
from tests.conftest import make_sentences


@pytest.fixture(scope="module")
def mixed(sd, teacher_folder, tmp_path_factory):
    """Shards of 600 and of 300 sentences, the second in two files of a folder, and 100 sentences of the first again."""
    home = tmp_path_factory.mktemp("mixed")
    sentences = make_sentences(900)
    (home / "chat").mkdir()
    (home / "wiki.txt").write_text("\n".join(sentences[:600]))
    (home / "chat" / "1.txt").write_text("\n".join(sentences[500:750]))
    (home / "chat" / "2.txt").write_text("\n".join(sentences[750:]))
    corpora = ("--corpus", home / "wiki.txt", "--corpus", home / "chat")
    assert sd("embed", *corpora, "--teacher", teacher_folder, "--out", home / "shards", "--shard-rows", "128") == 0
    return home / "shards"


def rows(folder):
    tables = [pa.ipc.open_file(str(path)).read_all() for path in sorted(folder.glob("shard-*.arrow"))]
    return pa.concat_tables(tables).to_pydict()


def test_each_row_says_which_corpus_it_is_from_and_the_manifest_their_names(sd, mixed, capsys):
    found = rows(mixed)
    assert found["corpus"] == [0] * 600 + [1] * 300
    assert json.loads((mixed / "manifest.json").read_text())["fingerprint"]["corpora"] == ["wiki.txt", "chat"]
    assert not verify_folder(mixed, lambda count: None)
    assert sd("shards", mixed) == 0
    assert "corpora: wiki.txt, chat; sd train-student --corpus" in capsys.readouterr().out


def test_an_epoch_reads_a_corpus_as_often_as_its_weight_says(mixed):
    found = rows(mixed)
    place = {(tuple(ids), tuple(vector)): row for row, (ids, vector) in enumerate(zip(*text_of(found), strict=True))}
    weights = {"wiki.txt": 0.5, "chat": 3.0}
    stream = ShardStream(mixed, held_out=0.1, weights=weights)
    seen = Counter(
        place[tuple(ids), tuple(vector)]
        for batch in stream.batches(batch_size=16, seed=0, epoch=0)
        for ids, vector in zip(batch.input_ids.tolist(), batch.targets.tolist(), strict=True)
    )
    assert seen.total() == stream.train_rows
    held_out = {row for row, id_ in enumerate(found["id"]) if id_ < 0.1 * 2**64}
    assert not held_out & seen.keys()
    assert all(seen[row] == 3 for row in range(600, 900) if row not in held_out)
    half = [seen[row] for row in range(600) if row not in held_out]
    assert set(half) == {0, 1}
    assert np.mean(half) == pytest.approx(0.5, abs=0.1)
    # The rows to validate on are the same, whatever the weights.
    assert np.array_equal(stream.held_out()[1], ShardStream(mixed, held_out=0.1).held_out()[1])


def text_of(found):
    return found["input_ids"], found["embedding"]


def test_a_corpus_of_no_weight_is_left_out(mixed):
    whole, one = (ShardStream(mixed, held_out=0.1, weights=weights) for weights in ({}, {"wiki.txt": 0}))
    assert 0 < one.train_rows < 300 < whole.train_rows


def test_the_corpora_of_held_out_rows_are_in_their_order(mixed):
    found, stream = rows(mixed), ShardStream(mixed, held_out=0.2)
    held_out = sorted((id_, corpus) for id_, corpus in zip(found["id"], found["corpus"], strict=True))
    expected = [corpus for id_, corpus in held_out if id_ < 0.2 * 2**64]
    assert stream.held_out_corpora().tolist() == expected


def test_cosines_by_corpus_worked_by_hand():
    cosines, corpora = np.array([0.5] * 30 + [1.0] * 20 + [0.0] * 3), np.array([2] * 30 + [0] * 20 + [1] * 3)
    found = [(each.name, each.rows, each.cosine) for each in by_corpus(cosines, corpora, ["a", "b", "c"])]
    # Three rows say nothing of b.
    assert found == [("a", 20, 1.0), ("c", 30, 0.5)]
    assert by_corpus(cosines[:20], corpora[30:50], ["a"]) == []


def test_the_best_weights_are_those_of_the_best_mean_over_corpora():
    assert quality({"cosine": 0.9, "mean_over_corpora": 0.7}) == 0.7
    assert quality({"cosine": 0.9}) == 0.9


def test_training_validates_by_corpus_and_every_page_shows_it(sd, mixed, tmp_path, capsys):
    train = ("train-student", "--shards", mixed, "--out", tmp_path / "student", "--embedding-dim", "8", "--hidden", "8")
    assert sd(*train, "--held-out", "0.2", "--epochs", "2", "--corpus", "chat=2", "--corpus", "wiki.txt=1") == 0
    assert "cosine by corpus: wiki.txt 0." in capsys.readouterr().err
    record = msgspec.json.decode((tmp_path / "student" / "distillation.json").read_bytes(), type=Distillation)
    assert record.training.weights == {"chat": 2.0, "wiki.txt": 1.0}
    means = [entry["mean_over_corpora"] for entry in record.history]
    for entry, mean in zip(record.history, means, strict=True):
        assert mean == pytest.approx((entry["cosine on wiki.txt"] + entry["cosine on chat"]) / 2)
    best = record.models()["student"].held_out
    assert np.mean([each.cosine for each in best.by_corpus]) == pytest.approx(max(means))
    assert sum(each.rows for each in best.by_corpus) == best.rows
    assert sd("eval", tmp_path / "student", "--shards", mixed) == 0
    assert "cosine on chat" in capsys.readouterr().out
    card = (tmp_path / "student" / "README.md").read_text()
    assert "| chat | " in card
    assert "| wiki | " in card
    pytest.importorskip("matplotlib")
    assert sd("report", tmp_path / "student", "--out", tmp_path / "report.html") == 0
    page = (tmp_path / "report.html").read_text()
    assert "Held-out sentences by corpus" in page
    assert "mean over corpora" in page


@pytest.mark.parametrize(
    ("given", "message"),
    [("chat", "not a corpus with a weight"), ("chat=x", "as in chat.txt=3"), ("chat=-1", "chat=-1"), ("=2", "'=2'")],
)
def test_what_is_no_weight_is_refused(sd, mixed, tmp_path, capsys, given, message):
    assert sd("train-student", "--shards", mixed, "--out", tmp_path / "student", "--corpus", given) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="as in"):
        TrainConfig(corpus=given)


def test_a_corpus_that_is_not_there_is_refused_with_those_that_are(sd, mixed, tmp_path, capsys):
    train = ("train-student", "--shards", mixed, "--out", tmp_path / "student")
    assert sd(*train, "--corpus", "chats.txt=2") == 1
    assert "--corpus chats.txt: the shards hold wiki.txt, chat" in capsys.readouterr().err
    assert sd(*train, "--corpus", "chat=2", "--corpus", "chat=3") == 1
    assert "--corpus names chat twice" in capsys.readouterr().err
    assert not (tmp_path / "student").exists()


def test_the_same_files_under_other_corpora_are_another_run(sd, mixed, teacher_folder, capsys):
    home = mixed.parent
    options = ("--teacher", teacher_folder, "--out", mixed, "--shard-rows", "128")
    corpora = ("--corpus", home / "wiki.txt", "--corpus", home / "chat" / "1.txt", "--corpus", home / "chat" / "2.txt")
    assert sd("embed", *corpora, *options) == 1
    assert "other --corpus options for the same files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("locations", "names"),
    [
        (["data/wiki.txt", "chat.txt"], ["wiki.txt", "chat.txt"]),
        (["a/train.csv", "b/train.csv"], ["a/train.csv", "b/train.csv"]),
        (["s3://bucket/wiki/", "zip://*.txt::books.zip"], ["wiki", "*.txt"]),
        (["x.txt", "x.txt"], ["x.txt", "x.txt (2)"]),
        ([], []),
    ],
)
def test_corpora_have_short_names_that_differ(locations, names):
    assert distinct_names(locations) == names


@pytest.fixture
def first_format(shards, tmp_path):
    """A folder as version 1 of the format has it."""
    folder = shutil.copytree(shards, tmp_path / "first")
    entries = {}
    for path in sorted(folder.glob("shard-*.arrow")):
        table = pa.ipc.open_file(str(path)).read_all().drop_columns("corpus")
        table = table.replace_schema_metadata({"sentence-distill.format": "1"})
        path.unlink()
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=table.num_rows)
        sidecar = json.loads(path.with_suffix(".json").read_text())
        entries[path.name] = {"bytes": path.stat().st_size, "xxh3_128": file_hash(path)}
        rewrite(path.with_suffix(".json"), {**sidecar, **entries[path.name]})
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"] = [{**entry, **entries[entry["shard"]]} for entry in manifest["shards"]]
    manifest["totals"]["bytes"] = sum(entry["bytes"] for entry in entries.values())
    rewrite(folder / "manifest.json", manifest)
    return folder


def rewrite(path, content):
    content.pop("checksum")
    for field in ("corpora", "spans"):
        content["fingerprint"].pop(field)
    path.write_bytes(dump_json({**content, "format": 1}))


def test_shards_of_format_1_are_read_trained_on_and_not_written(sd, first_format, shards, arguments, tmp_path, capsys):
    assert not verify_folder(first_format, lambda count: None)
    old, new = (ShardStream(folder, held_out=0.1) for folder in (first_format, shards))
    pairs = zip(*(stream.batches(batch_size=16, seed=0, epoch=0) for stream in (old, new)), strict=True)
    assert all(np.array_equal(a.targets, b.targets) for a, b in pairs)
    train = ("train-student", "--shards", first_format, "--embedding-dim", "8", "--hidden", "8", "--epochs", "1")
    assert sd(*train, "--out", tmp_path / "student") == 0
    assert sd(*train, "--out", tmp_path / "other", "--corpus", "corpus.txt=2") == 1
    assert "format 1, which does not tell corpora apart" in capsys.readouterr().err
    assert sd(*arguments, "--out", first_format) == 1
    assert "has shard format 1, which this version reads but does not write" in capsys.readouterr().err
    assert not verify_folder(first_format, lambda count: None)


def test_shards_of_a_later_format_are_refused(sd, first_format, tmp_path, capsys):
    manifest = json.loads((first_format / "manifest.json").read_text())
    manifest.pop("checksum")
    (first_format / "manifest.json").write_bytes(dump_json({**manifest, "format": 3}))
    assert sd("train-student", "--shards", first_format, "--out", tmp_path / "student") == 1
    assert "has shard format 3, and this version reads 1 and 2" in capsys.readouterr().err
