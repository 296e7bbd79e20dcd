import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from sentence_distill.data.errors import UserError
from sentence_distill.data.lines import sentences_of_file
from sentence_distill.pipeline.load import Located
from sentence_distill.pipeline.shards import Shard
from sentence_distill.student import speed_worker
from sentence_distill.student.metrics import sts_spearman
from sentence_distill.student.model import load_student
from sentence_distill.student.models import find_model, open_model, parameters, sentences_of_shards
from sentence_distill.student.speed import Worker, cut_to_lengths, gather
from sentence_distill.student.speed_worker import Contender
from tests.conftest import make_sentences


def cosines(left, right):
    left, right = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (left, right))
    return (left * right).sum(axis=1)


def contenders(student_folder, *others, teacher=None):
    models = [find_model(str(folder)) for folder in (student_folder, *others)]
    return gather(models, ["mine", *(folder.name for folder in others)], teacher)


def test_a_student_its_teacher_and_other_models_take_part(student_folder, teacher_folder, tmp_path):
    bert = shutil.copytree(teacher_folder, tmp_path / "teacher")
    found, skipped = contenders(student_folder, bert, teacher=str(teacher_folder))
    assert [(contender.model, contender.runner) for contender in found] == [
        *[("mine", "onnx"), ("mine", "torch"), ("teacher", "other"), ("teacher 2", "teacher")]
    ]
    names = [contender.name for contender in found]
    assert names[:2] == ["mine (int8 in ONNX Runtime)", "mine (float32 in PyTorch)"]
    assert len(names) == len(set(names))
    assert [contender.weights for contender in found] == [
        *map(str, (student_folder, student_folder, bert, teacher_folder))
    ]
    assert skipped == {}


def test_a_teacher_that_is_not_here_is_named(student_folder):
    found, skipped = contenders(student_folder)
    assert "--teacher" in skipped["teacher"]
    assert [contender.model for contender in found] == ["mine", "mine"]


def test_contenders_give_the_vectors_of_their_models(student_folder, teacher_folder):
    sentences = make_sentences(40)
    found, _ = contenders(student_folder, teacher_folder, teacher=str(teacher_folder))
    onnx, by_torch, other, teacher = (contender.load()(sentences) for contender in found)
    np.testing.assert_allclose(by_torch, load_student(student_folder).encode(sentences), atol=1e-5)
    assert cosines(onnx, by_torch).min() > 0.999
    # The teacher through sentence-transformers, pooled as it was.
    assert cosines(other, teacher).min() > 0.99


def test_a_static_model_takes_part(tmp_path, teacher_folder):
    model2vec = pytest.importorskip("model2vec")
    tokenizer = Tokenizer.from_file(str(teacher_folder / "tokenizer.json"))
    table = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), 8)).astype(np.float32)
    model2vec.StaticModel(table, tokenizer).save_pretrained(str(tmp_path / "static"))
    located = find_model(str(tmp_path / "static"))
    (contender,), _ = gather([located], ["static"], None)
    assert parameters(Path(contender.weights)) == table.size
    assert contender.load()(["The cat ran.", "A dog."]).shape == (2, 8)


def test_pairs_are_scored_by_their_cosines():
    words = ["red", "cat", "ran", "old", "dog", "saw", "was"]

    def encode(texts):
        return np.array([[float(word in text) for word in words] for text in texts])

    first = ["red cat ran", "old dog saw"] * 2
    second = ["red cat was", "old red cat", "red cat ran", "saw ran was"]
    assert sts_spearman(encode, (first, second), [4, 0, 5, 0.5]) > 0.8
    # Of vectors that are all the same: no number is no JSON.
    assert sts_spearman(lambda texts: np.ones((len(texts), 2)), (first, first), [4, 0, 5, 0.5]) == 0


def test_pickled_weights_are_not_read(teacher_folder, tmp_path):
    pickled = shutil.copytree(teacher_folder, tmp_path / "pickled", ignore=lambda *_: ["model.safetensors"])
    torch.save(load_file(teacher_folder / "model.safetensors"), pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        open_model(Located(pickled, "x"), "x")


def test_texts_have_exactly_the_tokens_that_are_asked_for(teacher_folder):
    tokenizer = Tokenizer.from_file(str(teacher_folder / "tokenizer.json"))
    by_length = cut_to_lengths(tokenizer, make_sentences(5))
    assert set(by_length) == {8, 16, 32, 64}
    for length, texts in by_length.items():
        assert {len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts} == {length}
        assert len(texts) == 32


def test_sentences_are_spread_over_the_shards(shards):
    sentences = sentences_of_shards(shards, 9)
    assert len(sentences) == len(set(sentences)) == 9
    assert len(sentences_of_shards(shards)) == sum(len(Shard.open(path).ids) for path in shards.glob("shard-*.arrow"))


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), (b" \n\n", "holds no sentence"), (b"\xff\xfe\n", "not UTF-8")]
)
def test_a_wrong_file_of_sentences_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        sentences_of_file(tmp_path / "x.txt", 1)


def test_calls_that_would_take_too_long_are_left_out(monkeypatch):
    monkeypatch.setattr(speed_worker, "_SECONDS", 1e-9)
    # A clock on which a sentence takes a tenth of a second.
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def encode(sentences):
        clock[0] += 0.1 * len(sentences)

    texts = {"sentences": ["a"], "batch_sizes": [1, 8, 128], "by_length": {"8": ["a"] * 4, "64": ["a"] * 40}}
    figures = speed_worker.one_round(encode, 0, **texts)
    assert figures["by_batch"] == pytest.approx({1: 10, 8: 10})
    assert figures["by_length"] == pytest.approx({"8": 10})
    # Five seconds of calls, and the one that goes beyond.
    assert figures["latency_ms"] == pytest.approx([100] * 51)


