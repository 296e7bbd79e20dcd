import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sentence_distill import Classifier
from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.files import lock_folder
from sentence_distill.student.model import Student
from sentence_distill.student.onnx_student import OnnxStudent
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
    assert set(contents(folder)) == {"model.onnx", "tokenizer.json", "export.json", "README.md"}
    vectors = OnnxStudent.of_export(folder).encode(SENTENCES)
    np.testing.assert_allclose(vectors, Student.load(distilled, backend="torch").encode(SENTENCES), atol=1e-5)
    assert "(held-out sentences of the shards): mean 1.0000, lowest 1.0000" in shown
    assert re.search(r"p50 / p99 in ms: onnxruntime [\d.]+ / [\d.]+; pytorch [\d.]+ / [\d.]+", shown)
    assert "export: distilled/onnx" in shown


def test_int8_is_a_quarter_of_the_size_and_close(sd, distilled):
    assert sd("export", "--out", "plain") == 0
    assert sd("export", "--int8", "--out", "small") == 0
    record = json.loads(Path("small/export.json").read_text())
    assert (record["int8"], record["dim"]) == (True, 32)
    assert 0.999 < record["agreement"]["cosine"] < 1
    assert Path("small/model.onnx").stat().st_size < Path("plain/model.onnx").stat().st_size


def test_a_file_may_measure(sd, homeless, capsys):
    Path("text.txt").write_text("cat dog bird\n" * 3, encoding="utf-8")
    assert sd("export", "distilled", "--sentences", "text.txt") == 0
    assert "3 sentences (text.txt): mean 1.0000" in capsys.readouterr().out


def test_without_sentences_an_export_is_made_and_not_measured(sd, homeless, capsys):
    assert sd("export", "distilled") == 0
    assert "not measured: the student's shards are no longer in gone" in capsys.readouterr().out
    assert (homeless / "onnx" / "model.onnx").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--format", "folder"), 2, "give --dim, --float16, or both"),
        (("--float16",), 2, "--float16 goes with --format folder"),
        (("--format", "folder", "--float16", "--int8"), 2, "--int8 and --sentences go with an ONNX file"),
        (("--shards", "no-such"), 1, "no-such"),
        (("--sentences", "no-such"), 1, "no-such does not exist"),
        (("--out", "words.txt"), 1, "is a file"),
        (("--out", "distilled"), 1, "which sd export did not write"),
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
    assert sd("export", tmp_path) == 1
    assert "sd train-student" in capsys.readouterr().err


def test_what_a_user_added_to_an_export_is_not_replaced(sd, homeless, capsys):
    assert sd("export", "distilled") == 0
    (homeless / "onnx" / "notes.txt").write_text("mine")
    before = contents(homeless)
    assert sd("export", "distilled", "--int8") == 1
    assert "holds notes.txt" in capsys.readouterr().err
    assert contents(homeless) == before


def test_an_export_that_fails_leaves_the_one_before(sd, homeless, monkeypatch):
    assert sd("export", "distilled") == 0
    before = contents(homeless)
    monkeypatch.setattr("sentence_distill.student.export._record", lambda *of: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sd("export", "distilled", "--int8")
    assert contents(homeless) == before


def test_other_shards_under_the_recorded_name_do_not_measure(sd, homeless, arguments, capsys):
    """As beside a student from the hub, whose record names a folder of another machine."""
    Path("other.txt").write_text("\n".join(make_sentences(600, seed=9)), encoding="utf-8")
    assert sd(*arguments, "--corpus", "other.txt", "--out", "gone") == 0
    assert sd("export", "distilled") == 0
    assert "not measured: the student was not trained on gone: the number of corpus files" in capsys.readouterr().out
    assert "agreement" not in json.loads((homeless / "onnx" / "export.json").read_text())
    assert sd("export", "distilled", "--shards", "gone") == 0
    assert "agreement" in json.loads((homeless / "onnx" / "export.json").read_text())


def test_what_a_killed_export_left_goes_with_the_next_and_nothing_else(sd, homeless):
    dead = [homeless / f".onnx.{kind}.incomplete" for kind in ("new", "old")]
    others = [homeless / ".onnx-small.new.incomplete", homeless / ".onnx.new.mine.incomplete"]
    for path in dead + others:
        path.mkdir()
        (path / "model.onnx").write_bytes(b"half")
    assert sd("export", "distilled") == 0
    assert [path.exists() for path in dead + others] == [False, False, True, True]


def test_an_export_that_another_run_is_writing_is_left_alone(sd, homeless, capsys):
    new = homeless / ".onnx.new.incomplete"
    new.mkdir()
    (homeless / "onnx").mkdir()
    with lock_folder(homeless / "onnx"):
        assert sd("export", "distilled") == 1
        assert f"is in use by process {os.getpid()}" in capsys.readouterr().err
    assert new.exists()


SCRIPT = re.compile(r"```python\n(.*?)```", re.DOTALL)
WITHOUT_TORCH = "import sys\nfor name in ('torch', 'transformers', 'sentence_distill'): sys.modules[name] = None\n"


def run_readme(folder, end):
    """Run the script in an export's README.md as a user does, with further lines after it; return what it prints."""
    (script,) = SCRIPT.findall((folder / "README.md").read_text(encoding="utf-8"))
    command = [sys.executable, "-c", WITHOUT_TORCH + script + end]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONUTF8": "1"})
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_readme_of_an_export_shows_how_to_run_it(sd, homeless, tmp_path):
    assert sd("export", "distilled") == 0
    assert run_readme(homeless / "onnx", f"np.save({str(tmp_path / 'v.npy')!r}, run({SENTENCES!r}))") == "(2, 32)\n"
    expected = Student.load(homeless, backend="torch").encode(SENTENCES)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-5)


