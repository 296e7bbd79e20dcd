import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sentence_distill.student.encoding.onnx_student import OnnxStudent
from sentence_distill.student.model import Student
from tests.conftest import contents, make_sentences

SENTENCES = ["The red cat ran.", "", *make_sentences(40, seed=5), "Unknown words. " * 300]
GUIDE = Path(__file__).parents[2] / "docs" / "deploy-onnx.md"


@pytest.fixture
def distilled(student_folder, tmp_path, monkeypatch):
    """A student where `sd train-student` puts it, seen from the current folder."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(student_folder, tmp_path / "distilled")


@pytest.fixture
def homeless(distilled):
    """The same, and the shards that it was trained on are no longer there."""
    record = json.loads((distilled / "distillation.json").read_text())
    (distilled / "distillation.json").write_text(json.dumps(record | {"shards": "gone"}))
    return distilled


def test_an_export_gives_the_students_vectors_and_says_how_close_and_fast_it_is(sd, distilled, capsys):
    assert sd("export", "distilled", "--onnx") == 0
    folder, shown = distilled / "onnx", capsys.readouterr().out
    assert set(contents(folder)) == {"model.onnx", "tokenizer.json", "export.json"}
    vectors = OnnxStudent.of_export(folder).encode(SENTENCES)
    np.testing.assert_allclose(vectors, Student.load(distilled, backend="torch").encode(SENTENCES), atol=1e-5)
    assert "(held-out sentences of the shards): mean 1.0000, lowest 1.0000" in shown
    assert re.search(r"p50 / p99 in ms: onnxruntime [\d.]+ / [\d.]+; pytorch [\d.]+ / [\d.]+", shown)
    assert "export: distilled/onnx" in shown


def test_int8_is_a_quarter_of_the_size_and_close(sd, distilled):
    assert sd("export", "--onnx", "--out", "plain") == 0
    assert sd("export", "--onnx", "--int8", "--out", "small") == 0
    record = json.loads(Path("small/export.json").read_text())
    assert (record["int8"], record["dim"]) == (True, 32)
    assert 0.999 < record["agreement"]["cosine"] < 1
    assert Path("small/model.onnx").stat().st_size < Path("plain/model.onnx").stat().st_size


def test_a_file_may_measure(sd, homeless, capsys):
    Path("text.txt").write_text("cat dog bird\n" * 3, encoding="utf-8")
    assert sd("export", "distilled", "--onnx", "--sentences", "text.txt") == 0
    assert "3 sentences (text.txt): mean 1.0000" in capsys.readouterr().out


def test_without_sentences_an_export_is_made_and_not_measured(sd, homeless, capsys):
    assert sd("export", "distilled", "--onnx") == 0
    assert "not measured: no folder gone, where the student's shards were" in capsys.readouterr().out
    assert (homeless / "onnx" / "model.onnx").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "--onnx"),
        (("--onnx", "--shards", "no-such"), 1, "no-such"),
        (("--onnx", "--sentences", "no-such"), 1, "no-such is not there"),
        (("--onnx", "--out", "words.txt"), 1, "is a file"),
        (("--onnx", "--out", "distilled"), 1, "which sd export did not write"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(sd, homeless, capsys, options, code, message):
    Path("words.txt").write_text("cat\n")
    before = contents(Path.cwd())
    assert sd("export", "distilled", *options) == code
    shown = capsys.readouterr().err
    assert message in shown
    assert code == 2 or len(shown.strip().splitlines()) == 1
    assert contents(Path.cwd()) == before


def test_a_folder_that_is_no_student_is_refused(sd, tmp_path, capsys):
    assert sd("export", tmp_path, "--onnx") == 1
    assert "sd train-student" in capsys.readouterr().err


def test_what_a_user_added_to_an_export_is_not_replaced(sd, homeless, capsys):
    assert sd("export", "distilled", "--onnx") == 0
    (homeless / "onnx" / "notes.txt").write_text("mine")
    before = contents(homeless)
    assert sd("export", "distilled", "--onnx", "--int8") == 1
    assert "holds notes.txt" in capsys.readouterr().err
    assert contents(homeless) == before


def test_an_export_that_fails_leaves_the_one_before(sd, homeless, monkeypatch):
    assert sd("export", "distilled", "--onnx") == 0
    before = contents(homeless)
    monkeypatch.setattr("sentence_distill.student.export.onnx_export._record", lambda *of: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sd("export", "distilled", "--onnx", "--int8")
    assert contents(homeless) == before


def test_other_shards_under_the_recorded_name_do_not_measure(sd, homeless, arguments, capsys):
    """As beside a student from the hub, whose record names a folder of another machine."""
    Path("other.txt").write_text("\n".join(make_sentences(600, seed=9)), encoding="utf-8")
    assert sd(*arguments, "--corpus", "other.txt", "--out", "gone") == 0
    assert sd("export", "distilled", "--onnx") == 0
    assert "not measured: gone is not what the student was trained on: corpus_" in capsys.readouterr().out
    assert "agreement" not in json.loads((homeless / "onnx" / "export.json").read_text())
    assert sd("export", "distilled", "--onnx", "--shards", "gone") == 0
    assert "agreement" in json.loads((homeless / "onnx" / "export.json").read_text())


def test_what_a_killed_export_left_goes_with_the_next_and_nothing_else(sd, homeless):
    with subprocess.Popen(["true"]) as ended:
        pass
    dead = [homeless / f".onnx.{kind}.{ended.pid}-0a1b2c3d.incomplete" for kind in ("new", "old")]
    others = [
        homeless / f".onnx.new.{os.getppid()}-0a1b2c3d.incomplete",
        homeless / f".onnx-small.new.{ended.pid}-0a1b2c3d.incomplete",
        homeless / ".onnx.new.mine.incomplete",
    ]
    for path in dead + others:
        path.mkdir()
        (path / "model.onnx").write_bytes(b"half")
    assert sd("export", "distilled", "--onnx") == 0
    assert [path.exists() for path in dead + others] == [False, False, True, True, True]


def test_the_guides_script_runs_without_torch_and_without_this_package(sd, homeless, tmp_path):
    assert sd("export", "distilled", "--onnx") == 0
    (script,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    blocked = "import sys\nfor name in ('torch', 'transformers', 'sentence_distill'): sys.modules[name] = None\n"
    end = f"np.save('vectors.npy', encode({SENTENCES!r}))\nassert vectors.shape == (2, 32)\n"
    result = subprocess.run([sys.executable, "-c", blocked + script + end], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert sum(1 for line in script.splitlines() if line) == 10
    expected = Student.load(homeless, backend="torch").encode(SENTENCES)
    np.testing.assert_allclose(np.load("vectors.npy"), expected, atol=1e-5)
