"""Runs over several jobs, devices, machines and stores leave the bytes of a run on one."""

import json
import multiprocessing
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.sentences import SentenceRules
from sentence_distill.pipeline import embed as embed_module
from sentence_distill.pipeline import shards as shards_module
from sentence_distill.pipeline.config import EmbedConfig
from sentence_distill.pipeline.embed import EmbedRun
from sentence_distill.pipeline.engines import RayEngine, TeacherSpec, _room, require_same_teacher
from sentence_distill.pipeline.files import lock_folder, open_folder
from sentence_distill.pipeline.load import Located
from sentence_distill.pipeline.manifest import load_manifest, verify_folder
from sentence_distill.pipeline.plan import Plan
from sentence_distill.pipeline.slices import Job
from tests.conftest import children_besides, contents, wait_for


def test_shares_of_an_array_and_a_merge_leave_the_bytes_of_one_run(sd, arguments, shards, tmp_path, capsys):
    out = tmp_path / "out"
    for share in ("3/3", "1/3"):
        assert sd(*arguments, "--out", out, "--slice", share) == 0
    assert not (out / "manifest.json").exists()
    assert sd("shards", "merge", out) == 1
    assert "lacks 2 of 5 shards, the first is shard-00001.arrow" in capsys.readouterr().err
    assert sd(*arguments, "--out", out, "--slice", "2/3") == 0
    # As a job leaves it that is killed.
    (out / ".lock-2-of-3").write_text("1")
    assert sd("shards", "merge", out) == 0
    assert contents(out) == contents(shards)


def test_a_merge_refuses_lists_of_rejected_sentences_that_are_lost_and_the_job_makes_them_again(
    sd, arguments, shards, tmp_path, capsys
):
    out = tmp_path / "out"
    for share in ("1/2", "2/2"):
        assert sd(*arguments, "--out", out, "--slice", share) == 0
    (lost,) = [path for path in out.glob("shard-*.rejected.jsonl") if path.stat().st_size]
    for damage in (lambda: lost.unlink(), lambda: lost.write_bytes(lost.read_bytes()[:-10])):
        damage()
        capsys.readouterr()
        assert sd("shards", "merge", out) == 1
        assert f"{lost} is missing or damaged" in capsys.readouterr().err
        assert not {"manifest.json", "rejected.jsonl"} & contents(out).keys()
        assert sd(*arguments, "--out", out, "--slice", "2/2") == 0
        assert lost.exists()
    assert sd("shards", "merge", out) == 0
    assert contents(out) == contents(shards)