KINDS = ["classes", "scores", "pairs", "pair-scores"]
LABELS = ["käse", "neg", "中性"]


@pytest.fixture(scope="module")
def finetuned(sd, student_folder, tmp_path_factory):
    """Students that were fine-tuned for a few steps on each kind of task, in folders named after the kinds."""
    place = tmp_path_factory.mktemp("finetuned")
    options = ("--epochs", "1", "--finetune-steps", "4", "--learning-rate", "5e-3", "--device", "cpu")
    for kind in KINDS:
        labels = [1.5, -20.25, 7.0] if "scores" in kind else LABELS
        rows = [{"text": text, "label": labels[n % 3], "other": "A cat."} for n, text in enumerate(make_sentences(60))]
        (place / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        columns = ("--text-column", "text,other") if "pair" in kind else ()
        command = ("finetune", student_folder, "--train", place / f"{kind}.jsonl", *columns, *options)
        assert sd(*command, "--out", place / kind) == 0
    return place


def columns_of(kind):
    return [SENTENCES, SENTENCES[::-1]] if "pair" in kind else [SENTENCES]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fine_tuned_student_is_exported_as_its_classifier(sd, finetuned, tmp_path, capsys, kind, int8):
    out = tmp_path / "out"
    assert sd("export", finetuned / kind, "--out", out, *(["--int8"] if int8 else [])) == 0
    shown, record = capsys.readouterr().out, json.loads((out / "export.json").read_text())
    files = {"model.onnx", "tokenizer.json", "export.json", "README.md"}
    if "scores" in kind:
        assert (record["kind"], record["outputs"]) == ("regression", ["scores"])
        assert "regression" in shown
    else:
        files.add("labels.json")
        assert (record["kind"], record["outputs"]) == ("classifier", ["probabilities"])
        assert json.loads((out / "labels.json").read_text(encoding="utf-8")) == LABELS
        assert "classifier of 3 classes" in shown
        assert ": käse, neg, 中性" in shown
    assert set(contents(out)) == files
    assert f"next: sd predict {out} --input FILE" in shown
    if "pair" in kind:
        assert record["inputs"] == ["input_ids", "attention_mask", "input_ids_2", "attention_mask_2"]
        assert "not measured: the classifier reads pairs" in shown
    else:
        assert "sentences (held-out sentences of the shards)" in shown
    expected = Classifier.load(finetuned / kind).outputs(columns_of(kind))
    close = {"atol": 1e-2 * max(1, np.ptp(expected))} if int8 else {"atol": 1e-5, "rtol": 1e-5}
    loaded = Classifier.load(out)
    found = loaded.outputs(columns_of(kind))
    np.testing.assert_allclose(found, expected, **close)
    if int8:
        alone = [loaded.outputs([[text] for text in texts])[0] for texts in zip(*columns_of(kind), strict=True)]
        np.testing.assert_array_equal(found, alone)
    printed = run_readme(out, f"np.save({str(tmp_path / 'out.npy')!r}, run(*{columns_of(kind)!r}))")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), found, atol=1e-5, rtol=1e-5)
    assert "scores" in kind or any(label in printed for label in LABELS)


