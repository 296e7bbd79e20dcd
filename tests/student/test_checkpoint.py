import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline import files
from sentence_distill.student.run_folder import Checkpoints


def state(value):
    return {"model": {"weight": torch.full((1000,), float(value))}, "step": value}


def test_the_newest_few_are_kept_and_the_best_beside_them(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save_best({"weight": torch.ones(3)})
    for step in (5, 10, 100, 1000):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == [
        "best.pt",
        "step-0000000100.pt",
        "step-0000001000.pt",
    ]
    assert checkpoints.newest()["step"] == 1000
    checkpoints.remove()
    assert not checkpoints.folder.exists()


def test_what_is_written_is_the_state_at_the_time_of_the_call(tmp_path):
    checkpoints, weight = Checkpoints(tmp_path, keep=1), torch.zeros(100_000)
    checkpoints.save(1, {"weight": weight})
    weight += 1
    checkpoints.wait()
    assert checkpoints.newest()["weight"].sum() == 0


def test_a_full_disk_shows_and_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state(1))
    checkpoints.wait()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    checkpoints.save(2, state(2))
    with pytest.raises(OSError, match="No space left"):
        checkpoints.wait()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-0000000001.pt"]
    assert Checkpoints(tmp_path, keep=1).newest()["step"] == 1


@pytest.mark.parametrize("moment", ["write", "os.replace"])
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, moment):
    program = f"""
import os, signal, torch
from pathlib import Path
from sentence_distill.pipeline import files
from sentence_distill.student.run_folder import Checkpoints

checkpoints = Checkpoints(Path({str(tmp_path)!r}), keep=1)
checkpoints.save(1, {{"step": 1}})
checkpoints.wait()
kill = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
if {moment!r} == "write":
    files.os.fsync = kill
else:
    files.os.replace = kill
checkpoints.save(2, {{"step": 2, "weight": torch.ones(100_000)}})
checkpoints.wait()
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.newest()["step"] == 1
    assert any(checkpoints.folder.glob("*.incomplete"))
    checkpoints.remove()
    assert not checkpoints.folder.exists()


def test_a_kill_while_they_are_removed_leaves_what_a_run_goes_on_from_or_no_step(tmp_path, monkeypatch):
    checkpoints, unlink = Checkpoints(tmp_path, keep=3), Path.unlink
    checkpoints.save_best(state(1))
    for step in (1, 2, 3):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    left = []

    def look(path, missing_ok=False):
        unlink(path, missing_ok=missing_ok)
        left.append(sorted(file.name[:5] for file in checkpoints.folder.iterdir()))

    monkeypatch.setattr(Path, "unlink", look)
    checkpoints.remove()
    assert left == [["best.", "step-", "step-"], ["best.", "step-"], ["best."], []]


def test_what_an_export_or_a_killed_writer_left_beside_the_checkpoints_is_no_obstacle(tmp_path):
    exported, written = tmp_path / ".onnx.new.1-0a1b2c3d.incomplete", tmp_path / "metrics.jsonl.1-0a1b2c3d.incomplete"
    exported.mkdir()
    written.touch()
    Checkpoints(tmp_path, keep=1).remove_temporaries()
    assert exported.exists()
    assert not written.exists()


def test_a_damaged_checkpoint_is_named_with_the_way_out(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    newest = checkpoints.folder / "step-0000000002.pt"
    newest.write_bytes(newest.read_bytes()[:500])
    with pytest.raises(UserError, match=r"step-0000000002\.pt is damaged.*remove it to resume from the previous one"):
        checkpoints.newest()
    newest.unlink()
    assert checkpoints.newest()["step"] == 1