def test_contenders_are_timed_in_processes_of_their_own(sd, monkeypatch, student_folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()

    def few(models, names, teacher):
        found, _ = gather(models, names, teacher)
        broken = replace(found[1], model="broken", folder=str(tmp_path / "empty"), timed_as="float32")
        return [found[1], broken], {"absent": "not here"}

    monkeypatch.setattr("sentence_distill.student.speed.gather", few)
    sts = tmp_path / "dev.tsv"
    rows = ["sentence1\tsentence2\tscore", "The red cat ran.\tThe red cat ran.\t5.0"]
    rows += ["The red cat ran.\tThe new road was built.\t0.5", "The old dog saw.\tThe old dog ran.\t3.0"]
    sts.write_text("\n".join(rows) + "\n")
    options = ("--rounds", "2", "--threads", "1,2", "--batch-sizes", "4,1", "--sts", sts)
    assert sd("eval", "--speed", student_folder, *options) == 0
    shown = capsys.readouterr().out
    figures = json.loads((student_folder / "speed.json").read_text())
    (student,) = figures["contenders"].values()
    assert set(student["threads"]) == {"1", "2"}
    for threads in student["threads"].values():
        # On a busy machine the larger calls may be left out, as too slow, and are listed then.
        assert list(threads["by_batch"]) == ["1", "4"][: len(threads["by_batch"])]
        assert list(threads["by_length"]) == ["8", "16", "32", "64"][: len(threads["by_length"])]
        assert threads["by_batch"]
        assert threads["by_length"]
        assert threads["latency_ms"]["p50"] <= threads["latency_ms"]["p99"]
    for name in ("startup_seconds", "peak_megabytes", "parameters", "megabytes", "dim", "sts_spearman"):
        assert student[name] > 0
    assert figures["environment"]["versions"]["torch"]
    assert figures["sts_pairs"] == 3
    assert "not measured: absent: not here" in shown
    assert figures["skipped"]["broken (float32)"].startswith(f"{tmp_path / 'empty'} holds no student")
    command = f"sd eval {student_folder} --sts {sts} --speed --threads 1,2 --rounds 2 --batch-sizes 4,1"
    assert figures["command"] == command


def broken(folder, file, content):
    shutil.copytree(folder, file.parent, dirs_exist_ok=True)
    file.write_text(content)
    return file.parent


def test_a_model_that_is_damaged_is_skipped_and_the_others_are_timed(sd, student_folder, teacher_folder, tmp_path):
    pointer = broken(teacher_folder, tmp_path / "pointer" / "model.safetensors", "version https://git-lfs/spec/v1\n")
    modules = broken(teacher_folder, tmp_path / "modules" / "modules.json", "[{")
    options = ("--rounds", "1", "--threads", "1", "--batch-sizes", "1", "--json", tmp_path / "speed.json")
    assert sd("eval", "--speed", student_folder, pointer, modules, *options) == 0
    figures = json.loads((tmp_path / "speed.json").read_text())
    assert {row["model"] for row in figures["contenders"].values()} == {"student"}
    (of_pointer,) = (why for what, why in figures["skipped"].items() if what.startswith("pointer"))
    (of_modules,) = (why for what, why in figures["skipped"].items() if what.startswith("modules"))
    assert "Git LFS" in of_pointer
    assert "modules.json is damaged" in of_modules


def test_a_process_that_is_killed_is_said_to_be(student_folder, tmp_path):
    (tmp_path / "texts.json").write_text('{"pairs": null}')
    contender = Contender(model="student", folder=str(student_folder), weights="", runner="onnx", timed_as="int8")
    with Worker(contender, 1, tmp_path / "texts.json") as worker:
        worker._process.kill()
        with pytest.raises(UserError, match="signal 9"):
            worker.ask(0)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--speed", "--threads", "0"], 2, "--threads"),
        (["--speed", "--batch-sizes", "a"], 2, "not a list of whole numbers"),
        (["--speed", "--glue"], 2, "give one of them"),
        (["--frozen"], 2, "--frozen goes with --glue"),
        (["--speed", "--rows", "all"], 2, "--rows goes with --glue"),
        (["--rounds", "3"], 2, "--rounds goes with --speed"),
        (["--glue", "--sts", "x"], 2, "--sts goes with sd eval alone or --speed"),
        (["a", "a"], 2, "given twice"),
        (["no-such/model"], 1, "is not a model"),
    ],
)
def test_mistakes_end_in_one_line(sd, capsys, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert sd("eval", *arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert code == 2 or len(captured.err.strip().splitlines()) == 1


def test_glue_takes_one_student(sd, capsys, student_folder, teacher_folder):
    assert sd("eval", "--glue", student_folder, teacher_folder) == 1
    assert "one student" in capsys.readouterr().err
    assert sd("eval", "--glue", teacher_folder, "--json", teacher_folder / "x.json") == 1
    assert "holds no student" in capsys.readouterr().err


def test_figures_of_no_student_need_a_file(sd, capsys, teacher_folder):
    assert sd("eval", teacher_folder) == 1
    assert "--json" in capsys.readouterr().err
