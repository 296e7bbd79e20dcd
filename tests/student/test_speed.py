import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.spatial.distance import cdist
from tokenizers import Tokenizer

from sentence_distill.data.errors import UserError
from sentence_distill.data.lines import sentences_of_file
from sentence_distill.pipeline.load import Located
from sentence_distill.pipeline.shards import Shard
from sentence_distill.pipeline.teacher import Teacher
from sentence_distill.student import contender as process
from sentence_distill.student.contenders import Contender, Field, gather
from sentence_distill.student.model import load_student
from sentence_distill.student.models import find_model, parameters
from sentence_distill.student.peers import make_peers, make_static, parameters_of
from sentence_distill.student.reference import cut_to_lengths, sentences_of_shards
from sentence_distill.student.speed import Worker
from tests.conftest import make_sentences

RECIPE = {"pooling": "mean", "layers": [2], "token_budget": 256}


@pytest.fixture
def alone(monkeypatch):
    """A machine without MiniLM and without bfloat16."""
    monkeypatch.setattr("sentence_distill.student.contenders.locate_local", lambda name: None)
    monkeypatch.setattr("sentence_distill.student.contenders.fast_in_bf16", lambda *of: False)


def cosines(left, right):
    left, right = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (left, right))
    return (left * right).sum(axis=1)


def test_everybody_who_can_run_takes_part_and_the_others_are_named(
    alone, monkeypatch, student_folder, teacher_folder, tmp_path
):
    monkeypatch.setattr("sentence_distill.student.contenders.find_spec", lambda package: None)
    models = [(str(student_folder), find_model(str(student_folder))), ("bert", find_model(str(teacher_folder)))]
    found = gather(models, str(teacher_folder), tmp_path)
    assert [contender.name for contender in found.contenders] == [
        *("student (sd, int8)", "student (sd, fp32)", "student (SentenceTransformer, fp32)"),
        "bert (SentenceTransformer, fp32)",
        *("teacher (sd, fp32)", "teacher (SentenceTransformer, fp32)", "TF-IDF (scikit-learn, fp32)"),
    ]
    assert found.skipped["teacher (ONNX Runtime, int8)"].startswith("onnx and onnxruntime not installed")
    assert "pip install 'model2vec[distill]'" in found.skipped["model2vec of the teacher (model2vec, fp32)"]
    assert "bfloat16" in found.skipped["student (sd, bf16)"]
    assert "all-MiniLM-L6-v2 (SentenceTransformer)" in found.skipped


def test_another_teacher_than_the_students_takes_no_part(alone, student_folder, tmp_path):
    found = gather([("x", find_model(str(student_folder)))], None, tmp_path)
    assert "--teacher" in found.skipped["teacher"]
    assert [contender.model for contender in found.contenders] == ["student", "student", "student", "TF-IDF"]


def named(folder, label):
    """A copy of a model's folder, as a user would name it."""
    copy = shutil.copytree(folder, label)
    return str(copy), find_model(str(copy))


def test_contenders_of_one_name_are_told_apart(alone, student_folder, teacher_folder, tmp_path):
    others = [named(teacher_folder, tmp_path / name) for name in ("teacher", "student", "TF-IDF")]
    found = gather([named(student_folder, tmp_path / "mine"), *others], str(teacher_folder), tmp_path)
    names = [contender.name for contender in found.contenders]
    assert len(names) == len(set(names))
    assert {"teacher (SentenceTransformer, fp32)", "teacher 2 (SentenceTransformer, fp32)"} <= set(names)
    assert {"student 2 (sd, fp32)", "TF-IDF 2 (scikit-learn, fp32)"} <= set(names)


def recorded(student_folder, folder, **teacher):
    """A copy of a student that records another recipe of its teacher."""
    shutil.copytree(student_folder, folder)
    record = json.loads((folder / "distillation.json").read_text())
    record["teacher"] |= teacher
    (folder / "distillation.json").write_text(json.dumps(record))
    return [("x", find_model(str(folder)))]


