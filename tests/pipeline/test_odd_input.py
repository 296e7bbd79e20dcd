"""Corpora as they come: each ends in rows and counted rejections, or in one line of error."""

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.sentences import SentenceRules
from sentence_distill.pipeline.manifest import load_manifest, verify_folder
from sentence_distill.pipeline.plan import text_fingerprint
from tests.conftest import run_sd

SENTENCE = "The red cat ran over the old bridge."


@pytest.mark.parametrize(
    ("content", "rows", "rejected"),
    [
        (SENTENCE.encode(), 1, {}),
        (SENTENCE.encode() + b"\r\n" + b"The blue dog ran home again.\r\n", 2, {}),
        (b"\xef\xbb\xbf" + SENTENCE.encode() + b"\n", 1, {}),
        (b"\xff\xff broken bytes here\n" + SENTENCE.encode() + b"\n", 1, {"not UTF-8": 1}),
        (b"The red\0cat ran over\0the old bridge.\n", 1, {}),
        (b"\0\0\0\n" + SENTENCE.encode() + b"\n", 1, {"empty": 1}),
        (b"x" * 100_000_000 + b"\n" + SENTENCE.encode() + b"\n", 1, {"line over 33,554,432 characters": 1}),
        ((SENTENCE.encode() + b"\n") * 50, 1, {}),
    ],
    ids=["no line end", "CRLF", "BOM", "not UTF-8", "NUL", "only NULs", "100 MB line", "only duplicates"],
)
def test_odd_input_is_embedded_or_counted(teacher_folder, tmp_path, content, rows, rejected):
    (tmp_path / "corpus.txt").write_bytes(content)
    out = tmp_path / "out"
    assert run_sd("embed", "--corpus", tmp_path / "corpus.txt", "--teacher", teacher_folder, "--out", out) == 0
    totals = load_manifest(out).totals
    assert (totals.rows, totals.rejected) == (rows, rejected)
    assert totals.sentences == totals.rows + totals.duplicates + sum(rejected.values())
    assert verify_folder(out, lambda n: None) == []
    listed = [json.loads(line)["reason"] for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert listed == list(rejected)


def unreadable(path: Path) -> None:
    path.write_text(SENTENCE)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b""), "no text found"),
        (lambda path: path.write_bytes(b"\n \n\t\n"), "no text found"),
        (
            lambda path: path.write_bytes(b"Too short.\n" * 3),
            "of 3 records and sentences, 3 are rejected as 'too few words'",
        ),
        (
            lambda path: path.write_text(SENTENCE, encoding="utf-16"),
            "corpus is UTF-16, not UTF-8; convert it first: iconv",
        ),
        (lambda path: path.mkdir(), "does not exist, or holds no file"),
        (lambda path: None, "does not exist, or holds no file"),
        (lambda path: path.write_bytes(gzip.compress(SENTENCE.encode() * 99)[:-20]), "can't be read to its end"),
        (unreadable, "can't be opened"),
        (lambda path: path.symlink_to(path), "does not exist, or holds no file"),
    ],
    ids=[
        "empty file",
        "blank lines",
        "short",
        "UTF-16",
        "empty folder",
        "not there",
        "cut short",
        "unreadable",
        "link to itself",
    ],
)
def test_a_corpus_that_can_not_be_used_is_one_line_of_error(teacher_folder, tmp_path, make, message, capsys):
    path = tmp_path / "corpus"
    make(path)
    assert run_sd("embed", "--corpus", path, "--teacher", teacher_folder, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_a_file_s_name_that_is_not_utf8_is_an_error_before_anything_else(tmp_path, capsys):
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text(SENTENCE)
    assert run_sd("embed", "--corpus", tmp_path, "--teacher", "no-such", "--out", tmp_path / "out") == 1
    message = r"the file name 'caf\udce9.txt' in the corpus is not UTF-8; rename it"
    assert capsys.readouterr().err == f"error: {message}\n"
    with pytest.raises(UserError, match="is not UTF-8; rename it"):
        text_fingerprint(Corpus.open([str(tmp_path)]), SentenceRules(), shard_rows=100)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.sampled_from(["text", "wikiextractor", "jsonl"]))
def test_any_bytes_are_read_to_records_from_any_of_which_reading_goes_on(tmp_path, content, kind):
    path = tmp_path / "fuzz"
    path.write_bytes(content)
    try:
        corpus = Corpus.open([str(path)], format=kind)
        records = list(corpus.records())
    except UserError:  # a file that begins as a compressed one, or whose first object has no text
        return
    for number, record in enumerate(records):
        assert (record.text is None) == bool(record.reason)
        if kind == "text":
            assert list(corpus.records(record.position)) == records[number:]
