import json
import shutil
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch

import sentence_distill
from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import sentence_id
from sentence_distill.pipeline.manifest import load_manifest, verify_folder
from sentence_distill.pipeline.shards import Shard
from tests.conftest import contents


def rows(folder):
    return pa.concat_tables(
        pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        for path in sorted(folder.glob("*.arrow"))
        if "shard" in path.name
    )


def test_each_sentence_is_there_once_in_the_order_of_the_corpus(shards, corpus_file):
    table = rows(shards)
    sentences = [s for line in corpus_file.read_text().splitlines() for s in line.replace(". ", ".\n").splitlines()]
    expected = list(dict.fromkeys(s for s in sentences if len(s.split()) >= 3))
    assert table["text"].to_pylist() == expected
    assert table["id"].to_pylist() == [sentence_id(sentence) for sentence in expected]


def test_token_ids_carry_no_special_tokens_and_fit_two_bytes(shards):
    table = rows(shards)
    assert table.schema.field("input_ids").type == pa.list_(pa.uint16())
    assert min(min(ids) for ids in table["input_ids"].to_pylist()) > 4


def test_counts_add_up(shards):
    manifest = load_manifest(shards)
    totals = manifest.totals
    assert totals.records == 303
    assert totals.duplicates == 3
    assert totals.rejected == {"too few words": 2}
    assert totals.sentences == totals.rows + totals.duplicates + sum(totals.rejected.values())
    assert totals.rows == sum(shard.rows for shard in manifest.shards) == rows(shards).num_rows


def test_rejected_sentences_are_listed_with_place_and_reason(shards):
    lines = [json.loads(line) for line in (shards / "rejected.jsonl").read_text().splitlines()]
    assert [(line["file"], line["record"], line["reason"], line["text"]) for line in lines] == [
        ("corpus.txt", 302, "too few words", "Too short."),
        ("corpus.txt", 303, "too few words", "Old ship."),
    ]


def test_a_finished_run_is_left_as_it_is(sd, arguments, shards, capsys):
    before = contents(shards)
    assert sd(*arguments, "--out", shards) == 0
    assert contents(shards) == before


def test_a_second_run_elsewhere_gives_the_same_bytes(sd, arguments, shards, tmp_path):
    assert sd(*arguments, "--out", tmp_path / "again") == 0
    assert contents(tmp_path / "again") == contents(shards)


@pytest.mark.parametrize(
    ("option", "value", "field"),
    [("--pooling", "cls", "--pooling"), ("--shard-rows", "100", "--shard-rows"), ("--min-words", "5", "--min-words")],
)
def test_another_run_in_the_same_folder_is_refused_with_what_differs(
    sd, arguments, shards, capsys, option, value, field
):
    before = contents(shards)
    assert sd(*arguments, option, value, "--out", shards) == 1
    assert f"{field} (" in capsys.readouterr().err
    assert contents(shards) == before


def test_a_changed_corpus_is_refused(sd, arguments, shards, tmp_path, corpus_file, capsys):
    folder = shutil.copytree(shards, tmp_path / "shards")
    changed = tmp_path / "corpus.txt"
    changed.write_text(corpus_file.read_text() + "One more sentence here.\n")
    arguments[arguments.index(str(corpus_file))] = str(changed)
    assert sd(*arguments, "--out", folder) == 1
    assert "corpus.txt changed since" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "no shard", "no sidecar", "flipped sidecar"])
