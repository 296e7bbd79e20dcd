import json
import os
import shutil
import subprocess
import sys

import pytest

from sentence_distill.student.config import default_held_out
from tests.conftest import contents, wait_for

HEAVY = ("torch", "transformers", "datasets", "pyarrow", "polars", "numpy", "scipy", "sklearn", "rich")


@pytest.mark.parametrize(
    "command",
    [
        *([], ["embed"], ["train-student"], ["eval"], ["report"], ["export"], ["finetune"]),
        *(["predict"], ["shards"], ["shards", "verify"], ["sample"]),
    ],
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


def test_a_teacher_s_libraries_are_told_to_keep_few_kernels_before_they_are_loaded(
    corpus_file, teacher_folder, tmp_path
):
    script = (
        "import os, sys\nfrom sentence_distill.cli.main import main\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': print('TORCH', *map(os.environ.get, %r))\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"sys.argv = ['sd', 'embed', '--corpus', {str(corpus_file)!r}, '--teacher', {str(teacher_folder)!r}, "
        f"'--out', {str(tmp_path)!r}]\nmain()"
    ) % (("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"),)
    environment = {**os.environ, "LRU_CACHE_CAPACITY": "5"}
    environment.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert "TORCH 16 5\n" in result.stdout, result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["embed", "--corpus", "no-such.txt"], 1, "no-such.txt"),
        (["embed"], 2, "--corpus"),
        (["embed", "--corpus", "x", "--layers", "last"], 2, "whole numbers"),
        (["embed", "--corpus", "x", "--min-words", "9", "--max-words", "3"], 1, "leave no sentence"),
        (["embed", "--corpus", "x", "--workers", "2"], 2, "go with --engine ray"),
        (["embed", "--corpus", "x", "--engine", "ray", "--devices", "all"], 2, "leave --device and --devices out"),
        (["embed", "--corpus", "x", "--device", "cpu", "--devices", "0"], 2, "give one of them"),
        (["embed", "--corpus", "x", "--plan-only", "--slice", "1/2"], 2, "of the whole corpus"),
        (["embed", "--corpus", "x", "--max-tokens", "0"], 2, "--max-tokens"),
        (["shards", "merge", "no-such"], 1, "no folder no-such; check the name"),
        (["shards", "merge", "."], 1, "holds no shards"),
        (["train-student", "--shards", "s3://bucket/shards"], 1, "copy them to a local folder first"),
        (["train-student", "--shards", "no-such"], 1, "sd embed --corpus"),
        (["eval", "--student", "no-such"], 1, "sd train-student"),
        (["eval", "--glue", "--tasks", "nope"], 2, "not one of CoLA"),
        (["shards", "no-such"], 1, "sd embed --corpus"),
        (["shards", "verify", "no-such"], 1, "no folder no-such; check the name"),
        (["no-such"], 2, "No such command"),
        (["embed", "--corpus", "hf:some/thing", "--teacher", "minilm"], 1, "can't be loaded from the hub"),
        (["train-student", "--learning-rate", "-1"], 2, "--learning-rate"),
        (["train-student", "--clip", "0"], 2, "--clip"),
        (["eval", "--glue", "--epochs", "0"], 2, "--epochs"),
        (["train-student", "--seed", str(2**32)], 2, "--seed"),
        (["finetune", "x", "--train", "x", "--seed", str(2**32)], 2, "--seed"),
        (["eval", "--glue", "--seed", str(2**32)], 2, "--seed"),
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


def test_a_plan_of_standard_input_is_not_followed_by_jobs(tmp_path):
    command = [sys.executable, "-m", "sentence_distill.cli", "embed", "--corpus", "-", "--out", tmp_path / "shards"]
    result = subprocess.run(
        [*command, "--plan-only"], input=b"The red cat ran. The old dog ran.\n", capture_output=True
    )
    assert result.returncode == 0, result.stderr
    assert b"with the same text on standard input" in result.stdout
    assert b"--slice" not in result.stdout


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
    for model in figures["models"].values():
        assert model["sentences_per_second"] > 0
        assert -1 <= model["sts_spearman"] <= 1
        assert model["size"]["parameters"] > 0
    assert set(figures["models"]) == {"student", "teacher"}
    assert figures["skipped"] == {}
    capsys.readouterr()
    assert sd("eval", "--student", student_folder, "--json", tmp_path / "other.json") == 0
    shown = capsys.readouterr().out
    assert "not measured: teacher" in shown
    assert "not measured: STS-B" in shown
    assert set(json.loads((tmp_path / "other.json").read_text())["skipped"]) == {"teacher", "STS-B"}


def test_eval_refuses_the_vectors_of_another_teacher(sd, student_folder, teacher_folder, corpus_file, tmp_path, capsys):
    other = tmp_path / "shards"
    assert sd("embed", "--corpus", corpus_file, "--teacher", teacher_folder, "--pooling", "max", "--out", other) == 0
    json_file = tmp_path / "eval.json"
    assert sd("eval", "--student", student_folder, "--shards", other, "--json", json_file) == 0
    assert "--pooling (mean there, max here)" in capsys.readouterr().out
    assert "held_out" not in json.loads(json_file.read_text())["models"]["student"]


def test_the_sample_corpus_is_written_as_text(sd, tmp_path):
    assert sd("sample", "--out", tmp_path / "wiki.txt") == 0
    lines = (tmp_path / "wiki.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 9000
    assert all(line.strip() for line in lines)


def test_the_sample_corpus_replaces_a_file_only_when_asked_for(sd, tmp_path, capsys):
    (tmp_path / "wiki.txt").write_text("One's own corpus.")
    assert sd("sample", "--out", tmp_path / "wiki.txt") == 1
    assert "wiki.txt already exists; name another file, or replace it with --overwrite" in capsys.readouterr().err
    assert (tmp_path / "wiki.txt").read_text() == "One's own corpus."
    assert sd("sample", "--out", tmp_path / "wiki.txt", "--overwrite") == 0
    assert len((tmp_path / "wiki.txt").read_text().splitlines()) > 9000


@pytest.fixture
def stopped(shards, tmp_path):
    """A training that was stopped by Ctrl-C: its command, its folder, and what it said last."""
    import signal

    out = tmp_path / "student"
    arguments = ["train-student", "--shards", shards, "--out", out, "--embedding-dim", "8", "--hidden", "8"]
    arguments += ["--epochs", "5", "--batch-size", "2", "--held-out", "0.1", "--precision", "fp32"]
    command = [sys.executable, "-m", "sentence_distill.cli", *arguments, "--checkpoint-every", "0.1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(out.glob("checkpoints/step-*.pt")) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 1
    return arguments, out, error


def test_a_training_that_is_interrupted_is_resumed_by_the_same_command(sd, stopped, capsys):
    arguments, out, error = stopped
    assert "run the same command again to resume" in error.splitlines()[-1]
    step = int(max(out.glob("checkpoints/step-*.pt")).stem.removeprefix("step-"))
    assert sd(*arguments) == 0
    assert f"resuming from step {step:,}\n" in capsys.readouterr().err
    assert (out / "distillation.json").exists()
    # What it took to go on is of no use in a finished student's folder.
    assert not (out / "checkpoints").exists()


def test_a_stopped_training_is_not_resumed_with_other_options_and_is_no_student(
    sd, stopped, corpus_file, tmp_path, capsys
):
    arguments, out, _ = stopped
    before = contents(out)
    assert sd(*arguments, "--batch-size", "4", "--patience", "3") == 1
    assert capsys.readouterr().err.endswith(
        f"error: {out} holds a stopped run with other options: --batch-size was 2, now 4; --patience was unset, now 3; "
        "resume it with its own options, or start over with --overwrite\n"
    )
    (tmp_path / "train.csv").write_text("text,label\n")
    for command in (
        *(["eval", out], ["eval", "--glue", out], ["report", out], ["export", out]),
        ["finetune", out, "--train", tmp_path / "train.csv", "--out", tmp_path / "tuned"],
        ["encode", "--student", out, "--input", corpus_file, "--out", tmp_path / "vectors.npy"],
    ):
        assert sd(*command) == 1
        error = capsys.readouterr().err
        assert f"error: {out} is not finished; complete it" in error
    assert not (tmp_path / "tuned").exists()
    assert contents(out) == before
    assert sd(*arguments, "--batch-size", "64", "--max-steps", "2", "--overwrite") == 0
    assert json.loads((out / "distillation.json").read_text())["training"]["batch_size"] == 64


def test_a_run_that_can_not_begin_leaves_no_folder(sd, shards, student_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.csv").write_text("text,label\nThe cat.,1\nThe dog.,0\n")
    for arguments in (
        ("train-student", "--shards", "none", "--out", "a/b"),
        ("train-student", "--shards", shards, "--out", "a/b", "--resume"),
        ("train-student", "--shards", shards, "--out", "a/b", "--device", "cuda:99"),
        ("train-student", "--shards", shards, "--out", "a/b", "--held-out", "1e-9"),
        ("train-student", "--shards", shards, "--out", "a/b", "--embedding-dim", "500"),
        ("train-student", "--shards", shards, "--out", "a/b", "--target-layers", "9"),
        ("train-student", "--shards", shards, "--out", "a/b", "--learning-rate", "1e30", "--size", "tiny"),
        ("finetune", student_folder, "--train", "few.csv", "--out", "a/b"),
        ("finetune", student_folder, "--train", "few.csv", "--text-column", "none", "--out", "a/b"),
        ("finetune", student_folder, "--train", "few.csv", "--logits", "none", "--out", "a/b"),
        ("export", student_folder, "--dim", "8", "--format", "folder", "--shards", "none", "--out", "a/b"),
        ("export", student_folder, "--dim", "8", "--format", "folder", "--corpus", "few.csv", "--out", "a/b"),
        ("export", student_folder, "--shards", "none", "--out", "a/b"),
        ("eval", student_folder, "--shards", "none", "--json", "figures.json"),
    ):
        assert sd(*arguments) == 1, arguments
        assert "error: " in capsys.readouterr().err.splitlines()[-1]
        assert [path.name for path in tmp_path.iterdir()] == ["few.csv"], arguments


def train(sd, shards, out, *options):
    small = ("--embedding-dim", "8", "--hidden", "8", "--held-out", "0.1", "--batch-size", "16")
    return sd("train-student", "--shards", shards, "--out", out, *small, *options)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.yaml", "epochs: 1\nmax-steps: 5\ntarget_layers: [2]\ntoken-dropout: 0.25\nmax-time: 30m\n"),
        ("run.toml", 'epochs = 1\nmax-steps = 5\ntarget_layers = [2]\ntoken-dropout = 0.25\nmax-time = "30m"\n'),
    ],
)
def test_options_come_from_a_file_and_the_command_line_wins(sd, shards, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    out = tmp_path / "student"
    assert train(sd, shards, out, "--config", tmp_path / name, "--max-steps", "7") == 0
    record = json.loads((out / "distillation.json").read_text())
    expected = {"epochs": 1, "max_steps": 7, "target_layers": [2], "token_dropout": 0.25, "max_time": 1800.0}
    assert {name: record["training"][name] for name in expected} == expected
    assert record["history"][-1]["step"] == 7


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "epoch: 1", "'epoch' is not an option of train-student"),
        ("a.yaml", "epochs: [", "can't be read"),
        ("a.yaml", "- 1", "must hold options"),
        ("a.toml", "epochs = ", "can't be read"),
        ("a.toml", "[train]\nepochs = 1", "'train' is not an option"),
        ("a.json", "{}", ".yaml, .yml or .toml"),
        ("a.yaml", "epochs: many", "many"),
        ("a.yaml", "max-time: soon", "'soon' is not a time"),
        ("a.yaml", "epochs:", "epochs must be one value, not None"),
        ("a.yaml", "epochs: 2.7", "'2.7' is not a whole number"),
        ("a.yaml", "epochs: .inf", "'inf' is not a whole number"),
        ("a.yaml", "max-steps: yes", "max-steps must be one value, not True"),
        ("a.yaml", "cosine: .nan", "must be a finite number"),
        ("a.yaml", "tensorboard: 3", "tensorboard must be true or false"),
        ("a.yaml", "overwrite: true", "overwrite belongs on the command line"),
    ],
)
def test_a_wrong_file_of_options_is_an_error_that_names_the_fault(sd, shards, tmp_path, capsys, name, content, message):
    (tmp_path / name).write_text(content)
    assert train(sd, shards, tmp_path / "student", "--config", tmp_path / name) in (1, 2)
    assert message in capsys.readouterr().err


