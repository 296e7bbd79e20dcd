import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants
from sentence_transformers import SentenceTransformer

from sentence_distill import Student
from sentence_distill.data.errors import UserError
from tests.conftest import make_sentences
from tests.hub_server import TOKEN, connect, disconnect, running_hub

SENTENCES = make_sentences(5)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine, which the hub's client takes for the real one; nothing is cached, nobody logged in."""
    with running_hub() as hub:
        connect(monkeypatch, hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_a_pushed_student_loads_by_its_name_with_equal_vectors(hub, sd, student_folder, capsys):
    assert sd("push", student_folder, "me/small") == 0
    shown = capsys.readouterr().out
    assert f"pushed: {hub.url}/me/small" in shown
    assert 'Student.load("me/small")' in shown
    student = Student.load("me/small")
    np.testing.assert_array_equal(student.encode(SENTENCES), Student.load(student_folder).encode(SENTENCES))


def test_sentence_transformers_loads_it_by_its_name_too(hub, sd, student_folder):
    assert sd("push", student_folder, "me/small") == 0
    theirs = SentenceTransformer("me/small", device="cpu").encode(SENTENCES)
    np.testing.assert_allclose(theirs, Student.load(student_folder, backend="torch").encode(SENTENCES), atol=1e-5)


def test_only_what_loading_and_the_card_need_is_sent(hub, sd, student_folder, tmp_path, capsys):
    folder = tmp_path / "student"
    shutil.copytree(student_folder, folder)
    for name in ("glue/CoLA/model.safetensors", "checkpoints/step-1.pt", "notes.json", "1_LSTM/training.pt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"mine")
    assert sd("push", folder, "me/small") == 0
    sent = hub.files("me/small").keys() - {".gitattributes"}
    assert {"README.md", "distillation.json", "1_LSTM/model.safetensors", "tokenizer.json"} <= sent
    assert all(content != b"mine" for content in hub.files("me/small").values())
    assert "metrics.jsonl" not in sent
    assert f"{len(sent)} files" in capsys.readouterr().out


def test_where_files_lay_on_this_machine_is_not_published(hub, sd, student_folder, tmp_path):
    folder = tmp_path / "student"
    shutil.copytree(student_folder, folder)
    record = json.loads((folder / "distillation.json").read_text())
    reduction = {"full_dim": 64, "sentences": "/home/me/a.txt, /home/me/b.txt", "rows": 100}
    record |= {"shards": "/home/me/shards", "reduction": reduction}
    (folder / "distillation.json").write_text(json.dumps(record))
    assert sd("push", folder, "me/small") == 0
    assert all(b"/home/me" not in content for content in hub.files("me/small").values())
    assert json.loads(hub.files("me/small")["distillation.json"])["reduction"]["sentences"] == "a.txt, b.txt"
    assert "projected from 64 dimensions" in hub.files("me/small")["README.md"].decode()


def test_a_dry_run_lists_the_files_and_asks_no_hub(hub, sd, student_folder, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert sd("push", student_folder, "me/small", "--dry-run") == 0
    assert "model.safetensors" in capsys.readouterr().out
    assert not hub.requests


def test_a_branch_is_made_and_loads_by_its_name(hub, sd, student_folder, capsys):
    assert sd("push", student_folder, "me/small", "--revision", "v1") == 0
    assert 'Student.load("me/small@v1")' in capsys.readouterr().out
    assert hub.files("me/small").keys() == {".gitattributes"}
    assert Student.load("me/small@v1").dim == 32
    with pytest.raises(UserError, match="not a student of sentence-distill"):
        Student.load("me/small")


def test_a_private_student_needs_a_token(hub, sd, student_folder, monkeypatch):
    assert sd("push", student_folder, "me/secret", "--private") == 0
    assert Student.load("me/secret").dim == 32
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"it is private.*hf auth login"):
        Student.load("me/secret")


def test_nothing_private_goes_to_a_public_repository(hub, sd, student_folder, capsys):
    hub.create("me/small")
    assert sd("push", student_folder, "me/small", "--private") == 1
    assert "exists and is public" in capsys.readouterr().err
    assert hub.files("me/small").keys() == {".gitattributes"}


def test_a_repository_of_something_else_is_left_alone(hub, sd, student_folder, capsys):
    hub.create("me/bert")
    hub.files("me/bert")["model.safetensors"] = b"another model"
    assert sd("push", student_folder, "me/bert") == 1
    assert "something other than a student" in capsys.readouterr().err
    assert hub.files("me/bert")["model.safetensors"] == b"another model"
    with pytest.raises(UserError, match=r"me/bert on the hub is not a student .*SentenceTransformer"):
        Student.load("me/bert")


def test_the_head_of_an_earlier_student_goes(hub, sd, student_folder):
    assert sd("push", student_folder, "me/small") == 0
    hub.files("me/small").update({"head.safetensors": b"old", "LICENSE": b"mine"})
    assert sd("push", student_folder, "me/small", "--message", "A student without a head") == 0
    assert "head.safetensors" not in hub.files("me/small")
    assert hub.files("me/small")["LICENSE"] == b"mine"


def test_the_card_names_the_repository_and_the_licence(hub, sd, student_folder):
    assert sd("push", student_folder, "me/small", "--license", "mit") == 0
    card = ModelCard(hub.files("me/small")["README.md"].decode())
    assert card.data.license == "mit"
    assert 'SentenceTransformer("me/small")' in card.text


def test_a_card_with_edits_is_kept_on_request(hub, sd, student_folder, tmp_path):
    folder = tmp_path / "student"
    shutil.copytree(student_folder, folder)
    (folder / "README.md").write_text("# My own words\n")
    assert sd("push", folder, "me/small", "--keep-card") == 0
    assert hub.files("me/small")["README.md"] == b"# My own words\n"


def test_a_student_in_the_cache_loads_without_a_network(hub, sd, student_folder, monkeypatch, caplog):
    assert sd("push", student_folder, "me/small") == 0
    Student.load("me/small")
    disconnect(monkeypatch)
    assert Student.load("me/small").dim == 32
    assert "loading the cached copy" in caplog.text
    caplog.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert Student.load("me/small").dim == 32
    assert not caplog.text


def test_what_we_fetched_sentence_transformers_loads_without_a_network(hub, sd, student_folder, monkeypatch):
    assert sd("push", student_folder, "me/small") == 0
    hub.files("me/small")["LICENSE"] = b"mine"
    Student.load("me/small")
    disconnect(monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    theirs = SentenceTransformer("me/small", device="cpu").encode(SENTENCES)
    np.testing.assert_allclose(theirs, Student.load(student_folder, backend="torch").encode(SENTENCES), atol=1e-5)


def test_a_newer_student_under_the_same_name_is_fetched(hub, sd, student_folder):
    assert sd("push", student_folder, "me/small") == 0
    Student.load("me/small")
    record = json.loads(hub.files("me/small")["distillation.json"])
    hub.files("me/small")["distillation.json"] = json.dumps({**record, "student": {}}).encode()
    with pytest.raises(UserError, match="is damaged or from another version"):
        Student.load("me/small")


def test_sd_finetune_and_sd_eval_take_a_name_on_the_hub_for_the_student_that_it_is(
    hub, sd, student_folder, shards, tmp_path
):
    assert sd("push", student_folder, "me/small") == 0
    rows = [f"{sentence},{number % 2}" for number, sentence in enumerate(make_sentences(40))]
    (tmp_path / "own.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    out = tmp_path / "tuned"
    assert sd("finetune", "me/small", "--train", tmp_path / "own.csv", "--epochs", "1", "--out", out) == 0
    assert (out / "head.safetensors").exists()
    assert sd("eval", "me/small", "--shards", shards, "--json", tmp_path / "eval.json") == 0
    # Only a student has a teacher, which is not here.
    assert "teacher" in json.loads((tmp_path / "eval.json").read_text())["skipped"]


def test_sd_export_takes_a_name_on_the_hub(hub, sd, student_folder, corpus_file, tmp_path, monkeypatch):
    assert sd("push", student_folder, "me/small") == 0
    monkeypatch.chdir(tmp_path)
    assert sd("export", "me/small@main", "--format", "folder", "--dim", "4", "--corpus", corpus_file) == 0
    assert Student.load(tmp_path / "small-4").dim == 4


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, "does not accept the token"),
        (403, "no write access to me"),
        (404, "no write access to me"),
        (503, "rejected me/small"),
    ],
)
def test_a_refusal_is_one_line_that_says_why(hub, sd, student_folder, capsys, status, expected):
    hub.refuses = status
    assert sd("push", student_folder, "me/small") == 1
    error = capsys.readouterr().err.strip()
    assert expected in error
    assert len(error.splitlines()) == 1
    with pytest.raises(UserError, match=r"me/small is (not a|neither a) folder"):
        Student.load("me/small")


def test_another_s_namespace_is_refused_in_one_line(hub, sd, student_folder, capsys):
    assert sd("push", student_folder, "you/small") == 1
    assert "no write access to you" in capsys.readouterr().err


def test_without_a_token_the_user_is_told_to_log_in(hub, sd, student_folder, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert sd("push", student_folder, "me/small") == 1
    assert "hf auth login" in capsys.readouterr().err
    assert not hub.requests


def test_without_a_network_the_way_out_is_named(hub, sd, student_folder, monkeypatch, capsys):
    disconnect(monkeypatch)
    assert sd("push", student_folder, "me/small") == 1
    assert "share the folder itself" in capsys.readouterr().err
    with pytest.raises(UserError, match="nor in the cache, and the hub can't be reached"):
        Student.load("me/small")


@pytest.mark.parametrize("name", ["small", "me/", "me/small/more", "me/sm all", "https://hub/me/small"])
def test_a_malformed_name_is_refused_before_anything_is_sent(hub, sd, student_folder, capsys, name):
    assert sd("push", student_folder, name) == 1
    assert "give OWNER/NAME" in capsys.readouterr().err
    assert not hub.requests


def test_a_folder_without_a_student_is_refused(hub, sd, tmp_path, capsys):
    assert sd("push", tmp_path, "me/small") == 1
    assert "holds no student" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("glue.json", {"rows": {"distilled": {"RTE": {"scores": 3}}}}),
        ("speed.json", {"threads": [1], "contenders": {"x": {}}}),
        ("distillation.json", {"training": {"epochs": "many"}}),
    ],
)
def test_a_damaged_file_of_figures_is_named_in_one_line(sd, student_folder, tmp_path, capsys, name, content):
    folder = shutil.copytree(student_folder, tmp_path / "student")
    record = json.loads((folder / name).read_text()) if name == "distillation.json" else {}
    (folder / name).write_text(json.dumps(record | content))
    assert sd("push", folder, "me/small", "--dry-run") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {folder / name} is damaged or from another version")


def test_a_path_is_never_looked_for_on_the_hub(hub):
    for name in (Path("me/small"), "./me/small", "small"):
        with pytest.raises(UserError, match="holds no student; train one"):
            Student.load(name)
    assert not hub.requests
