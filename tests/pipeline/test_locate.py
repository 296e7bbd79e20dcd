import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.load import DEFAULT_TEACHER, locate_teacher
from tests.conftest import contents
from tests.hub_server import connect, disconnect, running_hub


@pytest.fixture
def hub(monkeypatch, tmp_path, teacher_folder):
    """A hub that has the teacher as me/bert, with files beside it that no one needs here; nothing is cached."""
    with running_hub() as hub:
        connect(monkeypatch, hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        hub.create("me/bert")
        unused = {"README.md": b"About it.", "onnx/model.onnx": b"The same.", "pytorch_model.bin": b"Pickled."}
        hub.files("me/bert").update({**contents(teacher_folder), **unused})
        yield hub


def test_a_teacher_comes_from_the_hub_without_pickled_weights(hub, teacher_folder):
    located = locate_teacher("me/bert")
    assert located.name == "me/bert"
    assert {path.name for path in located.folder.iterdir()} == set(contents(teacher_folder))


def test_a_teacher_that_was_fetched_once_is_found_without_a_network(hub, monkeypatch):
    fetched = locate_teacher("me/bert")
    disconnect(monkeypatch)
    assert locate_teacher("me/bert") == fetched


def test_a_teacher_that_nobody_has_is_one_line_with_the_way_out(hub):
    with pytest.raises(UserError, match=r"neither a folder nor in the cache.*--teacher DIR") as error:
        locate_teacher("me/other")
    assert "\n" not in str(error.value)
    assert not Path(constants.HF_HUB_CACHE).exists()


def test_a_download_that_breaks_off_is_one_line(hub, monkeypatch):
    def snapshot_download(repo, *, local_files_only=False, **options):
        raise LocalEntryNotFoundError("none") if local_files_only else RuntimeError("peer closed connection\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=r"^teacher 'me/bert' .*\(peer closed connection\)"):
        locate_teacher("me/bert")


def test_without_its_wheel_the_default_teacher_comes_from_the_hub_and_no_other_steps_in(
    hub, monkeypatch, teacher_folder
):
    monkeypatch.setattr("sentence_distill.pipeline.load.packaged_teacher", lambda: None)
    with pytest.raises(UserError, match=r"all-MiniLM-L6-v2' .*--teacher DIR.*sentence-distill\[offline\]"):
        locate_teacher(None)
    hub.create(DEFAULT_TEACHER)
    hub.files(DEFAULT_TEACHER).update(contents(teacher_folder))
    assert locate_teacher(None).name == DEFAULT_TEACHER


def test_a_transformer_in_a_folder_of_its_own_is_found_in_the_cache(hub, monkeypatch, teacher_folder):
    modules = [{"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"}]
    hub.create("me/old")
    hub.files("me/old")["modules.json"] = json.dumps(modules).encode()
    hub.files("me/old").update({f"0_Transformer/{name}": file for name, file in contents(teacher_folder).items()})
    fetched = locate_teacher("me/old")
    assert len(fetched.weights_hashes()) == 1
    disconnect(monkeypatch)
    assert locate_teacher("me/old") == fetched
