import gzip
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import polars
import pyarrow as pa
import pytest

from sentence_distill import Student
from sentence_distill.student import file_job
from sentence_distill.student import model as torch_encoder
from sentence_distill.student.file_job import parts_folder
from sentence_distill.student.onnx_student import OnnxEncoder
from tests.conftest import contents, make_sentences, wait_for

SENTENCES = [*make_sentences(50), "", "One ship\u2028saw the sea.", *make_sentences(20, seed=1)]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text("".join(f"{sentence}\n" for sentence in SENTENCES), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def expected(student_folder):
    return Student.load(student_folder, backend="torch").encode(SENTENCES)


@pytest.fixture
def encode(sd, student_folder):
    """Run `sd encode` in float32."""
    return lambda *arguments: sd("encode", "--student", student_folder, "--precision", "fp32", *arguments)


def read(path):
    """Texts, where the file has them, and vectors."""
    if path.suffix == ".npy":
        return None, np.load(path)
    by_suffix = {".parquet": polars.read_parquet, ".arrow": polars.read_ipc, ".jsonl": polars.read_ndjson}
    frame = by_suffix[path.suffix](path)
    return frame["text"].to_list(), np.array(frame["embedding"].to_list(), dtype=np.float32)


@pytest.mark.parametrize("name", ["v.parquet", "v.arrow", "v.jsonl", "v.npy"])
def test_each_line_gives_a_vector_in_its_order(encode, text_file, expected, tmp_path, monkeypatch, name):
    monkeypatch.setattr(file_job, "WINDOW", 16)
    out = tmp_path / name
    assert encode("--input", text_file, "--out", out) == 0
    texts, vectors = read(out)
    assert texts in (None, SENTENCES)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_vectors_can_be_half_as_large_and_without_their_texts(encode, text_file, expected, tmp_path):
    out = tmp_path / "v.parquet"
    assert encode("--input", text_file, "--out", out, "--dtype", "float16", "--no-text") == 0
    frame = polars.read_parquet(out)
    assert frame.columns == ["embedding"]
    np.testing.assert_allclose(frame["embedding"].to_numpy(), expected, atol=1e-3)


def test_tables_and_compressed_lines_are_read(encode, text_file, expected, tmp_path):
    objects = "".join(json.dumps({"body": sentence}) + "\n" for sentence in SENTENCES)
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(objects.encode()))
    polars.DataFrame({"body": SENTENCES}).write_parquet(tmp_path / "in.parquet")
    for name in ("in.jsonl.gz", "in.parquet"):
        out = tmp_path / f"{name}.npy"
        assert encode("--input", tmp_path / name, "--text-field", "body", "--out", out) == 0
        np.testing.assert_allclose(np.load(out), expected, atol=1e-6)


def test_what_has_no_text_gets_zeros_and_is_counted(encode, tmp_path, capsys):
    (tmp_path / "in.txt").write_bytes(b"One dog ran.\n\xff\xfe\nA cat saw it.\n")
    assert encode("--input", tmp_path / "in.txt", "--out", tmp_path / "v.parquet") == 0
    assert "1 of 3 rows without text, encoded as zeros (1 not UTF-8; the first: in.txt, line 2)" in (
        capsys.readouterr().err
    )
    texts, vectors = read(tmp_path / "v.parquet")
    assert texts == ["One dog ran.", None, "A cat saw it."]
    assert vectors.any(axis=1).tolist() == [True, False, True]


def test_a_file_without_any_text_is_an_error_and_leaves_nothing(encode, tmp_path, capsys):
    (tmp_path / "in.json").write_text("[1,\n2]\n")
    assert encode("--input", tmp_path / "in.json", "--out", tmp_path / "v.npy") == 1
    assert "no text in 2 rows" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.json"]


def sd_process(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "sentence_distill.cli", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        **options,
    )