def test_a_damaged_shard_is_found_and_only_it_is_made_again(sd, arguments, shards, tmp_path, damage):
    folder = shutil.copytree(shards, tmp_path / "shards")
    shard, sidecar = folder / "shard-00001.arrow", folder / "shard-00001.json"
    target = sidecar if "sidecar" in damage else shard
    content = bytearray(target.read_bytes())
    if damage.startswith("no"):
        target.unlink()
    elif damage == "cut short":
        target.write_bytes(content[:-100])
    else:
        content[len(content) // 2] ^= 4
        target.write_bytes(content)
    assert verify_folder(folder, lambda n: None)
    assert sd("shards", "verify", folder) == 1
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-0000[024]*")}
    assert sd(*arguments, "--out", folder) == 0
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-0000[024]*")} == times
    assert contents(folder) == contents(shards)


def test_a_shard_of_another_run_is_found(shards, tmp_path, sd, arguments):
    folder = shutil.copytree(shards, tmp_path / "shards")
    sd(*arguments[:-4], "--dtype", "float16", "--out", tmp_path / "other")
    for suffix in ("arrow", "json"):
        shutil.copy(tmp_path / "other" / f"shard-00001.{suffix}", folder)
    (problem,) = verify_folder(folder, lambda n: None)
    assert "another run" in problem
    assert "dtype" in problem


def test_sentences_with_too_many_tokens_are_rejected(sd, arguments, tmp_path):
    assert sd(*arguments, "--max-tokens", "8", "--out", tmp_path / "out") == 0
    totals = load_manifest(tmp_path / "out").totals
    assert totals.rejected["too many tokens"] > 0
    assert max(map(len, rows(tmp_path / "out")["input_ids"].to_pylist())) == 8


def test_more_tokens_than_the_teacher_has_positions_for_are_refused(sd, arguments, tmp_path, capsys):
    assert sd(*arguments, "--max-tokens", "159", "--out", tmp_path / "out") == 1
    assert "reads at most 158" in capsys.readouterr().err


def test_vectors_that_are_not_finite_are_rejected(sd, arguments, tmp_path, monkeypatch):
    from sentence_distill.pipeline.teacher import Teacher

    launch = Teacher.launch

    def broken(self, tokens, *rest):
        launched = launch(self, tokens, *rest)
        with torch.inference_mode():
            launched.copy[3:4, 5] = np.nan
        return launched

    monkeypatch.setattr(Teacher, "launch", broken)
    assert sd(*arguments, "--out", tmp_path / "out") == 0
    totals = load_manifest(tmp_path / "out").totals
    assert totals.rejected["non-finite embedding"] == len(load_manifest(tmp_path / "out").shards)
    assert np.isfinite(Shard.open(tmp_path / "out" / "shard-00000.arrow").embeddings).all()


def test_without_its_manifest_a_folder_is_closed_again_without_the_teacher_s_work(sd, arguments, shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "shards")
    (folder / "manifest.json").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    assert sd(*arguments, "--out", folder) == 0
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")} == times
    assert contents(folder) == contents(shards)


@pytest.mark.parametrize(
    "name",
    ["rejected.jsonl", "plan.arrow", "plan.json", "teacher/tokenizer.json", "teacher/word_embeddings.safetensors"],
)
@pytest.mark.parametrize("damage", ["removed", "flipped"])
def test_damage_beside_the_shards_is_found_and_mended(sd, arguments, shards, tmp_path, name, damage):
    folder = shutil.copytree(shards, tmp_path / "shards")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).unlink()
    if damage == "flipped":
        (folder / name).write_bytes(content)
    assert any(name in problem for problem in verify_folder(folder, lambda n: None))
    assert sd("train-student", "--shards", folder, "--out", tmp_path / "student") == 1
    assert sd(*arguments, "--out", folder) == 0
    assert contents(folder) == contents(shards)


def test_rejected_text_with_unusual_line_ends_is_joined_again_as_it_was(sd, arguments, corpus_file, tmp_path):
    corpus = tmp_path / "wiki"
    corpus.write_text('<doc id="1" title="T">\nT\nEarly\u2028history\n' + corpus_file.read_text() + "</doc>\n")
    arguments[arguments.index(str(corpus_file))] = str(corpus)
    folder = tmp_path / "out"
    assert sd(*arguments, "--out", folder) == 0
    before = contents(folder)
    (folder / "manifest.json").unlink()
    (folder / "shard-00001.arrow").unlink()
    assert sd(*arguments, "--out", folder) == 0
    assert contents(folder) == before
    assert "Early\u2028history" in (folder / "rejected.jsonl").read_text(encoding="utf-8")


def test_unfinished_files_of_others_are_left_alone(sd, arguments, tmp_path):
    other = tmp_path / "out" / "films" / "video.mp4.incomplete"
    other.parent.mkdir(parents=True)
    other.write_text("half a film")
    leftover = tmp_path / "out" / "shard-00000.arrow.incomplete"
    leftover.write_text("half a shard")
    assert sd(*arguments, "--out", tmp_path / "out") == 0
    assert other.exists()
    assert not leftover.exists()


