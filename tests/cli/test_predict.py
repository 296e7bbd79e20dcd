import csv
import gzip
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as parquet
import pytest

from sentence_distill import Classifier
from sentence_distill.data.corpus import Corpus

ROWS = [
    (f"The {animal} saw the {colour} house.", animal) for colour in ("red", "old", "new") for animal in ("cat", "dog")
]


@pytest.fixture(scope="module")
def folder(sd, student_folder, tmp_path_factory):
    """A student that was fine-tuned for a step or two: what it says of a text is all the same here."""
    place = tmp_path_factory.mktemp("predict")
    _csv(place / "train.csv", [("text", "label", "n"), *((*row, n) for n, row in enumerate(ROWS * 4))])
    options = ("--epochs", "1", "--finetune-steps", "3", "--device", "cpu")
    assert sd("finetune", student_folder, "--train", place / "train.csv", "--out", place / "student", *options) == 0
    return place / "student"


def _csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def _read(path):
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".tsv":
        return list(csv.DictReader(path.open(encoding="utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE))
    return list(csv.DictReader(path.open(encoding="utf-8")))


def _expected(folder):
    probabilities = Classifier.load(folder).predict_proba([text for text, _ in ROWS])
    return ["cat" if row[0] > row[1] else "dog" for row in probabilities], probabilities


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_each_row_is_written_with_its_prediction_in_order(sd, folder, tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("sentence_distill.student.file_job.CHUNK_ROWS", 4)
    source = _csv(tmp_path / "in.csv", [("id", "text"), *((n, text) for n, (text, _) in enumerate(ROWS))])
    assert sd("predict", folder, "--input", source, "--out", tmp_path / f"out.{suffix}", "--all") == 0
    rows = _read(tmp_path / f"out.{suffix}")
    labels, probabilities = _expected(folder)
    assert [row["id"] for row in rows] == [str(n) for n in range(6)]
    assert [row["text"] for row in rows] == [text for text, _ in ROWS]
    assert [row["prediction"] for row in rows] == labels
    found = np.array([[row["probability_cat"], row["probability_dog"]] for row in rows], dtype=float)
    np.testing.assert_allclose(found, probabilities, atol=1e-5)
    np.testing.assert_allclose([float(row["probability"]) for row in rows], probabilities.max(axis=1), atol=1e-5)


def test_types_of_a_table_stay(sd, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sentence_distill.student.file_job.CHUNK_ROWS", 4)
    table = pa.table(
        {
            "text": [text for text, _ in ROWS],
            "number": pa.array(range(2**63, 2**63 + 6), pa.uint64()),
            "late": pa.array([None] * 5 + [7], pa.int8()),
            "gap": pa.nulls(6),
            "many": [[1, 2]] * 6,
        }
    )
    parquet.write_table(table, tmp_path / "in.parquet")
    feather.write_feather(table, tmp_path / "in.arrow", compression="uncompressed")
    for name in ("in.parquet", "in.arrow"):
        out = tmp_path / f"{name}.parquet"
        assert sd("predict", folder, "--input", tmp_path / name, "--out", out) == 0
        found = parquet.read_table(out)
        assert found.select(table.column_names).equals(table)
        assert found.schema.names[5:] == ["prediction", "probability"]
        assert found.schema.types[5:] == [pa.string(), pa.float64()]


def test_small_scores_keep_their_digits(sd, student_folder, tmp_path):
    scores = [("text", "label"), *((text, (number + 1) * 1e-8) for number, (text, _) in enumerate(ROWS * 4))]
    train = _csv(tmp_path / "train.csv", scores)
    options = ("--epochs", "1", "--finetune-steps", "3", "--device", "cpu", "--out", tmp_path / "scores")
    assert sd("finetune", student_folder, "--train", train, *options) == 0
    assert sd("predict", tmp_path / "scores", "--input", train, "--out", tmp_path / "out.csv") == 0
    expected = Classifier.load(tmp_path / "scores").predict([text for text, _ in scores[1:]])
    found = [float(row["prediction"]) for row in _read(tmp_path / "out.csv")]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert 1e-9 < np.mean(found) < 1e-6


def test_another_column_and_a_compressed_file_can_be_named(sd, folder, tmp_path):
    lines = "".join(json.dumps({"body": text}) + "\n" for text, _ in ROWS)
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    out = tmp_path / "out.jsonl"
    assert sd("predict", folder, "--input", tmp_path / "in.jsonl.gz", "--out", out, "--text-column", "body") == 0
    assert [row["prediction"] for row in _read(out)] == _expected(folder)[0]


def test_standard_input_goes_to_standard_output(folder):
    command = [sys.executable, "-m", "sentence_distill.cli", "predict", folder]
    lines = "".join(f"{text}\n" for text, _ in ROWS)
    result = subprocess.run(command, input=lines, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["text"] for row in rows] == [text for text, _ in ROWS]
    assert [row["prediction"] for row in rows] == _expected(folder)[0]
    table = "n,text\n1,The cat ran.\n"
    result = subprocess.run([*command, "--input-format", "csv"], input=table, capture_output=True, text=True)
    assert json.loads(result.stdout).keys() == {"n", "text", "prediction", "probability"}
    # As programs on Windows begin a file.
    lines = '\ufeff{"n": 1, "text": "The cat ran."}\n'
    result = subprocess.run(command, input=lines, capture_output=True, text=True, encoding="utf-8")
    assert json.loads(result.stdout).keys() == {"n", "text", "prediction", "probability"}


def test_an_export_predicts_the_same_without_torch(sd, folder, tmp_path):
    assert sd("export", folder, "--out", tmp_path / "export") == 0
    source = _csv(tmp_path / "in.csv", [("id", "text"), *((n, text) for n, (text, _) in enumerate(ROWS)), (6, "")])
    assert sd("predict", folder, "--input", source, "--out", tmp_path / "torch.csv", "--all") == 0
    program = "import sys; sys.modules['torch'] = None; from sentence_distill.cli.main import main; main()"
    command = [sys.executable, "-c", program, "predict", tmp_path / "export", "--input", source, "--all"]
    result = subprocess.run([*command, "--out", tmp_path / "onnx.csv"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "7 rows, 1 of them without text" in result.stdout
    ours, theirs = _read(tmp_path / "onnx.csv"), _read(tmp_path / "torch.csv")
    assert [row["prediction"] for row in ours] == [row["prediction"] for row in theirs]
    for name in ("probability", "probability_cat", "probability_dog"):
        np.testing.assert_allclose(*([float(row[name]) for row in rows] for rows in (ours, theirs)), atol=1e-5)


def test_rows_without_text_are_predicted_and_counted(sd, folder, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "The cat."}\n{"text": null}\n{"text": " "}\n')
    assert sd("predict", folder, "--input", tmp_path / "in.jsonl", "--out", tmp_path / "out.csv") == 0
    assert "3 rows, 2 of them without text" in capsys.readouterr().out
    assert len(_read(tmp_path / "out.csv")) == 3


def test_predictions_of_tsv_are_read_back_row_by_row(sd, folder, tmp_path):
    texts = ['" the cat is great', "the dog", 'the cat "']
    (tmp_path / "in.tsv").write_text("".join(f"{line}\n" for line in ("text", *texts)))
    assert sd("predict", folder, "--input", tmp_path / "in.tsv", "--out", tmp_path / "out.tsv") == 0
    assert [row["text"] for row in _read(tmp_path / "out.tsv")] == texts
    rows = Corpus.open([str(tmp_path / "out.tsv")]).rows()
    assert [row.text("text") for row in rows] == texts


def test_a_file_that_is_there_is_replaced_only_when_asked_for(sd, folder, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "The cat."}\n')
    (tmp_path / "out.jsonl").write_text("kept")
    command = ("predict", folder, "--input", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    assert sd(*command) == 1
    assert "out.jsonl already exists; name another file, or replace it with --overwrite" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == "kept"
    assert sd(*command, "--overwrite") == 0
    assert [row["text"] for row in _read(tmp_path / "out.jsonl")] == ["The cat."]


def test_the_input_is_never_replaced(sd, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"text": "The cat."}\n')
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    for source, out in (("in.jsonl", "./in.jsonl"), ("link.jsonl", "in.jsonl"), ("*.jsonl", "link.jsonl")):
        assert sd("predict", folder, "--input", source, "--out", out, "--overwrite") == 1
        assert "is among the input" in capsys.readouterr().err
    assert (tmp_path / "in.jsonl").read_text() == '{"text": "The cat."}\n'


def test_a_damaged_row_behind_the_first_chunk_leaves_no_file_and_one_line(folder, tmp_path):
    rows = [json.dumps({"text": "The cat.", "n": 1})] * 8192 + [json.dumps({"text": "The cat.", "n": "one"})]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    command = [sys.executable, "-m", "sentence_distill.cli", "predict", folder, "--input", "in.jsonl"]
    result = subprocess.run([*command, "--out", "out.parquet"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1
    assert "error: in.jsonl, line 8193 and after: " in result.stderr
    # In a process of its own: what a writer says when it is thrown away open would show here.
    assert "Exception ignored" not in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "name"), [("d*.csv", "d"), ("*.csv", "task"), ("two words; and more.csv", "two-words-and-more")]
)
def test_a_task_is_named_after_its_file_in_plain_letters(
    sd, student_folder, tmp_path, monkeypatch, capsys, pattern, name
):
    monkeypatch.chdir(tmp_path)
    _csv(tmp_path / pattern.replace("*", "data"), [("text", "label"), *ROWS * 2])
    options = ("--epochs", "1", "--finetune-steps", "1", "--device", "cpu")
    assert sd("finetune", student_folder, "--train", pattern, *options) == 0
    assert f"next: sd predict finetuned/{name} --input" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "finetuned").iterdir()] == [name]


def test_names_with_spaces_are_quoted_in_the_next_command(
    sd, student_folder, teacher_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    _csv(tmp_path / "my data.csv", [("my text", "label"), *ROWS * 2])
    options = ("--train", "my data.csv", "--text-column", "my text", "--epochs", "1", "--finetune-steps", "1")
    assert sd("finetune", student_folder, *options, "--out", "a student", "--device", "cpu") == 0
    assert "next: sd predict 'a student' --input" in capsys.readouterr().out
    assert sd("finetune", teacher_folder, *options, "--out", "a teacher", "--device", "cpu") == 0
    embed = "sd embed --corpus 'my data.csv' --text-column 'my text' --no-split --min-words 1 --teacher 'a teacher'"
    assert f"next: {embed}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["predict", "{student}", "--input", "in.jsonl", "--out", "o.csv"], 1, "holds no fine-tuned student"),
        (["predict", "{folder}", "--input", "in.jsonl", "--out", "o.txt"], 1, "should end in .jsonl, .csv"),
        (["predict", "{folder}", "--input", "in.jsonl", "--out", "no/o.csv"], 1, "there is no folder no"),
        (["predict", "{folder}", "--input", "in.jsonl", "--out", "sub.csv"], 1, "--out sub.csv is a folder"),
        (["predict", "{folder}", "--input", "mixed.jsonl", "--out", "o.csv"], 1, "line 2: there is no column 'n'"),
        (["predict", "{folder}", "--input", "mixed.jsonl", "--out", "o.parquet"], 1, "line 2: there is no column 'n'"),
        (["predict", "{folder}", "--input", "no.jsonl", "--out", "o.csv"], 1, "no.jsonl"),
        (["predict", "{folder}", "--input", "in.jsonl", "--out", "o.csv"], 1, "line 2: no column 'text', it has body"),
        (["predict", "{folder}", "--input", "taken.jsonl", "--out", "o.csv"], 1, "already has a column 'prediction'"),
        (["predict", "{folder}", "--input", "empty.jsonl", "--out", "o.csv"], 1, "empty.jsonl holds no row"),
        (["predict", "{folder}", "--input", "in.jsonl", "--out", "o.csv", "--text-column", "a,b"], 1, "reads 1 column"),
        (["finetune", "{student}"], 2, "give --train"),
        (["finetune", "{student}", "--train", "in.jsonl", "--task", "RTE"], 2, "give --train"),
        (["finetune", "{student}", "--task", "RTE", "--dev", "in.jsonl"], 2, "--dev goes with --train"),
        (["finetune", "{student}", "--train", "in.jsonl", "--glue-dir", "x"], 2, "--glue-dir goes with --task"),
        (["finetune", "{student}", "--train", "no.jsonl"], 1, "no.jsonl"),
        (["finetune", "{student}", "--train", "in.jsonl"], 1, "in.jsonl, line 1: no column 'label', it has text"),
        (["finetune", "{student}", "--train", "in.jsonl", "--text-column", "a,a"], 1, "--text-column a,a"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_no_file(
    sd, student_folder, folder, tmp_path, monkeypatch, capsys, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"text": "The cat."}\n{"body": "The dog."}\n')
    (tmp_path / "taken.jsonl").write_text('{"text": "The cat.", "prediction": 1}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "mixed.jsonl").write_text('{"text": "The cat.", "n": 1}\n{"text": "The dog."}\n')
    (tmp_path / "sub.csv").mkdir()
    before = sorted(tmp_path.iterdir())
    assert sd(*(argument.format(student=student_folder, folder=folder) for argument in arguments)) == code
    error = capsys.readouterr().err
    assert message in error
    assert code == 2 or len(error.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