def test_a_share_reads_nothing_of_others_but_one_sidecar(sd, arguments, shards, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert sd(*arguments, "--out", out, "--slice", "1/2") == 0
    read = set()

    def read_sidecar(shard):
        read.add(shard.name)
        return shards_module.read_sidecar(shard)

    monkeypatch.setattr(embed_module, "read_sidecar", read_sidecar)
    for path in out.glob("shard-*.rejected.jsonl"):
        path.rename(path.with_suffix(".away"))
        # To read it as a file fails.
        path.mkdir()
    assert sd(*arguments, "--out", out, "--slice", "2/2") == 0
    assert read == {"shard-00000.arrow", "shard-00002.arrow", "shard-00003.arrow", "shard-00004.arrow"}
    for path in out.glob("*.away"):
        path.with_suffix(".jsonl").rmdir()
        path.rename(path.with_suffix(".jsonl"))
    assert sd("shards", "merge", out) == 0
    assert contents(out) == contents(shards)


def test_more_shares_than_slices_leave_some_with_nothing_to_do(sd, arguments, shards, tmp_path):
    for share in range(1, 8):
        assert sd(*arguments, "--out", tmp_path / "out", "--slice", f"{share}/7") == 0
    assert sd("shards", "merge", tmp_path / "out") == 0
    assert load_manifest(tmp_path / "out") == load_manifest(shards)


@pytest.mark.parametrize("share", ["0/3", "4/3", "1", "a/b", "1/0"])
def test_a_share_that_is_none_is_wrong_usage(sd, arguments, tmp_path, share, capsys):
    assert sd(*arguments, "--out", tmp_path / "out", "--slice", share) == 2
    assert "not a share" in capsys.readouterr().err


def test_a_share_is_refused_beside_a_whole_run_and_beside_itself_but_not_beside_another(
    sd, arguments, tmp_path, capsys
):
    out = tmp_path / "out"
    out.mkdir()
    with lock_folder(out):
        assert sd(*arguments, "--out", out, "--slice", "1/2") == 1
    with lock_folder(out, shared=True), lock_folder(out, name=".lock-1-of-2"):
        assert sd(*arguments, "--out", out, "--slice", "1/2") == 1
        assert sd(*arguments, "--out", out) == 1
        assert sd("shards", "merge", out) == 1
        assert sd(*arguments, "--out", out, "--slice", "2/2") == 0
    assert "in use by jobs of --slice" in capsys.readouterr().err


def test_merging_shards_of_different_runs_is_refused_with_what_differs(sd, arguments, shards, tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    sd(*arguments, "--out", out, "--slice", "1/2")
    sd(*arguments, "--out", other, "--slice", "2/2", "--dtype", "float16")
    for path in other.glob("shard-*"):
        path.rename(out / path.name)
    assert sd("shards", "merge", out) == 1
    assert "--dtype (float32 there, float16 here)" in capsys.readouterr().err


def test_a_plan_made_ahead_is_what_the_jobs_work_by(sd, arguments, shards, tmp_path, capsys):
    out = tmp_path / "out"
    assert sd(*arguments, "--out", out, "--plan-only") == 0
    assert "a plan of 900 sentences in 5 slices" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["plan.arrow", "plan.json", "sources.json"]
    assert sd(*arguments, "--out", out) == 0
    assert contents(out) == contents(shards)


def test_a_share_with_another_teacher_is_refused_and_changes_nothing(sd, arguments, teacher_folder, tmp_path, capsys):
    out = tmp_path / "out"
    sd(*arguments, "--out", out, "--slice", "1/2")
    before = contents(out)
    other = shutil.copytree(teacher_folder, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert sd(*arguments, "--teacher", other, "--out", out, "--slice", "2/2") == 1
    assert "the teacher (" in capsys.readouterr().err
    assert contents(out) == before


def damaged(folder, damage):
    if damage == "no shard":
        (folder / "shard-00003.arrow").unlink()
    elif damage == "other plan":
        plan = Plan.load(folder / "plan.arrow")
        Plan(plan.slices[:4], plan.fingerprint).save(folder / "plan.arrow")
    else:
        (folder / "teacher" / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no shard", "lacks 1 of 5 shards, the first is shard-00003.arrow"),
        ("other plan", "its plan does not belong to its shards"),
        ("other tokenizer", "tokenizer.json does not belong to its shards"),
    ],
)
def test_a_merge_of_what_does_not_belong_together_is_refused(sd, shards, tmp_path, damage, message, capsys):
    folder = shutil.copytree(shards, tmp_path / "shards")
    (folder / "manifest.json").unlink()
    damaged(folder, damage)
    assert sd("shards", "merge", folder) == 1
    assert message in capsys.readouterr().err


def test_a_worker_with_another_teacher_than_the_run_s_is_refused(teacher_folder, shards):
    fingerprint = load_manifest(shards).fingerprint
    spec = TeacherSpec(located=Located(teacher_folder, teacher_folder.name), pooling="mean", precision="fp32")
    job = Job(Corpus([]), SentenceRules(), shards, fingerprint)
    require_same_teacher(spec.load("cpu").facts(), job)
    other = replace(spec, precision="bf16")
    with pytest.raises(UserError, match=r"--precision \(float32 there, bfloat16 here\)"):
        require_same_teacher(other.load("cpu").facts(), job)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_device_whose_process_dies_is_named_and_its_part_is_done_by_the_same_command(
    sd, arguments, shards, tmp_path, number, capsys
):
    out = tmp_path / "out"
    others = multiprocessing.active_children()

    def kill_one() -> None:
        os.kill(children_besides(others)[-1].pid, number)

    killer = threading.Thread(target=kill_one)
    killer.start()
    assert sd(*arguments, "--out", out, "--devices", "cpu,cpu") == 1
    killer.join()
    assert "cpu: its process ended with code" in capsys.readouterr().err
    assert sd(*arguments, "--out", out) == 0
    assert contents(out) == contents(shards)


def test_two_devices_leave_the_bytes_of_one(sd, arguments, shards, tmp_path):
    assert sd(*arguments, "--out", tmp_path / "out", "--devices", "cpu,cpu") == 0
    assert contents(tmp_path / "out") == contents(shards)


def test_a_device_that_is_not_there_is_refused(sd, arguments, tmp_path, capsys):
    assert sd(*arguments, "--out", tmp_path / "out", "--devices", "0,99") == 1
    assert "PyTorch sees" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "name"), [("--device", "mps"), ("--device", "xpu:0"), ("--devices", "cpu,meta")])