def test_sentences_measure_a_classifier(sd, finetuned, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("cat dog bird\n" * 3)
    for kind, line in (
        ("classes", "same label as the student in PyTorch for 100.00% of 3 sentences (text.txt); largest difference"),
        ("scores", "largest difference from the score of the student in PyTorch, 3 sentences (text.txt): "),
    ):
        out = tmp_path / kind
        assert sd("export", finetuned / kind, "--sentences", tmp_path / "text.txt", "--out", out) == 0
        assert line in capsys.readouterr().out
        assert line[1:] in (out / "README.md").read_text(encoding="utf-8")


def test_an_export_of_a_classifier_that_fails_leaves_nothing_and_a_later_one_replaces_it(
    sd, finetuned, tmp_path, monkeypatch
):
    command = ("export", finetuned / "classes", "--out", tmp_path / "out")
    with monkeypatch.context() as broken:
        broken.setattr("sentence_distill.student.export.readme", lambda *of: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sd(*command)
    assert list(tmp_path.iterdir()) == []
    assert sd(*command) == 0
    before = contents(tmp_path / "out")
    assert sd(*command, "--int8") == 0
    assert contents(tmp_path / "out").keys() == before.keys()
    assert contents(tmp_path / "out")["model.onnx"] != before["model.onnx"]
    # A regression has no labels: those of the export before go.
    assert sd("export", finetuned / "scores", *command[2:]) == 0
    assert "labels.json" not in contents(tmp_path / "out")


def test_an_export_is_no_source_and_runs_in_the_command_of_its_kind(sd, homeless, finetuned, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("The cat.\n")
    assert sd("export", "distilled") == 0
    assert sd("export", finetuned / "classes", "--out", "classifier") == 0
    capsys.readouterr()
    for command, message in (
        (("encode", "--student", "classifier", "--input", "in.txt"), "sd predict classifier --input FILE"),
        (("predict", "distilled/onnx", "--input", "in.txt"), "sd encode --student distilled/onnx --input FILE"),
        (("predict", "classifier", "--input", "in.txt", "--device", "cuda"), "runs on the CPU, not on cuda"),
        (("export", "classifier"), "classifier is itself an export"),
    ):
        assert sd(*command) == 1
        shown = capsys.readouterr().err
        assert message in shown
        assert len(shown.strip().splitlines()) == 1


def test_a_transformer_and_half_of_a_classifier_are_refused(sd, classifier_folder, finetuned, tmp_path, capsys):
    half = shutil.copytree(finetuned / "classes", tmp_path / "half")
    (half / "head.safetensors").unlink()
    for folder, message in (
        (classifier_folder, "is a transformer, not a student"),
        (half, "sd finetune"),
    ):
        assert sd("export", folder, "--out", tmp_path / "out") == 1
        shown = capsys.readouterr().err
        assert message in shown
        assert len(shown.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.json", None, "labels.json is damaged"),
        ("labels.json", '{"0": "neg"}', "should be a list of names"),
        ("labels.json", '["neg", "pos"]', "names 2 classes, but the model has 3"),
        ("export.json", {"kind": "ranker"}, "Invalid enum value 'ranker'"),
        ("export.json", {"kind": "encoder"}, "kind 'encoder' with a task"),
        ("export.json", {"int8": "yes"}, "Expected `bool`, got `str`"),
        ("export.json", "[]", "export.json is damaged"),
    ],
)
def test_a_damaged_classifier_is_one_line(sd, finetuned, tmp_path, name, content, message):
    assert sd("export", finetuned / "classes", "--out", tmp_path / "out") == 0
    file = tmp_path / "out" / name
    if isinstance(content, dict):
        content = json.dumps(json.loads(file.read_text()) | content)
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        Classifier.load(tmp_path / "out")
    assert "sd export STUDENT --out" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_guides_script_runs_without_torch_and_without_this_package(sd, homeless, tmp_path):
    assert sd("export", "distilled") == 0
    script = SCRIPT.findall(GUIDE.read_text(encoding="utf-8"))[0]
    end = f"np.save('vectors.npy', encode({SENTENCES!r}))\nassert vectors.shape == (2, 32)\n"
    result = subprocess.run([sys.executable, "-c", WITHOUT_TORCH + script + end], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert sum(1 for line in script.splitlines() if line) == 10
    expected = Student.load(homeless, backend="torch").encode(SENTENCES)
    np.testing.assert_allclose(np.load("vectors.npy"), expected, atol=1e-5)