@pytest.mark.parametrize("name", ["manifest.json", "plan.json", "rejected.jsonl", "teacher/tokenizer.json"])
def test_files_of_others_under_a_run_s_names_are_refused_and_left_alone(sd, arguments, tmp_path, capsys, name):
    other = tmp_path / "out" / name
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    left = other.with_name(f"{other.name}.incomplete")
    left.write_text("")
    for options in ([], ["--plan-only"], ["--slice", "1/2"]):
        assert sd(*arguments, "--out", tmp_path / "out", *options) == 1
        assert f"{other} already exists and belongs to no run" in capsys.readouterr().err.splitlines()[-1]
    assert other.read_text() == "{}"
    assert left.exists()
    assert not (tmp_path / "out" / "plan.arrow").exists()


def test_the_teacher_s_own_folder_is_not_written_to(sd, arguments, teacher_folder, tmp_path, capsys):
    assert sd(*arguments, "--out", tmp_path, "--plan-only") == 0
    shutil.copytree(teacher_folder, tmp_path / "elsewhere")
    (tmp_path / "teacher").symlink_to("elsewhere")
    arguments[arguments.index(str(teacher_folder))] = str(tmp_path / "elsewhere")
    before = contents(tmp_path)
    assert sd(*arguments, "--out", tmp_path) == 1
    assert f"{tmp_path}/teacher is the teacher itself" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_shards_inside_the_corpus_s_folder_are_no_corpus(sd, arguments, corpus_file, tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    shutil.copy(corpus_file, folder)
    arguments[arguments.index(str(corpus_file))] = str(folder)
    for _ in range(2):
        assert sd(*arguments, "--out", folder / "shards") == 0
    assert load_manifest(folder / "shards").fingerprint.corpus_files == 1


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compressed_shards_hold_the_same_rows(sd, arguments, shards, tmp_path, compression):
    assert sd(*arguments, "--compression", compression, "--out", tmp_path / "out") == 0
    assert rows(tmp_path / "out").equals(rows(shards))
    assert verify_folder(tmp_path / "out", lambda n: None) == []


def test_without_text_the_column_is_not_there(sd, arguments, tmp_path):
    assert sd(*arguments, "--no-text", "--out", tmp_path / "out") == 0
    assert rows(tmp_path / "out").column_names == ["id", "corpus", "input_ids", "embedding"]


def test_spans_are_rows_behind_their_sentences(sd, arguments, tmp_path, capsys):
    assert sd(*arguments, "--spans", "0.5", "--out", tmp_path / "out") == 0
    texts = rows(tmp_path / "out")["text"].to_pylist()
    spans = [(before, text) for before, text in pairwise(texts) if text in before]
    assert len(spans) == len(texts) - 900
    assert 300 < len(spans) < 600
    assert sd("shards", "verify", tmp_path / "out") == 0
    capsys.readouterr()
    assert sd(*arguments, "--out", tmp_path / "out") == 1
    assert "--spans (0.5 there, 0.0 here)" in capsys.readouterr().err


def test_a_shard_may_be_empty(sd, teacher_folder, tmp_path):
    corpus = tmp_path / "twice.txt"
    corpus.write_text("The red cat ran. The old dog ran.\n" * 2)
    out = tmp_path / "out"
    assert sd("embed", "--corpus", corpus, "--teacher", teacher_folder, "--shard-rows", "2", "--out", out) == 0
    assert [shard.rows for shard in load_manifest(out).shards] == [2, 0]
    assert verify_folder(out, lambda n: None) == []


def test_python_does_what_the_command_does(shards, teacher_folder, corpus_file, tmp_path):
    options = {"pooling": "mean", "dtype": "float32", "precision": "fp32", "shard_rows": 200}
    out = tmp_path / "out"
    manifest = sentence_distill.embed(corpus=str(corpus_file), teacher=str(teacher_folder), out=str(out), **options)
    assert manifest == load_manifest(shards)
    assert contents(out) == contents(shards)
    sources = json.loads((out / "sources.json").read_text())
    assert (sources["files"], sources["names"]) == (1, ["corpus.txt"])
    given = f"--out {out} --teacher {teacher_folder} --pooling mean --shard-rows 200 --dtype float32 --precision fp32"
    assert sources["command"] == f"sd embed {corpus_file} {given}"


def test_python_is_told_of_an_option_that_is_none():
    with pytest.raises(TypeError, match="'shard_row' is not an option of EmbedConfig"):
        sentence_distill.embed(corpus="wiki.txt", shard_row=5)
    with pytest.raises(UserError, match="name a corpus"):
        sentence_distill.embed()