def test_a_device_of_another_kind_is_refused_before_the_teacher_is_loaded(
    sd, arguments, tmp_path, option, name, capsys
):
    assert sd(*arguments, "--out", tmp_path / "out", option, name) == 1
    *before, line = capsys.readouterr().err.strip().splitlines()
    assert "is not one of auto, cpu, cuda and cuda:N" in line
    assert not any(said.startswith("teacher ") for said in before)


def test_several_readers_leave_the_bytes_of_one(sd, arguments, shards, tmp_path):
    assert sd(*arguments, "--out", tmp_path / "out", "--readers", "3") == 0
    assert contents(tmp_path / "out") == contents(shards)


@pytest.fixture
def s3(monkeypatch):
    """A bucket of a server on this machine that speaks S3."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"bucket-{port}"  # the stand-in keeps its buckets from one server to the next
    s3fs.S3FileSystem().mkdir(bucket)
    yield f"s3://{bucket}/shards"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_a_run_into_s3_leaves_the_same_files_and_goes_on_where_it_stood(sd, arguments, shards, s3, capsys):
    assert sd(*arguments, "--out", s3) == 0
    folder = open_folder(s3)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "sources.json"]
    assert {str(path.path).split("shards/")[1]: path.read_bytes() for path in files} == contents(shards)
    assert sd("shards", "verify", s3) == 0
    (folder / "shard-00002.json").unlink()
    (folder / "shard-00003.arrow").write_bytes(b"cut short")
    assert sd("shards", "verify", s3) == 1
    assert sd(*arguments, "--out", s3) == 0
    assert sd("shards", "verify", s3) == 0
    assert "shard-00003.arrow: it has 9 bytes" in capsys.readouterr().err


def test_a_bucket_that_is_not_there_is_said_before_anything_is_read(sd, arguments, s3, capsys):
    assert sd(*arguments, "--out", "s3://no-such-bucket/shards") == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert "s3://no-such-bucket/shards can't be opened" in error[0]


@pytest.mark.parametrize("url", ["sftp://host/shards", "http://host/shards"])
def test_a_store_that_shows_half_written_files_is_refused(sd, arguments, url, capsys):
    assert sd(*arguments, "--out", url) == 1
    assert "writes files atomically" in capsys.readouterr().err


def ray_workers() -> list[int]:
    """Processes of Ray's that hold an actor of ours."""
    names = {path.parent.name: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
    return sorted(int(pid) for pid, name in names.items() if name.startswith(b"ray::_Actor"))


def test_ray_replaces_a_worker_that_is_killed_and_leaves_the_bytes_of_the_local_engine(
    teacher_folder, corpus_file, arguments, sd, tmp_path
):
    pytest.importorskip("ray")
    small = ["--shard-rows", "20"]
    assert sd(*arguments, *small, "--out", tmp_path / "local") == 0
    spec = TeacherSpec(located=Located(teacher_folder, teacher_folder.name), pooling="mean", precision="fp32")
    with pytest.raises(UserError, match="--workers 99: the cluster has room for"):
        RayEngine(spec, address=None, workers=99, readers=1)
    engine = RayEngine(spec, address=None, workers=2, readers=1)
    out = tmp_path / "ray"
    killed = []

    def kill_one() -> None:
        wait_for(lambda: list(out.glob("shard-*.json")))
        killed.extend(ray_workers())
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    try:
        config = EmbedConfig(rules=SentenceRules(), shard_rows=20, dtype="float32")
        corpus = Corpus.open([str(corpus_file)])
        run = EmbedRun(corpus=corpus, engine=engine, out=out, config=config)
        killer.start()
        run.run()
        killer.join()
        assert len(killed) == 2
        assert set(ray_workers()) != set(killed)
    finally:
        engine.close()
    assert contents(out) == contents(tmp_path / "local")
    assert verify_folder(out, lambda n: None) == []


@pytest.mark.parametrize("nodes", [[], [{"memory": 1e9}], [{"CPU": 0.5}]])
def test_a_ray_cluster_without_a_node_that_computes_is_said_so(nodes):
    with pytest.raises(UserError, match="no node with a CPU or GPU yet; start one"):
        _room(nodes, None)


def test_a_ray_cluster_that_does_not_answer_is_said_so():
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        RayEngine(TeacherSpec(located=Located(None, "x")), address="127.0.0.1:1", workers=1, readers=1)