def test_a_size_is_a_shape_that_single_options_change(sd, shards, tmp_path):
    out = tmp_path / "student"
    command = ("train-student", "--shards", shards, "--out", out, "--size", "tiny", "--hidden", "8", "--init", "random")
    assert sd(*command, "--max-steps", "2", "--held-out", "0.1") == 0
    student = json.loads((out / "distillation.json").read_text())["student"]
    assert (student["embedding_dim"], student["hidden"], student["layers"]) == (64, 8, 1)


def test_what_is_held_out_by_default_is_enough_to_measure_on(sd, shards, tmp_path, capsys):
    assert [default_held_out(rows) for rows in (100, 5_000, 20_000, 50_000, 3_000_000)] == [0.1, 0.1, 0.025, 0.01, 0.01]
    small = ("--embedding-dim", "8", "--hidden", "8", "--max-steps", "2")
    assert sd("train-student", "--shards", shards, "--out", tmp_path / "student", *small) == 0
    record = json.loads((tmp_path / "student" / "distillation.json").read_text())
    assert record["training"]["held_out"] == 0.1
    rows = record["metrics"]["held_out"]["rows"]
    assert 60 < rows < 120
    assert f"(over {rows} held-out sentences)" in capsys.readouterr().out
    assert sd("train-student", "--shards", shards, "--out", tmp_path / "other", *small, "--held-out", "0.03") == 0
    assert json.loads((tmp_path / "other" / "distillation.json").read_text())["training"]["held_out"] == 0.03


