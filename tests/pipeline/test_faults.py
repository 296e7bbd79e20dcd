"""Faults of long runs, injected into short ones: kills, signals, full disks, unreadable files, damage."""

import errno
import io
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import file_hash
from sentence_distill.data.sentences import SentenceRules
from sentence_distill.data.sources import cut_short
from sentence_distill.pipeline import files
from sentence_distill.pipeline.config import EmbedConfig
from sentence_distill.pipeline.embed import EmbedRun
from sentence_distill.pipeline.engines import LocalEngine, TeacherSpec
from sentence_distill.pipeline.load import Located
from sentence_distill.pipeline.manifest import load_manifest, verify_folder
from sentence_distill.pipeline.teacher import Teacher
from sentence_distill.student.dataset import ShardStream
from tests.conftest import children_besides, contents, run_sd, wait_for

# A server that has imported what a run needs and forks each victim from there: a start costs no imports.
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["sentence_distill.pipeline.engines", "transformers.models.bert.modeling_bert"])


def quiet_run(arguments: list[str], die_at: tuple[str, str] | None = None) -> None:
    """`sd` without a word; it kills itself where `die_at`, ("before" or "after", file name), is renamed."""
    sys.stdout = sys.stderr = io.StringIO()
    if die_at:
        moment, name = die_at
        replace = os.replace

        def replace_and_die(source: Path, target: Path) -> None:
            if target.name == name and moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)
            if target.name == name:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = replace_and_die
    sys.exit(run_sd(*arguments))


def start(arguments, die_at=None):
    process = forks.Process(target=quiet_run, args=([str(argument) for argument in arguments], die_at))
    process.start()
    return process


def test_killed_at_12_random_moments_it_ends_with_the_same_bytes(arguments, shards, tmp_path):
    rng, out = random.Random(0), tmp_path / "out"
    command = [*arguments, "--out", out]
    for _ in range(2):  # the first also waits for the server to import
        shutil.rmtree(out, ignore_errors=True)
        started = time.monotonic()
        start(command).join()
        whole_s = time.monotonic() - started
    assert contents(out) == contents(shards)
    shutil.rmtree(out)
    kills = 0
    while kills < 12:
        process = start(command)
        process.join(rng.random() * whole_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0
            assert contents(out) == contents(shards)
            shutil.rmtree(out)
    process = start(command)
    process.join()
    assert contents(out) == contents(shards)


def test_killed_at_every_kind_of_rename_it_ends_with_the_same_bytes(arguments, shards, tmp_path):
    out = tmp_path / "out"
    names = ["plan.arrow", "plan.json", "tokenizer.json", "word_embeddings.safetensors"]
    names += ["shard-00001.rejected.jsonl", "shard-00001.arrow", "shard-00001.json", "shard-00004.json"]
    for name in [*names, "rejected.jsonl", "manifest.json"]:
        for moment in ("before", "after"):
            process = start([*arguments, "--out", out], (moment, name))
            process.join()
            assert process.exitcode == -signal.SIGKILL, (moment, name)
    process = start([*arguments, "--out", out])
    process.join()
    assert contents(out) == contents(shards)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_what_is_embedded_written(arguments, tmp_path, number):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "sentence_distill.cli", *arguments, "--out", str(out)]
    command += ["--shard-rows", "5"]
    # A shell ignores SIGINT for what it runs in the background, and its children inherit that.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heard)
    wait_for(lambda: list(out.glob("shard-*.json")))
    # As a terminal does it: to the whole group, the reading processes included.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("error: stopped; ")
    assert "Traceback" not in said
    assert not list(out.rglob("*.incomplete"))
    for folder in (out, tmp_path / "alone"):
        assert run_sd(*arguments, "--shard-rows", "5", "--out", folder) == 0
    assert contents(out) == contents(tmp_path / "alone")


