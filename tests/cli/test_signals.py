"""Ctrl-C and SIGTERM: one line that says what is kept, whatever a command does when they come."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import contents, make_sentences, wait_for

# Runs sd with a function replaced by one that sends this process a signal and then takes a minute, as any work might.
SCRIPT = """
import importlib, os, sys, time
from sentence_distill.cli.main import main
module, name, number = sys.argv[1].rsplit(".", 1) + [int(sys.argv[2])]
def work(*arguments, **options):
    print("AT WORK", file=sys.stderr, flush=True)
    os.kill(os.getpid(), number)
    time.sleep(60)
setattr(importlib.import_module(module), name, work)
sys.argv = ["sd", *sys.argv[3:]]
main()
"""
NOTHING = "error: stopped; nothing was written"


@pytest.mark.parametrize(
    ("function", "number", "arguments", "message"),
    [
        ("student.evaluate.speed", signal.SIGINT, ["eval", "{student}", "--shards", "{shards}"], NOTHING),
        ("student.report.gather", signal.SIGTERM, ["report", "{student}", "--out", "{new}"], NOTHING),
        ("student.export.write_onnx", signal.SIGINT, ["export", "{student}", "--out", "{new}"],
         NOTHING),
        ("student.reduce.find_directions", signal.SIGTERM,
         ["export", "{student}", "--shards", "{shards}", "--dim", "8", "--format", "folder", "--out", "{new}"],
         NOTHING),
        ("student.finetune.Fitter", signal.SIGINT, ["finetune", "{student}", "--train", "{train}", "--out",
         "{new}"], NOTHING),
        ("student.train.ShardStream", signal.SIGTERM, ["train-student", "--shards", "{shards}", "--out",
         "{new}"], "error: stopped before the end"),
        ("data.hub.sample_paragraphs", signal.SIGINT, ["sample", "--out", "{new}"],
         "error: stopped before the end"),
    ],
)  # fmt: skip
def test_a_signal_ends_a_command_with_one_line_and_nothing_half_done(
    student_folder, shards, tmp_path, function, number, arguments, message
):
    rows = [f"{sentence},{int('cat' in sentence)}" for sentence in make_sentences(60)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    named = {"student": student_folder, "shards": shards, "train": tmp_path / "train.csv", "new": tmp_path / "new"}
    filled = [argument.format(**named) for argument in arguments]
    before = contents(student_folder)
    command = [sys.executable, "-c", SCRIPT, f"sentence_distill.{function}", str(int(number)), *filled]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.splitlines()[-1] == message
    assert "Traceback" not in ended.stderr
    assert "Aborted" not in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["train.csv"]
    assert contents(student_folder) == before


def test_a_second_signal_ends_a_command_at_once_and_without_a_traceback(tmp_path):
    script = (
        "import sys, time\nfrom sentence_distill.cli.main import main\n"
        "import sentence_distill.data.hub as samples\n"
        "def slow():\n"
        "    try:\n        print('AT WORK', file=sys.stderr, flush=True); time.sleep(60)\n"
        "    finally:\n        print('CLEANING', file=sys.stderr, flush=True); time.sleep(60)\n"
        f"samples.sample_paragraphs = slow\nsys.argv = ['sd', 'sample', '--out', {str(tmp_path / 'new')!r}]\nmain()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline() == "AT WORK\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "stopping; send the signal again to stop immediately\n"
    assert process.stderr.readline() == "CLEANING\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (-signal.SIGINT, "")


def test_a_training_says_at_once_what_it_finishes_when_it_is_stopped(shards, tmp_path):
    out = tmp_path / "student"
    small = ("--embedding-dim", "8", "--hidden", "8", "--batch-size", "2", "--epochs", "50")
    command = [sys.executable, "-m", "sentence_distill.cli", "train-student", "--shards", shards, "--out", out]
    command += [*small, "--checkpoint-every", "0.1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(out.glob("checkpoints/step-*.pt")) or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    *_, told, last = process.communicate()[1].splitlines()
    assert told == "stopping after this step and a checkpoint; send the signal again to stop immediately"
    assert "run the same command again to resume" in last
    assert not (out / ".lock").exists()


def test_what_is_cheap_to_check_is_checked_before_pytorch_is_imported(student_folder, tmp_path):
    (tmp_path / "train.csv").write_text("text,label\nThe cat.,1\n")
    (tmp_path / "mine").write_text("mine")
    for arguments in (
        ["finetune", student_folder, "--train", tmp_path / "train.csv", "--text-column", "none"],
        ["finetune", student_folder, "--train", tmp_path / "none.csv"],
        ["eval", student_folder, "--json", tmp_path / "mine"],
        ["eval", student_folder, "--shards", tmp_path / "none"],
        ["eval", student_folder, "--sts", tmp_path / "none.tsv"],
        ["report", student_folder, "--out", tmp_path / "mine"],
        ["export", student_folder, "--out", tmp_path / "mine"],
        ["export", student_folder, "--sentences", tmp_path / "none"],
        ["export", student_folder, "--dim", "8", "--shards", tmp_path / "none"],
    ):
        script = (
            "import sys\nfrom sentence_distill.cli.main import main\n"
            f"sys.argv = ['sd', *{list(map(str, arguments))!r}]\n"
            "try: main()\nfinally: print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env={**os.environ}
        )
        assert (ended.returncode, ended.stdout) == (1, "[]\n"), (arguments, ended.stdout, ended.stderr)
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