def test_a_layer_that_the_shards_lack_is_named(sd, shards, tmp_path, capsys):
    assert train(sd, shards, tmp_path / "student", "--target-layers", "1") == 1
    assert "the shards hold layers 2 of the teacher, not 1" in capsys.readouterr().err


def test_a_student_of_a_version_without_target_layers_is_still_measured(sd, student_folder, shards, tmp_path):
    folder = shutil.copytree(student_folder, tmp_path / "student")
    record = json.loads((folder / "distillation.json").read_text())
    del record["training"]["target_layers"]
    (folder / "distillation.json").write_text(json.dumps(record))
    assert sd("eval", "--student", folder, "--shards", shards) == 0
    assert json.loads((folder / "eval.json").read_text())["models"]["student"]["held_out"]["cosine"] > 0


def test_beginning_again_leaves_nothing_of_the_old_student(sd, shards, tmp_path, capsys):
    out = tmp_path / "student"
    assert train(sd, shards, out, "--max-steps", "3") == 0
    left = [out / name for name in ("glue.json", "task.json", "head.safetensors", "onnx/export.json")]
    (out / "onnx").mkdir()
    for file in left:
        file.write_text("{}")
    assert train(sd, shards, out, "--max-steps", "3") == 1
    assert "holds a finished student" in capsys.readouterr().err
    assert train(sd, shards, out, "--max-steps", "3", "--resume") == 1
    assert "holds a finished student" in capsys.readouterr().err
    assert train(sd, shards, out, "--resume", "--overwrite") == 2
    assert "give one of them" in capsys.readouterr().err
    assert train(sd, shards, out, "--max-steps", "4", "--overwrite") == 0
    assert not any(file.exists() for file in left)
    assert json.loads((out / "distillation.json").read_text())["training"]["max_steps"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--tensorboard",), "pip install tensorboard"), (("--held-out", "0.999999999"), "no rows are left to train on")],
)
def test_a_run_that_can_t_begin_leaves_the_student_that_it_was_to_take_the_place_of(
    sd, student_folder, shards, tmp_path, monkeypatch, capsys, options, message
):
    out = shutil.copytree(student_folder, tmp_path / "student")
    (out / "glue.json").write_text("{}")
    before = contents(out)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert train(sd, shards, out, "--overwrite", *options) == 1
    assert message in capsys.readouterr().err
    assert contents(out) == before