def test_ctrl_c_never_reaches_the_processes_that_read(tmp_path):
    script = """
import multiprocessing, os, signal, sys, time
from sentence_distill.pipeline.processes import deaf_to_ctrl_c
if __name__ == "__main__":
    with deaf_to_ctrl_c():
        child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
        child.start()
    mask = next(l for l in open(f"/proc/{child.pid}/status") if l.startswith("SigBlk"))
    child.kill()
    print(int(mask.split()[1], 16) >> (signal.SIGINT - 1) & 1)
    print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""
    path = tmp_path / "starts_a_child.py"
    path.write_text(script)
    said = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["1", "False"]


def full_disk(monkeypatch, after):
    """Let all writes after the first `after` fail as on a full disk."""
    fsync, calls = os.fsync, []

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", failing)


@pytest.mark.parametrize("after", [0, 5, 12, 18, 30])
def test_a_full_disk_is_said_and_costs_only_the_shard_in_hand(arguments, shards, tmp_path, monkeypatch, after, capsys):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        full_disk(patch, after)
        assert run_sd(*arguments, "--out", out) == 1
    assert "No space left on device; free some space" in capsys.readouterr().err
    assert not list(out.rglob("*.incomplete"))
    whole = contents(shards)
    for sidecar in out.glob("shard-*.json"):
        assert contents(out)[sidecar.with_suffix(".arrow").name] == whole[sidecar.with_suffix(".arrow").name]
    assert run_sd(*arguments, "--out", out) == 0
    assert contents(out) == whole


@contextmanager
def small_disk(folder: Path, size: str):
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full_is_said_and_a_larger_one_is_gone_on_with(arguments, shards, tmp_path, capsys):
    disk = tmp_path / "disk"
    with small_disk(disk, "100k"):
        assert run_sd(*arguments, "--out", disk / "out") == 1
        assert "No space left on device" in capsys.readouterr().err
        assert list(disk.rglob("shard-*.json"))
        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        assert run_sd(*arguments, "--out", disk / "out") == 0
        assert contents(disk / "out") == contents(shards)


@dataclass(frozen=True)
class FailingCorpus(Corpus):
    """Reads well when it is planned, and in the processes that read ahead fails while `broken` is there."""

    broken: str = ""

    def file_records(self, index, start=None):
        with cut_short(self.sources[index].name):
            for record in super().file_records(index, start):
                if record.position.record == 150 and multiprocessing.parent_process() and Path(self.broken).exists():
                    raise OSError(errno.EIO, "Input/output error")
                yield record


def make_run(teacher_folder, corpus, out, shard_rows=200):
    spec = TeacherSpec(located=Located(teacher_folder, teacher_folder.name), pooling="mean", precision="fp32")
    return EmbedRun(
        corpus=corpus,
        engine=LocalEngine(spec.load("cpu"), readers=1),
        out=out,
        config=EmbedConfig(rules=SentenceRules(), shard_rows=shard_rows, dtype="float32"),
    )


def test_a_read_error_in_mid_corpus_names_the_file_and_leaves_what_is_committed(
    teacher_folder, corpus_file, shards, tmp_path
):
    broken = tmp_path / "broken"
    broken.touch()
    whole = Corpus.open([str(corpus_file)])
    corpus = FailingCorpus(whole.sources, names=whole.names, broken=str(broken))
    run = make_run(teacher_folder, corpus, tmp_path / "out")
    with pytest.raises(UserError, match=r"corpus\.txt can't be read to its end: .*Input/output error"):
        run.run()
    committed = sorted(path.name for path in (tmp_path / "out").glob("shard-*.json"))
    assert committed == ["shard-00000.json", "shard-00001.json"]
    broken.unlink()
    run.run()
    assert contents(tmp_path / "out") == contents(shards)


@pytest.mark.parametrize("moment", ["at its start", "while it sends"])
def test_the_death_of_a_reading_process_is_said(moment, teacher_folder, corpus_file, shards, tmp_path):
    run = make_run(teacher_folder, Corpus.open([str(corpus_file)]), tmp_path / "out", shard_rows=5)

    others = multiprocessing.active_children()

    def kill_reader():
        reader = children_besides(others)[0]
        if moment == "while it sends":
            wait_for(lambda: list((tmp_path / "out").glob("shard-*.json")))
        reader.kill()

    killer = threading.Thread(target=kill_reader)
    killer.start()
    with pytest.raises(UserError, match="died with exit code -9"):
        run.run()
    killer.join()
    assert run.run().totals.rows == load_manifest(shards).totals.rows
    assert verify_folder(tmp_path / "out", lambda n: None) == []


def test_each_of_400_flipped_bits_is_found_by_verify_and_by_training(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "shards")
    rng = random.Random(1)
    for path in sorted(folder.glob("shard-00002.*")):
        content = path.read_bytes()
        for _ in range(200):
            flipped = bytearray(content)
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            assert any("shard-00002" in problem for problem in verify_folder(folder, lambda n: None))
            with pytest.raises(UserError, match=r"shard-00002\.arrow"):
                _ = ShardStream(folder, held_out=0.1).train_rows
        path.write_bytes(content)
    assert verify_folder(folder, lambda n: None) == []


def test_a_folder_is_refused_while_its_run_lives_and_taken_over_when_it_is_dead(arguments, shards, tmp_path, capsys):
    out = tmp_path / "out"
    process = start([*arguments, "--out", out, "--shard-rows", "10"])
    wait_for(lambda: list(out.glob("shard-*.json")))
    os.kill(process.pid, signal.SIGSTOP)  # alive, and at no risk of ending meanwhile
    assert run_sd(*arguments, "--out", out, "--shard-rows", "10") == 1
    assert f"in use by process {process.pid}" in capsys.readouterr().err
    process.kill()
    process.join()
    assert run_sd(*arguments, "--out", out, "--shard-rows", "10") == 0
    assert load_manifest(out).totals.rows == load_manifest(shards).totals.rows


def test_many_vectors_that_are_not_finite_stop_the_run(arguments, tmp_path, monkeypatch, capsys):
    launch = Teacher.launch

    def broken(self, tokens, *rest):
        launched = launch(self, tokens, *rest)
        with torch.inference_mode():
            launched.copy[:4] = np.inf
        return launched

    monkeypatch.setattr(Teacher, "launch", broken)
    assert run_sd(*arguments, "--out", tmp_path / "out") == 1
    assert "4 of 201 vectors of the teacher in slice 0" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("shard-*.json"))


def test_lines_of_rejected_sentences_that_were_lost_before_the_folder_was_closed_are_found(
    sd, arguments, shards, tmp_path
):
    folder = shutil.copytree(shards, tmp_path / "shards")
    rejected = folder / "rejected.jsonl"
    rejected.write_bytes(rejected.read_bytes().split(b"\n", 1)[1])
    manifest = files.load_json(folder / "manifest.json")
    manifest["files"]["rejected.jsonl"] = file_hash(rejected)
    (folder / "manifest.json").write_bytes(files.dump_json(manifest))
    problems = verify_folder(folder, lambda n: None)
    assert problems == ["rejected.jsonl has other lines for shard-00004.arrow than its sidecar says"]
    assert sd(*arguments, "--out", folder) == 0
    assert contents(folder) == contents(shards)


def test_totals_that_do_not_add_up_are_found(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "shards")
    manifest = files.load_json(folder / "manifest.json")
    manifest["totals"]["records"] += 1
    (folder / "manifest.json").write_bytes(files.dump_json(manifest))
    problems = verify_folder(folder, lambda n: None)
    assert "manifest.json has other totals than its shards add up to" in problems
    assert "manifest.json has a different number of records than the plan" in problems
