import io
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.pipeline import embed
from sentence_distill.pipeline.embed import copy_hub_dataset, copy_stream
from tests.conftest import wait_for


def texts(path, **options):
    return [record.text for record in Corpus.open([str(path)], **options).records()]


def test_standard_input_is_kept_so_that_it_can_be_read_again(tmp_path):
    path = copy_stream(io.BytesIO(b"A line from a pipe.\n"), tmp_path)
    assert texts(path) == texts(path) == ["A line from a pipe.\n"]


def test_a_hub_dataset_is_streamed_once_and_kept(tmp_path, monkeypatch):
    import datasets

    source = tmp_path / "rows.jsonl"
    lines = ['{"body": "A line of the hub.", "more": "One.", "id": 1}', '{"body": "Größer.", "more": "Two.", "id": 2}']
    source.write_text("\n".join(lines), encoding="utf-8")
    real = datasets.load_dataset

    def load_dataset(name, config, *, split, streaming):
        assert (name, config, split, streaming) == ("some/corpus", "en", "train", True)
        return real("json", data_files=str(source), split=split, streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(embed, "ask_hub", lambda question: None)
    path = copy_hub_dataset("some/corpus:en", "body", tmp_path / "copy")
    assert texts(path, text_column="body") == ["A line of the hub.", "Größer."]
    pairs = copy_hub_dataset("some/corpus:en", "body,more", tmp_path / "copy")
    assert texts(pairs, text_column="body,more") == ["A line of the hub.\tOne.", "Größer.\tTwo."]
    with pytest.raises(UserError, match=r"no column 'none', only body, more, id"):
        copy_hub_dataset("some/corpus:en", "body,none", tmp_path / "copy")
    again = pytest.fail
    monkeypatch.setattr(embed, "ask_hub", lambda question: again("the hub was asked again"))
    assert copy_hub_dataset("some/corpus:en", "body", tmp_path / "copy") == path
    monkeypatch.undo()


def test_a_hub_dataset_that_can_not_be_had_is_an_error_at_once(tmp_path):
    with pytest.raises(UserError, match=r"some/corpus.*HF_HUB_OFFLINE.*--corpus wiki\.txt"):
        copy_hub_dataset("some/corpus", "text", tmp_path)


@pytest.fixture
def hub_rows(monkeypatch):
    """Let a function be the hub's stream of rows."""
    return lambda rows: monkeypatch.setattr(embed, "_hub_rows", lambda name, fields: rows())


def test_of_two_jobs_one_copies_and_the_other_waits_for_it(tmp_path, hub_rows):
    asked, begun, go_on = [], [], threading.Event()

    def rows():
        asked.append(1)

        def stream():
            begun.append(1)
            go_on.wait()
            yield {"text": "A line of the hub."}

        return stream()

    hub_rows(rows)
    with ThreadPoolExecutor() as jobs:
        first = jobs.submit(copy_hub_dataset, "some/corpus", "text", tmp_path)
        wait_for(lambda: begun)
        second = jobs.submit(copy_hub_dataset, "some/corpus", "text", tmp_path)
        wait_for(lambda: len(asked) == 2)
        go_on.set()
        assert first.result() == second.result()
    assert begun == [1]
    assert texts(first.result()) == ["A line of the hub."]
    assert list(tmp_path.iterdir()) == [first.result()]


def test_a_stream_of_the_hub_that_breaks_off_is_one_line_and_leaves_no_copy(tmp_path, hub_rows):
    def rows():
        yield {"text": "A line of the hub."}
        raise RuntimeError("503 Server Error\nfor url: x")

    hub_rows(rows)
    with pytest.raises(UserError, match=r"^dataset 'some/corpus' can't be read: 503 Server Error for url: x; .*$"):
        copy_hub_dataset("some/corpus", "text", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Dataset scripts are no longer supported, but found corpus.py"),
        ValueError("Config name is missing.\nPlease pick one among the available configs: ['de', 'en']"),
    ],
    ids=["script", "configurations"],
)
def test_all_of_the_hub_s_refusal_is_said_in_one_line(tmp_path, monkeypatch, error):
    import datasets

    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(embed, "ask_hub", lambda question: None)
    with pytest.raises(UserError) as raised:
        copy_hub_dataset("some/corpus", "text", tmp_path)
    assert " ".join(str(error).split()) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_a_job_that_died_had_copied_is_removed(tmp_path):
    (tmp_path / "stdin.zst.1-abcd.incomplete").write_bytes(b"a part")
    path = copy_stream(io.BytesIO(b"A line from a pipe.\n"), tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_signal_while_standard_input_is_copied_leaves_nothing_of_it(teacher_folder, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "sentence_distill.cli", "embed", "--corpus", "-", "--teacher", teacher_folder]
    process = subprocess.Popen([*command, "--out", out], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: list(out.glob("corpus/stdin*")))
    process.send_signal(signal.SIGTERM)
    # The pipe stays open: what ends the process is the signal.
    said = process.stderr.read().decode()
    process.communicate()
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("error: stopped before the corpus was copied")
    assert not out.exists() or list(out.iterdir()) == []
