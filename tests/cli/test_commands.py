import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "pyarrow", "polars", "numpy", "scipy", "sklearn", "rich")


@pytest.mark.parametrize(
    "command", [[], ["embed"], ["train-student"], ["eval"], ["shards"], ["shards", "verify"], ["sample"]]
)
def test_help_reads_well_and_imports_nothing_heavy(command):
    script = (
        "import sys\nfrom sentence_distill.cli.main import main\n"
        f"sys.argv = ['sd', *{command!r}, '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "HEAVY []" in result.stdout, result.stderr
    assert "Usage: sd" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["embed", "--corpus", "no-such.txt"], 1, "no-such.txt"),
        (["embed"], 2, "--corpus"),
        (["embed", "--corpus", "x", "--layers", "last"], 2, "layer numbers"),
        (["embed", "--corpus", "x", "--min-words", "9", "--max-words", "3"], 1, "leave no sentence"),
        (["embed", "--corpus", "x", "--workers", "2"], 2, "go with --engine ray"),
        (["embed", "--corpus", "x", "--engine", "ray", "--devices", "all"], 2, "leave --device and --devices out"),
        (["embed", "--corpus", "x", "--device", "cpu", "--devices", "0"], 2, "give one of them"),
        (["embed", "--corpus", "x", "--plan-only", "--slice", "1/2"], 2, "of the whole corpus"),
        (["shards", "merge", "no-such"], 1, "has no plan"),
        (["train-student", "--shards", "s3://bucket/shards"], 1, "copy them to a local folder first"),
        (["train-student", "--shards", "no-such"], 1, "sd embed --corpus"),
        (["eval", "--student", "no-such"], 1, "sd train-student"),
        (["eval", "--glue", "--tasks", "nope"], 2, "none of CoLA"),
        (["shards", "no-such"], 1, "sd embed --corpus"),
        (["shards", "verify", "no-such"], 1, "manifest.json"),
        (["no-such"], 2, "No such command"),
        (["embed", "--corpus", "hf:some/thing", "--teacher", "minilm"], 1, "can't be had from the hub"),
        (["train-student", "--learning-rate", "-1"], 2, "--learning-rate"),
        (["train-student", "--clip", "0"], 2, "--clip"),
        (["eval", "--glue", "--epochs", "0"], 2, "--epochs"),
    ],
)
def test_mistakes_end_in_one_line_and_an_exit_code(sd, capsys, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert sd(*arguments) == code
    captured = capsys.readouterr()
    assert message in captured.out + captured.err
    assert "Traceback" not in captured.err
    if code == 1 and captured.err:
        assert len(captured.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_shards_lists_what_is_there(sd, shards, capsys):
    assert sd("shards", shards) == 0
    shown = capsys.readouterr().out
    assert "shard-00004.arrow" in shown
    assert "pooling mean, layers 2; 32 x float32" in shown


def test_standard_input_is_a_corpus(teacher_folder, tmp_path):
    command = [sys.executable, "-m", "sentence_distill.cli", "embed", "--corpus", "-", "--out", tmp_path / "shards"]
    result = subprocess.run(
        [*command, "--teacher", teacher_folder], input=b"The red cat ran. The old dog ran.\n", capture_output=True
    )
    assert result.returncode == 0, result.stderr
    assert b"2 sentences" in result.stdout


def test_a_student_is_not_overwritten_unless_asked(sd, shards, student_folder, capsys):
    before = (student_folder / "model.safetensors").read_bytes()
    assert sd("train-student", "--shards", shards, "--out", student_folder) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (student_folder / "model.safetensors").read_bytes() == before


def test_eval_measures_what_it_can_and_lists_the_rest(sd, student_folder, teacher_folder, tmp_path, capsys):
    sts = tmp_path / "dev.tsv"
    rows = ["sentence1\tsentence2\tscore", "The red cat ran.\tThe red cat ran.\t5.0"]
    rows += ["The red cat ran.\tThe new road was built.\t0.5", "The old dog saw.\tThe old dog ran.\t3.0"]
    sts.write_text("\n".join(rows) + "\n")
    options = ("--student", student_folder, "--sts", sts, "--json", tmp_path / "eval.json")
    assert sd("eval", *options, "--teacher", teacher_folder) == 0
    figures = json.loads((tmp_path / "eval.json").read_text())
    assert set(figures["sentences_per_second"]) == set(figures["sts_spearman"]) == {"student", "teacher"}
    assert figures["size"]["parameters"] > 0
    assert figures["skipped"] == {}
    assert sd("eval", "--student", student_folder, "--shards", tmp_path / "none") == 0
    shown = capsys.readouterr().out
    assert "not measured: teacher" in shown
    assert "not measured: held-out fidelity and speed" in shown
    assert "not measured: STS-B" in shown


def test_eval_refuses_the_vectors_of_another_teacher(sd, student_folder, teacher_folder, corpus_file, tmp_path, capsys):
    other = tmp_path / "shards"
    assert sd("embed", "--corpus", corpus_file, "--teacher", teacher_folder, "--pooling", "max", "--out", other) == 0
    json_file = tmp_path / "eval.json"
    assert sd("eval", "--student", student_folder, "--shards", other, "--json", json_file) == 0
    assert "pooling (mean -> max)" in capsys.readouterr().out
    assert "held_out" not in json.loads(json_file.read_text())


def test_the_sample_corpus_is_written_as_text(sd, tmp_path):
    assert sd("sample", "--out", tmp_path / "wiki.txt") == 0
    lines = (tmp_path / "wiki.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 9000
    assert all(line.strip() for line in lines)


def test_a_training_that_is_interrupted_goes_on_with_resume(shards, tmp_path):
    import signal
    import time

    out = tmp_path / "student"
    command = [sys.executable, "-m", "sentence_distill.cli", "train-student", "--shards", shards, "--out", out]
    command += ["--embedding-dim", "8", "--hidden", "8", "--epochs", "30", "--batch-size", "4", "--held-out", "0.1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (out / "checkpoints" / "last.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 1
    assert "--resume goes on" in error
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "--resume" in refused.stderr
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert (out / "distillation.json").exists()
