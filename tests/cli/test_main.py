import io
import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from sentence_distill.cli.embed import next_command


@pytest.mark.parametrize("moment", ["import", "version"])
def test_a_package_that_is_missing_is_named_in_one_line(sd, corpus_file, tmp_path, monkeypatch, capsys, moment):
    from sentence_distill.data import sentences

    def not_found(name):
        raise PackageNotFoundError(name)

    if moment == "import":
        monkeypatch.setitem(sys.modules, "zstandard", None)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"The cat saw a dog.\n")))
    else:
        monkeypatch.setattr(sentences, "version", not_found)
    corpus = "-" if moment == "import" else corpus_file
    assert sd("embed", "--corpus", corpus, "--plan-only", "--out", tmp_path / "out") == 1
    package = "zstandard" if moment == "import" else "sentencex"
    assert capsys.readouterr().err.splitlines() == [
        f"error: the package {package} is not installed here; install it: pip install {package}"
    ]


def test_commands_that_are_to_be_run_next_can_be_pasted_whatever_the_path(sd, tmp_path, capsys):
    text = tmp_path / "a text.txt"
    assert sd("sample", "--out", text) == 0
    assert f"next: sd embed --corpus '{text}'\n" in capsys.readouterr().out
    for pooling, command in (
        ("cls", "sd train-student --shards"),
        ("logits", "sd finetune STUDENT --task NAME --logits"),
    ):
        assert next_command("my shards", SimpleNamespace(pooling=pooling, separator=None)) == f"{command} 'my shards'"


def test_a_mistake_shows_its_traceback_only_where_that_is_asked_for(sd, capsys, monkeypatch):
    assert sd("train-student", "--shards", "no-such") == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    monkeypatch.setenv("SD_DEBUG", "1")
    assert sd("train-student", "--shards", "no-such") == 1
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback")
    assert last.startswith("error: ")