@pytest.mark.parametrize("format", ["jsonl", "arrow"])
def test_standard_input_becomes_standard_output(student_folder, expected, format):
    process = sd_process(
        *("encode", "--student", student_folder, "--input", "-", "--precision", "fp32", "--format", format)
    )
    out, error = process.communicate("".join(f"{sentence}\n" for sentence in SENTENCES).encode())
    assert process.returncode == 0, error
    if format == "jsonl":
        vectors = np.array([json.loads(line)["embedding"] for line in out.splitlines()], dtype=np.float32)
    else:
        vectors = np.array(pa.ipc.open_stream(out).read_all()["embedding"].to_pylist(), dtype=np.float32)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_an_export_encodes_files_without_pytorch(sd, student_folder, text_file, expected, tmp_path, capsys):
    exported, out = tmp_path / "onnx", tmp_path / "v.npy"
    assert sd("export", student_folder, "--out", exported) == 0
    arguments = ["encode", "--student", str(exported), "--input", str(text_file), "--out", str(out)]
    script = f"""
import sys
sys.modules["torch"] = None
sys.argv = ["sd", *{arguments!r}]
from sentence_distill.cli.main import main
main()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    np.testing.assert_allclose(np.load(out), expected, atol=1e-5)
    assert sd(*arguments, "--overwrite", "--precision", "fp32") == 2
    assert "is an export" in capsys.readouterr().err


def test_on_a_cpu_a_student_runs_in_onnx_runtime_without_pytorch_and_it_says_so(student_folder, text_file, tmp_path):
    out = tmp_path / "v.npy"
    script = (
        "import sys; sys.modules['torch'] = None\n"
        f"sys.argv = ['sd', 'encode', '--student', {str(student_folder)!r}, {'--input'!r}, {str(text_file)!r},"
        f" '--out', {str(out)!r}]\n"
        "from sentence_distill.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"encoding with {student_folder}: int8 in ONNX Runtime" in done.stderr
    # The same program in Python, to the last bit.
    np.testing.assert_array_equal(np.load(out), Student.load(student_folder).encode(SENTENCES))


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_a_student_whose_weights_do_not_fit_its_record_is_one_line(
    sd, student_folder, text_file, tmp_path, capsys, backend
):
    folder = shutil.copytree(student_folder, tmp_path / "student")
    record = json.loads((folder / "distillation.json").read_text())
    record["student"]["hidden"] -= 1
    (folder / "distillation.json").write_text(json.dumps(record))
    arguments = ("--student", folder, "--input", text_file, "--out", tmp_path / "v.npy", "--backend", backend)
    assert sd("encode", *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {folder} holds no readable student (the shapes of its weights differ")


def test_where_onnx_runtime_does_not_run_pytorch_encodes(sd, student_folder, text_file, tmp_path, monkeypatch, capsys):
    def refused(self, content):
        raise ValueError("ONNX Runtime can't run this graph: no DynamicQuantizeLSTM")

    monkeypatch.setattr(OnnxEncoder, "__init__", refused)
    arguments = ("--student", student_folder, "--input", text_file, "--out", tmp_path / "v.npy", "--overwrite")
    assert sd("encode", *arguments) == 0
    assert "in PyTorch on" in capsys.readouterr().err
    assert sd("encode", *arguments, "--backend", "onnx") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no DynamicQuantizeLSTM); use the backend torch" in line


def test_the_backend_is_as_asked_and_pytorch_on_a_gpu(
    sd, student_folder, text_file, expected, tmp_path, monkeypatch, capsys
):
    arguments = (
        "encode",
        "--student",
        student_folder,
        "--input",
        text_file,
        "--out",
        tmp_path / "v.npy",
        "--overwrite",
    )
    assert sd(*arguments, "--backend", "torch", "--precision", "fp32") == 0
    assert "float32 in PyTorch on cpu" in capsys.readouterr().err
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)
    assert sd(*arguments, "--backend", "onnx", "--precision", "fp32") == 2
    assert "--precision is an option of PyTorch; leave it out" in capsys.readouterr().err
    # Where a GPU is, auto takes PyTorch, which then finds the device.
    monkeypatch.setattr("sentence_distill.student.file_job._has_gpu", lambda: True)
    assert sd(*arguments) == 0
    assert "in PyTorch on" in capsys.readouterr().err


def test_a_reader_that_has_enough_ends_it_without_a_traceback(student_folder):
    process = sd_process("encode", "--student", student_folder, "--input", "-")
    process.stdout.close()
    process.stdin.write(b"One dog ran.\n" * 5000)
    process.stdin.close()
    assert process.wait() == 1
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_bytes(encode, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(file_job, "WINDOW", 16)
    assert encode("--input", text_file, "--out", tmp_path / "whole.parquet") == 0
    real, calls = torch_encoder.encode_tokens, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(torch_encoder, "encode_tokens", stopping)
    out = tmp_path / "stopped.parquet"
    assert encode("--input", text_file, "--out", out) == 1
    assert "run the same command again to resume" in capsys.readouterr().err
    assert not out.exists()
    calls[:] = [1] * 10
    assert encode("--input", text_file, "--out", out) == 0
    assert "resuming after 32 rows" in capsys.readouterr().err
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert len(calls) == 10 + 3


def test_a_kill_loses_no_finished_part(student_folder, tmp_path):
    text = tmp_path / "long.txt"
    text.write_text("".join(f"{sentence}\n" for sentence in make_sentences(3000)) * 60, encoding="utf-8")
    arguments = ("encode", "--student", student_folder, "--input", text, "--precision", "fp32", "--out")
    killed = sd_process(*arguments, tmp_path / "killed.npy")
    wait_for(lambda: list(tmp_path.glob("killed.npy.parts/part-*.arrow")))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed.npy").exists()
    again = sd_process(*arguments, tmp_path / "killed.npy")
    _, error = again.communicate()
    assert again.returncode == 0, error
    assert b"resuming after" in error
    whole = sd_process(*arguments, tmp_path / "whole.npy")
    whole.communicate()
    assert (tmp_path / "killed.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert not (tmp_path / "killed.npy.parts").exists()


def stopped_after(encode, monkeypatch, windows, *arguments):
    """Run `sd encode` in windows of 16 rows, stopped when so many are encoded."""
    monkeypatch.setattr(file_job, "WINDOW", 16)
    real, calls = torch_encoder.encode_tokens, []

    def stopping(*given):
        calls.append(1)
        if len(calls) > windows:
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(torch_encoder, "encode_tokens", stopping)
        assert encode(*arguments) == 1


def test_parts_of_another_run_are_not_mixed_in(encode, text_file, tmp_path, monkeypatch, capsys):
    out = tmp_path / "v.npy"
    stopped_after(encode, monkeypatch, 1, "--input", text_file, "--out", out)
    before = contents(tmp_path)
    assert encode("--input", text_file, "--out", out, "--dtype", "float16") == 1
    assert "parts of another run: --dtype (float32 there, float16 here)" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_parts_that_cannot_be_trusted_are_not_joined(encode, text_file, expected, tmp_path, monkeypatch, capsys):
    out = tmp_path / "v.npy"
    arguments = ("--input", text_file, "--out", out)
    stopped_after(encode, monkeypatch, 3, *arguments)
    parts = parts_folder(out)
    (parts / "part-000001.arrow").write_bytes(b"ARROW1")
    assert encode(*arguments) == 1
    assert "part-000001.arrow is damaged or missing" in capsys.readouterr().err
    assert not out.exists()
    (parts / "run.json").unlink()
    assert encode(*arguments) == 0
    np.testing.assert_allclose(np.load(out), expected, atol=1e-6)


def test_a_first_try_that_failed_does_not_stand_in_the_way(encode, tmp_path, expected):
    objects = "".join(json.dumps({"body": sentence}) + "\n" for sentence in SENTENCES)
    (tmp_path / "in.jsonl").write_text(objects, encoding="utf-8")
    arguments = ("--input", tmp_path / "in.jsonl", "--out", tmp_path / "v.npy")
    assert encode(*arguments) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    assert encode(*arguments, "--text-field", "body") == 0
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)


def test_the_parts_of_a_run_are_no_input_of_its_next_try(encode, text_file, tmp_path, monkeypatch):
    (tmp_path / "in.txt").write_bytes(text_file.read_bytes())
    arguments = ("--input", tmp_path, "--out", tmp_path / "v.npy")
    stopped_after(encode, monkeypatch, 2, *arguments)
    assert encode(*arguments) == 0
    assert len(np.load(tmp_path / "v.npy")) == len(SENTENCES)


def test_input_is_not_replaced_by_its_vectors(encode, tmp_path, capsys):
    text = tmp_path / "in.txt"
    text.write_text("One dog ran.\n")
    assert encode("--input", text, "--out", text, "--format", "npy", "--overwrite") == 1
    assert "is among the input" in capsys.readouterr().err
    assert text.read_text() == "One dog ran.\n"


def test_long_records_make_shorter_windows(encode, text_file, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(file_job, "WINDOW_CHARACTERS", 100)
    assert encode("--input", text_file, "--out", tmp_path / "v.npy") == 0
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)


@pytest.mark.parametrize("lines_read", [1, 4096], ids=["full", "empty"])
def test_a_signal_ends_it_while_it_waits_for_a_pipe(student_folder, lines_read):
    process = sd_process("encode", "--student", student_folder, "--input", "-", "--precision", "fp32")
    process.stdin.write(b"One dog ran.\n" * 4096)
    process.stdin.flush()
    for _ in range(lines_read - 1):
        process.stdout.readline()
    assert process.stdout.readline().startswith(b'{"text":"One dog ran."')
    process.terminate()
    # Standard input stays open: what it waits for never comes.
    assert process.wait(timeout=60) == 1
    assert b"stopped" in process.stderr.read()
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()


def test_a_file_that_is_there_is_kept_unless_it_may_be_replaced(encode, text_file, tmp_path, capsys):
    out = tmp_path / "v.npy"
    out.write_bytes(b"dear")
    assert encode("--input", text_file, "--out", out) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_bytes() == b"dear"
    assert encode("--input", text_file, "--out", out, "--overwrite") == 0
    assert len(np.load(out)) == len(SENTENCES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--input", "none.txt", "--out", "v.npy"], "none.txt"),
        (["--input", "-", "--out", "v.npy"], "standard input can only be encoded to standard output"),
        (["--input", "-", "--input-format", "parquet"], "can't be read as Parquet"),
        (["--input", "x.txt", "--out", "v.txt"], "or set --format"),
        (["--input", "x.txt", "--format", "npy"], "name --out"),
        (["--input", "x.txt", "--out", ".", "--format", "npy", "--overwrite"], "is a folder"),
        (["--input", "x.txt", "--out", "v.npy", "--text-column", "a,b"], "one column"),
    ],
)
def test_wrong_usage_is_one_line(encode, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.txt").write_text("One dog ran.\n")
    assert encode(*arguments) in (1, 2)
    error = capsys.readouterr().err
    assert said in error.replace("\n", " ")
    assert "Traceback" not in error


TICKETS = [
    {"id": 7, "body": "One dog ran home.", "tags": ["a", "b"], "price": 1},
    {"id": 8, "body": None, "tags": [], "price": 2.5},
    {"id": 9, "body": "A cat saw the sea.", "more": "x"},
]


def _tickets(path):
    if path.suffix == ".parquet":
        polars.DataFrame(TICKETS[:2]).write_parquet(path)
    else:
        path.write_text("".join(json.dumps(ticket) + "\n" for ticket in TICKETS))
    return path


@pytest.mark.parametrize("name", ["v.parquet", "v.arrow", "v.jsonl"])
def test_the_other_columns_stand_next_to_the_vectors(encode, tmp_path, monkeypatch, name):
    monkeypatch.setattr(file_job, "WINDOW", 1)
    source = _tickets(tmp_path / "tickets.jsonl")
    assert encode(source, "--text-column", "body", "-o", tmp_path / name) == 0
    by_suffix = {".parquet": polars.read_parquet, ".arrow": polars.read_ipc, ".jsonl": polars.read_ndjson}
    frame = by_suffix[(tmp_path / name).suffix](tmp_path / name)
    assert frame.columns == ["id", "body", "tags", "price", "more", "embedding"]
    assert frame["id"].to_list() == [7, 8, 9]
    assert frame["price"].to_list() == [1.0, 2.5, None]
    assert frame["more"].to_list() == [None, None, "x"]
    assert [any(vector) for vector in frame["embedding"].to_list()] == [True, False, True]


def test_columns_of_a_table_keep_their_types_and_can_be_chosen(encode, tmp_path):
    source = _tickets(tmp_path / "tickets.parquet")
    assert encode(source, "--text-column", "body", "--columns", "price,id", "-o", tmp_path / "v.parquet") == 0
    schema = polars.read_parquet_schema(tmp_path / "v.parquet")
    assert list(schema) == ["price", "id", "embedding"]
    assert schema["id"] == polars.Int64
    assert encode(source, "--text-column", "body", "--no-text", "-o", tmp_path / "alone.parquet") == 0
    assert list(polars.read_parquet_schema(tmp_path / "alone.parquet")) == ["embedding"]


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([{"text": "a", "x": 1}, {"text": "b", "x": "two"}], (), "column 'x' have no common type"),
        ([{"text": "a", "embedding": 1}], (), "already has a column 'embedding'"),
        ([{"text": "a", "x": 1}], ("--columns", "y"), "no column 'y', only text, x"),
    ],
)
def test_columns_that_can_not_be_kept_are_one_line_that_says_what_to_do(encode, tmp_path, capsys, rows, options, said):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert encode(tmp_path / "in.jsonl", "-o", tmp_path / "v.parquet", *options) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "--columns" in error or options
    assert not (tmp_path / "v.parquet").exists()
    assert encode(tmp_path / "in.jsonl", "-o", tmp_path / "v.parquet", "--no-text", "--overwrite") == 0


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"One dog ran.\rA cat sat.\rThe sea", ["One dog ran.", "A cat sat.", "The sea"]),
        (gzip.compress(b"One dog ran.\n"), ["One dog ran."]),
        (b'[{"text": "One dog ran."},\n {"text": "A cat sat."}]', ["One dog ran.", "A cat sat."]),
    ],
    ids=["old Macintosh", "gzip", "JSON array"],
)
def test_standard_input_is_read_as_a_file_is(student_folder, content, texts):
    process = sd_process("encode", "-", "--student", student_folder, "--precision", "fp32")
    out, error = process.communicate(content)
    assert process.returncode == 0, error
    assert [json.loads(line)["text"] for line in out.splitlines()] == texts
