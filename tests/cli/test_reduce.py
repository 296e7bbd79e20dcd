import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from sentence_distill import Classifier, Student
from sentence_distill.student.onnx_student import OnnxStudent
from tests.conftest import contents, make_sentences

FOLDER = ("--format", "folder")


def test_widths_are_compared_and_nothing_is_written(sd, student_folder, shards, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(student_folder, tmp_path / "student")
    before = contents(tmp_path)
    assert sd("export", folder, "--shards", shards, "--dim", "8,16") == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if line.strip()[:1].isdigit()] == ["8", "16", "32"]
    assert "teacher" in shown
    assert sd("export", folder, "--shards", shards, "--dims", "4,20") == 0
    assert f"next: sd export {folder} --dim 20" in capsys.readouterr().out
    assert contents(tmp_path) == before


def test_a_corpus_stands_for_shards(sd, student_folder, corpus_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(student_folder, tmp_path / "student")
    assert sd("export", folder, *FOLDER, "--dim", "4", "--corpus", corpus_file) == 0
    assert "teacher" not in capsys.readouterr().out
    # Named after the student and the width.
    assert (tmp_path / "student-4" / "modules.json").exists()


def test_an_onnx_export_may_be_narrower(sd, student_folder, shards, tmp_path, capsys):
    narrow = tmp_path / "narrow"
    command = ("export", student_folder, "--shards", shards, "--dim", "8")
    assert sd(*command, *FOLDER, "--out", narrow) == 0
    assert sd(*command, "--out", tmp_path / "onnx") == 0
    shown = capsys.readouterr().out
    assert "sentence encoder with vectors of 8 dimensions" in shown
    assert "cosine to the student" in shown
    vectors = OnnxStudent.of_export(tmp_path / "onnx").encode(make_sentences(20))
    np.testing.assert_allclose(vectors, Student.load(narrow, backend="torch").encode(make_sentences(20)), atol=1e-5)


@pytest.mark.parametrize("more", [[], ["--dim", "8"]])
def test_float16_halves_the_files_and_keeps_the_vectors(sd, student_folder, shards, tmp_path, more):
    from sentence_transformers import SentenceTransformer

    folder, whole = tmp_path / "half", shutil.copytree(student_folder, tmp_path / "own")
    # Words about the whole one would not hold of the copy, which gets a card of its own.
    (whole / "README.md").write_text("My own words.", encoding="utf-8")
    if more:
        whole = tmp_path / "whole"
        assert sd("export", tmp_path / "own", *FOLDER, "--shards", shards, *more, "--out", whole) == 0
    assert (
        sd(
            "export",
            tmp_path / "own",
            *FOLDER,
            *(["--shards", shards] if more else []),
            *more,
            "--float16",
            "--out",
            folder,
        )
        == 0
    )
    sizes = [sum(file.stat().st_size for file in root.rglob("*.safetensors")) for root in (whole, folder)]
    assert sizes[1] < 0.6 * sizes[0]
    assert {file.stat().st_mode for file in folder.rglob("*.safetensors")} == {(folder / "modules.json").stat().st_mode}
    sentences = make_sentences(20)
    full, half = (Student.load(root, backend="torch").encode(sentences) for root in (whole, folder))
    assert half.dtype == np.float32
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "stored as float16" in card
    assert "\n# half\n" in card, "it is titled after the folder, not after the temporary one that it was written to"
    np.testing.assert_allclose(half, full, atol=2e-3)
    other = SentenceTransformer(str(folder), device="cpu").encode(sentences)
    np.testing.assert_allclose(other, half, atol=1e-5)


def test_a_fine_tuned_student_keeps_its_head_as_float16_and_is_not_reduced(
    sd, student_folder, shards, tmp_path, capsys
):
    fine_tuned, train = tmp_path / "tuned", tmp_path / "train.csv"
    rows = [f"{sentence},{int('cat' in sentence)}" for sentence in make_sentences(200)]
    train.write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    assert sd("finetune", student_folder, "--train", train, "--epochs", "1", "--out", fine_tuned) == 0
    assert sd("export", fine_tuned, *FOLDER, "--float16", "--out", tmp_path / "half") == 0
    sentences = make_sentences(20)
    full, half = (Classifier.load(folder).predict(sentences) for folder in (fine_tuned, tmp_path / "half"))
    assert list(full) == list(half)
    for options in (("--dim", "4,8"), ("--dim", "8", *FOLDER, "--out", tmp_path / "narrow")):
        assert sd("export", fine_tuned, "--shards", shards, *options) == 1
        assert "reduce the student that it was fine-tuned from" in capsys.readouterr().err
    assert not (tmp_path / "narrow").exists()


def test_a_weight_beyond_float16_is_refused(sd, student_folder, tmp_path, capsys):
    folder = shutil.copytree(student_folder, tmp_path / "student")
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight * 1e9 for name, weight in weights.items()}, folder / "model.safetensors")
    assert sd("export", folder, *FOLDER, "--float16", "--out", tmp_path / "half") == 1
    assert not (tmp_path / "half").exists()
    assert "keep the student in float32" in capsys.readouterr().err