@pytest.mark.parametrize(
    ("recipe", "reason"), [({"pooling": "pooler"}, "pooling pooler"), ({"layers": [2, 1]}, "it computes layer 2")]
)
def test_who_computes_other_vectors_than_the_students_teacher_takes_no_part(
    alone, student_folder, teacher_folder, tmp_path, recipe, reason
):
    models = recorded(student_folder, tmp_path / "x", **recipe)
    found = gather(models, str(teacher_folder), tmp_path)
    assert [contender.runner for contender in found.contenders if contender.model == "teacher"] == ["sd"]
    for runner in ("SentenceTransformer", "ONNX Runtime, int8"):
        assert reason in found.skipped[f"teacher ({runner})"]


def test_a_teacher_whose_modules_pool_in_another_way_takes_no_part_through_them(
    alone, student_folder, teacher_folder, tmp_path
):
    teacher = shutil.copytree(teacher_folder, tmp_path / "teacher")
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds]
    (teacher / "modules.json").write_text(json.dumps(modules))
    (teacher / "1_Pooling").mkdir()
    (teacher / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    found = gather([("x", find_model(str(student_folder)))], str(teacher), tmp_path)
    assert "SentenceTransformer" not in [one.runner for one in found.contenders if one.model == "teacher"]
    assert "pools by cls" in found.skipped["teacher (SentenceTransformer)"]


def test_a_teacher_with_modules_after_its_pooling_runs_where_they_are_applied(
    alone, student_folder, teacher_folder, tmp_path
):
    student = shutil.copytree(student_folder, tmp_path / "x")
    record = json.loads((student / "distillation.json").read_text())
    record["corpus"]["fingerprint"]["modules"] = ["Dense 32 to 16, Tanh"]
    (student / "distillation.json").write_text(json.dumps(record))
    found = gather([("x", find_model(str(student)))], str(teacher_folder), tmp_path)
    of_teacher = [contender for contender in found.contenders if contender.model == "teacher"]
    assert {contender.runner for contender in of_teacher} == {"sd", "SentenceTransformer"}
    assert all(contender.teacher["pooling"] is None for contender in of_teacher)
    assert "modules after the teacher's pooling" in found.skipped["teacher (ONNX Runtime, int8)"]


def test_a_student_gives_the_same_vectors_through_both_runners(student_folder):
    sentences = make_sentences(40)
    own, through = (
        process.load(Contender("student", runner, "fp32", student_folder).spec())
        for runner in ("sd", "SentenceTransformer")
    )
    np.testing.assert_allclose(own(sentences), through(sentences), atol=1e-5)


def test_a_teacher_gives_the_same_vectors_whatever_runs_it(teacher_folder, tmp_path):
    sentences = make_sentences(70)
    contenders = [
        Contender("teacher", runner, "fp32", teacher_folder, RECIPE) for runner in ("sd", "SentenceTransformer")
    ]
    exact, through = (process.load(contender.spec())(sentences) for contender in contenders)
    assert cosines(exact, through).min() > 0.9999
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    quantised = Contender("teacher", "ONNX Runtime", "int8", tmp_path / "onnx", RECIPE)
    field = Field([quantised], teacher_folder, {})
    make_peers(field, sentences)
    assert field.skipped == {}
    encode = process.load({**quantised.spec(), "threads": 1})
    assert cosines(exact, encode(sentences)).min() > 0.95
    assert parameters_of(quantised, field) == parameters(teacher_folder) > 1000


def test_a_static_model_is_made_of_the_teacher(teacher_folder, tmp_path):
    pytest.importorskip("model2vec")
    static = Contender("model2vec of the teacher", "model2vec", "fp32", tmp_path / "static")
    field = Field([static], teacher_folder, {})
    make_peers(field, [])
    assert field.skipped == {}
    encode = process.load(static.spec())
    vectors = encode(make_sentences(3))
    assert len(vectors) == 3
    assert parameters_of(static, field) >= vectors.shape[1]


def test_a_static_model_that_was_saved_keeps_the_teachers_words_apart_as_the_teacher_does(teacher_folder, tmp_path):
    model2vec = pytest.importorskip("model2vec")
    make_static(teacher_folder, tmp_path / "static")
    static = model2vec.StaticModel.from_pretrained(str(tmp_path / "static"))
    # A longer neighbour must not leave padding in a word's vector.
    assert [len(found.ids) for found in static.tokenizer.encode_batch(["cat", "a cat and a dog"])] == [1, 5]
    words = ["cat", "dog", "house", "river"]
    table = static.embedding[[static.tokenizer.token_to_id(word) for word in words]].astype(np.float32)
    located = Located(teacher_folder, "teacher")
    teacher = Teacher.load(located, pooling="mean", device=torch.device("cpu"), dtype=torch.float32)
    exact = teacher.embed(teacher.tokenize(words), 1024)
    # PCA turns the words' vectors and moves them, all alike.
    np.testing.assert_allclose(cdist(table, table), cdist(exact, exact), atol=0.02)


def test_a_peer_that_can_not_be_made_is_skipped_with_the_reason(tmp_path):
    pytest.importorskip("model2vec")
    static = Contender("x", "model2vec", "fp32", tmp_path / "static")
    field = Field([static], tmp_path, {})
    make_peers(field, [])
    assert field.contenders == []
    assert field.skipped[static.name].startswith("could not be made: ")


def test_tf_idf_scores_pairs_that_share_words_higher(tmp_path):
    tf_idf = Contender("TF-IDF", "scikit-learn", "fp32", tmp_path / "tf-idf")
    field = Field([tf_idf], None, {})
    make_peers(field, make_sentences(50))
    encode = process.load(tf_idf.spec())
    assert encode(["The red cat ran."]).shape == (1, parameters_of(tf_idf, field))
    first = ["The red cat ran.", "The old dog saw."] * 2
    second = ["The red cat was.", "Quickly under ships.", "The red cat ran.", "One new king left."]
    assert process.spearman(encode, {"first": first, "second": second, "scores": [4, 0, 5, 0.5]}) > 0.8
    # Of vectors that are all the same: no number is no JSON.
    same = {"first": first, "second": first, "scores": [4, 0, 5, 0.5]}
    assert process.spearman(lambda sentences: np.ones((len(sentences), 2)), same) == 0


@pytest.mark.parametrize("runner", ["SentenceTransformer", "model2vec"])
def test_pickled_weights_are_not_read(teacher_folder, tmp_path, runner):
    pickled = shutil.copytree(teacher_folder, tmp_path / "pickled", ignore=lambda *_: ["model.safetensors"])
    torch.save(load_file(teacher_folder / "model.safetensors"), pickled / "pytorch_model.bin")
    if runner == "model2vec":
        pytest.importorskip("model2vec")
        contender = Contender("x", runner, "fp32", tmp_path / "static")
        field = Field([contender], pickled, {})
        make_peers(field, [])
        assert "safetensors" in field.skipped[contender.name]
        return
    with pytest.raises(UserError, match="safetensors"):
        process.load(Contender("x", runner, "fp32", pickled).spec())
    with pytest.raises(OSError, match="safetensors"):
        process.load(Contender("x", runner, "fp32", pickled, RECIPE).spec())


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
    ("content", "message"), [(None, "is not there"), (b" \n\n", "holds no sentence"), (b"\xff\xfe\n", "not UTF-8")]
)
def test_a_wrong_file_of_sentences_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        sentences_of_file(tmp_path / "x.txt", 1)


