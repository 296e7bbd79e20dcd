import shutil

import pytest

from tests.conftest import contents


def test_widths_are_compared_and_nothing_is_written(sd, student_folder, shards, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(student_folder, tmp_path / "student")
    before = contents(tmp_path)
    assert sd("reduce", folder, "--shards", shards) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if line.strip()[:1].isdigit()] == ["8", "16", "32"]
    assert "teacher" in shown
    assert sd("reduce", folder, "--shards", shards, "--dims", "4,20") == 0
    assert "next: sd reduce" in capsys.readouterr().out
    assert contents(tmp_path) == before


def test_a_corpus_stands_for_shards(sd, student_folder, corpus_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(student_folder, tmp_path / "student")
    assert sd("reduce", folder, "--dim", "4", "--corpus", corpus_file) == 0
    assert "teacher" not in capsys.readouterr().out
    # Named after the student and the width.
    assert (tmp_path / "student-4" / "modules.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no-such"], 1, "holds no student"),
        (["{student}", "--dim", "32"], 1, "32 dimensions are no reduction of the student's 32"),
        (["{student}", "--dims", "8,64"], 1, "64 dimensions are no reduction"),
        (["{student}", "--dim", "8", "--dims", "4"], 2, "give one of them"),
        (["{student}", "--out", "x"], 2, "--out goes with --dim"),
        (["{student}", "--dim", "8", "--shards", "no-such"], 1, "no-such"),
        (["{student}", "--dim", "8", "--corpus", "no-such.txt"], 1, "no-such.txt"),
        (["{student}", "--dim", "8", "--corpus", "short.txt"], 1, "too few to reduce by"),
        (["{student}", "--shards", "x", "--corpus", "y"], 2, "give one of them"),
        (["{student}", "--dim", "8", "--out", "{student}"], 1, "is not empty"),
    ],
)
def test_mistakes_end_in_one_line(sd, student_folder, tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("The red cat ran home.\n")
    assert sd("reduce", *(argument.format(student=student_folder) for argument in arguments)) == code
    error = capsys.readouterr().err
    assert message in error
    assert code == 2 or len(error.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]
