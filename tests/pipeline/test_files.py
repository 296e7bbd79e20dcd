import os
import stat

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from upath import UPath

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.files import system_errors, write_atomically


def test_a_pipe_or_device_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, b"figures")
    assert os.read(reader, 100) == b"figures"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_link_stays_and_the_file_that_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "there.json").write_bytes(b"old")
    for name in ("there.json", "new.json"):
        link = tmp_path / f"link-to-{name}"
        link.symlink_to(f"far/{name}")
        write_atomically(link, b"figures")
        assert link.is_symlink()
        assert (tmp_path / "far" / name).read_bytes() == b"figures"
    assert len(list((tmp_path / "far").iterdir())) == 2


def test_what_a_library_in_rust_raises_for_the_system_is_an_error_of_the_system(tmp_path):
    file = tmp_path / "missing" / "file"
    for write in (Tokenizer(models.WordPiece()).save, lambda path: save_file({"weight": torch.ones(1)}, path)):
        with pytest.raises(FileNotFoundError) as raised, system_errors(tmp_path):
            write(str(file))
        assert raised.value.filename == str(tmp_path)
    with pytest.raises(ZeroDivisionError), system_errors(tmp_path):
        raise ZeroDivisionError


def test_a_store_that_takes_no_file_is_an_error_with_its_reason_in_one_line(monkeypatch):
    class OfAStore(Exception):
        pass

    def fail(*_, **__):
        raise OfAStore("Access Denied\nRequest 7")

    path = UPath("memory://shards/manifest.json")
    monkeypatch.setattr(type(path.fs), "put_file", fail)
    with pytest.raises(UserError, match=r"shards/manifest\.json can't be written: Access Denied Request 7; check"):
        write_atomically(path, b"figures")
