"""Several processes that train one student, over gloo."""

import json
import signal
import subprocess
import sys

import psutil
import pytest

from tests.conftest import run_sd, wait_for

LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"],
}  # fmt: skip


@pytest.fixture(scope="module")
def options(shards):
    return [
        *("sentence_distill.cli", "train-student", "--shards", str(shards), "--held-out", "0.1", "--device", "cpu"),
        *("--embedding-dim", "8", "--hidden", "8", "--batch-size", "16", "--epochs", "2", "--precision", "fp32"),
        # All that mixes the rows of a batch, or draws random numbers for it.
        *("--relational", "0.5", "--token-dropout", "0.1", "--embedding-dropout", "0.1"),
    ]


def curve(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["kind"], line["step"], line["loss"], line.get("cosine", 0.0)) for line in lines]


def launch(launcher, *options):
    command = [sys.executable, *LAUNCHERS[launcher], *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory):
    """The student of one process."""
    folder = tmp_path_factory.mktemp("ranks") / "one"
    assert run_sd(*options[1:], "--out", folder) == 0
    return folder


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_follow_the_curve_of_one_and_one_of_them_writes(options, alone, tmp_path, launcher):
    out = tmp_path / "two"
    done = launch(launcher, *options, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stderr
    assert done.stdout.count("student with held-out cosine") == 1
    assert sorted(path.name for path in out.rglob("*")) == sorted(path.name for path in alone.rglob("*"))
    for (*found_at, loss, cosine), (*expected_at, expected, expected_cosine) in zip(
        curve(out), curve(alone), strict=True
    ):
        assert found_at == expected_at
        assert loss == pytest.approx(expected, rel=1e-4)
        assert cosine == pytest.approx(expected_cosine, rel=1e-4)


@pytest.mark.parametrize(
    ("rank", "number", "message"),
    [
        ("1", signal.SIGKILL, "another process of the run is gone"),
        ("0", signal.SIGKILL, "another process of the run is gone"),
        ("1", signal.SIGTERM, "stopped at step"),
    ],
)
def test_a_process_that_dies_or_is_told_to_stop_ends_the_run_with_a_checkpoint_that_one_process_goes_on_from(
    options, tmp_path, rank, number, message
):
    out = tmp_path / "student"
    longer = [*options, "--epochs", "200", "--max-time", "10m", "--out", str(out)]
    run = subprocess.Popen(
        [sys.executable, *LAUNCHERS["torchrun"], *longer], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    wait_for(lambda: (out / "metrics.jsonl").exists() and curve(out))
    workers = {
        child.environ().get("RANK"): child
        for child in psutil.Process(run.pid).children(recursive=True)
        if "train-student" in child.cmdline()
    }
    workers[rank].send_signal(number)
    _, error = run.communicate()
    assert run.returncode == 1
    assert message in error, error
    *_, checkpoint = sorted(out.glob("checkpoints/step-*.pt"))
    step = int(checkpoint.stem.removeprefix("step-"))
    assert step > 0
    assert not list(out.glob("*.json"))

    # The same batches on another number of processes: the curve goes on behind the checkpoint's step.
    resumed = subprocess.Popen([sys.executable, "-m", *longer], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: curve(out)[-1][1] > step + 100 or resumed.poll() is not None)
    resumed.send_signal(signal.SIGINT)
    _, error = resumed.communicate()
    assert "run the same command again to resume" in error
    assert [at for kind, at, *_ in curve(out) if kind == "train"] == list(range(50, curve(out)[-1][1] + 1, 50))