def test_calls_that_would_take_too_long_are_left_out(monkeypatch):
    monkeypatch.setattr(process, "_SECONDS", 1e-9)
    # A clock on which a sentence takes a tenth of a second.
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def encode(sentences):
        clock[0] += 0.1 * len(sentences)

    texts = {"sentences": ["a"], "batch_sizes": [1, 8, 128], "by_length": {"8": ["a"] * 4, "64": ["a"] * 40}}
    figures = process.one_round(encode, texts, 0)
    assert figures["by_batch"] == pytest.approx({"1": 10, "8": 10})
    assert figures["by_length"] == pytest.approx({"8": 10})
    # Five seconds of calls, and the one that goes beyond.
    assert figures["latency_ms"] == pytest.approx([100] * 51)


def test_contenders_are_timed_in_processes_of_their_own(
    sd, monkeypatch, student_folder, teacher_folder, tmp_path, capsys
):
    def few(models, teacher, workdir):
        student = Contender("student", "sd", "fp32", models[0][1].folder)
        tf_idf = Contender("TF-IDF", "scikit-learn", "fp32", workdir / "tf-idf")
        (tmp_path / "empty").mkdir()
        broken = Contender("broken", "sd", "fp32", tmp_path / "empty")
        return Field([student, broken, tf_idf], None, {"absent": "not here"})

    monkeypatch.setattr("sentence_distill.student.speed.gather", few)
    sts = tmp_path / "dev.tsv"
    rows = ["sentence1\tsentence2\tscore", "The red cat ran.\tThe red cat ran.\t5.0"]
    rows += ["The red cat ran.\tThe new road was built.\t0.5", "The old dog saw.\tThe old dog ran.\t3.0"]
    sts.write_text("\n".join(rows) + "\n")
    options = ("--rounds", "2", "--threads", "1,2", "--batch-sizes", "4,1", "--sts", sts)
    assert sd("eval", "--speed", student_folder, *options) == 0
    shown = capsys.readouterr().out
    figures = json.loads((student_folder / "speed.json").read_text())
    assert set(figures["contenders"]) == {"student (sd, fp32)", "TF-IDF (scikit-learn, fp32)"}
    student = figures["contenders"]["student (sd, fp32)"]
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
    assert figures["skipped"]["broken (sd, fp32)"].startswith(f"{tmp_path / 'empty'} holds no student")


