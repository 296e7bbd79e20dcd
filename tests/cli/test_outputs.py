"""One rule for what commands write: nothing of the user's is replaced unless that is asked for."""

import json
import shutil

import pytest

from tests.conftest import contents, make_sentences


@pytest.fixture
def student(student_folder, tmp_path):
    unmeasured = shutil.ignore_patterns("eval.json", "glue.json", "speed.json", "glue")
    return shutil.copytree(student_folder, tmp_path / "student", ignore=unmeasured)


@pytest.fixture
def labelled(tmp_path):
    rows = [f"{sentence},{int('cat' in sentence)}" for sentence in make_sentences(200)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    return tmp_path / "train.csv"


def refused(sd, capsys, *arguments):
    assert sd(*arguments) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_report_takes_the_place_of_a_report_and_of_nothing_else(sd, student, tmp_path, capsys):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("One's own sentences.")
    line = refused(sd, capsys, "report", student, "--out", corpus)
    assert line == f"error: {corpus} already exists; name another file, or replace it with --overwrite"
    assert corpus.read_text() == "One's own sentences."
    page = tmp_path / "page.html"
    for title in ("first", "second"):
        assert sd("report", student, "--out", page, "--title", title) == 0
    assert "<title>second</title>" in page.read_text()
    page.write_text("<!doctype html><html><head><title>My own page</title>")
    assert "replace it with --overwrite" in refused(sd, capsys, "report", student, "--out", page)
    assert sd("report", student, "--out", corpus, "--overwrite") == 0
    assert "<!doctype html>" in corpus.read_text()


@pytest.mark.parametrize("kind", [(), ("--speed",), ("--glue",)])
def test_figures_take_the_place_of_no_file_of_another_kind(sd, student, tmp_path, capsys, kind):
    others = {
        "mine.json": {"mine": 1},
        "list.json": [1, 2],
        "eval.json": {"models": {}, "skipped": {}},
        "glue.json": {"source": "x", "rows": {}},
        "speed.json": {"contenders": {}, "threads": [1]},
    }
    own = {(): "eval", ("--speed",): "speed", ("--glue",): "glue"}[kind] + ".json"
    for name, content in others.items():
        if name != own:
            (tmp_path / name).write_text(json.dumps(content))
            line = refused(sd, capsys, "eval", student, *kind, "--json", tmp_path / name)
            assert line.endswith(f"{tmp_path / name} already exists; name another file, or replace it with --overwrite")
            assert json.loads((tmp_path / name).read_text()) == content


def test_overwrite_replaces_a_file_of_something_else_by_figures(sd, student, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"mine": 1}))
    assert sd("eval", student, "--json", tmp_path / "mine.json", "--overwrite") == 0
    figures = json.loads((tmp_path / "mine.json").read_text())
    assert "mine" not in figures
    assert figures["models"]["student"]["size"]["parameters"] > 0


def test_a_fine_tuned_student_is_replaced_only_when_asked_and_only_whole(sd, student, labelled, tmp_path, capsys):
    out = tmp_path / "tuned"
    command = ("finetune", student, "--train", labelled, "--finetune-steps", "4", "--out", out)
    assert sd(*command) == 0
    capsys.readouterr()
    before = contents(out)
    line = refused(sd, capsys, *command, "--seed", "1")
    assert line == f"error: {out} already exists; name another folder with --out, or replace it with --overwrite"
    assert contents(out) == before
    assert sd(*command, "--seed", "1", "--overwrite") == 0
    assert contents(out).keys() == before.keys()
    assert contents(out)["head.safetensors"] != before["head.safetensors"]
    (out / "notes.txt").write_text("mine")
    before = contents(out)
    capsys.readouterr()
    line = refused(sd, capsys, *command, "--overwrite")
    assert line.endswith(f"{out} holds notes.txt, which sd finetune did not write; name another folder with --out")
    assert contents(out) == before


def test_an_earlier_student_stays_where_its_replacement_fails(sd, student, labelled, tmp_path, monkeypatch):
    out = tmp_path / "tuned"
    command = ("finetune", student, "--train", labelled, "--finetune-steps", "4", "--out", out)
    assert sd(*command) == 0
    before = contents(tmp_path)

    def full(folder, *arguments):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sentence_distill.student.classifier.save_student", full)
    assert sd(*command, "--overwrite") == 1
    assert contents(tmp_path) == before


def test_a_fine_tuned_teacher_is_replaced_only_when_asked_and_another_model_never(
    sd, teacher_folder, labelled, tmp_path, capsys
):
    out = tmp_path / "teacher"
    command = ("finetune", teacher_folder, "--train", labelled, "--finetune-steps", "1", "--epochs", "1", "--out", out)
    assert sd(*command) == 0
    capsys.readouterr()
    assert refused(sd, capsys, *command).endswith("or replace it with --overwrite")
    assert sd(*command, "--overwrite") == 0
    mine = shutil.copytree(teacher_folder, tmp_path / "mine")
    before = contents(mine)
    capsys.readouterr()
    line = refused(sd, capsys, *command[:-1], mine, "--overwrite")
    assert line.endswith("mine holds config.json, which sd finetune did not write; name another folder with --out")
    assert contents(mine) == before


def test_a_reduced_student_is_replaced_only_when_asked_and_another_student_never(sd, student, shards, tmp_path, capsys):
    out = tmp_path / "narrow"
    command = ("export", student, "--shards", shards, "--dim", "8", "--format", "folder", "--out")
    assert sd(*command, out) == 0
    capsys.readouterr()
    assert refused(sd, capsys, *command, out).endswith("or replace it with --overwrite")
    assert sd("export", student, "--format", "folder", "--float16", "--out", out, "--overwrite") == 0
    assert json.loads((out / "distillation.json").read_text())["weights"] == "float16"
    before = contents(student)
    assert "which sd export did not write" in refused(sd, capsys, *command, student, "--overwrite")
    assert contents(student) == before


def test_a_submission_takes_the_place_of_a_submission_only(sd, student, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    line = refused(sd, capsys, "eval", "--glue", student, "--submission", tmp_path / "mine", "--glue-dir", tmp_path)
    assert "holds thesis.tex, which sd eval --submission did not write; name another folder" in line