def test_few_sentences_to_measure_with_are_warned_of(sd, student_folder, tmp_path, capsys):
    (tmp_path / "few.txt").write_text("\n".join(make_sentences(100)), encoding="utf-8")
    assert sd("export", student_folder, "--dim", "8,16", "--corpus", tmp_path / "few.txt") == 0
    assert "warning: 20 sentences measured, too few" in capsys.readouterr().err


def test_other_shards_under_the_recorded_name_are_not_taken(
    sd, student_folder, arguments, tmp_path, monkeypatch, capsys
):
    """As beside a student from the hub, whose record names a folder of another machine."""
    folder = shutil.copytree(student_folder, tmp_path / "student")
    record = json.loads((folder / "distillation.json").read_text())
    (folder / "distillation.json").write_text(json.dumps(record | {"shards": "shards"}))
    (tmp_path / "other.txt").write_text("\n".join(make_sentences(600, seed=9)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert sd(*arguments, "--corpus", "other.txt", "--out", "shards") == 0
    assert sd("export", "student", "--dim", "8") == 1
    assert "the student was not trained on shards: the number of corpus files" in capsys.readouterr().err
    assert sd("export", "student", "--dim", "8,16", "--shards", "shards") == 0
    # Figures over another corpus are not those that the card speaks of.
    capsys.readouterr()
    assert sd("export", "student", *FOLDER, "--shards", "shards", "--dim", "8") == 0
    assert "the student was not trained on shards" in capsys.readouterr().err
    made = json.loads((tmp_path / "student-8" / "distillation.json").read_text())
    assert made["metrics"] == {}
    assert made["reduction"]["teacher_rank_agreement"]
    assert "held-out" not in (tmp_path / "student-8" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no-such", "--dim", "8"], 1, "holds no student"),
        (["{student}", "--dim", "32"], 1, "--dim 32 must be below the student's 32 dimensions"),
        (["{student}", "--dim", "8,64"], 1, "--dim 64 must be below"),
        (["{student}", "--dim", "0"], 2, "must be at least 1"),
        (["{student}", "--dim", "8,16", "--out", "x"], 2, "several --dim are only compared"),
        (["{student}", "--dim", "8,16", "--float16", *FOLDER], 2, "several --dim are only compared"),
        (["{student}", "--float16", *FOLDER, "--shards", "x"], 2, "--float16 alone does not read --shards"),
        (["{student}", "--float16", *FOLDER, "--out", "{student}"], 1, "which sd export did not write"),
        (["no-such", "--float16", *FOLDER], 1, "holds no student"),
        (["{student}", "--dim", "8", "--shards", "no-such"], 1, "no-such"),
        (["{student}", "--dim", "8", "--corpus", "no-such.txt"], 1, "no-such.txt"),
        (["{student}", "--dim", "8", "--corpus", "short.txt"], 1, "too few to fit a reduction"),
        (["{student}", "--dim", "8", "--corpus", "few.txt"], 1, "24 sentences to fit a reduction on"),
        (["{student}", "--dim", "8", "--shards", "x", "--corpus", "y"], 2, "give one of them"),
        (["{student}", "--corpus", "few.txt"], 2, "--corpus goes with --dim"),
        (["{student}", "--dim", "8", *FOLDER, "--out", "{student}"], 1, "which sd export did not write"),
    ],
)
def test_mistakes_end_in_one_line(sd, student_folder, tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("The red cat ran home.\n")
    (tmp_path / "few.txt").write_text("\n".join(make_sentences(30)), encoding="utf-8")
    assert sd("export", *(argument.format(student=student_folder) for argument in arguments)) == code
    error = capsys.readouterr().err
    assert message in error
    assert code == 2 or len(error.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.txt", "short.txt"]