def broken(folder, file, content):
    shutil.copytree(folder, file.parent, dirs_exist_ok=True)
    file.write_text(content)
    return file.parent


def test_a_model_that_is_damaged_is_skipped_and_the_others_are_timed(
    sd, monkeypatch, student_folder, teacher_folder, tmp_path
):
    pointer = broken(teacher_folder, tmp_path / "pointer" / "model.safetensors", "version https://git-lfs/spec/v1\n")
    modules = broken(teacher_folder, tmp_path / "modules" / "modules.json", "[{")

    def few(models, teacher, workdir):
        folders = {"student": student_folder, "pointer": pointer, "modules": modules}
        return Field([Contender(name, "sd", "fp32", folder) for name, folder in folders.items()], None, {})

    monkeypatch.setattr("sentence_distill.student.speed.gather", few)
    assert sd("eval", "--speed", student_folder, "--rounds", "1", "--threads", "1", "--batch-sizes", "1") == 0
    figures = json.loads((student_folder / "speed.json").read_text())
    assert list(figures["contenders"]) == ["student (sd, fp32)"]
    assert "Git LFS" in figures["skipped"]["pointer (sd, fp32)"]
    assert "modules.json is damaged" in figures["skipped"]["modules (sd, fp32)"]


def test_a_process_that_is_killed_is_said_to_be(student_folder, tmp_path):
    (tmp_path / "texts.json").write_text("{}")
    with Worker(Contender("student", "sd", "fp32", student_folder), 1, tmp_path / "texts.json") as worker:
        worker._process.kill()
        with pytest.raises(UserError, match="signal 9"):
            worker.ask(0)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--speed", "--threads", "0"], 2, "--threads"),
        (["--speed", "--batch-sizes", "a"], 2, "no list of numbers"),
        (["--speed", "--glue"], 2, "give one of them"),
        (["--student", "a", "b"], 2, "give one of them"),
        (["--frozen"], 2, "--frozen goes with --glue"),
        (["--speed", "--rows", "all"], 2, "--rows goes with --glue"),
        (["--rounds", "3"], 2, "--rounds goes with --speed"),
        (["--glue", "--sts", "x"], 2, "--sts goes with sd eval alone or --speed"),
        (["a", "a"], 2, "named twice"),
        (["no-such/model"], 1, "is no model"),
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


def test_a_student_takes_part_as_it_is_run_on_a_cpu(alone, student_folder, tmp_path):
    field = gather([("mine", find_model(str(student_folder)))], None, tmp_path)
    (contender,) = [one for one in field.contenders if one.name == "student (sd, int8)"]
    assert parameters_of(contender, field) == parameters(student_folder)
    sentences = make_sentences(3)
    vectors = process.load({**contender.spec(), "threads": 1})(sentences)
    assert cosines(vectors, load_student(student_folder).encode(sentences)).min() > 0.999