@pytest.mark.parametrize("option", [None, "--overwrite", "--resume"])
def test_a_folder_of_something_else_is_never_trained_into(sd, teacher_folder, shards, tmp_path, capsys, option):
    out = shutil.copytree(teacher_folder, tmp_path / "my-bert")
    (out / "eval.json").write_text("{}")
    before = contents(out)
    assert train(sd, shards, out, *([option] if option else [])) == 1
    assert (
        "my-bert holds config.json, which sd train-student did not write; name another folder"
        in capsys.readouterr().err
    )
    assert contents(out) == before


def test_what_a_run_leaves_that_ended_before_its_first_checkpoint_is_trained_into(sd, shards, tmp_path, capsys):
    out = tmp_path / "student"
    (out / "checkpoints").mkdir(parents=True)
    for name in (".lock", "metrics.jsonl", "checkpoints/best.pt.1-0a1b2c3d.incomplete"):
        (out / name).touch()
    assert train(sd, shards, out, "--max-steps", "2") == 0
    # As --overwrite leaves a student when it is killed then.
    (out / "distillation.json").unlink()
    assert train(sd, shards, out, "--max-steps", "2") == 1
    assert "and a run that ended early; replace it with --overwrite" in capsys.readouterr().err
    assert train(sd, shards, out, "--max-steps", "2", "--overwrite") == 0


def test_a_student_without_a_log_that_is_killed_while_it_is_removed_is_trained_into(
    sd, student_folder, shards, tmp_path, monkeypatch
):
    out = shutil.copytree(student_folder, tmp_path / "student")
    (out / "metrics.jsonl").unlink()
    monkeypatch.setattr("sentence_distill.student.train.Trainer.run", lambda *of, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(sd, shards, out, "--overwrite")
    monkeypatch.undo()
    assert not (out / "distillation.json").exists()
    assert train(sd, shards, out, "--max-steps", "2", "--overwrite") == 0
